"""What is not finite: how ranks tell each other, and the error that names where it came from."""

from __future__ import annotations

from dataclasses import dataclass

from samestep.errors import NonFiniteError

LOSS_TENSOR = "the loss"


@dataclass(frozen=True)
class Culprit:
    """Where something non-finite came from: the microbatch, and the loss (place -1) or the parameter's gradient.

    With local steps also the replica; then the microbatch is one of its own, or -1 where only their sum is too large.
    """

    step: int
    microbatch: int
    tensor: str
    place: int = -1
    replica: int | None = None


class NonFiniteSums(Exception):
    """The sums of a round are not finite; all ranks raise it together, before anything was changed."""

    def __init__(self, step: int, culprit: Culprit | None) -> None:
        super().__init__(f"step {step}")
        self.step = step
        self.culprit = culprit


class SpoiledStateError(Exception):
    """The sums turned out not to be finite after the update; all ranks raise it together."""


def non_finite(step: int, culprits: list[Culprit]) -> NonFiniteError:
    """The error that names the first microbatch that brought a non-finite number."""
    before, where = "this step", "the sum of gradients overflows, though every microbatch's own is finite"
    if culprits:
        first = min(culprits, key=lambda each: (each.step, each.replica or 0, each.microbatch, each.place))
        whose = "" if first.replica is None else f" of replica {first.replica}"
        whose = f" of microbatch {first.microbatch}{whose}" if first.microbatch >= 0 else whose
        where = f"{first.tensor}{whose} is not finite"
        if first.replica is not None:
            before, step = f"the period that began with step {step}", first.step
    return NonFiniteError(
        f"step {step}: {where}; the parameters are as they were before {before}. "
        "A smaller lr, clip_norm, or a look at this microbatch's samples may help"
    )
