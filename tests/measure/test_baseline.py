"""Plain torch trains the same recipe; the machine is described."""

from __future__ import annotations

import json

import pytest
import torch

from samestep.cli.tables import as_text
from samestep.measure import machine
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


def test_machine() -> None:
    facts = machine.describe()
    assert facts.keys() == {
        "samestep", "python", "packages", "system", "processor", "instruction_set", "cores", "load", "memory_mb",
        "memory_free_mb", "dev_shm_free_mb", "torch_threads", "onednn", "mkl", "cuda", "variables", "executable",
    }  # fmt: skip
    assert torch.__version__.startswith(facts["packages"]["torch"].split("+")[0])
    assert all(facts["packages"].values()), "every dependency is installed"
    assert json.loads(json.dumps(facts)) == facts
    assert all(as_text(value) for value in facts.values())


def test_memory_of_a_process_that_is_gone_is_unknown() -> None:
    assert total_bytes([2**22 + 1]) is None
