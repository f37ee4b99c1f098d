"""Ways from samples in memory to batches: samestep's feed, what people write today, and indexing by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from samestep.data import adult as adults
from samestep.data import augment, images, sources
from samestep.data.augment import Change
from samestep.data.columns import Batch, Rows, Samples, Scale
from samestep.data.feed import Feed
from samestep.plan.batch import BatchPlan
from samestep.plan.order import Order

BATCH, NUM_ROWS, NUM_COLUMNS = 256, 60_000, 20
NUM_WORKERS = (0, 1, 2)
OURS, TWIN, BY_STEP, BY_HAND = "samestep", "samestep-twin", "samestep-step", "by-hand"

_SEED = 1
_MEAN, _DEVIATION = 0.2860, 0.3530
"""Of the training pictures of Fashion-MNIST, in 0..1."""

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Samples in memory.

    Args:
        inputs: One tensor per input of a model, shape (num_samples, ...).
        target: Shape (num_samples,), int64.
        scale: Casts and normalises the inputs.
    """

    inputs: Tensors
    target: Tensor
    scale: Scale | None = None

    @property
    def num_samples(self) -> int:
        return len(self.target)

    def first(self, number: int) -> Source:
        """The first samples."""
        return replace(self, inputs=tuple(values[:number] for values in self.inputs), target=self.target[:number])

    def scaled(self, rows: Tensor) -> Tensor:
        """Rows of an input as a model takes them."""
        return rows if self.scale is None else self.scale(rows)

    def samples(self, changes: tuple[Change, ...] = ()) -> Samples:
        """The same as columns of samestep."""
        inputs = tuple(Rows(values=values, transform=self.scale, changes=changes) for values in self.inputs)
        return Samples(inputs, Rows(values=self.target))


@dataclass(frozen=True, kw_only=True)
class Loader:
    """A way from samples to batches.

    Args:
        name: What it is called in records.
        group: Of loaders with the same group, the fastest one counts.
        epoch: The batches of an epoch, by its number, as the loader gives them.
        tensors: The tensors of a batch: the inputs, then the target.
    """

    name: str
    group: str
    epoch: Callable[[int], Iterable[Any]]
    tensors: Callable[[Any], Tensors] = tuple

    def run(self, number: int) -> None:
        """Take all batches of an epoch."""
        for _ in self.epoch(number):
            pass


def table() -> Source:
    """Numbers as a table holds them, 60,000 × 20."""
    values = torch.rand(NUM_ROWS, NUM_COLUMNS, generator=torch.Generator().manual_seed(_SEED))
    return Source(inputs=(values,), target=torch.arange(NUM_ROWS))


def adult() -> Source:
    """Adult's training part: 32,561 × (6 numbers, 8 categories)."""
    rows = adults.adult().train
    return Source(
        inputs=(torch.from_numpy(rows.numeric), torch.from_numpy(rows.categorical)), target=_int64(rows.labels)
    )


def fashion() -> Source:
    """Fashion-MNIST's training part: bytes of 60,000 × 1 × 28 × 28."""
    pictures, _ = images.mnist_like("fashion-mnist")
    scale = Scale(factor=1 / (255 * _DEVIATION), shift=-_MEAN / _DEVIATION)
    return Source(inputs=(torch.tensor(pictures.images).unsqueeze(1),), target=_int64(pictures.labels), scale=scale)


def ours(source: Source, changes: tuple[Change, ...] = ()) -> list[Loader]:
    """The feed, asked for a stream of steps as samestep's engine asks it; once more; and asked for each step alone."""
    samples = source.samples(changes)
    plan = BatchPlan(num_samples=samples.num_samples, global_batch=BATCH, microbatch=BATCH)
    steps = [plan.microbatches(step) for step in range(plan.steps_per_epoch)]

    def stream(number: int) -> Iterator[Batch]:
        feed = Feed(samples, Order(num_samples=samples.num_samples, seed=_SEED))
        return feed.batches(number, chain.from_iterable(steps))

    def by_step(number: int) -> Iterator[Batch]:
        feed = Feed(samples, Order(num_samples=samples.num_samples, seed=_SEED))
        for step in steps:
            yield from feed.batches(number, step)

    ways = ((OURS, stream), (TWIN, stream), (BY_STEP, by_step))
    return [Loader(name=name, group=name, epoch=epoch, tensors=_tensors) for name, epoch in ways]


def by_hand(source: Source) -> Loader:
    """A random permutation, and every tensor indexed with 256 of it at a time."""

    def epoch(number: int) -> Iterator[Tensors]:
        for indices in torch.split(torch.randperm(source.num_samples), BATCH):
            yield *(source.scaled(values[indices]) for values in source.inputs), source.target[indices]

    return Loader(name=BY_HAND, group=BY_HAND, epoch=epoch)


def by_batch_sampler(source: Source) -> Loader:
    """A DataLoader whose sampler gives 256 indices at a time: not what its documentation shows first."""
    data = TensorDataset(*source.inputs, source.target)
    sampler = BatchSampler(RandomSampler(data), BATCH, drop_last=False)
    loader = DataLoader(data, sampler=sampler, batch_size=None)
    return Loader(name="batch-sampler", group="batch-sampler", epoch=lambda _: loader)


def data_loaders(data: Dataset[Any], *, group: str = "dataloader", kind: type[Any] = DataLoader) -> list[Loader]:
    """torch's DataLoader, or one with the same arguments, without and with processes of its own."""
    return [
        Loader(
            name=f"{group}-{number}",
            group=group,
            epoch=_always(
                kind(data, batch_size=BATCH, shuffle=True, num_workers=number, persistent_workers=number > 0)
            ),
        )
        for number in NUM_WORKERS
    ]


def usual_rows(source: Source) -> list[Loader]:
    """TensorDataset and DataLoader; beside them what is possible by hand."""
    usual = data_loaders(TensorDataset(*source.inputs, source.target))
    return [*ours(source), *usual, by_batch_sampler(source), by_hand(source)]


def usual_pictures(source: Source, folder: Path, *, is_augmented: bool) -> list[Loader]:
    """torchvision's Fashion-MNIST with its transforms, and DataLoader."""
    vision = torchvision()
    transforms = vision.transforms
    random = [transforms.RandomCrop(28, padding=2), transforms.RandomHorizontalFlip()] if is_augmented else []
    steps = transforms.Compose([*random, transforms.ToTensor(), transforms.Normalize((_MEAN,), (_DEVIATION,))])
    _unpack(folder / "FashionMNIST" / "raw")
    data = vision.datasets.FashionMNIST(folder, train=True, transform=steps)
    data.data, data.targets = data.data[: source.num_samples], data.targets[: source.num_samples]
    usual = data_loaders(data)
    if is_augmented:
        return [*ours(source, augment.parse("shift=2,flip")), *usual]
    return [*ours(source), *usual, by_hand(source)]


def torchvision() -> Any:
    """torchvision, also where its compiled operators do not load.

    Its wheels on PyPI are made for torch's CUDA build. Beside the CPU build the import fails at two operators (of
    detectors) that are missing; once these have names, all of it that is Python works: data sets and transforms.
    """
    try:
        return import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
        return import_module("torchvision")


def check(loader: Loader, source: Source) -> None:
    """Run two epochs; assert that each holds every sample once, in another order, as tensors that can be used as is."""
    first, second = (_checked_targets(loader, source, number) for number in range(2))
    assert not torch.equal(first, second), f"{loader.name}: two epochs have the same order"


def _checked_targets(loader: Loader, source: Source, number: int) -> Tensor:
    targets, total = [], 0.0
    columns = [source.scaled(values[:1]) for values in source.inputs] + [source.target[:1]]
    for batch in loader.epoch(number):
        tensors = loader.tensors(batch)
        for tensor, column in zip(tensors, columns, strict=True):
            assert tensor.dtype == column.dtype, f"{loader.name}: {tensor.dtype} instead of {column.dtype}"
            assert tensor.shape == (len(tensors[-1]), *column.shape[1:]), f"{loader.name}: {tuple(tensor.shape)}"
            assert tensor.is_contiguous(), f"{loader.name}: not contiguous"
        targets.append(tensors[-1].clone())
        total += float(tensors[0].sum(dtype=torch.float64))
    short = source.num_samples % BATCH
    assert [len(each) for each in targets] == [BATCH] * (source.num_samples // BATCH) + [short] * (short > 0)
    found = torch.cat(targets)
    assert torch.equal(found.sort().values, source.target.sort().values), f"{loader.name}: other samples"
    apart = total / source.inputs[0].numel() - float(source.scaled(source.inputs[0]).mean(dtype=torch.float64))
    assert abs(apart) < 0.05, f"{loader.name}: the mean of the inputs is {apart:g} off"
    return found


def _tensors(batch: Batch) -> Tensors:
    return *batch.inputs, batch.target


def _always(loader: Iterable[Any]) -> Callable[[int], Iterable[Any]]:
    return lambda _: loader


def _int64(labels: npt.NDArray[np.int64]) -> Tensor:
    return torch.tensor(labels, dtype=torch.int64)


def _unpack(folder: Path) -> None:
    """Fashion-MNIST as torchvision looks for it."""
    folder.mkdir(parents=True)
    for name in (f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")):
        (folder / name).write_bytes(sources.read_bytes(sources.find("fashion-mnist", f"{name}.gz")))
