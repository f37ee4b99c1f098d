"""What a record means: the numbers are those of its runs, and what is missing is said."""

from __future__ import annotations

import copy
import math
import statistics
from typing import Any

import pytest

from samestep.errors import UsageError
from samestep.measure.sweep.critical import steps_at
from samestep.measure.sweep.result import CellResult, Curve, Findings, analyse
from tests.report import made


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return made.sweep()


@pytest.fixture(scope="module")
def findings(record: dict[str, Any]) -> Findings:
    return analyse(record)


def curve(found: Findings, optimizer: str) -> Curve:
    return next(each for each in found.curves if each.optimizer == optimizer)


def cell(found: Findings, optimizer: str, batch: int) -> CellResult:
    return next(each for each in curve(found, optimizer).cells if each.batch == batch)


def test_numbers_are_medians_over_the_reported_runs(record: dict[str, Any], findings: Findings) -> None:
    found = cell(findings, "adamw", 256)
    runs = [
        run
        for run in record["runs"]
        if (run["optimizer"], run["batch"], run["stage"]) == ("adamw", 256, "report")
        and run["trial"] == found_trial(record, found)
    ]
    assert len(runs) == len(found.values) == 5
    assert sorted(found.values) == sorted(run["reached_step"] for run in runs)
    assert found.steps is not None and found.samples is not None and found.depth is not None
    assert found.steps.value == sorted(found.values)[2]
    assert found.samples.value == 256 * found.steps.value
    assert found.depth.value == found.steps.value, "one round a step"
    assert found.time_s is not None
    assert found.time_s.value == pytest.approx((0.001 + 1e-5 * 256) * found.steps.value)
    assert found.num_reached == 5


def found_trial(record: dict[str, Any], found: CellResult) -> int:
    (trial,) = {int(run["trial"]) for run in record["runs"] if run["settings"]["lr"] == found.point.lr}
    return trial


def test_the_law_behind_the_record_is_found(findings: Findings) -> None:
    found = curve(findings, "adamw")
    assert found.fit.critical_batch is not None
    assert found.fit.critical_batch.value == pytest.approx(500, rel=0.05)
    assert found.fit.critical_batch.low <= 500 <= found.fit.critical_batch.high
    samples = {batch: batch * steps_at(batch, 20, 500) for batch in (64, 256, 1024)}
    assert samples[256] > 1.25 * samples[64]
    assert found.perfect_until == 64


def test_what_was_not_reached_is_said_with_the_best_value(findings: Findings) -> None:
    missing = cell(findings, "sgd", 64)
    assert (missing.verdict, missing.steps, missing.values) == ("not reached", None, ())
    assert missing.best is not None
    lines = [text for text in findings.shortcomings if text.startswith("sgd at 64:")]
    assert lines[0] == (
        f"sgd at 64: error <= 0.1 was never reached in 400 steps; the best was {missing.best:.4g} (4 trials)"
    )
    assert curve(findings, "sgd").fit.reason == "needs three batches that reach the target, and 2 did"
    assert cell(findings, "sgd", 1024).verdict == "reached"


def test_failures_are_counted_and_the_first_is_told(findings: Findings) -> None:
    found = cell(findings, "adamw", 4096)
    assert found.num_failed == 1
    assert "adamw at 4096: 1 run failed, the first with: diverged: a loss is not finite in step 3" in (
        findings.shortcomings
    )


def test_a_learning_rate_at_the_edge_is_said(record: dict[str, Any], findings: Findings) -> None:
    found = cell(findings, "adamw", 256)
    tried = {
        run["trial"]: run["settings"]["lr"]
        for run in record["runs"]
        if (run["optimizer"], run["batch"]) == ("adamw", 256)
    }
    text = f"adamw at 256: the chosen learning rate {found.point.lr:.3g} is the {{}} of all that were tried"
    chosen, body = found_trial(record, found), copy.deepcopy(record)
    others = [trial for trial in tried if trial != chosen]
    for rates, expected in (((2.0, 3.0, 4.0), "lowest"), ((0.2, 0.3, 0.4), "highest"), ((0.2, 0.3, 4.0), "")):
        new = {
            chosen: tried[chosen],
            **{trial: tried[chosen] * rate for trial, rate in zip(others, rates, strict=True)},
        }
        for run in body["runs"]:
            if (run["optimizer"], run["batch"]) == ("adamw", 256):
                run["settings"]["lr"] = new[run["trial"]]
        again = analyse(body)
        assert cell(again, "adamw", 256).edge == expected
        assert any(line.startswith(text.format(expected)) for line in again.shortcomings) == bool(expected)


def test_predictions_take_the_fastest_batch(findings: Findings) -> None:
    found = curve(findings, "adamw")
    assert found.step_time is not None
    assert found.step_time.fixed_s == pytest.approx(0.001)
    assert found.step_time.sample_s == pytest.approx(1e-5)
    times = [each.time_s for each in found.predictions]
    assert [each.workers for each in found.predictions] == [1, 2, 4, 8]
    assert times == sorted(times, reverse=True)
    for each in found.predictions:
        for one in found.cells:
            assert one.steps is not None
            assert each.time_s <= one.steps.value * found.step_time.on(each.workers, one.batch) + 1e-12
    batches = [each.batch for each in found.predictions]
    assert batches == sorted(batches), "more workers take larger batches"


def only(record: dict[str, Any], num_seeds: int, optimizer: str = "adamw") -> dict[str, Any]:
    """The record of one optimiser with fewer seeds; and under another name."""
    body = copy.deepcopy(record)
    body["study"] |= {"optimizers": [optimizer], "seeds": num_seeds}
    body["runs"] = [{**run, "optimizer": optimizer} for run in body["runs"] if run["optimizer"] == "adamw"]
    fresh = [run["seed"] for run in body["runs"] if run["stage"] != "choose"]
    moved = {**{seed: seed for seed in fresh if seed <= num_seeds}}
    moved |= {6 + number: 1 + num_seeds + number for number in range(num_seeds)}
    kept = [run for run in body["runs"] if run["stage"] == "choose" or run["seed"] in moved]
    body["runs"] = [{**run, "seed": 0 if run["stage"] == "choose" else moved[run["seed"]]} for run in kept]
    return body


def test_the_fixed_part_of_a_step_with_rounds_is_shared_by_workers(record: dict[str, Any]) -> None:
    (plain,), (curved,) = (analyse(only(record, 5, name)).curves for name in ("adamw", "kfac"))
    assert plain.step_time is not None and curved.step_time is not None
    assert (plain.step_time.is_all_divided, curved.step_time.is_all_divided) == (False, True)
    assert curved.predictions[0] == plain.predictions[0]
    assert curved.predictions[1].time_s == pytest.approx(min(
        one.steps.value * (0.001 + 1e-5 * one.batch) / 2 for one in curved.cells if one.steps is not None
    ))  # fmt: skip


@pytest.mark.parametrize(("num_seeds", "is_known"), [(1, False), (2, False), (3, True), (5, True)])
def test_an_interval_takes_three_seeds_and_stays_within_the_budget(
    record: dict[str, Any], num_seeds: int, is_known: bool
) -> None:
    body = only(record, num_seeds)
    for number, run in enumerate(run for run in body["runs"] if run["stage"] == "report"):
        run["reached_step"] = run["steps"] if number % 2 else 1 + number
    (found,) = analyse(body).curves
    reached = [one for one in found.cells if one.steps is not None]
    assert reached
    for one in reached:
        for estimate, factor in ((one.steps, 1), (one.samples, one.batch), (one.depth, 1)):
            assert estimate is not None and estimate.is_known == is_known
            assert not is_known or factor <= estimate.low <= estimate.value <= estimate.high <= factor * one.budget


def test_sentences(findings: Findings) -> None:
    first, second = findings.sentences
    assert first.startswith("adamw: fewest steps ")
    assert "perfect scaling up to 64, critical batch 5" in first
    assert "critical batch not known (needs three batches" in second


def test_a_seed_that_never_reached_it_leaves_the_interval_open(record: dict[str, Any]) -> None:
    body = copy.deepcopy(record)
    last = next(run for run in body["runs"] if (run["batch"], run["stage"]) == (4096, "report"))
    last |= {"reached_step": None, "best": 0.2}
    found = cell(analyse(body), last["optimizer"], 4096)
    assert found.verdict == "reached" and found.num_reached == 4
    assert found.steps is not None and math.isinf(found.steps.high) and math.isfinite(found.steps.value)


def test_every_trial_of_a_cell_fails(record: dict[str, Any]) -> None:
    body = copy.deepcopy(record)
    body["runs"] = [
        {**run, "reached_step": None, "best": None, "failure": "no luck", "step_s": None}
        if (run["optimizer"], run["batch"]) == ("sgd", 64)
        else run
        for run in body["runs"]
        if (run["optimizer"], run["batch"], run["steps"]) != ("sgd", 64, 100)
    ]
    found = analyse(body)
    assert cell(found, "sgd", 64).verdict == "failed"
    assert "sgd at 64: every trial failed, the first with: no luck" in found.shortcomings


def test_nothing_was_reached_anywhere(record: dict[str, Any]) -> None:
    body = copy.deepcopy(record)
    for run in body["runs"]:
        run["reached_step"] = None
    found = analyse(body)
    assert {each.perfect_until for each in found.curves} == {None}
    assert {each.predictions for each in found.curves} == {()}


@pytest.mark.parametrize("field", ["study", "runs", "config"])
def test_a_record_that_lacks_a_field(record: dict[str, Any], field: str) -> None:
    body = {name: value for name, value in record.items() if name != field}
    with pytest.raises(UsageError, match="the record of a sweep lacks something"):
        analyse(body)


def test_the_noise_scale_stands_beside_the_fitted_critical_batch(record: dict[str, Any], findings: Findings) -> None:
    found = curve(findings, "adamw")
    for each in found.cells:
        told = [
            run["noise_scale"]
            for run in record["runs"]
            if (run["optimizer"], run["batch"], run["stage"], run["trial"])
            == ("adamw", each.batch, "report", found_trial(record, each))
            and run["steps"] == each.budget
        ]
        assert each.noise_scale == pytest.approx(statistics.median(told))
    scales = [each.noise_scale for each in found.cells if each.steps is not None and each.noise_scale is not None]
    assert found.noise_scale == pytest.approx(statistics.median(scales))
    assert f", predicted by the noise scale {found.noise_scale:,.0f}" in findings.sentences[0]
    assert curve(findings, "sgd").noise_scale is None
    assert "noise scale" not in findings.sentences[1]


def test_a_record_without_noise_scales_is_read(record: dict[str, Any]) -> None:
    old = copy.deepcopy(record)
    for run in old["runs"]:
        del run["noise_scale"]
    assert curve(analyse(old), "adamw").noise_scale is None
