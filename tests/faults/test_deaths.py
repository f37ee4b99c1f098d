"""A worker that dies costs a replay and not the run: same bits, every step recorded once, a pause under a second."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from torch import Tensor, nn

import samestep
from samestep.engine.faults import VARIABLE
from samestep.engine.loop import EvaluationRecord
from samestep.errors import WorkerError
from samestep.run.doing import Doing
from samestep.run.progress import Silent
from samestep.run.record import Record
from tests.faults import nets
from tests.marks import soak

pytestmark = pytest.mark.processes

NUM_SHORT, NUM_LONG = 12, 500


@cache
def undisturbed(is_short: bool) -> samestep.Result:
    """The run that nothing happens to."""
    return samestep.train(nets.short() if is_short else nets.sleepy(), workers=1)


def check_same(result: samestep.Result, is_short: bool) -> None:
    wanted = undisturbed(is_short)
    record, expected = result.record, wanted.record
    assert result.best_state is not None and wanted.best_state is not None
    assert samestep.digest(result.best_state) == samestep.digest(wanted.best_state)
    assert record.weights_sha256 == expected.weights_sha256
    assert [step.step for step in record.steps] == [step.step for step in expected.steps]
    assert [step.loss for step in record.steps] == [step.loss for step in expected.steps]
    assert [(e.step, e.means, e.is_best) for e in record.evaluations] == [
        (e.step, e.means, e.is_best) for e in expected.evaluations
    ]
    assert record.pairs is not None and expected.pairs is not None
    assert list(record.pairs) == list(expected.pairs)


def deaths(record: Record) -> list[str]:
    return [text for text in record.notices if " died (" in text]


def pauses_s(record: Record) -> list[float]:
    """How long training stood still after each death, as the run itself says."""
    prefix = "training went on "
    return [float(text.removeprefix(prefix).split()[0]) for text in record.notices if text.startswith(prefix)]


class Told(Silent):
    """Keeps what a run says that it is doing."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def doing(self, now: Doing) -> None:
        self.texts.append(now.text)


def children() -> list[int]:
    return [child.pid for child in psutil.Process().children()]


@pytest.fixture
def plan_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Path]]:
    """Plan deaths: (rank, step, phase) each; returns the markers that the deaths leave."""

    def plan(*faults: tuple[int, int, str]) -> list[Path]:
        markers = [tmp_path / f"spent-{number}" for number in range(len(faults))]
        texts = [
            f"rank={rank},step={step},phase={phase},marker={marker}"
            for (rank, step, phase), marker in zip(faults, markers, strict=True)
        ]
        monkeypatch.setenv(VARIABLE, ";".join(texts))
        return markers

    return plan


class TestPhases:
    """The rest of phases × ranks is in benchmarks/soak.py."""

    @pytest.mark.parametrize(
        ("rank", "step", "phase", "workers"),
        [
            (0, 0, "start", 2),
            (1, 4, "backward", 3),
            soak(0, 4, "update", 2),
            (1, 4, "barrier after the contributions", 2),
            (0, 1, "snapshot", 2),
            soak(1, 12, "evaluation", 2),
        ],
    )
    def test_death(self, plan_faults: Any, rank: int, step: int, phase: str, workers: int) -> None:
        (marker,) = plan_faults((rank, step, phase))
        told = Told()
        result = samestep.train(nets.short(), workers=workers, progress=told)
        record = result.record
        assert marker.exists(), "nobody died"
        check_same(result, is_short=True)
        (death,) = deaths(record)
        assert f"signal 9, {phase} of step " in death
        assert any(f"{workers - 1} of {workers} workers, a replacement is starting" in text for text in told.texts)
        assert all(pause_s < 1.0 for pause_s in pauses_s(record)), record.notices

    def test_death_while_all_wait_for_the_norm(self, plan_faults: Any) -> None:
        (marker,) = plan_faults((1, 4, "barrier after the combination"))
        expected = samestep.train(nets.short(), workers=1, clip_norm=0.5).record
        record = samestep.train(nets.short(), workers=2, clip_norm=0.5).record
        assert marker.exists(), "nobody died"
        assert len(deaths(record)) == 1
        assert record.weights_sha256 == expected.weights_sha256

    @pytest.mark.soak
    @pytest.mark.parametrize("rank", [0, 3])
    def test_death_in_a_replica_of_stages(self, plan_faults: Any, rank: int) -> None:
        """Of the three that are left two are a replica, and one is left over."""
        (marker,) = plan_faults((rank, 4, "backward"))
        work = replace(nets.short(), model=nets.layered)
        expected = samestep.train(work, workers=1).record
        record = samestep.train(work, workers=4, stages=2).record
        assert marker.exists(), "nobody died"
        (death,) = deaths(record)
        assert "; 2 go on from step " in death
        assert record.weights_sha256 == expected.weights_sha256

    @pytest.mark.parametrize(
        ("phase", "settings"),
        [
            *(soak(phase, {"optimizer": "kfac"}) for phase in ("forward", "combine", "decide", "update")),
            ("forward,nth=3", {"sam_radius": 0.05, "optimizer": "muon", "lr": 0.02}),
            soak("update", {"sam_radius": 0.05, "optimizer": "muon", "lr": 0.02}),
            soak("update", {"optimizer": "adafactor"}),
        ],
    )
    def test_death_in_a_step_of_many_rounds_or_whole_tensors(
        self, plan_faults: Any, phase: str, settings: dict[str, Any]
    ) -> None:
        (marker,) = plan_faults((1, 4, phase))
        expected = samestep.train(nets.short(), workers=1, **settings).record
        record = samestep.train(nets.short(), workers=2, **settings).record
        assert marker.exists(), "nobody died"
        assert len(deaths(record)) == 1
        assert record.weights_sha256 == expected.weights_sha256

    def test_two_deaths_and_the_replacements_train_on(self, plan_faults: Any) -> None:
        markers = plan_faults((0, 100, "combine"), (1, 400, "forward"))
        result = samestep.train(nets.sleepy(), workers=2)
        record = result.record
        assert all(marker.exists() for marker in markers), "rank 1 is back at step 400 only if a replacement joined"
        check_same(result, is_short=False)
        assert len(deaths(record)) == len(pauses_s(record)) == 2
        assert max(pauses_s(record)) < 1.0, record.notices


class Watch(Silent):
    """Calls a function once a number of steps is done."""

    def __init__(self, step: int, act: Callable[[], None]) -> None:
        self._step, self._act, self._is_done = step, act, False

    def step(self, record: Any, samples_per_s: float | None) -> None:
        if record.step >= self._step and not self._is_done:
            self._is_done = True
            self._act()


def kill(pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


class Counted:
    """A loss that writes down every call, a byte each.

    Args:
        path: Where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, output: Tensor, target: Tensor) -> Any:
        with self.path.open("ab") as file:
            file.write(b".")
        return nn.functional.cross_entropy(output, target, reduction="none")


def test_a_callbacks_stop_outlives_a_replay(plan_faults: Any) -> None:
    """The snapshot after the evaluation that it stopped at is lost, so the evaluation is made again."""
    (marker,) = plan_faults((1, 3, "snapshot"))
    heard: list[int] = []

    def stop_at_3(record: EvaluationRecord) -> bool:
        heard.append(record.step)
        return record.step == 3

    record = samestep.train(nets.short(), workers=2, evaluate_every=3, callbacks=[stop_at_3]).record
    assert marker.exists(), "nobody died"
    assert heard == [3], "nobody is asked twice"
    assert (record.end, record.num_steps) == ("stopped", 3)


class Laden:
    """A loss with a megabyte of its own, which travels with the code.

    Args:
        size: Bytes.
    """

    def __init__(self, size: int) -> None:
        self.load = bytes(size)

    def __call__(self, output: Tensor, target: Tensor) -> Any:
        return nn.functional.cross_entropy(output, target, reduction="none")


def test_survivors_go_on_at_once_whatever_a_replacement_has_to_be_sent(plan_faults: Any) -> None:
    """It imports torch before it reads, and more than a pipe holds would have to wait for that."""
    (marker,) = plan_faults((1, 20, "backward"))
    work = replace(nets.nap(), loss=Laden(1 << 20))
    record = samestep.train(work, workers=2).record
    assert marker.exists(), "nobody died"
    assert len(pauses_s(record)) == 1
    assert max(pauses_s(record)) < 1.0, record.notices


def test_at_most_a_second_of_work_is_run_again(tmp_path: Path) -> None:
    """Without checkpoints, too: what is computed twice are the steps since the last snapshot in memory."""
    path = tmp_path / "calls"
    work = replace(nets.sleepy(), loss=Counted(path))
    record = samestep.train(
        work, workers=2, steps=NUM_LONG, evaluate_every=1000, progress=Watch(400, lambda: kill(children()[:1]))
    ).record
    assert len(deaths(record)) == 1
    num_microbatches = nets.GLOBAL_BATCH // nets.MICROBATCH
    num_evaluated = nets.NUM_SAMPLES // nets.MICROBATCH
    num_again = path.stat().st_size - NUM_LONG * num_microbatches - num_evaluated
    assert num_again > 0, "the oracle itself: a death costs something"
    step_s = float(np.median(record.steps.as_lists()["duration_s"]))
    assert num_again / num_microbatches * step_s <= 1.0


class TestManyDeaths:
    @pytest.mark.soak
    def test_all_workers_at_once(self) -> None:
        result = samestep.train(nets.sleepy(), workers=2, progress=Watch(100, lambda: kill(children())))
        check_same(result, is_short=False)
        assert len(deaths(result.record)) == 2

    @pytest.mark.soak
    @pytest.mark.timeout(180)
    def test_many_deaths_together_are_one_misfortune(self) -> None:
        """Seven, more than may follow one another."""
        result = samestep.train(
            nets.sleepy(), workers=7, global_batch=56, progress=Watch(100, lambda: kill(children()))
        )
        assert len(deaths(result.record)) == 7
        assert result.record.end == "finished"

    def test_before_a_worker_is_ready(self) -> None:
        killed: list[int] = []

        def kill_first() -> None:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                for pid in children():
                    killed.append(pid)
                    time.sleep(0.1)  # it imports
                    kill([pid])
                    return

        thread = threading.Thread(target=kill_first)
        thread.start()
        result = samestep.train(nets.short(), workers=2)
        thread.join()
        assert len(killed) == len(deaths(result.record)) == 1
        check_same(result, is_short=True)

    @pytest.mark.soak
    def test_a_worker_that_dies_again_and_again_ends_the_run(self, plan_faults: Any) -> None:
        plan_faults(*[(0, 0, "forward")] * 8)  # in step 0: no snapshot can come in between
        with pytest.raises(
            WorkerError, match=r"workers died 5 times at step 0 or right after .*fewer workers or a smaller"
        ):
            samestep.train(nets.short(), workers=2)
