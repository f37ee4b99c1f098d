"""Which ways to carry a run out go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samestep.errors import UsageError
from samestep.optim import adascale
from samestep.plan.schedules import check_chunks

if TYPE_CHECKING:
    from samestep.run.config import Config


def check(config: Config) -> None:
    """Refuse what does not go together.

    Raises:
        UsageError: The one line says what to leave out.
    """
    if config.stages > 1 and config.backprop == "concurrent":
        raise UsageError(
            f"stages={config.stages} and backprop='concurrent' do not go together: a stage's weight gradients are "
            "computed in its own turn; take one of them"
        )
    if config.cut is not None and config.stages == 1:
        raise UsageError(f"cut={config.cut!r} says where stages begin, and there is one; take stages=2 or more")
    if not 0 < config.deadline_s < float("inf"):
        raise UsageError(f"deadline_s={config.deadline_s:g} is not a finite number above 0")
    if config.engine == "group" and config.stages > 1:
        raise UsageError(f"stages={config.stages} work in shared memory so far; take engine='shared', or stages=1")
    if config.stages > 1 or config.chunks > 1:
        check_chunks(config.schedule, config.chunks)
    adascale.check(**{name: getattr(config, name) for name in adascale.CHECKED})
