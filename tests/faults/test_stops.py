"""A run that is stopped, killed or whose newest checkpoint is damaged goes on with the same bits, also on another W."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import samestep
from samestep.engine.curvature import Curvature
from samestep.engine.loop import EvaluationRecord, Loop
from samestep.engine.solo import Solo
from samestep.engine.step import Stepper
from samestep.errors import Interrupted
from samestep.run import stopping, weights
from samestep.run.progress import Silent
from tests.cli.command import Command, Finished
from tests.faults import nets
from tests.marks import soak

NETS = Path(__file__).with_name("nets.py")
RUN = ("train", f"{NETS}:nap", "--checkpoint", "state", "--checkpoint-every-s", "0.2", "--json")
MOST_S = 5.0
"""A run that is asked to stop saves and ends in this time; so do the workers of a parent that is killed."""


@cache
def undisturbed() -> str:
    """The digest of the run that nothing happens to."""
    return samestep.train(nets.nap(), workers=1).record.weights_sha256


def start_and_await_checkpoint(command: Command, workers: int, *more: str) -> subprocess.Popen[str]:
    """Start a run, and wait until it has saved something."""
    process = command.start(*RUN, "--workers", str(workers), *more)
    deadline = time.monotonic() + 60.0
    while len(list((command.folder / "state").glob("step-*.json"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint in a minute"
        time.sleep(0.02)
    return process


def stop(command: Command, process: subprocess.Popen[str], number: int, *, is_group: bool) -> tuple[Finished, float]:
    """Send a signal, as `kill` does to one process or as a terminal does to all of a group."""
    start_s = time.monotonic()
    (os.killpg if is_group else os.kill)(process.pid, number)
    finished = command.wait(process, 30.0)
    return finished, time.monotonic() - start_s


def check_resumed(command: Command, workers: int) -> None:
    finished = command.run(*RUN, "--workers", str(workers), "--resume")
    assert finished.code == 0, finished.stderr
    answer = json.loads(finished.stdout)
    assert answer["weights_sha256"] == undisturbed()
    assert answer["steps"] == nets.NAP_STEPS
    assert f"on {workers} worker" in finished.stderr
    assert ", from step " in finished.stderr


@pytest.mark.processes
@pytest.mark.parametrize(
    ("number", "workers", "is_group"),
    [
        (signal.SIGINT, 2, True),
        *(soak(*case, False) for case in ((signal.SIGTERM, 2), (signal.SIGINT, 1))),  # noqa: FBT003 (as above)
        soak(signal.SIGTERM, 1, True),  # noqa: FBT003
    ],
)
def test_signal_saves_and_ends(command: Command, number: signal.Signals, workers: int, is_group: bool) -> None:
    process = start_and_await_checkpoint(command, workers)
    finished, seconds = stop(command, process, number, is_group=is_group)
    assert finished.code == 128 + number
    assert finished.stdout == ""
    assert f"stopped by {number.name} at step " in finished.complaint
    assert "its state is in state: go on with resume" in finished.complaint
    assert seconds < MOST_S
    check_resumed(command, 3 - workers)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("workers", "how"),
    [(2, "sleep"), *(soak(*case) for case in ((1, "backward"), (1, "sleep"), (1, "forward"), (2, "forward")))],
)
def test_long_step_is_abandoned(tmp_path: Path, workers: int, how: str) -> None:
    """Also where it is inside one kernel, so that Python cannot hear of the signal."""
    stall = tmp_path / "stall"
    command = Command(tmp_path, {nets.STALL: str(stall)})
    process = start_and_await_checkpoint(command, workers)
    stall.write_text(how)
    time.sleep(1.0)  # now every worker is in that pass
    finished, seconds = stop(command, process, signal.SIGTERM, is_group=False)
    assert finished.code == 128 + signal.SIGTERM, finished.stderr
    assert "stopped by SIGTERM at step " in finished.complaint
    assert "its state is in state: go on with resume" in finished.complaint
    assert seconds < MOST_S
    stall.unlink()
    check_resumed(command, 3 - workers)
    command.check_nothing_left()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("how", "flags"),
    [
        ("backward", ("--sam-radius", "0.05")),
        soak("forward", ("--sam-radius", "0.05")),
        soak("backward", ("--optimizer", "schedulefreeadamw")),
        soak("backward", ("--sync", "local:2")),
    ],
)
def test_a_long_step_that_moves_the_state_is_abandoned(tmp_path: Path, how: str, flags: tuple[str, ...]) -> None:
    """In one worker the state is moved within a step of several rounds; a snapshot of it is saved."""
    stall = tmp_path / "stall"
    command = Command(tmp_path, {nets.STALL: str(stall)})
    words = (*flags, "--steps", "120", "--log", "csv:log", "--profile", "trace.json")
    process = start_and_await_checkpoint(command, 1, *words)
    stall.write_text(how)
    time.sleep(1.0)
    finished, seconds = stop(command, process, signal.SIGTERM, is_group=False)
    assert finished.code == 128 + signal.SIGTERM, finished.stderr
    assert "its state is in state: go on with resume" in finished.complaint
    assert seconds < MOST_S
    assert json.loads((tmp_path / "trace.json").read_bytes())["traceEvents"]
    command.check_nothing_left()
    stall.unlink()
    going_on = command.run(*RUN, *words, "--workers", "2", "--resume")
    assert ", from step " in going_on.stderr
    whole = command.run("train", f"{NETS}:nap", *flags, "--steps", "120", "--workers", "1", "--json")
    assert json.loads(going_on.stdout)["weights_sha256"] == json.loads(whole.stdout)["weights_sha256"]


@pytest.mark.processes
@pytest.mark.parametrize("workers", [soak(1), 2])
def test_parent_killed(command: Command, workers: int) -> None:
    process = start_and_await_checkpoint(command, workers)
    assert len(command.processes()) == (3 if workers == 2 else 1)
    process.kill()
    command.await_end_of_all(MOST_S)
    command.wait(process, 5.0)
    command.check_nothing_left()
    check_resumed(command, 3 - workers)


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_workers_start(command: Command, number: signal.Signals) -> None:
    process = command.start(*RUN, "--workers", "2")
    while len(command.processes()) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    finished, seconds = stop(command, process, number, is_group=True)
    assert seconds < MOST_S
    assert finished.code in (128 + number, -number), finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.processes
@pytest.mark.parametrize("later_s", [0.0, 0.3, pytest.param(0.8, marks=pytest.mark.soak)])
def test_parent_killed_while_workers_start(command: Command, later_s: float) -> None:
    """They import torch, and read nothing meanwhile."""
    process = command.start(*RUN, "--workers", "2")
    while len(command.processes()) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(later_s)
    process.kill()
    command.await_end_of_all(MOST_S)
    command.wait(process, 5.0)
    command.check_nothing_left()


SLOW_TORCH = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" and "-c" in sys.orig_argv:
            time.sleep(30.0)
if "-c" in sys.orig_argv:
    time.sleep(0.5)  # the parent is gone before the worker's first line
sys.meta_path.insert(0, Slow())
"""


@pytest.mark.processes
def test_parent_killed_before_a_workers_first_line(command: Command) -> None:
    """On a slow machine an interpreter takes long to start, and torch much longer; neither is waited for."""
    slow = command.folder / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(SLOW_TORCH)
    command.environment = {"PYTHONPATH": os.pathsep.join(filter(None, [str(slow), os.environ.get("PYTHONPATH")]))}
    process = command.start(*RUN, "--workers", "2")
    while len(command.processes()) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    command.await_end_of_all(MOST_S)


def stop_before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int = 1) -> None:
    """Have SIGTERM come just before a function is called for that time, counted from 1."""
    original, calls = getattr(owner, name), count(1)

    def stopped(*arguments: Any) -> Any:
        if next(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(owner, name, stopped)


class TestInProcess:
    """One worker in this process: states are saved at chosen steps."""

    def run(self, folder: Path, steps: int, **settings: Any) -> samestep.Result:
        return samestep.train(nets.short(), checkpoint=folder, steps=steps, workers=1, resume=True, **settings)

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """States at steps 4 and 8."""
        self.run(tmp_path / "state", 4)
        self.run(tmp_path / "state", 8)
        return tmp_path / "state"

    def check(self, result: samestep.Result, first_step: int) -> None:
        expected = samestep.train(nets.short(), steps=12, workers=1)
        assert result.record.first_step == first_step
        assert result.record.weights_sha256 == expected.record.weights_sha256
        assert result.record.num_samples == expected.record.num_samples
        assert result.record.last_loss == expected.record.last_loss
        assert [step.loss for step in result.record.steps] == [
            step.loss for step in expected.record.steps if step.step >= first_step
        ]

    def test_resumed_in_the_middle_of_an_epoch(self, folder: Path) -> None:
        self.check(self.run(folder, 12), 8)

    def test_resumed_at_the_end(self, folder: Path) -> None:
        first = self.run(folder, 12)
        again = self.run(folder, 12)
        assert again.record.weights_sha256 == first.record.weights_sha256
        assert (again.record.num_steps, again.record.last_loss) == (12, first.record.last_loss)

    @pytest.mark.processes
    def test_resumed_on_other_workers(self, folder: Path) -> None:
        result = samestep.train(nets.short(), checkpoint=folder, resume=True, workers=3)
        self.check(result, 8)

    @pytest.mark.parametrize("suffix", [".safetensors", ".json"])
    @pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
    def test_damaged_newest(self, folder: Path, suffix: str, damage: str) -> None:
        path = (folder / "step-000000008").with_suffix(suffix)
        data = path.read_bytes()
        middle = len(data) // 2
        damaged: dict[str, Callable[[], object]] = {
            "flip": lambda: path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]),
            "truncate": lambda: path.write_bytes(data[:middle]),
            "empty": lambda: path.write_bytes(b""),
            "remove": path.unlink,
        }
        damaged[damage]()
        result = self.run(folder, 12)
        if (damage, suffix) != ("remove", ".json"):  # without it the state was never saved
            assert "step-000000008 is damaged" in result.record.notices[0]
        self.check(result, 4)

    def test_only_a_few_states_are_kept_and_nothing_half_written(self, folder: Path) -> None:
        for steps in (9, 10, 11, 12):
            self.run(folder, steps)
        names = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
        assert names == [f"step-0000000{step}.{kind}" for step in (10, 11, 12) for kind in ("json", "safetensors")]

    def test_interrupted_in_a_notebook(self, tmp_path: Path) -> None:
        class Interrupt(Silent):
            def evaluated(self, record: EvaluationRecord) -> None:
                if record.step == 6:
                    signal.raise_signal(signal.SIGINT)

        before = signal.getsignal(signal.SIGINT)
        settings: dict[str, Any] = {"checkpoint": tmp_path / "state", "workers": 1, "evaluate_every": 3}
        with pytest.raises(Interrupted, match="stopped by SIGINT at step 6") as caught:
            samestep.train(nets.short(), progress=Interrupt(), **settings)
        assert isinstance(caught.value, KeyboardInterrupt)
        assert signal.getsignal(signal.SIGINT) is before
        self.check(self.run(tmp_path / "state", 12, evaluate_every=3), 6)

    @pytest.mark.parametrize("place", ["_prepare", "run"])
    def test_interrupted_before_the_first_step(
        self, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While memory is laid out, and just before the loop begins."""
        owner, name = (Solo, "_prepare") if place == "_prepare" else (Loop, "__post_init__")
        stop_before(monkeypatch, owner, name)
        with pytest.raises(Interrupted, match="stopped by SIGTERM at step 0; its state is in"):
            samestep.train(nets.short(), checkpoint=tmp_path / "state", workers=1)
        monkeypatch.undo()
        self.check(self.run(tmp_path / "state", 12), 0)

    def test_a_signal_in_an_update_cuts_the_evaluation_that_follows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may take long; it is made up for when the run goes on."""
        stop_before(monkeypatch, Stepper, "update", 6)
        heard: list[int] = []
        settings: dict[str, Any] = {"checkpoint": tmp_path / "state", "workers": 1, "evaluate_every": 3}
        with pytest.raises(Interrupted, match="stopped by SIGTERM at step 6"):
            samestep.train(nets.short(), callbacks=[lambda record: heard.append(record.step)], **settings)
        assert heard == [3]
        monkeypatch.undo()
        result = self.run(tmp_path / "state", 12, evaluate_every=3)
        self.check(result, 6)
        assert [evaluation.step for evaluation in result.record.evaluations] == [3, 6, 9, 12]

    def test_a_step_of_kfac_that_is_abandoned_leaves_nothing_of_itself(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its factors have been taken into their running means by then."""
        settings: dict[str, Any] = {"optimizer": "kfac", "workers": 1}
        whole = samestep.train(nets.short(), **settings).record.weights_sha256
        stop_before(monkeypatch, Curvature, "precondition", 6)
        with pytest.raises(Interrupted, match="stopped by SIGTERM at step 5"):
            samestep.train(nets.short(), checkpoint=tmp_path / "state", **settings)
        monkeypatch.undo()
        again = samestep.train(nets.short(), checkpoint=tmp_path / "state", resume=True, **settings).record
        assert (again.first_step, again.weights_sha256) == (5, whole)

    def test_a_second_signal_inside_of_the_first_ones_handler(self) -> None:
        heard: list[int] = []

        def handler(number: int) -> None:
            heard.append(number)
            if number == signal.SIGINT:
                signal.raise_signal(signal.SIGTERM)

        with stopping.signals_to(handler, lambda number: None):
            signal.raise_signal(signal.SIGINT)
        assert heard == [signal.SIGINT, signal.SIGTERM]

    def test_a_signal_while_the_end_is_saved_changes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop_before(monkeypatch, weights, "save")
        before = signal.getsignal(signal.SIGTERM)
        result = samestep.train(nets.short(), workers=1, out=tmp_path / "out")
        assert result.record.end == "finished"
        assert (tmp_path / "out" / "record.json").exists()
        assert signal.getsignal(signal.SIGTERM) is before

    def test_interrupted_evaluation_is_done_after_all(self, tmp_path: Path) -> None:
        num_calls = 0

        def interrupts(output: Tensor, target: Tensor) -> Tensor:
            nonlocal num_calls
            num_calls += 1
            if num_calls == 6:  # four microbatches in an evaluation
                signal.raise_signal(signal.SIGINT)
            return output[:, 0]

        def run(workload: samestep.Workload) -> samestep.Result:
            return samestep.train(workload, checkpoint=tmp_path / "state", workers=1, evaluate_every=3, resume=True)

        with pytest.raises(Interrupted, match="at step 6"):
            run(replace(nets.short(), metrics={"first": interrupts}))
        result = run(replace(nets.short(), metrics={"first": lambda output, target: output[:, 0]}))
        assert [evaluation.step for evaluation in result.record.evaluations] == [3, 6, 9, 12]
