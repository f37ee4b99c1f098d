"""Targets: the rule is read as it is written, and what it cannot mean is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samestep.errors import UsageError
from samestep.measure.sweep.target import goal_text, is_better, metrics_for, parse_goal
from samestep.run.evaluate import is_reached
from samestep.run.metrics import accuracy
from samestep.run.workload import Target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("val_error<=0.10", Target(metric="error", value=0.1, mode="min")),
        (" error <= 1e-1 ", Target(metric="error", value=0.1, mode="min")),
        ("val_accuracy>=0.9", Target(metric="accuracy", value=0.9, mode="max")),
        ("loss<=0.123456789", Target(metric="loss", value=0.123456789, mode="min")),
        ("top5>=0.99", Target(metric="top5", value=0.99, mode="max")),
    ],
)
def test_a_goal_is_what_it_says(text: str, expected: Target) -> None:
    assert parse_goal(text) == expected
    assert parse_goal(goal_text(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", "error", "error<0.1", "error=0.1", "error<=", "error<=many", "error<=nan", "error<=inf", "<=0.1"]
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not metric<=value or metric>=value"):
        parse_goal(text)


def test_a_loss_of_at_least_something_is_refused() -> None:
    with pytest.raises(UsageError, match=r"asks for a loss of at least 0.3; write loss<=0.3"):
        parse_goal("val_loss>=0.3")


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_an_accuracy_of_at_most_something_is_refused(metric: str) -> None:
    with pytest.raises(UsageError, match=rf"asks for a {metric} of at most 0.5; write {metric}>=0.5"):
        parse_goal(f"val_{metric}<=0.5")


def test_the_error_comes_from_the_accuracy() -> None:
    goal = parse_goal("val_error<=0.25")
    found = metrics_for(goal, {"accuracy": accuracy}, "net")
    scores, labels = torch.tensor([[0.0, 1.0]]).repeat(4, 1), torch.tensor([1, 1, 1, 0])
    assert found["error"](scores, labels) == (1.0, 4.0)
    assert is_reached(goal, {"error": 1.0 / 4.0})


def test_the_error_of_a_metric_by_sample() -> None:
    hits: Any = lambda output, target: (output.argmax(1) == target).float()  # noqa: E731
    found = metrics_for(parse_goal("error<=0.1"), {"accuracy": hits}, "net")
    assert found["error"](torch.eye(2), torch.tensor([0, 0])) == (1.0, 2.0)


def test_a_metric_of_its_own_called_error_stays() -> None:
    own = {"accuracy": accuracy, "error": accuracy}
    assert metrics_for(parse_goal("error<=0.1"), own, "net") == own


def test_a_metric_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="the target names the metric 'f1', and net has loss, accuracy, error"):
        metrics_for(parse_goal("f1>=0.5"), {"accuracy": accuracy}, "net")
    with pytest.raises(UsageError, match="names the metric 'error', and net has loss;"):
        metrics_for(parse_goal("error<=0.5"), {}, "net")


def test_nan_is_never_better() -> None:
    for mode in ("min", "max"):
        goal = Target(metric="m", value=0.1, mode=mode)
        assert not is_better(goal, float("nan"), 0.5)
        assert is_better(goal, 0.5, float("nan"))
        assert not is_better(goal, float("nan"), float("nan"))
        assert not is_better(goal, 0.5, 0.5)
