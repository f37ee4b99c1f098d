"""Workloads of the soak: a small net with much that could go wrong, which leaves the cores alone while it trains."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samestep import Dataset, Rows, Samples, Workload
from samestep.run.metrics import accuracy

STALL = "SAMESTEP_SOAK_STALL"
"""Names a file; while there is one, every forward pass sleeps ten seconds."""

NUM_SAMPLES, NUM_FEATURES, NUM_CLASSES = 88, 12, 5
NUM_FAST, NUM_SLOW = 24, 1000
"""Steps."""


class Net(nn.Module):
    """BatchNorm, dropout, and two layers that share their weights.

    Args:
        pause_s: How long a forward pass sleeps in training.
    """

    def __init__(self, pause_s: float) -> None:
        super().__init__()
        self.first = nn.Linear(NUM_FEATURES, NUM_FEATURES)
        self.norm = nn.BatchNorm1d(NUM_FEATURES)
        self.second = nn.Linear(NUM_FEATURES, NUM_FEATURES)
        self.second.weight = self.first.weight
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.pause_s = pause_s

    def forward(self, inputs: Tensor) -> Any:
        if STALL in os.environ and Path(os.environ[STALL]).exists():
            time.sleep(10.0)
        if self.training:
            time.sleep(self.pause_s)
        hidden = self.norm(self.first(inputs)).relu()
        return self.last(self.drop(self.second(hidden).relu()))


def _data() -> Dataset:
    inputs = torch.randn(NUM_SAMPLES, NUM_FEATURES, generator=torch.Generator().manual_seed(1))
    part = Samples((Rows(values=inputs),), Rows(values=inputs[:, :NUM_CLASSES].argmax(dim=1)))
    return Dataset(part, part)


def _workload(pause_s: float, steps: int) -> Workload:
    return Workload(
        name="soak",
        model=lambda: Net(pause_s),
        data=_data,
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        # Five microbatches, of which the last is short; the last batch of an epoch has three.
        recipe={
            "global_batch": 36, "microbatch": 8, "steps": steps, "optimizer": "adamw", "lr": 0.003,
            "weight_decay": 0.01, "clip_norm": 0.5, "evaluate_every": 10,
        },
    )  # fmt: skip


def fast() -> Workload:
    """As fast as it goes."""
    return _workload(0.0, NUM_FAST)


def slow() -> Workload:
    """About ten seconds on one worker."""
    return _workload(3e-3, NUM_SLOW)
