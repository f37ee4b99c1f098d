"""What lies in a sweep's folder: gone on with, with more optimisers and with fewer; another sweep is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from samestep.errors import Interrupted, UsageError
from samestep.host import provenance, records
from samestep.measure.sweep import kept, result, study
from samestep.measure.sweep.halving import Outcome
from samestep.measure.sweep.trial import Finished, Subject, Trial
from samestep.run.config import NumericSettings
from samestep.workloads import catalog


class Instant:
    """In the place of the pool: a run has ended as soon as it is started; `done` are all there were."""

    done: ClassVar[list[Trial]] = []
    has_luck: ClassVar[bool] = True

    def __init__(self, subject: Subject, size: int, threads: int) -> None:
        self._left: list[Trial] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    @property
    def has_room(self) -> bool:
        return True

    @property
    def running(self) -> tuple[Trial, ...]:
        return tuple(self._left)

    def start(self, trial: Trial) -> None:
        self._left.append(trial)

    def wait(self) -> tuple[Trial, Finished]:
        trial = self._left.pop(0)
        self.done.append(trial)
        outcome = Outcome(reached_step=trial.run.steps, best=0.1) if self.has_luck else Outcome(best=0.9)
        return trial, Finished(outcome=outcome, num_steps=trial.run.steps, num_samples=trial.run.steps, step_s=0.01)


class Quiet:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def phase(self, text: str, done: int, total: int, left_s: float | None) -> None: ...


def planned(*optimizers: str, **other: Any) -> study.Planned:
    wishes = study.Wishes(
        batches=(256, "full"), optimizers=optimizers, goal="val_error<=0.6", trials=2, seeds=1, most_steps=8
    )
    settings = NumericSettings(width=16, **other)
    return study.plan(lambda: catalog.build("digits-mlp", width=16), settings, wishes)


def measured(folder: Path, *optimizers: str, **other: Any) -> tuple[dict[str, Any], list[Trial]]:
    """The record, and what was run for it."""
    Instant.done = []
    return study.measure(planned(*optimizers, **other), folder, Quiet(), jobs=1), Instant.done


@pytest.fixture(autouse=True)
def _instant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "Pool", Instant)


def names(done: list[Trial]) -> set[str]:
    return {trial.optimizer for trial in done}


def test_a_sweep_gains_an_optimiser_and_keeps_the_earlier_runs(tmp_path: Path) -> None:
    first, done = measured(tmp_path, "sgd")
    assert names(done) == {"sgd"}
    both, done = measured(tmp_path, "sgd", "kfac", "adamw")
    assert names(done) == {"adamw", "kfac"}
    assert both["study"]["optimizers"] == ["sgd", "kfac", "adamw"] and set(both["spaces"]) == {"sgd", "kfac", "adamw"}
    assert [run for run in both["runs"] if run["optimizer"] == "sgd"] == first["runs"]
    fewer, done = measured(tmp_path, "adamw")
    assert done == []
    assert fewer["study"] == both["study"] and fewer["runs"] == both["runs"]
    assert [curve.optimizer for curve in result.analyse(fewer).curves] == ["sgd", "kfac", "adamw"]


def test_an_optimiser_that_was_interrupted_is_not_in_the_record_of_others(tmp_path: Path) -> None:
    whole, _ = measured(tmp_path / "whole", "sgd", "adamw")
    measured(tmp_path, "sgd", "adamw")
    (tmp_path / kept.RECORD).rename(tmp_path / kept.PARTIAL)
    for path in list((tmp_path / kept.RUNS).glob("adamw-*report*.json")):
        path.unlink()
    fewer, done = measured(tmp_path, "sgd")
    assert (fewer["study"]["optimizers"], done) == (["sgd"], [])
    again, done = measured(tmp_path, "sgd", "adamw")
    assert {trial.run.stage for trial in done} == {"report"}
    assert again["runs"] == whole["runs"]


def test_other_settings_are_another_sweep(tmp_path: Path) -> None:
    measured(tmp_path, "sgd")
    with pytest.raises(UsageError, match=r"holds another sweep: its study.seed is 0 and this one's is 5; name another"):
        measured(tmp_path, "sgd", seed=5)


@pytest.mark.parametrize(
    ("place", "decides"),
    [("cli/added.py", False), ("report/added.py", False), ("engine/added.py", True), ("torch_private.py", True)],
)
def test_only_sources_that_decide_what_a_run_finds_keep_sweeps_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, decides: bool
) -> None:
    sources = tmp_path / "sources"
    for part in ("cli/a.py", "engine/a.py", "torch_private.py"):
        (sources / part).parent.mkdir(parents=True, exist_ok=True)
        (sources / part).write_text("pass")
    monkeypatch.setattr(provenance, "source_sha256", lambda parts=("",): provenance.digest_of(sources, parts))
    measured(tmp_path / "sweep", "sgd")
    (sources / place).parent.mkdir(exist_ok=True)
    (sources / place).write_text("pass  # another comment")
    if decides:
        with pytest.raises(UsageError, match=r"was begun with another samestep.*name another folder with --out"):
            measured(tmp_path / "sweep", "sgd")
    else:
        assert measured(tmp_path / "sweep", "sgd")[1] == []


def test_another_machine_is_refused_with_a_way_out_for_a_sweep(tmp_path: Path) -> None:
    measured(tmp_path, "sgd")
    record = records.read(tmp_path / kept.RECORD)
    record["environment"]["host"]["cores"] = 99
    records.write(tmp_path / kept.RECORD, "sweep", {k: v for k, v in record.items() if k not in ("format", "kind")})
    with pytest.raises(UsageError, match=r"cores is 99 in one .* name another folder with --out for a new one$"):
        measured(tmp_path, "sgd")


def test_one_of_something_is_no_more_than_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Instant, "has_luck", False)
    wishes = study.Wishes(
        batches=(256,), optimizers=("sgd",), goal="val_error<=0.6", trials=1, seeds=1, first_steps=1, most_steps=1
    )
    plan = study.plan(lambda: catalog.build("digits-mlp", width=16), NumericSettings(width=16), wishes)
    teller = Quiet()
    found = result.analyse(study.measure(plan, tmp_path, teller, jobs=1))
    assert teller.lines == ["digits-mlp: 1 cell of 1 trial to error <= 0.6, budgets 1 to 1 step, 1 run side by side"]
    assert found.shortcomings == ("sgd at 256: error <= 0.6 was never reached in 1 step; the best was 0.9 (1 trial)",)


def test_every_deciding_part_is_there() -> None:
    root = Path(provenance.__file__).parents[1]
    assert all((root / part).exists() for part in kept.DECIDING)


def test_what_is_kept_is_what_lies_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal comes between the end of a run and its file."""
    write, written = records.write, []

    def stopped_at_the_third(path: Path, kind: str, body: Any) -> None:
        if kind == "sweep-run":
            written.append(path)
            if len(written) == 3:
                raise KeyboardInterrupt
        write(path, kind, body)

    monkeypatch.setattr(records, "write", stopped_at_the_third)
    with pytest.raises(Interrupted, match=r"^stopped by SIGINT; kept: 2 runs; the same command goes on from there$"):
        measured(tmp_path, "sgd")
