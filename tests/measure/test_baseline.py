"""Plain torch trains the same recipe; the machine is described."""

from __future__ import annotations

import pytest
import torch

from samestep.measure.baseline import train_plain
from samestep.run.config import Settings, resolve
from samestep.run.usage import total_bytes
from samestep.workloads import catalog


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("adamw", 0.01), ("muon", 0.01)])
def test_baseline_trains(optimizer: str, lr: float) -> None:
    workload = catalog.build("digits-mlp", width=32)
    settings = Settings(optimizer=optimizer, lr=lr, clip_norm=1.0, weight_decay=1e-3, epochs=4)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    baseline = train_plain(workload, resolve(settings, workload.recipe), threads=1)
    assert baseline.accuracy is not None
    assert baseline.accuracy > 0.6
    assert baseline.samples_per_s > 0
    assert baseline.wall_s > 0
    assert torch.equal(torch.rand(3), expected), "the caller's generator is given back"


def test_baseline_is_repeatable_and_knows_its_seed() -> None:
    workload = catalog.build("digits-mlp", width=16, depth=1)

    def digest(seed: int) -> str:
        config = resolve(Settings(steps=5, seed=seed), workload.recipe)
        return train_plain(workload, config, threads=1).weights_sha256

    assert digest(0) == digest(0)
    assert digest(0) != digest(1)


def test_memory_of_a_process_that_is_gone_is_unknown() -> None:
    assert total_bytes([2**22 + 1]) is None
