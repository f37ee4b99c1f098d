"""The rule of a sweep's target, fixed before the run: which metric, how it is compared, and with what."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from samestep.engine.losses import as_sums
from samestep.errors import UsageError
from samestep.run.workload import Metric, Target

_FORM = re.compile(r"\s*(?:val_)?([A-Za-z][A-Za-z0-9_.-]*)\s*(<=|>=)\s*(\S+)\s*")
_LOWER_IS_BETTER = ("loss", "error", "mae", "mse", "rmse")
_HIGHER_IS_BETTER = ("accuracy", "f1", "auc", "precision", "recall", "r2")
ERROR = "error"
"""The share of wrong answers, 1 - accuracy: known for every workload that has an accuracy."""


def parse_goal(text: str) -> Target:
    """A target from ``metric<=value`` or ``metric>=value``.

    The metric is always read on held-out samples; ``val_`` before its name says so, and may be left out.

    Raises:
        UsageError: It has another form, or asks for a loss or an error of at least something, or for an accuracy of
            at most something.

    Example:
        >>> parse_goal("val_error<=0.10")
        Target(metric='error', value=0.1, mode='min')
        >>> parse_goal("accuracy >= 0.9").mode
        'max'
    """
    found = _FORM.fullmatch(text)
    try:
        value = float(found[3]) if found else math.nan
    except ValueError:
        value = math.nan
    if found is None or not math.isfinite(value):
        raise UsageError(
            f"target {text!r} is not metric<=value or metric>=value; write val_error<=0.10 or val_accuracy>=0.9"
        )
    metric, comparison = found[1], found[2]
    if metric in _LOWER_IS_BETTER and comparison == ">=":
        raise UsageError(f"target {text!r} asks for a {metric} of at least {value:g}; write {metric}<={value:g}")
    if metric in _HIGHER_IS_BETTER and comparison == "<=":
        raise UsageError(f"target {text!r} asks for a {metric} of at most {value:g}; write {metric}>={value:g}")
    return Target(metric=metric, value=value, mode="min" if comparison == "<=" else "max")


def goal_text(target: Target) -> str:
    """A target as a person reads it.

    >>> goal_text(Target(metric="error", value=0.1, mode="min"))
    'error <= 0.1'
    """
    return f"{target.metric} {'<=' if target.mode == 'min' else '>='} {target.value!r}"


def is_better(target: Target, value: float, other: float) -> bool:
    """Whether a value of the target's metric is nearer to the goal than another; NaN never is.

    >>> is_better(Target(metric="error", value=0.1, mode="min"), 0.2, 0.3)
    True
    """
    if math.isnan(value) or math.isnan(other):
        return not math.isnan(value)
    return value < other if target.mode == "min" else value > other


@dataclass(frozen=True)
class Wrong:
    """The share of wrong answers, from an accuracy."""

    accuracy: Metric

    def __call__(self, output: Any, target: Any) -> tuple[float, float]:
        right, weight = as_sums(self.accuracy(output, target), len(target))
        return weight - right, weight


def metrics_for(target: Target, metrics: Mapping[str, Callable[..., Any]], name: str) -> dict[str, Metric]:
    """The metrics that a run of a sweep needs: the workload's own, and the error where it is asked for.

    Args:
        target: The goal.
        metrics: The workload's.
        name: Of the workload, for the message.

    Raises:
        UsageError: The target names a metric that the workload does not have.
    """
    known = dict(metrics)
    if ERROR not in known and "accuracy" in known:
        known[ERROR] = Wrong(known["accuracy"])
    if target.metric != "loss" and target.metric not in known:
        raise UsageError(
            f"the target names the metric {target.metric!r}, and {name} has {', '.join(['loss', *known])}; "
            "name one of these"
        )
    return known
