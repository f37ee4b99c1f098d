"""The points of a step at which what one rank wrote becomes visible to the others.

The step's code writes into the memory of a run and calls these; how the others come to see it is the engine's affair.
Where ranks share their memory, to meet is enough (`Barriers`); elsewhere the written parts travel.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from samestep.plan.layout import Range


class Exchange(Protocol):
    """What the ranks show each other; every rank calls the same in the same order.

    Attributes:
        buckets: Parts of the flat vector that may be shown before the contributions are complete; of each, and of the
            rest, every rank owns a share.
        rest_s: Seconds that should pass between two snapshots at least.
    """

    buckets: tuple[Range, ...]
    rest_s: float

    def on_meeting(self, call: Callable[[], None]) -> None:
        """Call this whenever all ranks that share a memory have met."""

    def begin(self, step: int, number: int, num_microbatches: int, *, is_looked_at: bool) -> None:
        """Before a round: what the others contribute may come."""

    def bucket(self, number: int) -> None:
        """After a bucket of this rank's contributions: its partial sums, to the owners of their elements."""

    def contributions(self, num_microbatches: int) -> None:
        """After the contributions: partial sums, to the owners of their elements; the table of sums, to all."""

    def norms(self) -> None:
        """After the combination: the blocks' norms, to all."""

    def parameters(self) -> None:
        """After a change of the parameters alone: their values, to all."""

    def update(self) -> None:
        """After the update that ends a step: the parameters and buffers, and what follows the step, to all."""

    def evaluated(self) -> None:
        """After an evaluation: its sums, to all."""

    def verdict(self, number: int, check: Callable[[], None]) -> bool:
        """The callbacks' answer to evaluation number so and so: whether they stop the run."""

    def state(self, scalars: Tensor, write: Callable[[Tensor], None]) -> None:
        """Before a snapshot: optimiser state to all, and its numbers; `write` writes those that a rank knows."""

    def meet(self) -> None:
        """Nothing but waiting for those that share a memory."""


class Barriers:
    """Ranks that share their memory: what was written is there for all, once they have met.

    Args:
        wait: Returns when every rank has called it.
        control: The words of control (`Control.VERDICT`), shape (words,).
        verdict: The word that holds the callbacks' answers.
    """

    buckets: tuple[Range, ...] = ()
    rest_s = 0.0

    def __init__(self, wait: Callable[[], None], control: Tensor, verdict: int) -> None:
        self._wait, self._control, self._verdict = wait, control.numpy(), verdict
        self._met: Callable[[], None] = lambda: None

    def on_meeting(self, call: Callable[[], None]) -> None:
        self._met = call

    def meet(self) -> None:
        self._wait()
        self._met()

    def begin(self, step: int, number: int, num_microbatches: int, *, is_looked_at: bool) -> None:
        """Nothing comes that was not written here."""

    def bucket(self, number: int) -> None:
        assert not self.buckets

    def contributions(self, num_microbatches: int) -> None:
        self.meet()

    def norms(self) -> None:
        self.meet()

    def parameters(self) -> None:
        self.meet()

    def update(self) -> None:
        self.meet()

    def evaluated(self) -> None:
        self.meet()

    def verdict(self, number: int, check: Callable[[], None]) -> bool:
        while int(self._control[self._verdict]) >> 1 != number:
            check()
            time.sleep(2e-4)
        return bool(int(self._control[self._verdict]) & 1)

    def state(self, scalars: Tensor, write: Callable[[Tensor], None]) -> None:
        self.meet()
        write(scalars)
