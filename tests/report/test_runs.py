"""Runs side by side: what is said of them, and what is drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from samestep.report import palette, runs, thin
from samestep.report.records import Run, read_run
from tests.report import made


def run(folder: Path, name: str, **body: Any) -> Run:
    return read_run(made.write_run(folder / name, made.run(**body)), name)


def test_a_run_in_words(tmp_path: Path) -> None:
    said = runs.verdicts([run(tmp_path, "two", workers=2, wall_s=93.0, samples_per_s=12345.6)])
    assert [each.subject for each in said] == ["Run two"]
    assert said[0].sentence.startswith(
        "fashion-mlp on 2 workers: 300 steps (76,800 samples) in 93.0 s, 12,346 samples/s"
    )
    assert "after step 300: loss 0.37" in said[0].sentence
    assert said[0].detail == f"finished; weights sha256 {'ab' * 32}"


def test_the_critical_batch_is_said(tmp_path: Path) -> None:
    said = "critical batch about 1,900 [1,400, 2,600]: 4 times as many workers would still pay"
    (verdict,) = runs.verdicts([run(tmp_path, "one", critical_batch=said)])
    assert verdict.sentence.endswith(f"; {said}.")


def test_a_batch_that_grew_is_said(tmp_path: Path) -> None:
    grown = [{"step": 40, "global_batch": 64, "critical_batch": 200.0, "low": 150.0, "high": None}]
    made = run(tmp_path, "one", growths=grown, global_batch=64, config={"global_batch": "auto", "initial_batch": 32})
    (verdict,) = runs.verdicts([made])
    assert verdict.sentence.endswith("; global batch 32 → 64.")


def test_what_is_unknown_is_left_out(tmp_path: Path) -> None:
    said = runs.verdicts([run(tmp_path, "one", samples_per_s=None, wall_s=None, evaluations=[], end=None)])
    assert said[0].sentence == "fashion-mlp on 1 worker: 300 steps (76,800 samples)."


def test_the_same_bits(tmp_path: Path) -> None:
    pair = [run(tmp_path, "one", workers=1), run(tmp_path, "two", workers=2)]
    said = runs.verdicts(pair)[-1].sentence
    assert said == "The same bits: one (1 worker), two (2 workers) ended with equal weights."


def test_other_bits_are_told(tmp_path: Path) -> None:
    pair = [run(tmp_path, "one"), run(tmp_path, "two", weights_sha256="cd" * 32)]
    assert runs.verdicts(pair)[-1].sentence.startswith("Not the same bits: one (1 worker), two (1 worker)")


@pytest.mark.parametrize("other", [{"seed": 1}, {"num_steps": 200}, {"weights_sha256": ""}])
def test_other_runs_are_not_compared(other: dict[str, Any], tmp_path: Path) -> None:
    said = runs.verdicts([run(tmp_path, "one"), run(tmp_path, "two", **other)])
    assert [each.subject for each in said] == ["Run one", "Run two"]


def test_figures(tmp_path: Path) -> None:
    pair = [run(tmp_path, "one"), run(tmp_path, "two", workers=2)]
    part = runs.section(pair).parts[0]
    assert [figure.title for figure in part.figures] == [
        "Training loss over steps",
        "Training loss over time",
        "Loss on the evaluation data over steps",
        "Loss on the evaluation data over time",
        "Accuracy on the evaluation data over steps",
        "Accuracy on the evaluation data over time",
        "Throughput (samples/s) over time",
    ]
    assert [entry.name for entry in part.legend] == ["one: fashion-mlp, 1 worker", "two: fashion-mlp, 2 workers"]


def test_runs_of_other_machines_share_no_chart_over_time(tmp_path: Path) -> None:
    another = made.environment(processor="Another CPU")
    found = [
        run(tmp_path, "one"),
        run(tmp_path, "far", environment=another),
        run(tmp_path, "two", workers=2),
        run(tmp_path, "untold", environment=None, evaluations=[]),
    ]
    curves, *where = runs.section(found).parts
    titles = [figure.title for figure in curves.figures]
    assert titles == [
        "Training loss over steps",
        *(f"Training loss of {names} over time" for names in ("one, two", "far", "untold")),
        "Loss on the evaluation data over steps",
        *(f"Loss on the evaluation data of {names} over time" for names in ("one, two", "far")),
        "Accuracy on the evaluation data over steps",
        *(f"Accuracy on the evaluation data of {names} over time" for names in ("one, two", "far")),
        *(f"Throughput (samples/s) of {names} over time" for names in ("one, two", "far", "untold")),
    ]
    drawn = {figure.title: str(figure.drawing) for figure in curves.figures}
    assert "one, step 1" in drawn["Training loss of one, two over time"]
    assert "far, step 1" not in drawn["Training loss of one, two over time"]
    assert all(f"{name}, step 1" in drawn["Training loss over steps"] for name in ("one", "far", "two", "untold"))
    look = f"var(--{palette.look(1).colour})"
    assert look in drawn["Training loss of far over time"], "a run keeps the look that the legend gives it"
    assert [part.title for part in where] == [
        f"Where the time of a step of {names} went" for names in ("one, two", "far", "untold")
    ]


def test_long_runs_are_thinned_and_say_so(tmp_path: Path) -> None:
    long = run(tmp_path, "long", num_steps=5000)
    curve = runs._loss_curve(long, palette.look(0), is_seconds=False)
    assert len(curve.line) <= thin.MOST_DRAWN
    assert len(curve.marks) <= thin.MOST_SHOWN
    assert max(value for _, value in curve.line) == max(long.steps["loss"])
    caption = runs.section([long]).parts[0].figures[0].caption
    assert "the lowest and the highest of every 5 steps, at most 2,000 points a curve" in caption


def test_points_are_where_the_record_has_them(tmp_path: Path) -> None:
    one = run(tmp_path, "one", num_steps=60)
    steps = runs._loss_curve(one, palette.look(0), is_seconds=False)
    seconds = runs._loss_curve(one, palette.look(0), is_seconds=True)
    assert list(steps.line) == [(step + 1, loss) for step, loss in enumerate(one.steps["loss"])]
    assert [at for at, _ in seconds.line] == list(one.seconds)
    assert steps.marks[4].tip.startswith("one, step 5 (")


def test_losses_that_are_not_finite_are_left_out_and_told(tmp_path: Path) -> None:
    body = made.run(num_steps=10)
    body["step_table"]["loss"][3] = math.inf
    odd = read_run(made.write_run(tmp_path, body), "odd")
    assert len(runs._loss_curve(odd, palette.look(0), is_seconds=False).line) == 9
    assert "odd: the loss is not finite in 1 step; the curves leave them out." in runs.caveats([odd])


def test_throughput_is_samples_by_seconds(tmp_path: Path) -> None:
    body = made.run(num_steps=4)
    body["step_table"] |= {"duration_s": [0.5, 0.25, 0.25, 1.0], "num_samples": [10, 10, 10, 4]}
    curve = runs._throughput_curve(read_run(made.write_run(tmp_path, body), "one"), palette.look(0))
    assert list(curve.line) == [(0, 20), (0.5, 40), (0.75, 40), (1.0, 4), (2.0, 4)]


def test_evaluations_before_a_resume_have_no_seconds(tmp_path: Path) -> None:
    body = made.run(num_steps=100, first_step=200)
    body["step_table"]["step"] = list(range(200, 300))
    body["evaluations"] = [
        {"step": step, "means": {"loss": 1.0}, "is_best": True, "duration_s": 0.1} for step in (100, 200, 300)
    ]
    figures = runs.section([read_run(made.write_run(tmp_path, body), "resumed")]).parts[0].figures
    by_steps, by_seconds = figures[2], figures[3]
    assert by_steps.drawing.count('role="img"') == 3
    assert by_seconds.drawing.count('role="img"') == 2
    assert "before a resume" in by_seconds.caption


def test_a_run_without_steps(tmp_path: Path) -> None:
    body = made.run(num_steps=1)
    body["step_table"] = {name: [] for name in body["step_table"]}
    part = runs.section([read_run(made.write_run(tmp_path, body | {"evaluations": []}), "empty")]).parts[0]
    assert [figure.title for figure in part.figures] == ["Training loss over steps", "Training loss over time"]


def test_many_runs(tmp_path: Path) -> None:
    many = [run(tmp_path, f"run {index:02}", num_steps=20, seed=index) for index in range(runs.MOST_RUNS + 3)]
    part = runs.section(many).parts[0]
    assert len(part.legend) == runs.MOST_RUNS
    assert "first 12 of 15 runs" in part.notes[0]
    assert len(part.tables[0].rows) == 15
    assert runs.verdicts(many)[-1].sentence == "7 more runs are in the table of what the runs came to."


def test_notices_are_caveats(tmp_path: Path) -> None:
    found = run(tmp_path, "one", notices=["worker 1 died at step 7"], end="stopped")
    assert runs.caveats([found]) == ["one: worker 1 died at step 7", "one: the run was stopped."]


def test_where_the_time_of_a_step_went(tmp_path: Path) -> None:
    curves, where = runs.section([run(tmp_path, "one"), run(tmp_path, "two", workers=2)]).parts
    assert where.title == "Where the time of a step went"
    assert [row[0] for row in where.tables[0].rows] == ["one, 1 worker", "two, 2 workers: 0", "two, 2 workers: 1"]
    assert "the mean over the last steps of the run" in where.figures[0].caption
    assert curves.tables[0].title == "What the runs came to"
    assert len(runs.section([run(tmp_path, "three", breakdown=None)]).parts) == 1
