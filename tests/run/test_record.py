"""The record of a run: what the machine was like when it began, and a row for every step."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import samestep
from samestep.engine.loop import StepRecord
from samestep.host import facts, peaks, records
from samestep.run.progress import Silent
from samestep.run.record import StepTable
from samestep.run.workload import Workload
from samestep.workloads import catalog, files
from tests import helpers


def test_the_load_is_that_of_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At the end the run itself is the load."""
    loads = iter([0.25])
    monkeypatch.setattr(facts, "load", lambda: next(loads, 7.0))
    before = datetime.now(UTC) - timedelta(seconds=1)
    samestep.train(helpers.workload(), workers=1, global_batch=24, microbatch=6, steps=4, out=tmp_path)
    environment = records.read(tmp_path / "record.json", "run")["environment"]
    assert environment["host"]["load"] == 0.25
    assert before <= datetime.fromisoformat(environment["created"]) <= datetime.now(UTC)


class Lines(Silent):
    """Keeps the lines that a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def written(folder: Path, workload: Workload | None = None) -> tuple[dict[str, Any], list[str]]:
    """A short run's record, and what was said."""
    said = Lines()
    settings: dict[str, Any] = {"workers": 1, "global_batch": 24, "microbatch": 6, "steps": 4, "out": folder}
    samestep.train(workload or helpers.workload(), progress=said, **settings)
    return records.read(folder / "record.json", "run"), said.lines


class TestPeaks:
    @pytest.fixture(autouse=True)
    def fresh_machine(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Nobody has measured anything here, and measuring is short."""
        sizes = peaks.Sizes(
            num_cores=1, copy_bytes_one_core=4096, copy_bytes_all_cores=4096, side_one_core=8, side_all_cores=8,
            run_s=0.0,
        )  # fmt: skip
        monkeypatch.setattr(peaks, "usual_sizes", lambda: sizes)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.delenv(peaks.VARIABLE)

    def test_measured_after_the_first_run_and_kept(self, tmp_path: Path) -> None:
        first, said = written(tmp_path / "first")
        assert [line.partition(" (")[0] for line in said] == [
            "measuring what this machine can copy and multiply, once for all runs on it"
        ]
        assert first["environment"]["peaks"]["copy_bytes_per_s_one_core"] > 0
        assert first["environment"]["peaks"]["matmul_flop_per_s_all_cores"] > 0
        assert first["wall_s"] > 0 and first["end"] == "finished"
        second, said = written(tmp_path / "second")
        assert said == []
        assert second["environment"]["peaks"] == first["environment"]["peaks"]

    def test_left_out_where_asked_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(peaks.VARIABLE, "off")
        record, said = written(tmp_path / "out")
        assert record["environment"]["peaks"] is None
        assert said == []

    def test_a_record_is_there_before_anything_is_measured(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who interrupts the two seconds has not lost the run."""
        found: list[dict[str, Any]] = []

        def interrupted() -> peaks.Peaks:
            found.append(records.read(tmp_path / "out" / "record.json", "run"))
            raise KeyboardInterrupt

        monkeypatch.setattr(peaks, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            written(tmp_path / "out")
        assert found[0]["steps"] == 4 and found[0]["environment"]["peaks"] is None


OWN = """
import torch
from samestep import Dataset, Rows, Samples, Workload

def data():
    values = torch.arange(48.0).reshape(24, 2) / 48
    return Dataset(Samples((Rows(values=values),), Rows(values=values.sum(1, keepdim=True))))

def build():
    return Workload(name="own", model=lambda: torch.nn.Linear(2, 1), data=data, loss=torch.nn.MSELoss())
"""


def test_the_users_own_code_has_a_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # a workload's file adds its folder
    path = tmp_path / "own.py"
    path.write_text(OWN)
    first, again = (written(tmp_path / name, files.load(f"{path}:build"))[0] for name in ("first", "again"))
    path.write_text(f"{OWN}\n# another thought\n")
    changed, _ = written(tmp_path / "changed", files.load(f"{path}:build"))
    assert len(first["code_sha256"]) == 64
    assert first["code_sha256"] == again["code_sha256"] != changed["code_sha256"]
    assert first["weights_sha256"] == changed["weights_sha256"]


def test_what_is_built_in_is_nobodys_own_code(tmp_path: Path) -> None:
    assert written(tmp_path, catalog.build("digits-mlp", width=8))[0]["code_sha256"] is None


@pytest.mark.parametrize("sizes", [(6,), (1, 1, 1, 1, 2), (0, 2, 4), (3, 3)])
def test_a_table_of_steps_is_the_same_however_they_come(sizes: tuple[int, ...]) -> None:
    steps = [StepRecord(n, 0.5 * n, 2.0, 10 + n, 0.25 * (n + 1), num_rounds=1, num_rows=20) for n in range(6)]
    table, start = StepTable(), 0
    for size in sizes:
        table.extend(steps[start : start + size])
        start += size
    assert list(table) == steps
    assert table.samples_per_s == sum(13 + n for n in range(3)) / sum(0.25 * (n + 4) for n in range(3))
    assert (table.num_rounds, table.num_rows) == (6, 120)
