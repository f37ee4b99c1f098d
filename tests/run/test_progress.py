"""Progress: in a pipe whole lines, few of them, nothing that moves a cursor; on a terminal one line that stays."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from samestep.data.columns import Dataset
from samestep.engine.loop import EvaluationRecord, StepRecord
from samestep.run import progress
from samestep.run.doing import Doing
from samestep.run.train import train
from samestep.run.workload import Workload
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


@pytest.mark.parametrize(
    ("doing", "text"),
    [
        (Doing(), "reading the data, building the network"),
        (Doing(stretch="starting", workers=2), "starting 2 workers"),
        (Doing(stretch="training", workers=2), ""),
        (Doing(stretch="training", workers=2, is_saving=True), "saving a checkpoint"),
        (Doing(stretch="training", workers=4, num_missing=2), "2 of 4 workers, replacements are starting"),
        (Doing(stretch="training", workers=2, num_missing=2), "no worker is left, replacements are starting"),
        (
            Doing(stretch="evaluating", workers=2, num_missing=1, is_saving=True),
            "evaluating, 1 of 2 workers, a replacement is starting, saving a checkpoint",
        ),
        (Doing(stretch="saving"), "saving what came out"),
    ],
)
def test_what_a_run_is_doing_in_words(doing: Doing, text: str) -> None:
    assert doing.text == text


class Told(progress.Silent):
    """Keeps what a run says that it is doing."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def doing(self, now: Doing) -> None:
        self.texts.append(now.text)


def test_what_a_run_is_doing_is_said_when_it_changes() -> None:
    told = Told()
    announcer = progress.Announcer(told)
    for changes in ({"stretch": "reading"}, {"stretch": "training"}, {"stretch": "training"}, {"is_saving": True}):
        announcer.now(**changes)
    assert told.texts == ["reading the data, building the network", "", "saving a checkpoint"]


def test_what_takes_long_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    shown = progress.Plain(stream, long_s=100.0)  # its own look, after a fifth of it, does not come in this test

    def pass_s(seconds: int) -> None:
        for _ in range(seconds):
            now[0] += 1.0
            shown.look()

    shown.doing(Doing())
    pass_s(70)
    shown.doing(Doing(stretch="starting", workers=2))
    assert stream.getvalue() == "", "neither is long"
    pass_s(300)
    shown.doing(Doing(stretch="training", workers=2))
    pass_s(300)
    shown.doing(Doing(stretch="evaluating", workers=2))
    pass_s(110)
    shown.stop()
    assert stream.getvalue().splitlines() == ["starting 2 workers ... (1:40 so far)", "evaluating ... (1:40 so far)"]


def test_a_terminal_shows_what_a_run_is_doing(capsys: pytest.CaptureFixture[str]) -> None:
    live = progress.Live()
    live._bar.console.width = 80

    def line() -> str:
        capsys.readouterr()
        live._bar.console.print(live._bar.get_renderable())
        return capsys.readouterr().err

    live.doing(Doing())
    assert "reading the data, building the network" in line()
    live.start("start", 100, 10)
    live.doing(Doing(stretch="training", workers=2))
    assert line().startswith("step 10/100 ")
    live.step(step(11), 1234.5)
    live.doing(Doing(stretch="evaluating", workers=2, num_missing=1))
    for part in ("evaluating, 1 of 2 workers, a replacement is starting", "step 12/100"):
        assert part in line()
    live.doing(Doing(stretch="training", workers=2))
    assert line().startswith("step 12/100 ")
    assert "1,234 samples/s" in line()
    live.stop()
    live.doing(Doing())  # another run that is shown by the same
    assert "step" not in line()
    live.stop()


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


def _slowly(output: Tensor, target: Tensor) -> Tensor:
    time.sleep(0.15)
    return output[:, 0]


def _slow_workload() -> Workload:
    work = helpers.workload(evaluation=helpers.samples(20))
    data = work.data

    def read_slowly() -> Dataset:
        time.sleep(0.3)
        return data()

    return replace(work, data=read_slowly, metrics={"first": _slowly})


@pytest.mark.processes
def test_a_pipe_hears_what_takes_long_in_a_run(tmp_path: Path) -> None:
    stream = io.StringIO()
    settings: dict[str, Any] = {"workers": 2, "global_batch": 32, "microbatch": 8, "steps": 3}
    train(_slow_workload(), progress=progress.Plain(stream, long_s=0.1), checkpoint=tmp_path / "state", **settings)
    lines = [line.partition(" ... (")[0] for line in stream.getvalue().splitlines()]
    for earlier, later in pairwise(
        ["reading the data, building the network", "test: 3 steps of 32 samples in microbatches of 8 on 2 workers",
         "starting 2 workers", "evaluating"]
    ):  # fmt: skip
        assert lines.index(earlier) < lines.index(later)
    assert lines.index("evaluating") < next(at for at, line in enumerate(lines) if line.startswith("after step 3: "))
    assert len(lines) == len(set(lines)), "nothing is said twice"


@pytest.mark.processes
def test_a_terminal_shows_what_takes_long_in_a_run(tmp_path: Path) -> None:
    """A real terminal and the real command: the parts of a run follow each other on the line."""
    main, other = os.openpty()
    words = ["train", "digits-mlp", "--steps", "3", "--workers", "2", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "samestep", *words], stdout=subprocess.DEVNULL, stderr=other, env=environment
    ) as process:
        os.close(other)
        text = _all_of(main)
    os.close(main)
    assert process.returncode == 0, text
    parts = ["reading the data, building the network", "digits-mlp: 3 steps of", "starting 2 workers  step 0/3"]
    places = [text.index(part) for part in parts]
    assert places == sorted(places), text
    assert "\x1b[" in text


def _all_of(terminal: int) -> str:
    """What is written to a terminal until nobody has it open any more."""
    found = b""
    while True:
        try:
            more = os.read(terminal, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            more = b""
        if not more:
            return found.decode(errors="replace")
        found += more
