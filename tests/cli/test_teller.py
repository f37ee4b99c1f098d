"""How far a command is: few lines in a pipe, a bar on a terminal, nothing that draws by itself."""

from __future__ import annotations

import io
import sys
import threading
import time

import pytest

from samestep.cli.teller import Teller


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 11.0, 11.0, 12.0, 13.0, 13.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    with Teller() as told:
        told.line("begins")
        for done in range(1, 5):
            told.phase("round", done, 4, 4.0 - done)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == ["begins", "round (2/4), 2 s left", "round (4/4), 0 s left"]


def test_a_terminal_gets_a_bar_that_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    before = threading.active_count()
    with Teller() as told:
        told.line("[begins]")
        told.phase("round 1", 1, 4, None)
        told.phase("round 2", 2, 4, 7.4)
        assert threading.active_count() == before
    text = terminal.getvalue()
    for part in ("[begins]", "round 1", "1/4", "round 2", "2/4", "7 s left"):
        assert part in text


def test_packing_tells_the_time_left_of_each_part(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Teller() as told:
        told.packing("reading rows", 1_000, 10_000)  # how long these took is not known
        for done in (3_000, 5_000):
            now[0] += 20.0
            told.packing("reading rows", done, 10_000)
        now[0] += 20.0
        told.packing("writing rows", 100, 1_000)
        now[0] += 20.0
        told.packing("writing rows", 300, 1_000)
        told.packing("writing rows", 1_000, 1_000)
    assert capsys.readouterr().err.splitlines() == [
        "reading rows (3000/10000), 70 s left",
        "reading rows (5000/10000), 50 s left",
        "writing rows (100/1000)",
        "writing rows (300/1000), 70 s left",
        "writing rows (1000/1000)",
    ]
