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
from samestep.measure.candidates import Candidate
from samestep.measure.slots import ProgramError, Slot
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


def table_of(ways: Sequence[Candidate], step_s: Sequence[float], others_frac: float = 0.0) -> choosing._Table:
    """What three turns have found."""
    table = choosing._Table(ways, _Lines(Silent()))
    for number in range(3):
        slots = {
            way.name: Slot(step_s=float(each), num_steps=1, others_frac=others_frac, steps_s=(), phases=())
            for way, each in zip(ways, step_s, strict=True)
        }
        table.keep(number, slots)
    return table


def test_what_is_remembered_is_used_until_it_is_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choosing, "num_cores", lambda: 2)
    measured: list[Sequence[Candidate]] = []

    def measure(ways: Sequence[Candidate], *others: Any) -> choosing._Table:
        """The last way of the first measurement is the fastest, and the first way of the second."""
        measured.append(ways)
        order = range(len(ways), 0, -1) if len(measured) == 1 else range(1, len(ways) + 1)
        return table_of(ways, order)

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


@pytest.mark.parametrize(
    ("others_frac", "error", "says"),
    [
        (0.0, None, None),
        (0.0, ProgramError("2 workers: ended with exit code 2: stages", is_usage=True), None),
        (0.0, ProgramError("2 workers: did not do its first 3 steps within 120 s"), "did not do its first 3 steps"),
        (0.3, None, "other processes took 30 % of the processors' time"),
    ],
)
def test_what_is_remembered_is_no_accident(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, others_frac: float, error: ProgramError | None, says: str | None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choosing, "num_cores", lambda: 2)
    num_measured = 0

    def measure(ways: Sequence[Candidate], *others: Any) -> choosing._Table:
        nonlocal num_measured
        num_measured += 1
        table = table_of(ways, [1] * len(ways), others_frac)
        if error is not None:
            table.failures["2 workers"] = error
        return table

    monkeypatch.setattr(choosing, "_measure", measure)
    work, said = helpers.workload(helpers.Mlp), Written()
    for _ in range(2):
        choosing.choose(lambda: work, Settings(**SETTINGS), _Lines(said))
    assert num_measured == (1 if says is None else 2)
    if says is not None:
        assert said.lines[0].startswith("parallel: this choice is not remembered: ")
        assert says in said.lines[0]


def test_one_stage_stays_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choosing, "num_cores", lambda: 2)
    measured: list[Candidate] = []

    def measure(ways: Sequence[Candidate], *others: Any) -> choosing._Table:
        measured.extend(ways)
        return table_of(ways, [1] * len(ways))

    monkeypatch.setattr(choosing, "_measure", measure)
    work = helpers.workload(helpers.Mlp)
    choosing.choose(lambda: work, Settings(**{**SETTINGS, "stages": 1}), _Lines(Written()))
    assert {way.stages for way in measured} == {1}


def test_what_a_run_would_refuse_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`kfac` has no stages; two workers with one microbatch have nothing else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choosing, "num_cores", lambda: 2)
    measured: list[str] = []

    def measure(ways: Sequence[Candidate], *others: Any) -> choosing._Table:
        measured.extend(way.name for way in ways)
        return table_of(ways, [1] * len(ways))

    monkeypatch.setattr(choosing, "_measure", measure)
    work, settings = helpers.workload(helpers.Mlp), {**SETTINGS, "optimizer": "kfac"}
    choosing.choose(lambda: work, Settings(**settings), _Lines(Written()))
    assert measured == ["1 worker", "1 worker, concurrent", "2 workers", "2 workers, concurrent"]
    with pytest.raises(UsageError, match="optimizer='kfac' and stages=2 do not go together"):
        choosing.choose(lambda: work, Settings(**{**settings, "microbatch": 24, "workers": 2}), _Lines(Written()))


def test_two_workers_and_one_microbatch_are_two_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "num_cores", lambda: 2)
    work, said = helpers.workload(helpers.Mlp), Written()
    found = choosing.choose(lambda: work, Settings(**{**SETTINGS, "microbatch": 24, "workers": 2}), _Lines(said))
    assert (found.candidate.workers, found.candidate.stages) == (2, 2)
    assert said.lines == ["parallel: 2 workers, 2 stages: there is no other way on 2 cores"]


def test_stages_are_measured_as_they_would_run() -> None:
    config = resolve(Settings(**SETTINGS, schedule="zbv"), {})
    way = Candidate(workers=2, backprop="ordinary", threads=1, stages=2)
    task = choosing._task(way, config)
    assert task.staging == {"stages": 2, "schedule": "zbv", "chunks": 2}
    assert choosing._task(replace(way, stages=1), config).staging == {}


@pytest.mark.parametrize(("name", "value"), [("cut", "3"), ("stages", 2)])
def test_stages_of_a_persons_own_are_one_line(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{name}={value!r} is set, and parallel='auto' tries stages itself"):
        samestep.train(helpers.workload(), parallel="auto", **{name: value}, **SETTINGS)


def test_where_it_does_not_go_is_one_line() -> None:
    with pytest.raises(UsageError, match="parallel goes with samestep"):
        samestep.fit(helpers.Mlp(), torch.zeros(4, 12), torch.zeros(4, dtype=torch.int64), parallel="auto")


def test_another_word_is_one_line() -> None:
    with pytest.raises(UsageError, match="parallel 'always' is not known"):
        samestep.train(helpers.workload(), parallel="always")  # type: ignore[arg-type]
