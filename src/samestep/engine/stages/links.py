"""Links: how tensors travel between neighbouring stages of one machine, through shared memory.

A link has one sender and one receiver and room for a few messages, which are used in turn. What arrives has the values,
the layout and the alignment of what was sent: the bits of what is computed from it depend on all three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samestep.engine.signals import Signal, signal_in
from samestep.plan.layout import ALIGNMENT_BYTES, round_up

_MOST_DIMENSIONS = 16
_HEADER_WORDS = 8 + 2 * _MOST_DIMENSIONS
"""A tensor's header: is it there, dtype, does it want a gradient, distance from a boundary, elements, dimensions;
then sizes and strides."""

_VALUES, _GRADIENTS = 0, 1

_DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


def span(tensor: Tensor) -> int:
    """Elements of memory from a tensor's first to its last, both counted.

    >>> span(torch.zeros(2, 3)), span(torch.zeros(3, 1).expand(3, 100)), span(torch.zeros(4, 8)[:, 0])
    (6, 3, 25)
    """
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def num_bytes(tensors: Sequence[Tensor]) -> int:
    """Room for a message of such tensors, whatever boundary they start at."""
    return sum(
        _HEADER_WORDS * 8 + 2 * ALIGNMENT_BYTES + round_up(each.element_size() * max(each.numel(), span(each)), 64)
        for each in tensors
    )


def can_travel(tensor: Tensor) -> bool:
    """Whether a tensor's memory is no larger than what is in it, and of a kind that we know."""
    has_gaps = span(tensor) > max(tensor.numel(), 1)
    return tensor.dtype in _DTYPES and tensor.dim() <= _MOST_DIMENSIONS and not has_gaps and not tensor.is_sparse


@dataclass
class Link:
    """One direction between two ranks.

    Args:
        filled: Raised by the sender, once a message.
        emptied: Raised by the receiver, once a message.
        rooms: Memory of the messages, shape (messages, bytes), uint8.
        wait: Returns when a signal could be taken.
    """

    filled: Signal
    emptied: Signal
    rooms: Tensor
    wait: Callable[[Signal], None]
    _number: int = 0

    def send(self, tensors: Sequence[Tensor | None]) -> None:
        """Copy tensors into the next room; wait for it where all are full."""
        if self._number >= len(self.rooms):
            self.wait(self.emptied)
        room = self.rooms[self._number % len(self.rooms)]
        self._number += 1
        at = 0
        for tensor in tensors:
            at = _write(room, at, tensor)
        self.filled.post()

    def receive(self, count: int) -> list[Tensor | None]:
        """Wait for the next message; its tensors in memory of their own."""
        self.wait(self.filled)
        room = self.rooms[self._number % len(self.rooms)]
        self._number += 1
        found: list[Tensor | None] = []
        at = 0
        for _ in range(count):
            tensor, at = _read(room, at)
            found.append(tensor)
        self.emptied.post()
        return found


@dataclass(frozen=True)
class Neighbours:
    """A stage's links.

    Args:
        from_before: Values from the stage before; None for the first stage.
        to_before: Their gradients, back.
        from_behind: Gradients from the stage behind; None for the last stage.
        to_behind: Values for it.
    """

    from_before: Link | None
    to_before: Link | None
    from_behind: Link | None
    to_behind: Link | None


def neighbours(
    words: Tensor, rooms: Tensor, *, rank: int, place: tuple[int, int], wait: Callable[[Signal], None]
) -> Neighbours:
    """The links of a rank.

    Args:
        words: Signals of what every rank receives, shape (ranks, 2, 2, SIGNAL_WORDS): values and gradients; filled and
            emptied.
        rooms: Memory of it, shape (ranks, 2, messages, bytes), uint8.
        rank: This rank; the stage behind is the next one.
        place: Number of its stage, and of how many.
        wait: Returns when a signal could be taken.
    """

    def link(receiver: int, direction: int) -> Link:
        filled, emptied = (signal_in(each) for each in words[receiver, direction])
        return Link(filled, emptied, rooms[receiver, direction], wait)

    has_before, has_behind = place[0] > 0, place[0] < place[1] - 1
    return Neighbours(
        from_before=link(rank, _VALUES) if has_before else None,
        to_before=link(rank - 1, _GRADIENTS) if has_before else None,
        from_behind=link(rank, _GRADIENTS) if has_behind else None,
        to_behind=link(rank + 1, _VALUES) if has_behind else None,
    )


def _write(room: Tensor, at: int, tensor: Tensor | None) -> int:
    """Write a tensor, or that there is none, and say where the next one goes."""
    header = room[at : at + _HEADER_WORDS * 8].view(torch.int64)
    at += _HEADER_WORDS * 8
    if tensor is None:
        header[0] = 0
        return at
    values = tensor.detach()
    if not can_travel(values):
        values = values.contiguous()
    length, shift = span(values), values.data_ptr() % ALIGNMENT_BYTES
    words = [1, _DTYPES.index(values.dtype), int(tensor.requires_grad), shift, length, values.dim(), 0, 0]
    words += [*values.shape, *[0] * (_MOST_DIMENSIONS - values.dim()), *values.stride()]
    header[: len(words)] = torch.tensor(words)
    size = length * values.element_size()
    room[at : at + size].view(values.dtype).copy_(values.as_strided((length,), (1,)))
    return round_up(at + size, ALIGNMENT_BYTES)


def _read(room: Tensor, at: int) -> tuple[Tensor | None, int]:
    """Read what `_write` has written there."""
    words = room[at : at + _HEADER_WORDS * 8].view(torch.int64).tolist()
    at += _HEADER_WORDS * 8
    if not words[0]:
        return None, at
    dtype, wants_gradient, shift, length, dimensions = _DTYPES[words[1]], bool(words[2]), *words[3:6]
    shape, strides = words[8 : 8 + dimensions], words[8 + _MOST_DIMENSIONS : 8 + _MOST_DIMENSIONS + dimensions]
    size = length * dtype.itemsize
    values = _memory(size, shift).view(dtype)
    values.copy_(room[at : at + size].view(dtype))
    tensor = values.as_strided(shape, strides) if math.prod(shape) else values.new_empty(shape)
    # It has to stay a view: of other leaves autocast keeps one copy for all uses, of an inner value it makes several.
    return tensor.requires_grad_(wants_gradient), round_up(at + size, ALIGNMENT_BYTES)


def _memory(size: int, shift: int) -> Tensor:
    """Memory that starts `shift` bytes behind a 64-byte boundary."""
    raw = torch.empty(size + 2 * ALIGNMENT_BYTES, dtype=torch.uint8)
    start = -raw.data_ptr() % ALIGNMENT_BYTES + shift
    return raw[start : start + size]
