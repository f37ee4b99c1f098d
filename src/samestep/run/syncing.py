"""Settings of local steps: their defaults, and what does not go with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from samestep.errors import UsageError
from samestep.plan import local
from samestep.plan.batch import default_microbatch

if TYPE_CHECKING:
    from samestep.run.config import Config

_DEFAULTS: Mapping[str, Any] = {"replicas": 4, "outer_lr": 0.7, "outer_momentum": 0.9, "outer_quantise": "none"}
"""Rate and momentum are those that Douillard et al. (2023) found best."""


def fill(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Fill in what goes with the way in which workers meet.

    Args:
        values: Settings as far as they are resolved; changed.
        given: What a person has set.

    Raises:
        UsageError: Something was set that goes with local steps only.
    """
    if local.parse(values["sync"]) is None:
        for name in _DEFAULTS:
            if given[name] is not None:
                raise UsageError(
                    f"{name}={given[name]!r} goes with sync='local:H', and sync is 'step'; give both, or none"
                )
            values[name] = None
        return
    if values["global_batch"] == "auto":
        raise UsageError(
            f"sync={values['sync']!r} and global_batch='auto' do not go together: no two gradients are taken at the "
            "same weights, so there is no noise scale to grow by; give a number"
        )
    for name, value in _DEFAULTS.items():
        values[name] = value if values[name] is None else values[name]
    if values["replicas"] < 1:
        raise UsageError(f"replicas={values['replicas']} is below 1; take 1 or more")
    if given["noise_scale"] is None:
        values["noise_scale"] = "off"
    if values["microbatch"] is None:
        share = local.most_rows(values["global_batch"], values["replicas"])
        values["microbatch"] = min(default_microbatch(values["global_batch"]), share)


def check(config: Config) -> None:
    """Refuse what does not go with local steps.

    Raises:
        UsageError: The one line says what to leave out.
    """
    if config.replicas is None:
        return
    for name, is_asked, why in (
        ("stages", config.stages > 1, "a replica is on one worker: take stages=1"),
        ("optimizer", config.optimizer == "kfac", "its steps need the whole batch: take another one"),
        ("base_batch", config.base_batch is not None, "lr is that of a replica's own steps: set it, and leave it out"),
        ("averaging", config.averaging is not None, "what replicas share is a mean already: leave it out"),
        ("noise_scale", config.noise_scale != "off", "no two gradients are taken at the same weights: leave it out"),
    ):
        if is_asked:
            raise UsageError(f"sync={config.sync!r} and {name}={getattr(config, name)!r} do not go together; {why}")
    assert config.outer_lr is not None
    assert config.outer_momentum is not None
    if not 0 < config.outer_lr < float("inf"):
        raise UsageError(f"outer_lr={config.outer_lr:g} is not a finite number above 0; the usual one is 0.7")
    if not 0 <= config.outer_momentum < 1:
        raise UsageError(f"outer_momentum={config.outer_momentum:g} is not in 0 .. 1; the usual one is 0.9")


def refuse(config: Config, what: str, why: str) -> None:
    """Refuse to do something with local steps that is for steps in which all workers meet.

    Args:
        config: The run's.
        what: That was asked for.
        why: It makes no sense.

    Raises:
        UsageError: The run has local steps.
    """
    if config.replicas is not None:
        raise UsageError(f"{what} and sync={config.sync!r} do not go together: {why}; leave one of them out")
