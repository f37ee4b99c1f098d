"""The record of a run: what the machine was like when it began, and a row for every step."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import samestep
from samestep.engine.loop import StepRecord
from samestep.host import facts, records
from samestep.run.record import StepTable
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
