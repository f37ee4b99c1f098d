"""What a rank owns in several parts, which its helpers update at the same time.

Where the flat vector is cut does not decide the bits, so a rank with helpers is as many owners.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from samestep.optim.owner import OwnedUpdate
from samestep.optim.rules import Factors
from samestep.optim.state import UpdatePlan
from samestep.plan.layout import Segment

Run = Callable[[Sequence[Callable[[], None]]], object]
"""Runs functions, beside each other or one after the other."""


class OwnedUpdates:
    """The optimisers of a rank's parts.

    Args:
        parts: An update each.
        run: Who runs them.

    Attributes:
        segments: Of all parts, in the order of the flat vector; the lists below are in the same order.
        parameters: The segments as the optimisers see them.
        gradients: Their gradients, in the same shapes.
        padded_gradients: The same memory, flat, with the padding up to the next block.
    """

    def __init__(self, parts: Sequence[OwnedUpdate], run: Run) -> None:
        self._parts, self._run = tuple(parts), run
        rows = [
            row
            for part in parts
            for row in zip(part.segments, part.parameters, part.gradients, part.padded_gradients, strict=True)
        ]
        rows.sort(key=lambda row: row[0].start)
        self.segments: tuple[Segment, ...] = tuple(row[0] for row in rows)
        self.parameters: list[nn.Parameter] = [row[1] for row in rows]
        self.gradients: list[Tensor] = [row[2] for row in rows]
        self.padded_gradients: list[Tensor] = [row[3] for row in rows]

    def leave_alone(self, names: frozenset[str]) -> None:
        """Never update these parameters: no microbatch uses them."""
        for part in self._parts:
            part.leave_alone(names)

    def step(self, factors: Factors) -> None:
        """Update the segments from their gradients, with rates times `factors`."""
        self._run([partial(part.step, factors) for part in self._parts])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the parameters that are to be evaluated in place; afterwards the trained ones, with the same bits."""
        trained = [[parameter.detach().clone() for parameter in part.parameters] for part in self._parts]
        for part in self._parts:
            part.show_averages()
        try:
            yield
        finally:
            for part, values in zip(self._parts, trained, strict=True):
                part.show_trained(values)

    def write_scalars(self, table: Tensor) -> None:
        """Write the state's numbers that this rank knows; who shares a group writes the same numbers."""
        for part in self._parts:
            part.write_scalars(table)

    def restore(self, scalars: Tensor) -> None:
        """Take up the state that lies in memory."""
        for part in self._parts:
            part.restore(scalars)


def owned_by(
    plan: UpdatePlan, parts: Sequence[Sequence[Segment]], live: Mapping[str, Tensor], run: Run
) -> OwnedUpdates:
    """What a rank owns.

    Args:
        plan: What is updated how.
        parts: Segments, for each of its hands.
        live: The memory of the parameters and of every state array, by name.
        run: Who updates the parts.
    """
    return OwnedUpdates([OwnedUpdate(plan, part, live["parameters"], live) for part in parts], run)


def evaluated_parameters(plan: UpdatePlan, arrays: Mapping[str, Tensor], scalars: Tensor, *, step: int) -> Tensor:
    """The flat vector that is evaluated, and saved as weights: for most optimisers the one that is trained.

    Args:
        plan: What is updated how.
        arrays: "parameters", "used" and every state array, by name; left as they are.
        scalars: The state's numbers.
        step: Steps done; before the first one there is no state.
    """
    if not plan.averages or step == 0:
        return arrays["parameters"]
    flat = arrays["parameters"].clone()
    update = OwnedUpdate(plan, plan.layout.segments, flat, arrays)
    flags = arrays["used"].tolist()
    places = plan.layout.places
    update.leave_alone(frozenset(place.spec.name for place, flag in zip(places, flags, strict=True) if not flag))
    update.restore(scalars)
    update.show_averages()
    return flat
