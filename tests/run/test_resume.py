"""A run that was resumed from any of its checkpoints, on any number of workers, has the bits of an undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import samestep
from samestep import Dataset, Rows, Samples, Workload
from samestep.run.metrics import accuracy

STEPS = 400


def workload() -> Workload:
    def data() -> Dataset:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(150, 8, generator=generator)
        samples = Samples((Rows(values=inputs),), Rows(values=(inputs.sum(1) > 0).long()))
        return Dataset(samples, samples)

    return Workload(
        name="resumed",
        model=lambda: nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 2)),
        data=data,
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        recipe={"global_batch": 40, "microbatch": 10, "optimizer": "adamw", "lr": 0.01, "lr_schedule": "cosine"},
    )


def train(**settings: Any) -> samestep.Result:
    return samestep.train(workload(), steps=STEPS, evaluate_every=70, **settings)


def drop_newest(folder: Path) -> int:
    """Remove the final checkpoint; the step of the one before it."""
    headers = sorted(folder.glob("step-*.json"))
    assert len(headers) >= 2, "no checkpoint was written on the way"
    headers[-1].unlink()
    return int(json.loads(headers[-2].read_text())["step"])


def same(a: dict[str, torch.Tensor] | None, b: dict[str, torch.Tensor] | None) -> bool:
    assert a is not None
    assert b is not None
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.processes
def test_one_worker_writes_and_two_workers_go_on_and_the_other_way_round(tmp_path: Path) -> None:
    undisturbed = train(workers=1)
    folder = tmp_path / "state"
    first = train(workers=1, checkpoint=folder, checkpoint_every_s=0.02)
    assert first.record.weights_sha256 == undisturbed.record.weights_sha256
    step = drop_newest(folder)
    assert 0 < step < STEPS
    second = train(workers=2, checkpoint=folder, checkpoint_every_s=0.02, resume=True)
    assert second.record.first_step == step
    third = train(workers=1, checkpoint=folder, resume=True) if drop_newest(folder) else None
    for result in filter(None, (second, third)):
        assert result.record.weights_sha256 == undisturbed.record.weights_sha256
        assert result.record.last_loss == undisturbed.record.last_loss
        assert result.record.num_samples == undisturbed.record.num_samples
        assert same(result.best_state, undisturbed.best_state)
        means = [(record.step, record.means) for record in result.record.evaluations]
        assert means == [(record.step, record.means) for record in undisturbed.record.evaluations]


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    finished = train(workers=1, checkpoint=folder)
    again = train(workers=1, checkpoint=folder, resume=True)
    assert again.record.weights_sha256 == finished.record.weights_sha256
    assert again.record.last_loss == finished.record.last_loss
    assert len(again.record.steps) == 0
