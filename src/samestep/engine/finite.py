"""What is not finite: how ranks tell each other, and the error that names where it came from."""

from __future__ import annotations

from dataclasses import dataclass

from samestep.errors import NonFiniteError

LOSS_TENSOR = "the loss"


@dataclass(frozen=True)
class Culprit:
    """Where something non-finite came from: the microbatch, and the loss (place -1) or the parameter's gradient.

    With local steps also the replica; then the microbatch is one of its own, or -1 where only their sum is too large.
    Of what is made from all microbatches it is -1, too; the place then says which of several comes first.
    """

    step: int
    microbatch: int
    tensor: str
    place: int = -1
    replica: int | None = None
    fault: str = "is not finite"
    way_out: str = "A smaller lr, clip_norm, or a look at this microbatch's samples may help"


class NonFiniteSums(Exception):
    """The sums of a round are not finite, or of no use; all ranks raise it together, before anything was changed."""

    def __init__(self, step: int, culprit: Culprit | None) -> None:
        super().__init__(f"step {step}")
        self.step = step
        self.culprit = culprit


class SpoiledStateError(Exception):
    """The sums turned out not to be finite after the update; all ranks raise it together."""


def non_finite(step: int, culprits: list[Culprit]) -> NonFiniteError:
    """The error that names the first microbatch that brought a non-finite number."""
    before, where = "this step", "the sum of gradients overflows, though every microbatch's own is finite"
    way_out = Culprit.way_out
    if culprits:
        first = min(culprits, key=lambda each: (each.step, each.replica or 0, each.microbatch, each.place))
        whose = "" if first.replica is None else f" of replica {first.replica}"
        whose = f" of microbatch {first.microbatch}{whose}" if first.microbatch >= 0 else whose
        where, way_out = f"{first.tensor}{whose} {first.fault}", first.way_out
        if first.replica is not None:
            before, step = f"the period that began with step {step}", first.step
    return NonFiniteError(f"step {step}: {where}; the parameters are as they were before {before}. {way_out}")
