"""What a setting is where neither a person nor the workload's recipe names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEADLINE_S = 600.0
"""Longest wait for another rank, unless a person says otherwise."""

DEFAULTS: Mapping[str, Any] = {
    "workers": "auto",
    "global_batch": 256,
    "optimizer": "adamw",
    "batch_rule": "auto",
    "sync": "step",
    "lr_schedule": "constant",
    "lr_warmup": 0.0,
    "seed": 0,
    "threads_per_worker": 1,
    "precision": "fp32",
    "device": "cpu",
    "compile": "off",
    "channels_last": False,
    "last_batch": "keep",
    "engine": "shared",
    "deadline_s": DEADLINE_S,
    "machines": 1,
    "backprop": "ordinary",
    "graphs": "auto",
    "stages": 1,
    "schedule": "1f1b",
    "noise_scale": 16,
    "checkpoint_every_s": 30.0,
    "resume": False,
}
OPTIMIZER_RECIPE = ("lr", "momentum", "weight_decay", "lr_schedule", "lr_warmup")
OF_GROWTH = ("initial_batch", "max_batch")
DEFAULT_EPOCHS = 10.0
