"""A run that ends before its last step: at its target, or when a callback says so, on the same step for any W."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import samestep
from samestep import Target
from samestep.engine.loop import EvaluationRecord
from samestep.run.record import Record
from tests import helpers

pytestmark = pytest.mark.processes

STEPS = 60
SETTINGS: dict[str, Any] = {
    "global_batch": 16,
    "microbatch": 4,
    "steps": STEPS,
    "evaluate_every": 4,
    "optimizer": "adam",
    "lr": 0.02,
}
WORKERS = (1, 3)


def work(target: Target | None = None) -> samestep.Workload:
    return replace(helpers.workload(evaluation=helpers.samples()), target=target)


def alike(records: list[Record]) -> Record:
    first, *others = records
    for other in others:
        assert other.weights_sha256 == first.weights_sha256
        assert [step.loss for step in other.steps] == [step.loss for step in first.steps]
        assert [each.means for each in other.evaluations] == [each.means for each in first.evaluations]
        assert other.end == first.end
    return first


def test_it_ends_at_the_first_evaluation_that_reaches_the_target() -> None:
    whole = samestep.train(work(), **SETTINGS).record
    losses = [each.means["loss"] for each in whole.evaluations]
    assert losses[0] > losses[4], "the oracle itself: the target is not reached at once"
    goal = losses[4]
    reached = next(each.step for each in whole.evaluations if each.means["loss"] <= goal)
    target = Target(metric="loss", value=goal, mode="min")
    record = alike([samestep.train(work(target), **SETTINGS, workers=workers).record for workers in WORKERS])
    assert (record.end, record.num_steps, len(record.steps)) == ("stopped", reached, reached)
    assert [each.step for each in record.evaluations] == list(range(4, reached + 1, 4))
    assert reached < STEPS


def test_it_ends_when_a_callback_says_so_and_each_hears_of_all() -> None:
    heard: list[int] = []

    def stop_at_12(record: EvaluationRecord) -> bool:
        heard.append(record.step)
        return record.step == 12

    def hears(record: EvaluationRecord) -> bool:
        heard.append(-record.step)
        return False

    records = []
    for workers in WORKERS:
        heard.clear()
        records.append(samestep.train(work(), **SETTINGS, workers=workers, callbacks=(stop_at_12, hears)).record)
        assert heard == [4, -4, 8, -8, 12, -12]
    record = alike(records)
    assert (record.end, len(record.steps)) == ("stopped", 12)
