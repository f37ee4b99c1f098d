"""A crew that was hired before the size of the run was known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import samestep
from samestep.run import config


@pytest.mark.processes
@pytest.mark.parametrize("num_samples", [6, 18])
def test_workers_that_are_not_needed_leave_without_being_mourned(
    num_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "num_cores", lambda: 3)
    inputs, targets = torch.randn(num_samples, 4), torch.arange(num_samples) % 2
    digests = set()
    for workers in ("auto", 1):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Linear(4, 2)
        result = samestep.fit(model, inputs, targets, workers=workers, global_batch=64, microbatch=8, epochs=3)
        assert not any("died" in notice for notice in result.record.notices)
        digests.add(result.record.weights_sha256)
    assert len(digests) == 1
