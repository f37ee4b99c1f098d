"""Workloads that take a while without keeping a core busy, so that faults find them at work."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samestep import Dataset, Rows, Samples, Workload
from samestep.engine.group import shipping
from samestep.run.metrics import accuracy

STALL = "TEST_STALL"
"""Names a file; while there is one, passes do what it says: "sleep" for ten seconds in every forward pass, or only in
those of an "evaluation", which leaves a file of its own (see `is_here`), or be inside one long kernel, "forward" or
"backward"."""

NUM_SAMPLES, NUM_FEATURES, NUM_CLASSES = 64, 6, 3
GLOBAL_BATCH, MICROBATCH = 32, 8
RECIPE = {"global_batch": GLOBAL_BATCH, "microbatch": MICROBATCH, "optimizer": "adam", "lr": 0.01}


class Late(torch.autograd.Function):
    """The identity, whose backward pass is one long kernel."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if is_stalled("backward"):
            long_kernel()
        return gradients[0]

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        return tangents[0].clone()


def is_stalled(how: str) -> bool:
    """Whether a test wants passes to stall in this way."""
    path = Path(os.environ.get(STALL, os.devnull))
    return path.is_file() and path.read_text() == how


def is_here(stall: Path) -> Path:
    """The file that an evaluation makes when it begins to stall."""
    return stall.with_suffix(".here")


def long_kernel() -> None:
    """Far longer than a stop may take, and no instruction of Python runs meanwhile."""
    torch.linalg.eigvals(torch.rand(6000, 6000, generator=torch.Generator().manual_seed(0)))


class Sleepy(nn.Module):
    """A small net with dropout and BatchNorm that sleeps in training.

    Args:
        pause_s: How long, in every forward pass.
    """

    def __init__(self, pause_s: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(NUM_FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, NUM_CLASSES)
        )
        self.pause_s = pause_s

    def forward(self, inputs: Tensor) -> Any:
        if is_stalled("sleep"):
            time.sleep(10.0)
        if is_stalled("evaluation") and not self.training:
            is_here(Path(os.environ[STALL])).touch()
            time.sleep(10.0)
        if is_stalled("forward"):
            long_kernel()
        if self.training:
            time.sleep(self.pause_s)
        scores: Tensor = Late.apply(self.net(inputs))  # type: ignore[no-untyped-call]
        return scores


def _data() -> Dataset:
    inputs = torch.randn(NUM_SAMPLES, NUM_FEATURES, generator=torch.Generator().manual_seed(0))
    part = Samples((Rows(values=inputs),), Rows(values=(inputs[:, :NUM_CLASSES] + 0.3).argmax(dim=1)))
    return Dataset(part, part)


def _workload(pause_s: float, steps: int) -> Workload:
    return Workload(
        name="sleepy",
        model=lambda: Sleepy(pause_s),
        data=_data,
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        recipe={**RECIPE, "steps": steps, "evaluate_every": 20},
    )


BROKEN = "TEST_BROKEN"
"""Names what a person has written and that raises an error: "function", "data" or "model"."""


def broken() -> Workload:
    """A dozen steps; not where something is broken."""

    def raises(part: str) -> None:
        if os.environ.get(BROKEN) == part:
            raise KeyError(f"no {part} here")

    def model() -> Sleepy:
        raises("model")
        return Sleepy(0.0)

    def data() -> Dataset:
        raises("data")
        return _data()

    raises("function")
    return replace(short(), model=model, data=data)


LEAVING = "TEST_LEAVING"
"""How a rank ends while the state to begin with is shipped: "dies", or "raises"; empty: not at all."""


def leaving() -> Workload:
    """A dozen steps, of which a rank that leaves sees none."""

    def leave(*arguments: object) -> Any:
        if os.environ[LEAVING] == "dies":
            os._exit(3)
        raise MemoryError("no room for the state")

    if os.environ.get(LEAVING):
        shipping.ship_newest = leave  # type: ignore[assignment]
    return short()


def short() -> Workload:
    """A dozen steps at full speed."""
    return _workload(0.0, 12)


def layered() -> nn.Module:
    """What can be cut into stages."""
    first = (nn.Linear(NUM_FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
    return nn.Sequential(*first, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, NUM_CLASSES))


def sleepy() -> Workload:
    """Some seconds; four microbatches of 2 ms a step."""
    return _workload(2e-3, 500)


NAP_STEPS = 200


def nap() -> Workload:
    """A second or two; four microbatches of 2 ms a step."""
    return _workload(2e-3, NAP_STEPS)


def heavy() -> Workload:
    """2.6 MB of parameters: at 10 Mbit/s two hosts need a second for each of a step's two exchanges."""

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(NUM_FEATURES, 1 << 16), nn.ReLU(), nn.Linear(1 << 16, NUM_CLASSES))

    return replace(_workload(0.0, 500), model=model)


WIDTH = "TEST_WIDTH"
"""Units of the hidden layer that a rank makes."""


def uneven() -> Workload:
    """A dozen steps, of a network that every rank may make in another size."""

    def model() -> nn.Module:
        width = int(os.environ[WIDTH])
        return nn.Sequential(nn.Linear(NUM_FEATURES, 8), nn.Linear(8, width), nn.ReLU(), nn.Linear(width, NUM_CLASSES))

    return replace(short(), model=model)
