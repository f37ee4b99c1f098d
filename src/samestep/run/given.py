"""What a caller gives: keyword arguments, as settings and as what only Python can give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from samestep.errors import UsageError
from samestep.optim.build import ParameterGroups
from samestep.optim.schedules import Schedule
from samestep.run.config import Settings
from samestep.run.prepare import Choices


def given(
    values: dict[str, Any],
    optimizer: str | Callable[..., Optimizer] | None,
    lr_schedule: str | Schedule | None,
    parameter_groups: ParameterGroups | None,
) -> tuple[Settings, Choices]:
    """Keyword arguments, as what the command line could have given too, and what only Python can give."""
    choices = Choices(
        optimizer=None if isinstance(optimizer, str) else optimizer,
        lr_schedule=None if isinstance(lr_schedule, str) else lr_schedule,
        parameter_groups=parameter_groups,
    )
    names = {"optimizer": optimizer, "lr_schedule": lr_schedule}
    return make_settings({**values, **{key: text for key, text in names.items() if isinstance(text, str)}}), choices


def make_settings(values: dict[str, Any]) -> Settings:
    """Settings from keyword arguments; unknown ones become one clear line."""
    if "batch_size" in values:
        raise UsageError(
            "batch_size is not a word of ours, since with several workers it could mean two things: say global_batch "
            "(samples per optimiser step, over all workers), or microbatch (samples in one forward and backward)"
        )
    if "parallel" in values:
        raise UsageError("parallel goes with samestep.train and samestep train; here, name workers and backprop")
    known = Settings.__dataclass_fields__
    for name in values:
        if name not in known:
            raise UsageError(f"{name!r} is not a setting; known: {', '.join(sorted(known))}")
    for name in ("checkpoint", "weights", "out", "profile"):
        if values.get(name) is not None:
            values[name] = Path(values[name])
    return Settings(**values)
