"""The memory that a run reports is the most that was seen while it trained."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

import samestep
from samestep.run import train, usage
from tests import helpers


def test_the_peak_is_looked_for_without_an_evaluation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def total_bytes(pids: Iterable[int]) -> int:
        seen.append(1000 - len(seen))
        return seen[-1]

    monkeypatch.setattr(train, "_MEMORY_EVERY_S", 0.0)
    monkeypatch.setattr(usage, "total_bytes", total_bytes)
    record = samestep.train(helpers.workload(), workers=1, global_batch=24, microbatch=6, steps=4).record
    assert len(seen) >= 2
    assert record.peak_memory_bytes == 1000
