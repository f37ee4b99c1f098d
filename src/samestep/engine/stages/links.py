"""Links: how tensors travel between neighbouring chunks, through the shared memory of one machine.

A link has one sender and one receiver and room for a few messages, which are used in turn. What arrives has the values,
the layout and the alignment of what was sent: the bits of what is computed from it depend on all three.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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


def num_bytes(tensors: Sequence[Tensor | None]) -> int:
    """Room for a message of such tensors, whatever boundary they start at."""
    found = ALIGNMENT_BYTES
    for each in tensors:
        found += _HEADER_WORDS * 8
        if each is not None:
            found += 2 * ALIGNMENT_BYTES + round_up(each.element_size() * max(each.numel(), span(each)), 64)
    return found


def can_travel(tensor: Tensor) -> bool:
    """Whether a tensor's memory is no larger than what is in it, and of a kind that we know."""
    has_gaps = span(tensor) > max(tensor.numel(), 1)
    return tensor.dtype in _DTYPES and tensor.dim() <= _MOST_DIMENSIONS and not has_gaps and not tensor.is_sparse


class Line(Protocol):
    """One direction between two chunks."""

    def send(self, tensors: Sequence[Tensor | None]) -> None: ...

    def receive(self, count: int) -> list[Tensor | None]: ...


@dataclass
class Link:
    """One direction between two ranks.

    A message that is larger than a room goes through several of them.

    Args:
        filled: Raised by the sender, once a room.
        emptied: Raised by the receiver, once a room.
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
        size = num_bytes(tensors)
        if size <= self.rooms.shape[1]:
            self._write_all(self._free_room(), tensors, 0)
            self.filled.post()
            return
        message = _memory(size, 0)
        self._write_all(message, tensors, size)
        for part in torch.split(message, self.rooms.shape[1]):
            self._free_room()[: len(part)].copy_(part)
            self.filled.post()

    def receive(self, count: int) -> list[Tensor | None]:
        """Wait for the next message; its tensors in memory of their own."""
        room = self._full_room()
        size = int(room[:8].view(torch.int64)[0])
        if size == 0:
            found = self._read_all(room, count)
            self.emptied.post()
            return found
        message = _memory(size, 0)
        for number, part in enumerate(torch.split(message, self.rooms.shape[1])):
            part.copy_((room if number == 0 else self._full_room())[: len(part)])
            self.emptied.post()
        return self._read_all(message, count)

    def _free_room(self) -> Tensor:
        if self._number >= len(self.rooms):
            self.wait(self.emptied)
        return self._next_room()

    def _full_room(self) -> Tensor:
        self.wait(self.filled)
        return self._next_room()

    def _next_room(self) -> Tensor:
        room = self.rooms[self._number % len(self.rooms)]
        self._number += 1
        return room

    @staticmethod
    def _write_all(room: Tensor, tensors: Sequence[Tensor | None], size: int) -> None:
        """Write a message behind its size, which is 0 where it fits into one room."""
        room[:8].view(torch.int64)[0] = size
        at = ALIGNMENT_BYTES
        for tensor in tensors:
            at = _write(room, at, tensor)

    @staticmethod
    def _read_all(room: Tensor, count: int) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        at = ALIGNMENT_BYTES
        for _ in range(count):
            tensor, at = _read(room, at)
            found.append(tensor)
        return found


@dataclass
class Handover:
    """One direction between two chunks of the same rank: nothing is copied."""

    _messages: deque[list[Tensor | None]] = field(default_factory=deque)

    def send(self, tensors: Sequence[Tensor | None]) -> None:
        """Hand tensors over without their graphs."""
        self._messages.append([None if each is None else _leaf(each) for each in tensors])

    def receive(self, count: int) -> list[Tensor | None]:
        """The next message."""
        found = self._messages.popleft()
        assert len(found) == count
        return found


@dataclass(frozen=True)
class Neighbours:
    """A chunk's links.

    Args:
        from_before: Values from the chunk before; None for the first chunk.
        to_before: Their gradients, back.
        from_behind: Gradients from the chunk behind; None for the last chunk.
        to_behind: Values for it.
    """

    from_before: Line | None
    to_before: Line | None
    from_behind: Line | None
    to_behind: Line | None


def neighbours(
    words: Tensor, rooms: Tensor, *, rank: int, stage: int, stages: Sequence[int], wait: Callable[[Signal], None]
) -> tuple[Neighbours, ...]:
    """The links of a rank, for each of its chunks.

    Args:
        words: Signals of what every rank receives for each of its chunks, shape (ranks, chunks, 2, 2, SIGNAL_WORDS):
            values and gradients; filled and emptied.
        rooms: Memory of it, shape (ranks, chunks, 2, messages, bytes), uint8.
        rank: This rank.
        stage: Which it holds; the stages of a replica are ranks in a row.
        stages: The stage that holds each chunk of the network.
        wait: Returns when a signal could be taken.
    """
    lines: dict[tuple[int, int], Line] = {}

    def line(sender: int, receiver: int, direction: int) -> Line | None:
        if not (0 <= sender < len(stages) and 0 <= receiver < len(stages)):
            return None
        if (receiver, direction) not in lines:
            if stages[sender] == stages[receiver]:
                lines[receiver, direction] = Handover()
            else:
                place = rank - stage + stages[receiver], stages[:receiver].count(stages[receiver])
                filled, emptied = (signal_in(each) for each in words[place][direction])
                lines[receiver, direction] = Link(filled, emptied, rooms[place][direction], wait)
        return lines[receiver, direction]

    return tuple(
        Neighbours(
            from_before=line(chunk - 1, chunk, _VALUES),
            to_before=line(chunk, chunk - 1, _GRADIENTS),
            from_behind=line(chunk + 1, chunk, _GRADIENTS),
            to_behind=line(chunk, chunk + 1, _VALUES),
        )
        for chunk, number in enumerate(stages)
        if number == stage
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


def _leaf(tensor: Tensor) -> Tensor:
    """The same memory without a graph: a view, as `_read` gives it."""
    values = tensor.detach()
    return values.as_strided(values.shape, values.stride()).requires_grad_(tensor.requires_grad)


def _memory(size: int, shift: int) -> Tensor:
    """Memory that starts `shift` bytes behind a 64-byte boundary."""
    raw = torch.empty(size + 2 * ALIGNMENT_BYTES, dtype=torch.uint8)
    start = -raw.data_ptr() % ALIGNMENT_BYTES + shift
    return raw[start : start + size]
