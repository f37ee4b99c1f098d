"""Loaders that others maintain, each used as its documentation shows, in every way that may be its fastest.

All of them hold arrays of bytes or numbers (no encoded pictures), and where pictures are normalised, that is done to
whole batches, with the two operations that samestep uses.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, default_collate

from benchmarks.feed_loaders import BATCH, Loader, Source, Tensors, data_loaders, torchvision

PEERS = ("grain", "datasets", "streaming", "torchdata")
PACKAGES = {"grain": "grain", "datasets": "datasets", "streaming": "mosaicml-streaming", "torchdata": "torchdata"}


def loaders(peer: str, source: Source, folder: Path) -> list[Loader]:
    """The ways of a library, over a source with one input.

    Args:
        peer: One of `PEERS`.
        source: The samples.
        folder: An empty one, where files may be put.
    """
    made = {"grain": grain, "datasets": datasets, "streaming": streaming, "torchdata": torchdata}
    return made[peer](source, folder)


def grain(source: Source, folder: Path) -> list[Loader]:
    """``MapDataset.source(...).shuffle(...).batch(...)``: with its reading threads (the default), without, in others.

    Its processes would be started anew with every iterator, which takes seconds: one iterator goes through all epochs.
    """
    library = import_module("grain")
    arrays = source.inputs[0].numpy(), source.target.numpy()
    num_batches = -(-source.num_samples // BATCH)

    class Rows:
        def __len__(self) -> int:
            return len(arrays[1])

        def __getitem__(self, index: int) -> tuple[Any, ...]:
            return arrays[0][index], arrays[1][index]

    def batches(seed: int) -> Any:
        return library.MapDataset.source(Rows()).shuffle(seed=seed).batch(BATCH)

    alone = library.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    two = library.MultiprocessingOptions(num_workers=2)
    endless = iter(batches(0).repeat().to_iter_dataset(alone).mp_prefetch(two))

    def loader(name: str, epoch: Callable[[int], Iterable[Any]]) -> Loader:
        def tensors(number: int) -> Iterator[Tensors]:
            for inputs, target in epoch(number):
                yield source.scaled(torch.from_numpy(inputs)), torch.from_numpy(target)

        return Loader(name=name, group="grain", epoch=tensors)

    return [
        loader("grain-threads", lambda number: batches(number).to_iter_dataset()),
        loader("grain-0", lambda number: batches(number).to_iter_dataset(alone)),
        loader("grain-processes-2", lambda _: islice(endless, num_batches)),
    ]


def datasets(source: Source, folder: Path) -> list[Loader]:
    """An Arrow table on disk, ``with_format("torch")``, in a DataLoader; and shuffled and iterated by itself."""
    library = import_module("datasets")
    values = source.inputs[0]
    features = library.Features(x=_feature(library, values), target=library.Value("int64"))
    columns = {"x": list(values.numpy()), "target": source.target.numpy()}
    library.Dataset.from_dict(columns, features=features).save_to_disk(folder / "saved")
    data = library.load_from_disk(folder / "saved").with_format("torch")

    def by_itself(number: int) -> Iterator[Tensors]:
        batches = data.shuffle(seed=number, keep_in_memory=True).iter(BATCH)
        return _scaled(source, map(_pair, batches))

    found = [_named(source, each) for each in data_loaders(data, group="datasets")]
    return [*found, Loader(name="datasets-iter", group="datasets", epoch=by_itself)]


def streaming(source: Source, folder: Path) -> list[Loader]:
    """Shards in the MDS format on the local disk: LocalDataset, and StreamingDataset, in a DataLoader.

    StreamingDataset may run ahead by a whole epoch; with its default (8 batches) it takes about twice as long.
    """
    torchvision()  # it imports it
    library = import_module("streaming")
    values, targets = source.inputs[0].numpy(), source.target.tolist()
    shape = ",".join(map(str, values.shape[1:]))
    columns, place = {"x": f"ndarray:{values.dtype.name}:{shape}", "target": "int"}, str(folder / "shards")
    with library.MDSWriter(out=place, columns=columns) as writer:
        for row, target in zip(values, targets, strict=True):
            writer.write({"x": row, "target": target})
    with _temporary(folder):
        stream = library.StreamingDataset(local=place, shuffle=True, batch_size=BATCH, predownload=source.num_samples)
    streams = DataLoader(stream, batch_size=BATCH, num_workers=2, persistent_workers=True)
    return [
        *(_named(source, each) for each in data_loaders(library.LocalDataset(place), group="streaming")),
        _named(source, Loader(name="streaming-dataset-2", group="streaming", epoch=lambda _: streams)),
    ]


def torchdata(source: Source, folder: Path) -> list[Loader]:
    """StatefulDataLoader in DataLoader's place; and the same made of nodes, as its guide to migrating shows."""
    kind = import_module("torchdata.stateful_dataloader").StatefulDataLoader
    nodes = import_module("torchdata.nodes")
    data = TensorDataset(source.inputs[0], source.target)

    def fetch(indices: Sequence[int]) -> Any:
        return default_collate([data[index] for index in indices])

    def composed(method: str, number: int) -> Loader:
        node = nodes.Batcher(nodes.SamplerWrapper(RandomSampler(data)), batch_size=BATCH, drop_last=False)
        node = nodes.ParallelMapper(node, map_fn=fetch, num_workers=number, method=method, in_order=True)
        batches = nodes.Loader(nodes.Prefetcher(node, prefetch_factor=2 * number))
        return Loader(name=f"nodes-{method}-{number}", group="torchdata", epoch=lambda _: _scaled(source, batches))

    def stateful(loader: Loader) -> Loader:
        return replace(loader, epoch=lambda number: _scaled(source, loader.epoch(number)))

    found = [stateful(each) for each in data_loaders(data, group="torchdata", kind=kind)]
    return [*found, composed("thread", 1), composed("process", 2)]


@contextmanager
def _temporary(folder: Path) -> Iterator[None]:
    """Files that a library leaves behind in the folder for temporary files go here."""
    before = tempfile.tempdir
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def _named(source: Source, loader: Loader) -> Loader:
    """A loader whose batches have names, with normalised inputs."""
    return replace(loader, epoch=lambda number: _scaled(source, map(_pair, loader.epoch(number))))


def _pair(batch: Mapping[str, Tensor]) -> Tensors:
    return batch["x"], batch["target"]


def _scaled(source: Source, batches: Iterable[Sequence[Tensor]]) -> Iterator[Tensors]:
    for inputs, target in batches:
        yield source.scaled(inputs), target


def _feature(library: Any, values: Tensor) -> Any:
    """How its documentation stores arrays of a fixed shape."""
    dtype = np.dtype(str(values.dtype).removeprefix("torch.")).name
    if values.ndim == 2:
        return library.Sequence(library.Value(dtype), length=values.shape[1])
    return library.Array3D(shape=tuple(values.shape[1:]), dtype=dtype)
