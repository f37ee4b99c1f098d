"""samestep sweep as a user runs it: to the end, killed and gone on with, with a run that diverges, and wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from samestep.host import records
from tests.cli.command import Command, Finished

Call = Callable[..., Finished]

NETS = Path(__file__).with_name("nets.py")
MOST_S = 30.0
"""Nothing is left in this time after the end of who trains."""

SWEEP = (
    *("sweep", "digits-mlp", "--width", "16", "--batches", "256,full", "--optimizers", "adamw"),
    *("--target", "val_error<=0.6", "--trials", "4", "--seeds", "1", "--most-steps", "16"),
)
TIMES = ("step_s", "wall_s")


@pytest.fixture
def quiet_command(tmp_path: Path) -> Iterator[Command]:
    """Programs of a test that must leave nothing behind."""
    command = Command(tmp_path, {"SAMESTEP_DATA": None})
    yield command
    command.check_nothing_left()


def runs_in(folder: Path) -> list[dict[str, Any]]:
    """What the runs of a sweep's record found; times differ from one sweep to the next."""
    found: list[dict[str, Any]] = records.read(folder / "sweep.json", "sweep")["runs"]
    return [{name: value for name, value in run.items() if name not in TIMES} for run in found]


def kept(folder: Path) -> set[str]:
    return {path.name for path in (folder / "runs").glob("*.json")}


def start_and_await_runs(command: Command, number: int) -> subprocess.Popen[str]:
    """A sweep that has kept so many runs."""
    process = command.start(*SWEEP, "--out", "killed")
    deadline = time.monotonic() + 120.0
    while len(kept(command.folder / "killed")) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no run in time"
        time.sleep(0.02)
    return process


@pytest.mark.processes
@pytest.mark.timeout(200)
def test_a_sweep(call: Call, tmp_path: Path) -> None:
    whole = call(*SWEEP, "--out", "whole", "--json")
    assert whole.code == 0, whole.stderr
    assert whole.stdout.count("\n") == 1
    assert whole.stderr.startswith("digits-mlp: 2 cells of 4 trials to error <= 0.6, budgets 8 to 16 steps, ")
    assert "cells done (2/2), 0 s left" in whole.stderr
    answer = json.loads(whole.stdout)
    assert answer["page"] == str(Path("whole", "report.html"))
    cells = answer["optimizers"]["adamw"]["cells"]
    assert [cell["batch"] for cell in cells] == [256, 1348]
    assert {cell["verdict"] for cell in cells} == {"reached"}
    for cell in cells:
        assert cell["steps"]["value"] <= cell["budget"] <= 16
        assert cell["best"] <= 0.6
    expected = runs_in(tmp_path / "whole")
    assert len(kept(tmp_path / "whole")) == len(expected)
    first = [run for run in expected if (run["stage"], run["steps"]) == ("choose", 8)]
    assert {(run["batch"], run["trial"]) for run in first} == {(b, t) for b in (256, 1348) for t in range(4)}

    again = call(*SWEEP, "--out", "whole", "--json")
    assert (again.code, again.stderr) == (0, "")
    assert json.loads(again.stdout)["sentences"] == answer["sentences"]
    other = call(*SWEEP, "--out", "whole", "--seed", "5")
    assert other.complaint.startswith("whole holds another sweep: its study.seed is 0 and this one's is 5;")
    assert call("report", "whole").stdout == f"{Path('whole', 'report.html')}\n"


@pytest.mark.soak
@pytest.mark.processes
@pytest.mark.timeout(400)
def test_a_killed_sweep_goes_on_to_the_same_result(quiet_command: Command, call: Call) -> None:
    command = quiet_command
    whole = call(*SWEEP, "--out", "whole")
    assert whole.code == 0, whole.stderr
    expected = runs_in(command.folder / "whole")
    process = start_and_await_runs(command, 2)
    process.kill()
    command.await_end_of_all(MOST_S)
    command.wait(process, MOST_S)
    command.check_nothing_left()
    before = kept(command.folder / "killed")
    assert 2 <= len(before) < len(expected)
    process = start_and_await_runs(command, len(before) + 1)
    os.kill(process.pid, signal.SIGINT)
    stopped = command.wait(process, MOST_S)
    assert stopped.code == 130
    number = len(kept(command.folder / "killed"))
    assert stopped.complaint == f"stopped by SIGINT; kept: {number} runs; the same command goes on from there"
    assert not (command.folder / "killed" / "sweep.json").exists()
    finished = call(*SWEEP, "--out", "killed")
    assert finished.code == 0, finished.stderr
    assert f"; kept before: {number} runs" in finished.stderr
    assert runs_in(command.folder / "killed") == expected
    assert finished.stdout.splitlines()[-1] == f"page: {Path('killed', 'report.html')}"
    assert not (command.folder / "killed" / "sweep.part.json").exists()


@pytest.mark.processes
@pytest.mark.timeout(200)
def test_a_diverging_run_is_recorded_and_the_others_go_on(call: Call, tmp_path: Path) -> None:
    words = (f"{NETS}:diverges_at_high_rates", "--batches", "16", "--optimizers", "sgd", "--target", "loss<=0.001")
    options = ("--trials", "4", "--most-steps", "8", "--out", "out")
    finished = call("sweep", *words, *options)
    assert finished.code == 0, finished.stderr
    runs = runs_in(tmp_path / "out")
    failed = [run for run in runs if run["failure"]]
    assert 0 < len(failed) < len(runs) == 4
    assert all(run["failure"].startswith("diverged: ") for run in failed)
    missing = [line for line in finished.stdout.splitlines() if line.startswith("note: ")]
    assert missing[0].startswith("note: sgd at 16: loss <= 0.001 was never reached in 8 steps; the best was ")
    assert f"sgd at 16: {len(failed)} run" in missing[1] and "diverged: " in missing[1]
    assert "sgd: the target was reached at no batch" in finished.stdout


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--batches 64,9999", "batches=9999 is larger than the 1348 samples that are trained on"),
        ("--batches many", '--batches: invalid value "many" for '),
        ("--optimizers sgd,adamx", "optimizer 'adamx' is not known; did you mean adam"),
        ("--target val_f1>=0.9", "the target names the metric 'f1', and digits-mlp has loss, accuracy, error"),
        ("--target val_error", "target 'val_error' is not metric<=value or metric>=value"),
        ("--trials 0", "trials=0 is below 1: nothing would be tried"),
        ("--seeds 0", "seeds=0 is below 1: nothing would be reported"),
        ("--jobs 0", "jobs=0 is below 1: nothing would be trained"),
        ("--lr 0.1", "lr: a sweep decides such settings itself"),
        ("--label-smoothing --target loss<=0.1", "label smoothing changes the loss that the target reads"),
    ],
)
def test_what_cannot_be_tried_is_one_line(call: Call, tmp_path: Path, words: str, text: str) -> None:
    given = {"--batches": "64", "--optimizers": "sgd", "--target": "val_error<=0.1"}
    left = [word for name, value in given.items() if name not in words.split() for word in (name, value)]
    finished = call("sweep", "digits-mlp", *left, *words.split(), "--out", tmp_path / "out")
    assert (finished.code, finished.stdout) == (2, "")
    assert text in finished.complaint
    assert not (tmp_path / "out").exists()


def test_runs_of_an_unknown_sweep(call: Call, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "sgd-64-choose-0-8-0.json").write_text("{}")
    finished = call(
        *("sweep", "digits-mlp", "--batches", "64", "--optimizers", "sgd", "--target", "val_error<=0.1"),
        *("--out", tmp_path),
    )
    assert finished.code == 2
    assert "holds runs of a sweep that is not known" in finished.complaint
