"""Workloads of a user's file: small ones that work, and one for each way to be wrong.

Nothing here is imported by a test: the files of users are run by the command.
"""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samestep import Dataset, Rows, Samples, Workload

NUM_SAMPLES, NUM_FEATURES, NUM_CLASSES = 96, 6, 3
RECIPE = {"global_batch": 16, "microbatch": 4, "steps": 8, "optimizer": "sgd", "lr": 0.05}
STALL = "TEST_STALL"
"""Names a file; as long as there is one, a forward pass of `stalls` sleeps ten seconds."""


def _columns() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_SAMPLES, NUM_FEATURES, generator=generator)
    return inputs, (inputs[:, :NUM_CLASSES] + 0.3).argmax(dim=1)


def _dataset(change: Callable[[Tensor, Tensor], object] = lambda inputs, labels: None) -> Dataset:
    inputs, labels = _columns()
    change(inputs, labels)
    part = Samples((Rows(values=inputs[:24]),), Rows(values=labels[:24]))
    return Dataset(Samples((Rows(values=inputs),), Rows(values=labels)), part)


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(NUM_FEATURES, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, NUM_CLASSES))


def tiny() -> Workload:
    """A workload full of lambdas and local functions."""
    hits = lambda output, target: (output.argmax(dim=1) == target).float()  # noqa: E731
    return Workload(
        name="tiny",
        model=lambda: nn.Sequential(*_net()),
        data=lambda: _dataset(lambda inputs, labels: None),
        loss=lambda output, target: nn.functional.cross_entropy(output, target, reduction="none"),
        metrics={"accuracy": hits},
        class_names=("a", "b", "c"),
        recipe=RECIPE,
    )


def diverges_at_high_rates() -> Workload:
    """A linear net under a loss that overflows in a few steps where the learning rate is not small."""
    return replace(
        tiny(),
        model=lambda: nn.Linear(NUM_FEATURES, NUM_CLASSES),
        loss=lambda output, target: (output.sum(dim=1) - target) ** 4,
    )


class Noisy(nn.Module):
    """Adds something to the net's answers that torch's generators and buffers know nothing of."""

    def __init__(self, noise: Callable[[], float]) -> None:
        super().__init__()
        self.net = _net()
        self.noise = noise

    def forward(self, inputs: Tensor) -> Tensor:
        answers: Tensor = self.net(inputs)
        return answers * (1 + 0.1 * self.noise())


def _noisy(noise: Callable[[], float]) -> Workload:
    return replace(tiny(), model=lambda: Noisy(noise))


def draws_python() -> Workload:
    return _noisy(random.random)


def draws_numpy() -> Workload:
    return _noisy(lambda: float(np.random.rand()))  # noqa: NPY002


def draws_pid() -> Workload:
    return _noisy(lambda: os.getpid() % 1000 / 1000)


class Locked(nn.Module):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net()
        self.lock = threading.Lock()

    def forward(self, inputs: Tensor) -> Any:
        with self.lock:
            return self.net(inputs)


def locked() -> Workload:
    return replace(tiny(), model=Locked)


class OneWay(nn.Linear):
    """Can be pickled, and cannot be put together again."""

    def __init__(self) -> None:
        super().__init__(NUM_FEATURES, NUM_CLASSES)

    def __setstate__(self, state: Any) -> None:
        raise LookupError("no such device")


def one_way() -> Workload:
    return replace(tiny(), model=OneWay)


def _with_data(change: Callable[[Tensor, Tensor], object]) -> Workload:
    return replace(tiny(), data=lambda: _dataset(change))


def label_too_large() -> Workload:
    workload = _with_data(lambda inputs, labels: labels[5:6].fill_(NUM_CLASSES))
    return replace(workload, loss=nn.CrossEntropyLoss())


def label_too_large_for_a_function() -> Workload:
    return _with_data(lambda inputs, labels: labels[5:6].fill_(NUM_CLASSES))


def ignores_all() -> Workload:
    """Evaluated on targets that do not count."""
    work = replace(tiny(), loss=nn.CrossEntropyLoss(), metrics={})
    data = work.data()
    ignored = Rows(values=torch.full((NUM_SAMPLES,), -100))
    return replace(work, data=lambda: Dataset(data.train, Samples(data.train.inputs, ignored)))


def label_negative() -> Workload:
    workload = _with_data(lambda inputs, labels: labels[5:6].fill_(-1))
    return replace(workload, loss=nn.CrossEntropyLoss())


def nan_in_data() -> Workload:
    return _with_data(lambda inputs, labels: inputs[7].fill_(float("nan")))


POISONED = 37
"""The sample whose loss overflows."""


def overflows() -> Workload:
    workload = _with_data(lambda inputs, labels: inputs[POISONED].fill_(1e30))
    return replace(workload, loss=lambda output, target: output.square().sum(dim=1))


def garbage_loss() -> Workload:
    return replace(tiny(), loss=lambda output, target: "good")


def wrong_shape_loss() -> Workload:
    return replace(tiny(), loss=lambda output, target: output[:1].sum(dim=1))


def three_losses() -> Workload:
    return replace(tiny(), loss=lambda output, target: (output.sum(), 1.0, 2.0))


def not_a_workload() -> int:
    return 3


def model_is_no_module() -> Workload:
    return replace(tiny(), model=lambda: "net")  # type: ignore[arg-type,return-value]


def data_is_no_dataset() -> Workload:
    return replace(tiny(), data=lambda: [1, 2])  # type: ignore[arg-type,return-value]


def unknown_recipe() -> Workload:
    return replace(tiny(), recipe={"learning_rate": 1.0})


class Talking(nn.Module):
    """Prints in every way there is, in every forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def forward(self, inputs: Tensor) -> Any:
        print("printed")
        os.write(1, b"written\n")
        subprocess.run([sys.executable, "-c", "print('from another process')"], check=True)
        ctypes.CDLL(None).puts(b"from C")
        return self.net(inputs)


def talks() -> Workload:
    return replace(tiny(), model=Talking, recipe={**RECIPE, "steps": 2})


class Stalling(nn.Module):
    """Sleeps a while in every forward pass, and long as long as the file named by the environment is there."""

    def __init__(self, pause_s: float) -> None:
        super().__init__()
        self.net = _net()
        self.pause_s = pause_s

    def forward(self, inputs: Tensor) -> Any:
        time.sleep(10.0 if STALL in os.environ and Path(os.environ[STALL]).exists() else self.pause_s)
        return self.net(inputs)


def stalls() -> Workload:
    return replace(tiny(), model=lambda: Stalling(0.01), recipe={**RECIPE, "steps": 60})
