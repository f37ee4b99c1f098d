"""The seam: what the step asks of the device that it is computed on.

A CPU's answers are the plain ones (`host`). A GPU's need torch.cuda (`cuda`), and `twin` gives a GPU's answers on a
CPU: the same code of the step runs, so it is tested where no GPU is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from samestep.data.columns import Batch
from samestep.engine import memory as memories
from samestep.plan.regions import Regions, parted

Kind = Literal["cpu", "cuda", "twin"]

Number = float | Tensor
"""A number, or a tensor without dimensions that holds one: to read it is to wait for the device."""

OWN_REGIONS = frozenset({"live", "norms", "contributions"})
"""Regions of a run's memory that lie on a device; the others are read and written by the host all the time."""


class CannotCapture(Exception):
    """A pass cannot be a graph; the text says why."""


@dataclass(frozen=True)
class Passed:
    """What a pass leaves.

    Args:
        total: The sum of the microbatch's losses.
        weight: Their weight.
        gradients: One per parameter of the layout; None where it was not used.
    """

    total: Tensor
    weight: Number
    gradients: list[Tensor | None]


class Device(Protocol):
    """What a rank computes on.

    Attributes:
        kind: Which one.
        is_host: Whether it is the CPU as it is: nothing is moved, captured, or read later than it is computed.
        where: As torch names it.
        generators: The generators that modules draw from.
    """

    kind: Kind
    is_host: bool
    where: torch.device
    generators: Sequence[torch.Generator]

    @property
    def name(self) -> str:
        """For people."""

    def settled(self) -> AbstractContextManager[None]:
        """Deterministic kernels, and whatever else the step needs, for a while."""

    def numerics(self) -> dict[str, Any]:
        """What of the device decides bits."""

    def memory(self, regions: Regions) -> Mapping[str, Tensor]:
        """Zeroed memory of a run that is this rank's alone."""

    def autocast(self, *, enabled: bool) -> AbstractContextManager[Any]:
        """bfloat16 autocast, or none."""

    def staged(self, batch: Batch) -> Batch:
        """A batch of the host where a copy can fetch it from, without the host's help; in a thread that loads."""

    def ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Staged batches, on the device; each is on its way while the one before it is computed."""

    def placed(self, batch: Batch) -> Batch:
        """A batch on the device; itself where it is there."""

    def capture(self, restart: Callable[[], None], run: Callable[[], Passed]) -> tuple[Passed, Callable[[], None]]:
        """A pass as a graph.

        Args:
            restart: Sets back what the pass changes and draws from.
            run: The pass; its tensors keep their places from one run to the next.

        Returns:
            What it leaves, and what writes it there again, from what then lies in the places that it read.

        Raises:
            CannotCapture: It does what no graph holds.
        """

    def free_bytes(self) -> int:
        """How much memory is left."""

    def peak_bytes(self) -> int | None:
        """The most that tensors have taken up; None: not counted here."""

    def release(self) -> None:
        """Give memory back that is kept for later."""

    def synchronise(self) -> None:
        """Wait for all that was asked for."""

    def holds(self, values: Tensor) -> bool:
        """Whether a part of the run's memory lies on the device, and would have to be fetched to be sent."""


def laid_out(regions: Regions, where: torch.device) -> tuple[Mapping[str, Tensor], Tensor]:
    """Zeroed memory of a run, what is a device's own in one piece on it; and that piece, shape (bytes,), uint8."""
    own, others = parted(regions, OWN_REGIONS)
    room = torch.zeros(max(own.num_bytes, 1), dtype=torch.uint8, device=where)
    on_device = memories.Memory(None, room, own.num_bytes).tensors(own)
    return {**memories.private(others.num_bytes).tensors(others), **on_device}, room


def one_ahead(
    batches: Iterator[Batch], send: Callable[[Batch], Batch], receive: Callable[[Batch], Batch]
) -> Iterator[Batch]:
    """Batches that were sent one earlier than they are received."""
    sent: Batch | None = None
    for batch in batches:
        waiting, sent = sent, send(batch)
        if waiting is not None:
            yield receive(waiting)
    if sent is not None:
        yield receive(sent)


def mapped(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """A batch of other tensors."""
    return Batch(tuple(map(change, batch.inputs)), change(batch.target), batch.num_samples)


def head(batch: Batch, num_samples: int) -> Batch:
    """The first samples of a batch."""
    return Batch(tuple(x[:num_samples] for x in batch.inputs), batch.target[:num_samples], num_samples)
