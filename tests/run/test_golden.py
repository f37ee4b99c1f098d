"""Losses of two tiny runs, as they were when the bits were last changed on purpose.

The digest depends on the processor type; the losses only in their last digits. Who changes them says so in the
changelog.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import samestep

MLP = [1.127425, 1.179341, 0.986151, 1.09742, 1.131517]
BATCH_NORM = [1.083532, 1.232903, 1.022841, 1.176521, 1.143348]


def losses(model: nn.Module, **settings: Any) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(96, 6, generator=generator)
    targets = torch.randint(0, 3, (96,), generator=generator)
    result = samestep.fit(model, inputs, targets, workers=1, steps=5, global_batch=40, microbatch=8, **settings)
    return [round(step.loss, 6) for step in result.record.steps]


def seeded(*layers: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(*(layer() for layer in layers))  # type: ignore[operator]


def test_a_multilayer_perceptron_with_dropout() -> None:
    model = seeded(lambda: nn.Linear(6, 16), nn.ReLU, lambda: nn.Dropout(0.2), lambda: nn.Linear(16, 3))
    assert losses(model, optimizer="sgd", lr=0.05) == pytest.approx(MLP, abs=2e-5)


def test_batch_norm_with_adamw_and_a_schedule() -> None:
    model = seeded(lambda: nn.Linear(6, 16), lambda: nn.BatchNorm1d(16), nn.ReLU, lambda: nn.Linear(16, 3))
    settings: dict[str, Any] = {"optimizer": "adamw", "lr": 0.01, "lr_schedule": "cosine", "clip_norm": 1.0}
    assert losses(model, **settings) == pytest.approx(BATCH_NORM, abs=2e-5)
