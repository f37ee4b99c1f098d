"""Progress in a pipe: whole lines, few of them, nothing that moves a cursor."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

import pytest

from samestep.engine.loop import EvaluationRecord, StepRecord
from samestep.run import progress
from samestep.run.train import train
from tests import helpers


def step(number: int) -> StepRecord:
    return StepRecord(number, 1.23456, 1.0, 32, 0.1, num_rounds=1, num_rows=32)


def test_a_pipe_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(progress.for_stderr(), progress.Plain)


def test_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    shown = progress.Plain(stream)
    shown.start("start", 100, 0)
    for number in range(50):
        now[0] += 0.5
        shown.step(step(number), 1234.5 if number > 20 else None)
    shown.stop()
    assert stream.getvalue().splitlines() == [
        "start",
        "step 20/100  loss 1.2346  - samples/s  0:40 left",
        "step 40/100  loss 1.2346  1,234 samples/s  0:30 left",
    ]


def test_the_critical_batch_stands_in_the_lines_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    shown = progress.Plain(stream)
    shown.start("start", 100, 0)
    for number in (9, 19):
        now[0] += 10.0
        shown.step(step(number), None)
        shown.critical_batch("critical batch about 1,900 [1,400, 2,600]")
    lines = stream.getvalue().splitlines()
    assert lines[1].endswith("1:30 left")
    assert lines[2].endswith("1:20 left  critical batch about 1,900 [1,400, 2,600]")


def test_a_wide_terminal_shows_the_critical_batch(capsys: pytest.CaptureFixture[str]) -> None:
    for columns, is_shown in ((120, True), (80, False)):
        live = progress.Live()
        live._bar.console.width = columns
        live.start("start", 100, 0)
        live.critical_batch("critical batch about 1,900 [1,400, 2,600]")
        live._bar.console.print(live._bar.get_renderable())
        live.stop()
        text = capsys.readouterr().err
        assert ("critical batch about 1,900" in text) is is_shown
        assert "0/100" in text


def test_a_terminal_shows_loss_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    live = progress.Live()
    live._bar.console.width = 120
    live._bar.get_time = lambda: now[0]
    monkeypatch.setattr(live._bar, "start", lambda: None)
    live.start("start", 100, 0)
    for done in range(1, 11):
        now[0] += 2.0
        live.step(step(done - 1), 1234.5)
    live._bar.console.print(live._bar.get_renderable())
    text = capsys.readouterr().err
    assert "10/100" in text
    assert f"loss {step(9).loss:.4f}" in text
    assert "1,234 samples/s" in text
    assert "0:03:00" in text, "90 steps of two seconds"


def test_the_time_left_counts_this_sessions_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    shown = progress.Plain(stream)
    shown.start("resumed", 10_000, 9_000)
    now[0] = 20.0
    shown.step(step(9_009), None)
    assert "step 9010/10000" in stream.getvalue()
    assert "33:00 left" in stream.getvalue()


def test_an_evaluation_in_one_line() -> None:
    record = EvaluationRecord(7, {"loss": 0.5, "accuracy": 0.25}, is_best=True, duration_s=0.1)
    assert progress.evaluation_text(record) == "after step 7: loss 0.5000  accuracy 0.2500  (best)"


def test_a_run_in_a_pipe() -> None:
    stream = io.StringIO()
    settings: dict[str, Any] = {"workers": 1, "global_batch": 32, "microbatch": 8, "steps": 3}
    train(
        helpers.workload(lambda: helpers.Tied(has_unused=True), evaluation=helpers.samples(20)),
        progress=progress.Plain(stream),
        **settings,
    )
    lines = stream.getvalue().splitlines()
    assert lines[0] == "test: 3 steps of 32 samples in microbatches of 8 on 1 worker"
    assert lines[1].startswith("warning: no microbatch of the first step used unused.weight, unused.bias; left")
    assert lines[2].startswith("after step 3: loss ")
    assert lines[2].endswith("(best)")
    assert len(lines) == 3
    assert all(character.isprintable() for line in lines for character in line)


def test_the_live_line_does_not_fail(capsys: pytest.CaptureFixture[str]) -> None:
    train(
        helpers.workload(evaluation=helpers.samples(20)),
        progress=progress.Live(),
        workers=1, global_batch=32, microbatch=8, steps=3,
    )  # fmt: skip
    assert "after step 3" in capsys.readouterr().err
