"""The record of a run: what the machine was like when it began."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import samestep
from samestep.host import facts, records
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
