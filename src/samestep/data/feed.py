"""The feed: which samples a microbatch holds, gathered into tensors that kernels can use as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from samestep.data.ahead import ReadAhead
from samestep.data.columns import Batch, Column, Rows, Samples, Scale, Stretches, Windows
from samestep.data.pack.mapped import Mapped
from samestep.plan.batch import Microbatch
from samestep.plan.layout import ALIGNMENT_BYTES
from samestep.plan.order import Order

_CHUNK = 8192
"""Positions whose order is computed at once: NumPy's cost per call is spread over them."""

_GATHERED_BYTES = 1 << 18
"""Consecutive microbatches are gathered together up to this size: small ones cost a call, not work."""


class Feed:
    """Gathers microbatches of some samples in a given order.

    Args:
        samples: The columns.
        order: Which sample is at which position of an epoch.
    """

    def __init__(self, samples: Samples, order: Order) -> None:
        assert order.num_samples == samples.num_samples
        self.samples = samples
        self._order = order
        self._chunks: dict[tuple[int, int], Tensor] = {}
        columns = (*samples.inputs, samples.target)
        self._ahead = _read_ahead(columns, order)
        self._bytes_per_sample = sum(map(_bytes_per_sample, columns)) if all(map(_is_ours, columns)) else None

    def load(self, epoch: int, start: int, stop: int) -> Batch:
        """The samples at positions ``start .. stop - 1`` of an epoch."""
        if self._ahead is not None:
            self._ahead.at(epoch, start)
        indices = self.indices(epoch, start, stop)
        inputs = tuple(self._gather(column, indices, epoch) for column in self.samples.inputs)
        return Batch(inputs, self._gather(self.samples.target, indices, epoch), stop - start)

    def batches(self, epoch: int, microbatches: Sequence[Microbatch]) -> Iterator[Batch]:
        """Consecutive microbatches of an epoch, each when it is asked for; small ones are gathered together."""
        for group in self._groups(microbatches):
            if len(group) == 1:
                yield self.load(epoch, group[0].start, group[0].stop)
            else:
                together = self.load(epoch, group[0].start, group[-1].stop)
                yield from (_part(together, microbatch, group[0].start) for microbatch in group)

    def _groups(self, microbatches: Sequence[Microbatch]) -> Iterator[Sequence[Microbatch]]:
        """Microbatches that are gathered together; one each where a column is not ours, for it may draw."""
        most = 1
        if self._bytes_per_sample is not None and microbatches:
            most = max(1, _GATHERED_BYTES // max(1, self._bytes_per_sample * microbatches[0].num_samples))
        for first in range(0, len(microbatches), most):
            yield microbatches[first : first + most]

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
    found = [each.values for each in columns if isinstance(each, Rows) and isinstance(each.values, Mapped)]
    return ReadAhead(found, order) if found and order.block is not None else None


def _part(together: Batch, microbatch: Microbatch, start: int) -> Batch:
    rows = slice(microbatch.start - start, microbatch.stop - start)
    inputs = tuple(aligned(values[rows]) for values in together.inputs)
    return Batch(inputs, aligned(together.target[rows]), microbatch.num_samples)


def _is_ours(column: Column) -> bool:
    """Whether a column gives the same rows whoever asks with it: a transform of the user's may draw."""
    if isinstance(column, Stretches):
        return True
    return isinstance(column, Rows | Windows) and (column.transform is None or isinstance(column.transform, Scale))


def _bytes_per_sample(column: Column) -> int:
    if isinstance(column, Stretches):
        return column.tensor[:1].numel() * (column.length or 1) * column.tensor.element_size()
    assert isinstance(column, Rows | Windows)
    dtype = column.transform.dtype if isinstance(column.transform, Scale) else column.tensor.dtype
    num_values = column.tensor[:1].numel() if isinstance(column, Rows) else column.length
    return num_values * dtype.itemsize
