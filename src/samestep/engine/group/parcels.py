"""What travels between two ranks at one point of a step: pieces of memory, as few messages as pay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samestep import torch_private

SMALL_BYTES = 1 << 18
"""Smaller pieces travel in one message: a message costs more than it takes to copy so much."""


class Parcel:
    """Pieces for one rank, or from one; both ends make the same messages of them.

    Args:
        pieces: Contiguous tensors; empty ones do not travel.
        is_far: Whether a piece is on a device, and travels by way of the host's memory.

    Attributes:
        messages: What is sent, or received: large pieces as they lie, then the small and the far ones together.
    """

    def __init__(self, pieces: Sequence[Tensor], is_far: Callable[[Tensor], bool] = lambda piece: False) -> None:
        given = [as_bytes(piece) for piece in pieces if piece.numel()]
        is_copied = [len(piece) < SMALL_BYTES or is_far(piece) for piece in given]
        small = [piece for piece, flag in zip(given, is_copied, strict=True) if flag]
        self.messages = [piece for piece, flag in zip(given, is_copied, strict=True) if not flag]
        self._small: list[Tensor] = []
        self._places: list[Tensor] = []
        if len(small) == 1 and not is_far(small[0]):
            self.messages += small
        elif small:
            room = torch.empty(sum(map(len, small)), dtype=torch.uint8)
            self._small, self._places = small, list(room.split([len(piece) for piece in small]))  # type: ignore[no-untyped-call]
            self.messages.append(room)

    @property
    def num_bytes(self) -> int:
        return sum(map(len, self.messages))

    def close(self) -> None:
        """Before it is sent: put the small pieces together."""
        if self._small:
            torch_private.copy_all(self._places, self._small)

    def open(self) -> None:
        """After it was received: put the small pieces where they belong."""
        if self._small:
            torch_private.copy_all(self._small, self._places)


@dataclass(frozen=True)
class Route:
    """Parcels to and from other ranks, by rank."""

    outgoing: Mapping[int, Parcel]
    incoming: Mapping[int, Parcel]


def as_bytes(values: Tensor) -> Tensor:
    """A view of a contiguous tensor's bytes, shape (bytes,)."""
    assert values.is_contiguous()
    return values.view(-1).view(torch.uint8)
