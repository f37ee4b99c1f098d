"""What an evaluation leads to: the best state so far, and whether the target is reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from samestep.engine.job import BEST_STEP, BEST_VALUE, EVALUATED_STEP, HAS_STOPPED, Judgement
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

    def as_dict(self) -> dict[str, Any]:
        """As plain values, which a checkpoint keeps."""
        target = None if self.target is None else [self.target.metric, self.target.mode, float(self.target.value)]
        return {"metric": self.metric, "mode": self.mode, "target": target}

    def taken_up(
        self, decided: Sequence[float], judged: Mapping[str, Any], last: Mapping[str, float] | None
    ) -> tuple[float, ...]:
        """Numbers of a run that was judged in another way: its best value is no value of this metric, and it goes on
        where it had ended at another target.

        Args:
            decided: The numbers.
            judged: How they came about: what `as_dict` said then.
            last: What the last evaluation found.
        """
        found, target = list(decided), self.target
        if (judged["metric"], judged["mode"]) != (self.metric, self.mode):
            for number in (BEST_VALUE, BEST_STEP, HAS_STOPPED, EVALUATED_STEP):  # so it is evaluated again
                found[number] = 0.0
        elif judged["target"] != self.as_dict()["target"]:
            found[HAS_STOPPED] = float(target is not None and last is not None and is_reached(target, last))
        return tuple(found)

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
