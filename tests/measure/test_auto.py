"""samestep.train with parallel="auto": from Python, with what only Python can give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import samestep
from samestep.errors import UsageError
from samestep.measure import choosing
from samestep.measure.auto import _Lines
from samestep.measure.candidates import Candidate, Measured
from samestep.run.config import Settings, resolve
from samestep.run.progress import Silent
from tests import helpers

SETTINGS: dict[str, Any] = {"global_batch": 24, "microbatch": 6, "steps": 4, "lr": 0.05}


class Written(Silent):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def slow_rate(progress: float) -> float:
    return 1.0 - 0.5 * progress


@pytest.mark.processes
@pytest.mark.timeout(200)
@pytest.mark.soak
def test_the_same_bits_with_an_optimiser_and_a_schedule_of_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choosing, "_DEAL", replace(choosing._DEAL, slot_s=0.02, slot_steps=1))
    monkeypatch.setattr(choosing, "num_cores", lambda: 2)
    given: dict[str, Any] = {**SETTINGS, "optimizer": torch.optim.RMSprop, "lr_schedule": slow_rate}
    wanted = samestep.train(helpers.workload(helpers.Mlp), **given, workers=1)
    progress = Written()
    found = samestep.train(
        helpers.workload(helpers.Mlp), **given, parallel="auto", backprop="concurrent", progress=progress
    )
    assert found.record.weights_sha256 == wanted.record.weights_sha256
    assert found.record.config["backprop"] == "concurrent"
    assert progress.lines[0] == "parallel: measuring 2 ways to train test here"
    workers = found.record.workers
    assert any(line.startswith(f"parallel: {workers} worker") for line in progress.lines)


def test_what_is_remembered_is_used_until_it_is_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choosing, "num_cores", lambda: 2)
    measured: list[Sequence[Candidate]] = []

    def measure(ways: Sequence[Candidate], *others: Any) -> list[Measured]:
        """The last way of the first measurement is the fastest, and the first way of the second."""
        measured.append(ways)
        order = range(len(ways), 0, -1) if len(measured) == 1 else range(1, len(ways) + 1)
        return [Measured(candidate=way, step_s=(float(k),) * 3) for way, k in zip(ways, order, strict=True)]

    monkeypatch.setattr(choosing, "_measure", measure)
    work, said = helpers.workload(helpers.Mlp), Written()

    def choose(*, measures_again: bool = False, **settings: Any) -> str:
        found = choosing.choose(
            lambda: work, Settings(**{**SETTINGS, **settings}), _Lines(said), measures_again=measures_again
        )
        return found.candidate.name

    assert choose() == choose() == choose(seed=3) == "2 workers, 2 stages"
    assert len(measured) == 1
    assert "--measure-again measures anew" in said.lines[-1]
    assert choose(measures_again=True) == choose() == "1 worker"
    assert len(measured) == 2
    choose(microbatch=12)
    assert len(measured) == 3
    choose(schedule="zbv")
    assert len(measured) == 4, "stages that take turns in another way take another time"


def test_one_stage_stays_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choosing, "num_cores", lambda: 2)
    measured: list[Candidate] = []

    def measure(ways: Sequence[Candidate], *others: Any) -> list[Measured]:
        measured.extend(ways)
        return [Measured(candidate=way, step_s=(1.0,) * 3) for way in ways]

    monkeypatch.setattr(choosing, "_measure", measure)
    work = helpers.workload(helpers.Mlp)
    choosing.choose(lambda: work, Settings(**{**SETTINGS, "stages": 1}), _Lines(Written()))
    assert {way.stages for way in measured} == {1}


def test_stages_are_measured_as_they_would_run() -> None:
    config = resolve(Settings(**SETTINGS, schedule="zbv"), {})
    way = Candidate(workers=2, backprop="ordinary", threads=1, stages=2)
    task = choosing._task(way, config)
    assert task.staging == {"stages": 2, "schedule": "zbv", "chunks": 2}
    assert choosing._task(replace(way, stages=1), config).staging == {}


def test_where_it_does_not_go_is_one_line() -> None:
    with pytest.raises(UsageError, match="parallel goes with samestep"):
        samestep.fit(helpers.Mlp(), torch.zeros(4, 12), torch.zeros(4, dtype=torch.int64), parallel="auto")


def test_another_word_is_one_line() -> None:
    with pytest.raises(UsageError, match="parallel 'always' is not known"):
        samestep.train(helpers.workload(), parallel="always")  # type: ignore[arg-type]
