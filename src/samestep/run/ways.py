"""Which ways of carrying a run out go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samestep.errors import UsageError
from samestep.plan.schedules import check_chunks

if TYPE_CHECKING:
    from samestep.run.config import Config


def check(config: Config) -> None:
    """Refuse what does not go together.

    Raises:
        UsageError: What, and the way out.
    """
    if config.stages > 1 and config.backprop == "concurrent":
        raise UsageError(
            f"stages={config.stages} and backprop='concurrent' do not go together: a stage's weight gradients are "
            "computed in its own turn; take one of them"
        )
    if config.cut is not None and not all(name.strip() for name in config.cut.split(",")):
        raise UsageError(
            f"cut={config.cut!r} has an empty name; name what the second and every later piece begins with, parted by "
            "commas, or leave it out"
        )
    if config.cut is not None and config.stages == 1:
        raise UsageError(f"cut={config.cut!r} says where stages begin, and there is one; take stages=2 or more")
    if not 0 < config.deadline_s < float("inf"):
        raise UsageError(f"deadline_s={config.deadline_s:g} is not a finite number above 0")
    if config.machines != 1 and (config.engine != "group" or not 1 <= config.machines <= config.workers):
        raise UsageError(
            f"machines={config.machines} with engine={config.engine!r} and workers={config.workers}: from 1 to as many "
            "as there are workers, and of engine='group' alone"
        )
    if config.engine == "group" and config.stages > 1:
        raise UsageError(f"stages={config.stages} work in shared memory so far; take engine='shared', or stages=1")
    if config.stages > 1 or config.chunks > 1:
        check_chunks(config.schedule, config.chunks)
    if config.device == "cuda":
        _check_gpu(config, "device='cuda'")
    if config.compile != "off":
        _check_whole(config, f"compile={config.compile!r}")


def check_cpu(config: Config, what: str) -> None:
    """Refuse what is measured, or compared, on CPUs so far.

    Raises:
        UsageError: Another device was asked for.
    """
    if config.device != "cpu":
        raise UsageError(f"device={config.device!r} and {what} do not go together: it runs on CPUs; take device='cpu'")


def _check_gpu(config: Config, what: str) -> None:
    if config.workers > 1 and config.engine == "shared":
        raise UsageError(
            f"{what} and workers={config.workers}: workers that share memory compute on CPUs; take workers=1 for one "
            "GPU, or engine='group' for a worker on each of several"
        )
    _check_whole(config, what)


def _check_whole(config: Config, what: str) -> None:
    """What needs the model in one piece, as torch runs it."""
    for name, value, plain in (
        ("stages", config.stages, 1),
        ("backprop", config.backprop, "ordinary"),
        ("sync", config.sync, "step"),
    ):
        if value != plain:
            raise UsageError(f"{what} and {name}={value!r} do not go together; take {name}={plain!r}")
    if config.optimizer == "kfac":
        raise UsageError(f"{what} and optimizer='kfac' do not go together: it differentiates forward, layer by layer")
