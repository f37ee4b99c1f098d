"""What `footprint` measures: the same nets on the same file of images, for samestep's command line and for DDP.

samestep: ``samestep train benchmarks/footprint_programs.py:mlp --workers 2``.
DDP: ``python footprint_programs.py NET STEPS`` starts two ranks with `spawn`; under ``torchrun`` it is a rank.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import samestep

GLOBAL_BATCH, WORKERS = 256, 2
LEARNING_RATE, MOMENTUM = 0.01, 0.9
FOLDER_VARIABLE = "SAMESTEP_FOOTPRINT"
IMAGES, LABELS = "images.npy", "labels.npy"


class StampingLoss:
    """Cross entropy that writes down when this process computed its first two losses."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._times: list[float] = []

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        losses = functional.cross_entropy(output, target, reduction="none")
        if len(self._times) < 2:
            self._times.append(time.perf_counter())
            (Path(self._folder) / f"{os.getpid()}.first").write_text(" ".join(map(str, self._times)))
        return losses


def build_model(net: str) -> nn.Module:
    if net == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
        )
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )


def load() -> tuple[Tensor, Tensor]:
    """60,000 images of 1 x 28 x 28 bytes, and their labels."""
    folder = Path(os.environ[FOLDER_VARIABLE])
    return torch.from_numpy(np.load(folder / IMAGES)), torch.from_numpy(np.load(folder / LABELS))


def _workload(net: str) -> samestep.Workload:
    def data() -> samestep.Dataset:
        images, labels = load()
        rows = samestep.Rows(values=images, transform=samestep.Scale(factor=1 / 255))
        return samestep.Dataset(samestep.Samples((rows,), samestep.Rows(values=labels)))

    return samestep.Workload(
        name=net,
        model=lambda: build_model(net),
        data=data,
        loss=StampingLoss(os.environ[FOLDER_VARIABLE]),
        recipe={
            "optimizer": "sgd",
            "lr": LEARNING_RATE,
            "momentum": MOMENTUM,
            "global_batch": GLOBAL_BATCH,
            "microbatch": GLOBAL_BATCH // WORKERS,
        },
    )


def mlp() -> samestep.Workload:
    return _workload("mlp")


def cnn() -> samestep.Workload:
    return _workload("cnn")


def run_rank(rank: int, initialise: Callable[[int], None], net: str, steps: int) -> None:
    """A rank of DistributedDataParallel with a copy of the data, as its documentation writes it."""
    torch.set_num_threads(1)
    initialise(rank)
    images, labels = load()
    model = DistributedDataParallel(build_model(net), gradient_as_bucket_view=True, static_graph=True)
    optimizer = optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, fused=True)
    share = GLOBAL_BATCH // WORKERS
    generator = torch.Generator().manual_seed(1)
    done = 0
    while True:
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images) - GLOBAL_BATCH + 1, GLOBAL_BATCH):
            part = order[start + rank * share : start + (rank + 1) * share]
            optimizer.zero_grad(set_to_none=True)
            output = model(images.index_select(0, part).float().mul_(1 / 255))
            functional.cross_entropy(output, labels.index_select(0, part)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            if done == steps:
                leave()


def leave() -> NoReturn:
    """End this rank when all ranks are through.

    A rank was once aborted at its end (SIGABRT), which could not be brought about again. Two things may do that: a peer
    that ends while this rank still reads from it, hence the barrier; and threads of Gloo's that are still at work when
    the interpreter is taken apart, hence an end without that.
    """
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)


def initialise_by_file(rank: int) -> None:
    file = Path(os.environ[FOLDER_VARIABLE]) / "rendezvous"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=WORKERS)


def initialise_by_environment(rank: int) -> None:
    torch.distributed.init_process_group("gloo")


def main(net: str, steps: int) -> None:
    if "RANK" in os.environ:
        run_rank(int(os.environ["RANK"]), initialise_by_environment, net, steps)
    else:
        spawn(run_rank, (initialise_by_file, net, steps), nprocs=WORKERS)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
