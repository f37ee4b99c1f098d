"""The trace of a run: every worker on one time axis, whole even where the run fails."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import samestep
from samestep.engine import events
from samestep.engine.events import Phase
from samestep.errors import NonFiniteError, StateError
from samestep.run.profile import chrome_trace
from tests.marks import soak


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_bytes())["traceEvents"]
    return rows


def fit(path: Path | None, **settings: Any) -> samestep.Result:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, 4, generator=generator)
    model = nn.Linear(4, 2)
    nn.init.normal_(model.weight, generator=generator)
    nn.init.zeros_(model.bias)
    if "epochs" not in settings:
        settings.setdefault("steps", 5)
    return samestep.fit(model, inputs, torch.arange(32) % 2, global_batch=8, profile=path, **settings)


@pytest.mark.processes
@pytest.mark.parametrize("workers", [1, 2])
def test_every_worker_is_on_one_axis(workers: int, tmp_path: Path) -> None:
    fit(tmp_path / "folder" / "trace.json", workers=workers)
    rows = rows_of(tmp_path / "folder" / "trace.json")
    spans = [row for row in rows if row["ph"] == "X"]
    assert {row["tid"] for row in spans} == set(range(workers))
    assert {row["args"]["step"] for row in spans} >= set(range(5))
    assert {row["name"] for row in spans} <= {phase.text for phase in Phase}
    for rank in range(workers):
        own = [row for row in spans if row["tid"] == rank]
        assert [row["args"]["step"] for row in own if row["name"] == "update"] == list(range(5))
        for before, after in pairwise(own):
            assert before["ts"] + before["dur"] == pytest.approx(after["ts"], abs=0.01)
    assert min(row["ts"] for row in spans) == 0.0


@pytest.mark.processes
@pytest.mark.parametrize(("machines", "told"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.soak)])
def test_ranks_are_on_one_axis(machines: int, told: int, tmp_path: Path) -> None:
    """A breakdown tells of the ranks of the first one's machine."""
    result = fit(tmp_path / "trace.json", workers=2, engine="group", machines=machines, steps=8)
    spans = [row for row in rows_of(tmp_path / "trace.json") if row["ph"] == "X"]
    assert {row["tid"] for row in spans} == {0, 1}
    for rank in range(2):
        updates = [row["args"]["step"] for row in spans if row["tid"] == rank and row["name"] == "update"]
        assert updates == list(range(8))
    breakdown = result.record.breakdown
    assert breakdown is not None
    assert len(breakdown.workers) == told
    total = sum(sum(worker.values()) for worker in breakdown.workers) / told
    assert total == pytest.approx(breakdown.step_s, rel=1e-9)


@pytest.mark.processes
@pytest.mark.parametrize("schedule", ["1f1b", soak("gpipe")])
def test_stages_are_on_one_axis(schedule: str, tmp_path: Path) -> None:
    """The groups of a breakdown add up to the step, the exchange with other stages included."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    inputs = torch.randn(32, 4)
    settings: dict[str, Any] = {"workers": 2, "stages": 2, "schedule": schedule, "global_batch": 8, "epochs": 5}
    result = samestep.fit(model, inputs, torch.arange(32) % 2, profile=tmp_path / "trace.json", **settings)
    spans = [row for row in rows_of(tmp_path / "trace.json") if row["ph"] == "X"]
    assert {row["tid"] for row in spans} == {0, 1}
    assert Phase.STAGES.text in {row["name"] for row in spans}
    breakdown = result.record.breakdown
    assert breakdown is not None
    total = sum(sum(worker.values()) for worker in breakdown.workers) / 2
    assert total == pytest.approx(breakdown.step_s, rel=1e-9)


def test_tracing_does_not_change_the_bits(tmp_path: Path) -> None:
    assert len({fit(path, workers=1).record.weights_sha256 for path in (tmp_path / "trace.json", None)}) == 1


def test_the_record_says_where_the_time_went() -> None:
    record = fit(None, workers=1, epochs=5).record
    assert record.breakdown is not None
    assert record.breakdown.num_steps == 16, "of 20, the first three and the last are left out"
    (worker,) = record.breakdown.workers
    assert sum(worker.values()) == pytest.approx(record.breakdown.step_s, rel=1e-9)
    assert record.waiting_for_data_frac == worker["data"] / record.breakdown.step_s
    assert fit(None, workers=1, steps=4).record.breakdown is None


def test_a_failed_run_leaves_its_trace(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    nn.init.constant_(model.weight, float("inf"))
    with pytest.raises(NonFiniteError):
        samestep.fit(
            model,
            torch.randn(8, 4),
            torch.arange(8) % 2,
            global_batch=8,
            steps=2,
            workers=1,
            profile=tmp_path / "t.json",
        )
    assert any(row["name"] == "forward" for row in rows_of(tmp_path / "t.json"))


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="the folder for the trace"):
        fit(tmp_path / "file" / "trace.json", workers=1)


def test_nothing_makes_an_empty_trace() -> None:
    assert [row["ph"] for row in json.loads(chrome_trace({}))["traceEvents"]] == ["M"]
    empty = events.EventReader(np.zeros(events.num_bytes(4), dtype=np.uint8)).since(0)
    assert len(json.loads(chrome_trace({0: empty}))["traceEvents"]) == 2
