"""What an evaluation leads to: the best state so far, and whether the target is reached."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from samestep.engine.job import BEST_STEP, BEST_VALUE, Judgement
from samestep.errors import UsageError
from samestep.run.workload import Target


@dataclass(frozen=True, kw_only=True)
class BestAndTarget:
    """Keeps the best value of one metric, and stops at the target.

    Args:
        metric: "loss" or a metric's name; the best state is the best in this.
        mode: Whether larger ("max") or smaller ("min") is better.
        target: Where to stop; None: never.
    """

    metric: str
    mode: Literal["max", "min"]
    target: Target | None = None

    def judge(self, step: int, means: Mapping[str, float], decided: tuple[float, ...]) -> Judgement:
        value = means[self.metric]
        is_first = decided[BEST_STEP] == 0
        is_best = not math.isnan(value) and (is_first or self._is_better(value, decided[BEST_VALUE]))
        if is_best:
            decided = (value, float(step), *decided[BEST_STEP + 1 :])
        return Judgement(decided, is_best, self.target is not None and is_reached(self.target, means))

    def _is_better(self, value: float, best: float) -> bool:
        return value > best if self.mode == "max" else value < best


def is_reached(target: Target, means: Mapping[str, float]) -> bool:
    """Whether an evaluation meets a target.

    >>> is_reached(Target(metric="accuracy", value=0.9), {"accuracy": 0.91})
    True
    """
    value = means[target.metric]
    return value >= target.value if target.mode == "max" else value <= target.value


def parse_target(text: str) -> Target:
    """A target from ``metric=value``; a loss or error is to be at most that, everything else at least.

    >>> parse_target("loss=0.3")
    Target(metric='loss', value=0.3, mode='min')
    """
    metric, _, value = text.partition("=")
    try:
        goal = float(value)
    except ValueError:
        raise UsageError(f"until {text!r} is not metric=value; write accuracy=0.95 or loss=0.3") from None
    return Target(metric=metric, value=goal, mode="min" if metric in ("loss", "error", "mae") else "max")


def judge_for(metrics: tuple[str, ...], target: Target | None) -> BestAndTarget:
    """The judge of a workload: by the target's metric, else by accuracy where there is one, else by the loss."""
    known = ("loss", *metrics)
    if target is not None:
        if target.metric not in known:
            raise UsageError(f"the target names the metric {target.metric!r}; the workload has {', '.join(known)}")
        return BestAndTarget(metric=target.metric, mode=target.mode, target=target)
    if "accuracy" in metrics:
        return BestAndTarget(metric="accuracy", mode="max")
    return BestAndTarget(metric="loss", mode="min")
