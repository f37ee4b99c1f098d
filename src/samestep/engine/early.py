"""Buckets of a round's sums that go on their way while the backward pass of its last microbatch still runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from samestep.engine.exchange import Exchange
from samestep.engine.flat import FlatModel
from samestep.engine.helpers import Alone, Helpers
from samestep.engine.pieces import Piece
from samestep.errors import UsageError
from samestep.plan.layout import FlatLayout


class Early:
    """Notices in a backward pass that the gradients of a bucket are complete, and has them sent.

    The first round only looks on: where a parameter gets its gradient in several parts (activation checkpointing of the
    reentrant kind), nothing is sent early.

    Args:
        model: Whose gradients.
        layout: Where they lie.
        piece: What adds them up.
        exchange: What sends them; it has buckets.
    """

    def __init__(self, model: FlatModel, layout: FlatLayout, piece: Piece, exchange: Exchange) -> None:
        self._model, self._layout, self._piece, self._exchange = model, layout, piece, exchange
        self._buckets_of = [
            [n for n, (start, stop) in enumerate(exchange.buckets) if start < place.stop and place.start < stop]
            for place in layout.places
        ]
        self._sizes = Counter(number for numbers in self._buckets_of for number in numbers)
        self._left: Counter[int] = Counter()
        self._given: set[int] = set()
        self._is_armed = self._has_looked = self._is_off = False
        self._hooks: list[Any] = [
            parameter.register_post_accumulate_grad_hook(partial(self._given_to, number))  # type: ignore[no-untyped-call]
            for number, parameter in enumerate(model.parameters)
        ]

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def begin_microbatch(self) -> None:
        """A backward pass will come."""
        self._given.clear()
        self._is_armed = self._piece.is_last and self._has_looked and not self._is_off
        if self._is_armed:
            self._left = Counter(self._sizes)

    def end_microbatch(self) -> None:
        """It has come."""
        self._is_armed, self._has_looked = False, True

    def _given_to(self, number: int, parameter: Tensor) -> None:
        if number in self._given:
            if self._is_armed and any(self._left[bucket] == 0 for bucket in self._buckets_of[number]):
                raise UsageError(
                    f"the gradient of {self._layout.places[number].spec.name} came in several parts, and in the run's "
                    "first step in one; take checkpoint(..., use_reentrant=False), or what adds it up in one backward "
                    "pass"
                )
            self._is_off = True
            return
        self._given.add(number)
        if not self._is_armed:
            return
        for bucket in self._buckets_of[number]:
            self._left[bucket] -= 1
            if self._left[bucket] == 0:
                self._piece.take_early(bucket, self._model.gradients())
                self._exchange.bucket(bucket)


class Never:
    """All is sent at the end."""

    def close(self) -> None: ...

    def begin_microbatch(self) -> None: ...

    def end_microbatch(self) -> None: ...


def early_for(
    hands: Alone | Helpers, model: FlatModel, layout: FlatLayout, pieces: Sequence[Piece], exchange: Exchange
) -> Early | Never:
    """Early where there are buckets, and no helpers that give the gradients when the pass has ended."""
    if not exchange.buckets or isinstance(hands, Helpers):
        return Never()
    (piece,) = pieces
    return Early(model, layout, piece, exchange)
