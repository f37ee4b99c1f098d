"""Links: how tensors travel between neighbouring chunks, through the shared memory of one machine.

A link has one sender and one receiver and room for a few messages, which are used in turn. What arrives has the values,
the layout and the alignment of what was sent: the bits of what is computed from it depend on all three. Nearly all
messages are laid out as the one before them in the same room, so that is written, and read, only when it changes.
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


_Form = tuple[torch.dtype, torch.Size, tuple[int, ...], bool, int, int]
"""What a tensor is beside its values: dtype, sizes, strides, whether it wants a gradient, distance from a 64-byte
boundary, elements of its memory."""


class _Page:
    """Memory of one message, or of a part of one: a size, the number of its layout, headers and values.

    Args:
        memory: Shape (bytes,), uint8, on a 64-byte boundary.
    """

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self._words = memory[: len(memory) // 8 * 8].view(torch.int64).numpy()
        self._number = 0
        self._forms: tuple[_Form | None, ...] | None = None
        self._places: tuple[Tensor | None, ...] = ()
        self._headers: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Of the message that begins here, in bytes, where it takes several rooms; else 0."""
        return int(self._words[0])

    def write(self, tensors: Sequence[Tensor | None], size: int) -> None:
        """Write a message."""
        values = [None if each is None else _packed(each) for each in tensors]
        wants = [each is not None and each.requires_grad for each in tensors]
        forms = tuple(None if each is None else _form(each, want) for each, want in zip(values, wants, strict=True))
        if forms != self._forms:
            self._number += 1
            self._lay_out(forms)
            self._write_headers()
        self._words[0] = size
        for place, each in zip(self._places, values, strict=True):
            if place is not None and each is not None:
                place.copy_(each.as_strided((len(place),), (1,)))

    def fill(self, part: Tensor) -> None:
        """Write a part of a message that takes several rooms."""
        self.memory[: len(part)].copy_(part)
        self._forms = None

    def read(self, count: int) -> list[Tensor | None]:
        """The message's tensors, in memory of their own."""
        number = int(self._words[1])
        if number != self._number:
            self._number = number
            self._lay_out(self._read_headers(count))
        assert self._forms is not None
        return [
            None if form is None or place is None else _copied(form, place)
            for form, place in zip(self._forms, self._places, strict=True)
        ]

    def _lay_out(self, forms: tuple[_Form | None, ...]) -> None:
        """Where the values lie: each behind its header, on a boundary."""
        self._forms, places, headers, at = forms, list[Tensor | None](), list[int](), ALIGNMENT_BYTES
        for form in forms:
            headers.append(at // 8)
            at += _HEADER_WORDS * 8
            size = 0 if form is None else form[-1] * form[0].itemsize
            places.append(None if form is None else self.memory[at : at + size].view(form[0]))
            at = round_up(at + size, ALIGNMENT_BYTES)
        self._places, self._headers = tuple(places), tuple(headers)

    def _write_headers(self) -> None:
        assert self._forms is not None
        self._words[1] = self._number
        for at, form in zip(self._headers, self._forms, strict=True):
            words = [0]
            if form is not None:
                dtype, shape, strides, wants_gradient, shift, length = form
                words = [1, _DTYPES.index(dtype), int(wants_gradient), shift, length, len(shape), 0, 0]
                words += [*shape, *[0] * (_MOST_DIMENSIONS - len(shape)), *strides]
            self._words[at : at + len(words)] = words

    def _read_headers(self, count: int) -> tuple[_Form | None, ...]:
        forms, at = list[_Form | None](), ALIGNMENT_BYTES
        for _ in range(count):
            words = self._words[at // 8 : at // 8 + _HEADER_WORDS].tolist()
            at += _HEADER_WORDS * 8
            if not words[0]:
                forms.append(None)
                continue
            dtype, (shift, length, dimensions) = _DTYPES[words[1]], words[3:6]
            sizes, strides = words[8:][:dimensions], words[8 + _MOST_DIMENSIONS :][:dimensions]
            forms.append((dtype, torch.Size(sizes), tuple(strides), bool(words[2]), shift, length))
            at = round_up(at + length * dtype.itemsize, ALIGNMENT_BYTES)
        return tuple(forms)


def _packed(tensor: Tensor) -> Tensor:
    """A tensor's values without its graph, and without gaps in memory."""
    values = tensor.detach()
    return values if can_travel(values) else values.contiguous()


def _form(values: Tensor, wants_gradient: bool) -> _Form:
    shift = values.data_ptr() % ALIGNMENT_BYTES
    return values.dtype, values.shape, values.stride(), wants_gradient, shift, span(values)


def _copied(form: _Form, place: Tensor) -> Tensor:
    """What was sent, in memory of its own."""
    dtype, shape, strides, wants_gradient, shift, length = form
    values = _memory(length * dtype.itemsize, shift).view(dtype)
    values.copy_(place)
    tensor = values.as_strided(shape, strides) if math.prod(shape) else values.new_empty(shape)
    # It has to stay a view: of other leaves autocast keeps one copy for all uses, of an inner value it makes several.
    return tensor.requires_grad_(wants_gradient)


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

    def __post_init__(self) -> None:
        self._pages = [_Page(room) for room in self.rooms]

    def send(self, tensors: Sequence[Tensor | None]) -> None:
        """Copy tensors into the next room; wait for it where all are full."""
        size = num_bytes(tensors)
        if size <= self.rooms.shape[1]:
            self._free_page().write(tensors, 0)
            self.filled.post()
            return
        message = _memory(size, 0)
        _Page(message).write(tensors, size)
        for part in torch.split(message, self.rooms.shape[1]):
            self._free_page().fill(part)
            self.filled.post()

    def receive(self, count: int) -> list[Tensor | None]:
        """Wait for the next message; its tensors in memory of their own."""
        page = self._full_page()
        size = page.size
        if size == 0:
            found = page.read(count)
            self.emptied.post()
            return found
        message = _memory(size, 0)
        for number, part in enumerate(torch.split(message, self.rooms.shape[1])):
            part.copy_((page if number == 0 else self._full_page()).memory[: len(part)])
            self.emptied.post()
        return _Page(message).read(count)

    def _free_page(self) -> _Page:
        if self._number >= len(self._pages):
            self.wait(self.emptied)
        return self._next_page()

    def _full_page(self) -> _Page:
        self.wait(self.filled)
        return self._next_page()

    def _next_page(self) -> _Page:
        page = self._pages[self._number % len(self._pages)]
        self._number += 1
        return page


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


def _leaf(tensor: Tensor) -> Tensor:
    """The same memory without a graph: a view, as `_read` gives it."""
    values = tensor.detach()
    return values.as_strided(values.shape, values.stride()).requires_grad_(tensor.requires_grad)


def _memory(size: int, shift: int) -> Tensor:
    """Memory that starts `shift` bytes behind a 64-byte boundary."""
    raw = torch.empty(size + 2 * ALIGNMENT_BYTES, dtype=torch.uint8)
    start = -raw.data_ptr() % ALIGNMENT_BYTES + shift
    return raw[start : start + size]
