"""The feed: which samples a microbatch holds, gathered into tensors that kernels can use as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from samestep.data.columns import Batch, Samples
from samestep.plan.layout import ALIGNMENT_BYTES
from samestep.plan.order import Order

_CHUNK = 8192
"""Positions whose order is computed at once: NumPy's cost per call is spread over them."""


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

    def load(self, epoch: int, start: int, stop: int) -> Batch:
        """The samples at positions ``start .. stop - 1`` of an epoch."""
        indices = self.indices(epoch, start, stop)
        inputs = tuple(aligned(column.gather(indices)) for column in self.samples.inputs)
        return Batch(inputs, aligned(self.samples.target.gather(indices)), stop - start)

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
