"""The feed: which samples a microbatch holds, gathered into tensors that kernels can use as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from samestep.data.ahead import ReadAhead
from samestep.data.columns import Batch, Column, Rows, Samples, Scale, Stretches, Windows, is_ours
from samestep.data.pack.mapped import Mapped
from samestep.plan.batch import Microbatch
from samestep.plan.layout import ALIGNMENT_BYTES
from samestep.plan.order import Order

_CHUNK = 8192
"""Positions whose order is computed at once: NumPy's cost per call is spread over them."""

_MOST_TOGETHER = 256
"""Microbatches that are gathered together: many more views at once would start Python's search for cycles each time."""

GATHERED_BYTES = 1 << 22
"""Microbatches are gathered together up to this size, those of several steps too: a gather costs calls, then work."""


class Feed:
    """Gathers microbatches of some samples in a given order.

    Args:
        samples: The columns.
        order: Which sample is at which position of an epoch.
        where: The device that the columns lie on; None: the host's memory.
    """

    def __init__(self, samples: Samples, order: Order, where: torch.device | None = None) -> None:
        assert order.num_samples == samples.num_samples
        self.samples = samples
        self._order, self._where = order, where
        self._chunks: dict[tuple[int, int], Tensor] = {}
        columns = (*samples.inputs, samples.target)
        self._ahead = _read_ahead(columns, order)
        self.num_bytes_per_sample = sum(map(_bytes_per_sample, columns)) if all(map(is_ours, columns)) else None
        """Of what is loaded; None: a column is not ours."""

    @property
    def is_resident(self) -> bool:
        """Whether batches are gathered on a device."""
        return self._where is not None

    @property
    def may_draw(self) -> bool:
        """Whether a column may draw random numbers when it is read, for it is not ours; so it is read just in time."""
        return self.num_bytes_per_sample is None

    @property
    def reads_blocks(self) -> bool:
        """Whether blocks of files are read, for which a disk may have to be waited."""
        return self._ahead is not None

    def load(self, epoch: int, start: int, stop: int) -> Batch:
        """The samples at positions ``start .. stop - 1`` of an epoch."""
        return self._load(epoch, [(start, stop)])

    def batches(self, epoch: int, microbatches: Iterable[Microbatch]) -> Iterator[Batch]:
        """Microbatches of an epoch, each when it is asked for; small ones are gathered together with those that follow.

        To gather costs calls more than work where they are small.
        """
        left = iter(microbatches)
        for first in left:
            group = [first, *islice(left, self._num_together(first) - 1)]
            together = self._load(epoch, _ranges(group))
            yield from [together] if len(group) == 1 else _parts(together, group)

    def _num_together(self, microbatch: Microbatch) -> int:
        if self.num_bytes_per_sample is None:
            return 1
        num_fitting = GATHERED_BYTES // max(1, self.num_bytes_per_sample * microbatch.num_samples)
        return min(max(1, num_fitting), _MOST_TOGETHER)

    def _load(self, epoch: int, ranges: Sequence[tuple[int, int]]) -> Batch:
        if self._ahead is not None:
            self._ahead.at(epoch, ranges[0][0])
        found = [self.indices(epoch, start, stop) for start, stop in ranges]
        indices = found[0] if len(found) == 1 else torch.cat(found)
        inputs = tuple(self._gather(column, indices, epoch) for column in self.samples.inputs)
        return Batch(inputs, self._gather(self.samples.target, indices, epoch), len(indices))

    def _gather(self, column: Column, indices: Tensor, epoch: int) -> Tensor:
        if isinstance(column, Rows) and column.changes:
            return aligned(column.changed(indices, self._order.seed, epoch))
        return aligned(column.gather(indices))

    def indices(self, epoch: int, start: int, stop: int) -> Tensor:
        """The sample indices at these positions, shape (stop - start,), int64."""
        first, last = start // _CHUNK, (stop - 1) // _CHUNK
        chunk = self._chunk(epoch, first)
        if last > first:
            chunk = torch.cat([chunk, *(self._chunk(epoch, number) for number in range(first + 1, last + 1))])
        return chunk[start - first * _CHUNK : stop - first * _CHUNK]

    def _chunk(self, epoch: int, number: int) -> Tensor:
        chunk = self._chunks.get((epoch, number))
        if chunk is None:
            if len(self._chunks) > 2:
                self._chunks.clear()
            stop = min((number + 1) * _CHUNK, self._order.num_samples)
            chunk = torch.from_numpy(self._order.indices(epoch=epoch, start=number * _CHUNK, stop=stop))
            if self._where is not None:
                chunk = chunk.to(self._where)
            self._chunks[epoch, number] = chunk
        return chunk


def aligned(tensor: Tensor) -> Tensor:
    """The tensor itself where it starts on a 64-byte boundary, otherwise a copy that does.

    The bits of a matrix product depend on where its input starts.
    """
    if tensor.data_ptr() % ALIGNMENT_BYTES:
        tensor = tensor.clone(memory_format=torch.preserve_format)
        assert tensor.data_ptr() % ALIGNMENT_BYTES == 0
    return tensor


def _read_ahead(columns: Sequence[Column], order: Order) -> ReadAhead | None:
    """Where blocks are read from files, the system is told of them."""
    ours = [each for each in columns if isinstance(each, Rows | Windows | Stretches)]
    found = [each for each in ours if isinstance(each.values, Mapped)]
    return ReadAhead(found, order) if found and order.block is not None else None


def _ranges(microbatches: Sequence[Microbatch]) -> list[tuple[int, int]]:
    """The positions of microbatches, those that follow each other joined.

    >>> _ranges([Microbatch(index=0, start=0, stop=4), Microbatch(index=1, start=4, stop=8)])
    [(0, 8)]
    """
    found: list[tuple[int, int]] = []
    for microbatch in microbatches:
        start = found.pop()[0] if found and found[-1][1] == microbatch.start else microbatch.start
        found.append((start, microbatch.stop))
    return found


def _parts(together: Batch, microbatches: Sequence[Microbatch]) -> Iterator[Batch]:
    """Views of what was gathered together; copies where a view would not be aligned."""
    sizes = [microbatch.num_samples for microbatch in microbatches]
    inputs = zip(*(_split(values, sizes) for values in together.inputs), strict=True)
    for size, some, target in zip(sizes, inputs, _split(together.target, sizes), strict=True):
        yield Batch(tuple(map(aligned, some)), aligned(target), size)


def _split(values: Tensor, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Consecutive parts of these sizes."""
    if all(size == sizes[0] for size in sizes):  # which costs torch less
        return torch.split(values, sizes[0])
    return torch.split(values, list(sizes))


def _bytes_per_sample(column: Column) -> int:
    if isinstance(column, Stretches):
        return column.tensor[:1].numel() * (column.length or 1) * column.tensor.element_size()
    assert isinstance(column, Rows | Windows)
    dtype = column.transform.dtype if isinstance(column.transform, Scale) else column.tensor.dtype
    num_values = column.tensor[:1].numel() if isinstance(column, Rows) else column.length
    return num_values * dtype.itemsize
