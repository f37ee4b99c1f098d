"""samestep scale and report as a user runs them: to the end, interrupted and gone on with, and wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import samestep
from samestep.host import peaks, records
from samestep.workloads import catalog
from tests.cli.command import SCRIPT, Command, Finished
from tests.marks import soak
from tests.report import browsing

NETS = Path(__file__).with_name("nets.py")
MOST_S = 5.0
"""Nothing is left in this time after the end of who measures."""

Call = Callable[..., Finished]


def peaks_of_nothing() -> peaks.Peaks:
    names = [name for name in peaks.Peaks.__dataclass_fields__ if name != "num_cores"]
    return peaks.Peaks(num_cores=1, **dict.fromkeys(names, 1.0))


@pytest.mark.processes
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("axes", "num_programs"), [(["strong"], 5), soak(["strong", "weak"], 7)])
def test_a_study(command: Command, axes: list[str], num_programs: int) -> None:
    command.environment = {"SAMESTEP_DATA": None}
    flags = ("--slot-s", "0.1", *(["--weak"] if "weak" in axes else []))
    words = ("scale", "digits-mlp", "--width", "16", "--workers", "1,2", *flags, "--out", "out")
    finished = command.run(*words, "--repeats", "1", timeout_s=300)
    assert finished.code == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert [line for line in lines if "…" in line] == []
    tables = [line for line in lines if line.startswith(" ")]
    assert max(map(len, tables)) <= 120
    told = [line.split(",")[0] for line in lines if "scaling, best single process: " in line]
    assert told == [f"{axis} scaling" for axis in axes]
    assert lines[-1] == f"page: {Path('out', 'report.html')}"
    assert sum(line.startswith("unstable: ") and "too few" in line for line in lines) == 1
    said = finished.stderr.splitlines()
    assert said[0].startswith(f"digits-mlp: {num_programs} programs, 1 round: about ")
    assert any(line.startswith("started ") for line in said[1:]), said
    assert any(line.startswith("rounds of about ") and line.endswith(" min in all") for line in said[1:]), said

    record = records.read(command.folder / "out" / "scale.json", "scale")
    assert record["study"]["axes"] == axes
    for slots in record["slots"].values():
        assert [slot["round"] for slot in slots] == [0]
        for slot in slots:
            total = sum(sum(phases.values()) for phases in slot["phases"]) / len(slot["phases"])
            assert total == pytest.approx(slot["step_s"], rel=0.03)
    assert "<html" in (command.folder / "out" / "report.html").read_text()

    again = command.run(*words, "--repeats", "1", "--json")
    assert again.code == 0, again.stderr
    answer = json.loads(again.stdout)
    assert again.stdout.count("\n") == 1
    assert list(answer["axes"]) == axes
    assert again.stderr.splitlines() == ["scale.json: 1 of 1 rounds were measured before"]
    assert records.read(command.folder / "out" / "scale.json") == record

    other = command.run(*words, "--repeats", "1", "--seed", "5")
    assert other.code == 2
    assert other.complaint.startswith("out holds another study: its study.seed is 0 and this one's is 5;")
    run: dict[str, Any] = {"workers": 1, "steps": 10, "evaluate_every": 5, "out": command.folder / "out" / "run"}
    samestep.train(catalog.build("digits-mlp", width=16), **run)
    assert (command.run("report", "out").stdout) == f"{Path('out', 'report.html')}\n"
    check_in_browser(command.folder / "out" / "report.html", num_charts=len(axes) * 3 + 8)


def check_in_browser(page: Path, num_charts: int) -> None:
    """The page about what was really measured, a study and a run, where there is a browser."""
    executable = browsing.path()
    if executable is None:
        assert os.environ.get("CI") != "true", browsing.NO_BROWSER
        return
    with browsing.launched(executable) as browser:
        opened = browsing.open_page(browser, page)
        # of each axis two speed-ups and a breakdown; of the run loss, two metrics, over steps and time, throughput, ...
        browsing.check_drawn(opened, page, num_charts=num_charts, fewest_marks=2)
        warning = opened.page.get_by_role("group", name="Unstable: measured again, out may say something else")
        assert "1 round is too few" in warning.inner_text()
        assert browsing.complaints(opened.page) == []


STUDY = ("scale", f"{NETS}:tiny", "--workers", "1", "--slot-s", "0.1", "--out", "out")
LIGHT = (sys.executable, Path(__file__).with_name("light_scale.py"))

Words = tuple[str | Path, ...]


def start_and_await_rounds(command: Command, study: Words, rounds: int, program: Words) -> subprocess.Popen[str]:
    """A study that has kept so many rounds."""
    process = command.start(*study, program=program)
    deadline = time.monotonic() + 120.0
    while len(kept(command)) < rounds:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no round in time"
        time.sleep(0.02)
    return process


def kept(command: Command) -> list[dict[str, Any]]:
    """The slots of one program that lie on the disk."""
    for name in ("scale.json", "scale.part.json"):
        if (path := command.folder / "out" / name).exists():
            slots: list[dict[str, Any]] = records.read(path)["slots"]["strong/samestep, 1 worker"]
            return slots
    return []


@pytest.mark.processes
@pytest.mark.timeout(500)
@pytest.mark.parametrize(("rounds", "program"), [soak(3, LIGHT), soak(6, (SCRIPT,))])
def test_an_interrupted_study_goes_on(
    command: Command, rounds: int, program: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as inside:  # what the machine can do is measured elsewhere
        inside.setenv("XDG_CACHE_HOME", str(command.folder / "cache"))
        peaks._keep(peaks_of_nothing())
    study = (*STUDY, "--repeats", str(rounds))
    process = start_and_await_rounds(command, study, 1, program)
    os.kill(process.pid, signal.SIGINT)
    finished = command.wait(process, MOST_S)
    first = kept(command)
    assert finished.code == 130
    assert finished.complaint == (
        f"stopped by SIGINT; {len(first)} of {rounds} rounds are kept, the same command goes on from there"
    )
    command.check_nothing_left()

    process = start_and_await_rounds(command, study, len(first) + 1, program)
    process.kill()
    command.await_end_of_all(MOST_S)
    command.wait(process, MOST_S)
    command.check_nothing_left()
    second = kept(command)
    assert second[: len(first)] == first

    finished = command.run(*study, "--json", program=program, timeout_s=120)
    assert finished.code == 0, finished.stderr
    assert f"scale.part.json: {len(second)} of {rounds} rounds were measured before" in finished.stderr
    third = kept(command)
    assert third[: len(second)] == second
    assert [slot["round"] for slot in third] == list(range(rounds))
    assert not (command.folder / "out" / "scale.part.json").exists()


@pytest.mark.processes
@pytest.mark.soak
def test_a_workload_that_fails(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peaks, "measure", peaks_of_nothing)
    finished = call("scale", f"{NETS}:garbage_loss", "--out", tmp_path / "out")
    assert (finished.code, finished.stdout) == (1, "")
    last = finished.stderr.splitlines()[-1]
    assert last.startswith("samestep: torch, 1 thread: ended with exit code 1: ")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("digits-mlp", "--workers", "0"), "workers=0 is below 1"),
        (("digits-mlp", "--workers", "1,99"), "workers=99 is more than the "),
        (("digits-mlp", "--repeats", "0"), "repeats=0 is below 1"),
        (("digits-mlp", "--slot-s", "0"), "slot_s=0 is not positive"),
        (("digits-mlp", "--weak", "--global-batch", "1024"), "weak scaling to 2 workers takes steps of 2048 samples"),
        (("digits",), "digits"),
    ],
)
def test_what_cannot_be_measured_is_one_line(call: Call, tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    finished = call("scale", *words, "--out", tmp_path / "out")
    assert finished.code == 2
    assert text in finished.complaint
    assert not (tmp_path / "out").exists()


def test_a_folder_without_records_has_no_page(call: Call, tmp_path: Path) -> None:
    finished = call("report", tmp_path)
    assert finished.code == 2
    assert str(tmp_path) in finished.complaint
