"""Learning-rate schedules: functions of progress in samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from samestep.errors import UsageError

Schedule = Callable[[float], float]
"""schedule(progress) -> factor of the learning rate; progress is samples seen over samples in the whole run, 0 .. 1."""


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


def linear(progress: float) -> float:
    """From 1 down to 0."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """From 1 down to 0 along half a cosine (Loshchilov and Hutter, "SGDR", 2017)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


_BY_NAME: dict[str, Schedule] = {"constant": constant, "linear": linear, "cosine": cosine}


def names() -> tuple[str, ...]:
    """What ``--lr-schedule`` takes."""
    return tuple(_BY_NAME)


@dataclass(frozen=True, kw_only=True)
class WarmedUp:
    """A linear rise from near 0 over the first part of the run, then a schedule over the rest.

    Args:
        lr_warmup: Share of the run, 0 .. 1.
        rest: What follows; its progress starts at 0 where the rise ends.

    Example:
        >>> schedule = WarmedUp(lr_warmup=0.5, rest=linear)
        >>> schedule(0.25), schedule(0.75)
        (0.5, 0.5)
    """

    lr_warmup: float
    rest: Schedule

    def __post_init__(self) -> None:
        if not 0 <= self.lr_warmup < 1:
            raise UsageError(f"lr_warmup={self.lr_warmup} is a share of the run: take 0 or more, and less than 1")

    def __call__(self, progress: float) -> float:
        if progress < self.lr_warmup:
            return progress / self.lr_warmup
        return self.rest((progress - self.lr_warmup) / (1.0 - self.lr_warmup))


def by_name(name: str, lr_warmup: float = 0.0) -> Schedule:
    """The schedule for a name, with a rise before it where `lr_warmup` is above 0."""
    if name not in _BY_NAME:
        raise UsageError(f"lr_schedule {name!r} is not known; take one of {', '.join(names())}")
    rest = _BY_NAME[name]
    return WarmedUp(lr_warmup=lr_warmup, rest=rest) if lr_warmup else rest
