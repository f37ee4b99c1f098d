"""Evaluation: means over all samples, the best state, the target, and callbacks that stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import samestep
from samestep.engine.job import BEST_STEP, BEST_VALUE, NUM_DECIDED
from samestep.errors import UsageError
from samestep.run.evaluate import BestAndTarget, is_reached, judge_for
from samestep.run.metrics import accuracy
from samestep.run.session import Result
from samestep.run.train import train
from samestep.run.weights import digest
from samestep.run.workload import Target, Workload
from tests import helpers
from tests.helpers import Cnn, Mlp

BASE: dict[str, Any] = {"workers": 1, "global_batch": 32, "microbatch": 8, "lr": 0.1, "optimizer": "sgd"}
NONE_YET = (0.0,) * NUM_DECIDED


@pytest.mark.parametrize(("mode", "best"), [("max", [True, False, True, False]), ("min", [True, True, False, False])])
def test_the_best_is_the_first_of_its_value(mode: Literal["max", "min"], best: list[bool]) -> None:
    judge, decided, found = BestAndTarget(metric="loss", mode=mode), NONE_YET, []
    for step, value in enumerate([0.5, 0.4, 0.6, 0.6], start=1):
        judgement = judge.judge(step, {"loss": value}, decided)
        decided = judgement.decided
        found.append(judgement.is_best)
        assert not judgement.stops
    assert found == best
    assert (decided[BEST_VALUE], decided[BEST_STEP]) == ((0.6, 3.0) if mode == "max" else (0.4, 2.0))


def test_a_nan_is_never_the_best() -> None:
    judge = BestAndTarget(metric="loss", mode="min")
    first = judge.judge(1, {"loss": float("nan")}, NONE_YET)
    assert not first.is_best
    assert judge.judge(2, {"loss": 3.0}, first.decided).is_best


@pytest.mark.parametrize(("mode", "value", "wanted"), [("max", 0.9, True), ("max", 0.91, False), ("min", 0.9, True)])
def test_a_target_is_reached_at_its_value(mode: Literal["max", "min"], value: float, wanted: bool) -> None:
    assert is_reached(Target(metric="loss", value=value, mode=mode), {"loss": 0.9}) is wanted
    assert not is_reached(Target(metric="loss", value=0.5, mode=mode), {"loss": float("nan")})


@pytest.mark.parametrize(
    ("before", "now", "decided"),
    [
        (Target(metric="loss", value=0.5), Target(metric="loss", value=0.5), (0.4, 3.0, 1.0, 3.0)),
        (
            Target(metric="loss", value=0.5, mode="min"),
            Target(metric="loss", value=0.1, mode="min"),
            (0.4, 3.0, 0.0, 3.0),
        ),
        (
            Target(metric="loss", value=0.5, mode="min"),
            Target(metric="loss", value=0.45, mode="min"),
            (0.4, 3.0, 1.0, 3.0),
        ),
        (Target(metric="loss", value=0.5, mode="min"), Target(metric="accuracy", value=0.9), NONE_YET[:4]),
        (Target(metric="loss", value=0.5, mode="min"), None, NONE_YET[:4]),
    ],
)
def test_another_target_judges_anew(before: Target, now: Target | None, decided: tuple[float, ...]) -> None:
    """Of a run that ended at step 3 with a loss of 0.4 and an accuracy of 0.8; without a target accuracy counts."""
    judged = judge_for(("accuracy",), before).as_dict()
    found = judge_for(("accuracy",), now).taken_up((0.4, 3.0, 1.0, 3.0), judged, {"loss": 0.4, "accuracy": 0.8})
    assert found == decided


def test_a_run_that_ended_at_its_target_goes_on_to_another(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"workers": 1, "checkpoint": tmp_path, "global_batch": 16, "evaluate_every": 2}
    settings |= {"optimizer": "adam", "lr": 0.02, "steps": 12}
    work = helpers.workload(evaluation=helpers.samples())
    first = samestep.train(work, until="loss=100", **settings)
    assert (first.record.end, first.record.num_steps) == ("stopped", 2)
    again = samestep.train(work, until="loss=0.000001", resume=True, **settings)
    assert (again.record.end, again.record.num_steps) == ("finished", 12)
    assert "the target is another one: the run goes by it from here on" in again.record.notices
    del settings["checkpoint"]
    assert again.record.weights_sha256 == samestep.train(work, **settings).record.weights_sha256


def test_a_best_state_by_another_metric_is_found_anew(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"workers": 1, "checkpoint": tmp_path, "global_batch": 16, "evaluate_every": 2}
    settings |= {"optimizer": "adam", "lr": 0.02, "steps": 6}
    work = replace(helpers.workload(evaluation=helpers.samples()), metrics={"accuracy": accuracy})
    samestep.train(work, until="accuracy=0", **settings)
    again = samestep.train(work, until="loss=100", resume=True, **settings)
    assert (again.record.end, again.record.num_steps) == ("stopped", 2)
    assert again.best_state is not None
    assert [each.step for each in again.record.evaluations] == [2]


def test_which_metric_judges() -> None:
    assert judge_for(("accuracy",), None) == BestAndTarget(metric="accuracy", mode="max")
    assert judge_for(("error",), None) == BestAndTarget(metric="loss", mode="min")
    target = Target(metric="error", value=0.1, mode="min")
    assert judge_for(("error",), target) == BestAndTarget(metric="error", mode="min", target=target)
    with pytest.raises(UsageError, match="names the metric 'f1'; the workload has loss, accuracy"):
        judge_for(("accuracy",), Target(metric="f1", value=1.0))


def work(**options: Any) -> Workload:
    train_samples = helpers.samples(76)
    return helpers.workload(options.pop("build", Mlp), train=train_samples, evaluation=helpers.samples(23), **options)


def by_hand(model: nn.Module) -> dict[str, float]:
    data = helpers.samples(23)
    indices = torch.arange(23)
    model.eval()
    with torch.no_grad():
        output, target = model(data.inputs[0].gather(indices)), data.target.gather(indices)
    model.train()
    loss: Tensor = nn.functional.cross_entropy(output, target)
    right, count = accuracy(output, target)
    return {"loss": float(loss), "accuracy": float(right) / count}


@pytest.mark.parametrize("build", [Mlp, Cnn, lambda: Mlp(0.5)])
def test_means_are_over_all_samples_in_evaluation_mode(build: Any) -> None:
    result = train(work(build=build), steps=5, **BASE)
    means = result.record.evaluations[-1].means
    wanted = by_hand(result.model)
    assert means["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert means["accuracy"] == pytest.approx(wanted["accuracy"], rel=1e-12)


def test_evaluating_does_not_change_the_bits() -> None:
    settings: dict[str, Any] = {**BASE, "steps": 7}
    often = train(work(build=lambda: Mlp(0.5)), **settings, evaluate_every=1)
    never = train(helpers.workload(lambda: Mlp(0.5), train=helpers.samples(76)), **settings)
    assert [e.step for e in often.record.evaluations] == [1, 2, 3, 4, 5, 6, 7]
    assert often.record.weights_sha256 == never.record.weights_sha256
    assert never.best_state is None


def test_an_epoch_lies_between_evaluations_by_default() -> None:
    assert [e.step for e in train(work(), steps=7, **BASE).record.evaluations] == [3, 6, 7]


def test_the_best_state_is_kept() -> None:
    result = train(work(), steps=12, evaluate_every=1, **{**BASE, "lr": 2.0})
    best = max(result.record.evaluations, key=lambda e: (e.means["accuracy"], -e.step))
    assert [e.step for e in result.record.evaluations if e.is_best][-1] == best.step
    assert best.step < 12, "the test needs a best evaluation before the last"
    assert result.best_state is not None
    again = train(work(), steps=best.step, **{**BASE, "lr": 2.0})
    assert digest(result.best_state) == again.record.weights_sha256
    assert digest(result.best_state) != result.record.weights_sha256
    assert digest(result.model) == result.record.weights_sha256


def stopped_at_3(**options: Any) -> Result:
    return train(work(**options.pop("workload", {})), steps=9, evaluate_every=1, **BASE, **options)


@pytest.mark.parametrize("kind", ["callback", "target"])
def test_stopping_ends_at_that_step_with_the_bits_of_a_shorter_run(kind: str) -> None:
    whole = train(work(), steps=9, evaluate_every=1, **BASE)
    if kind == "callback":
        heard: list[int] = []
        result = stopped_at_3(callbacks=[lambda e: heard.append(e.step), lambda e: e.step == 3])
        assert heard == [1, 2, 3]
    else:
        losses = [e.means["loss"] for e in whole.record.evaluations]
        assert losses[2] < min(losses[:2]), "the test needs a falling loss"
        result = stopped_at_3(workload={"target": Target(metric="loss", value=losses[2], mode="min")})
    assert (result.record.end, result.record.num_steps) == ("stopped", 3)
    assert result.record.weights_sha256 == train(work(), steps=3, **BASE).record.weights_sha256
    assert [dict(e.means) for e in result.record.evaluations] == [dict(e.means) for e in whole.record.evaluations[:3]]


def test_a_callback_that_fails_ends_the_run_with_its_exception() -> None:
    def fail(record: Any) -> bool:
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        stopped_at_3(callbacks=[fail])
