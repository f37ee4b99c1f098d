"""How many rounds a step has, and what happens between them.

A rule is a generator: it yields a request for a round and gets back what the round's sums say. Between two rounds
it may change the parameters that this rank owns; every decision is a pure function of sums, so all ranks decide
alike. The engine puts a barrier wherever one rank's changes must be seen by the others.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samestep.errors import UsageError
from samestep.optim.noise import Spread


@dataclass(frozen=True)
class RoundRequest:
    """A round over the step's microbatches.

    Args:
        keeps_buffers: Whether this round's changes of buffers count.
        decides_on_norm: Whether the rule looks at the gradient's norm. Where it does not, no rank waits for it.
        has_factors: Whether the microbatches also give their curvature's factors.
    """

    keeps_buffers: bool = True
    decides_on_norm: bool = True
    has_factors: bool = False


@dataclass(frozen=True)
class Meeting:
    """No round: the ranks meet, so that all see what each has done."""


@dataclass(frozen=True)
class TableRequest:
    """A small round: every microbatch gives a few numbers, and all ranks add them up alike.

    Args:
        kind: What the numbers are: products of the Gauss-Newton matrix with directions, or losses along them.
        num_columns: How many.
        coefficients: Of losses: where, shape (num_columns, directions).
    """

    kind: Literal["products", "losses"]
    num_columns: int
    coefficients: NDArray[np.float64] | None = None


Request = RoundRequest | Meeting | TableRequest


class Sums(NamedTuple):
    """What all ranks know after a round.

    Args:
        loss: Mean loss over the global batch.
        gradient_norm: Euclidean norm of the mean gradient over all parameters; None where the request did not need it.
        spread: How far the microbatches' gradients lie apart; None where nobody looked.
        table: Of a small round: its numbers, per unit of the loss's weight, shape (num_columns,).
    """

    loss: float
    gradient_norm: float | None
    spread: Spread | None = None
    table: NDArray[np.float64] | None = None


class Owned(Protocol):
    """The part of the model that this rank owns."""

    @property
    def parameters(self) -> list[Tensor]:
        """Flat views, one per segment."""

    @property
    def gradients(self) -> list[Tensor]:
        """The mean gradient of the last round, one per segment."""

    def update(self, scale: float = 1.0) -> None:
        """Let the optimiser update the owned parameters with the gradient times `scale`."""


Steps = Generator[Request, Sums, None]


class Rule(Protocol):
    """Rounds and decisions of a step; `num_rounds` is how many it takes, at least, and `most_rounds` at most."""

    num_rounds: ClassVar[int]
    most_rounds: ClassVar[int]

    def step(self, owned: Owned) -> Steps: ...


@dataclass(frozen=True, kw_only=True)
class Plain:
    """One round, then the update.

    Args:
        clip_norm: Longest gradient; a longer one is scaled down to it. None: no clipping.
    """

    clip_norm: float | None = None
    num_rounds: ClassVar[int] = 1
    most_rounds: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UsageError(f"clip_norm={self.clip_norm} is not positive; leave it out for no clipping")

    def step(self, owned: Owned) -> Steps:
        sums = yield self._request
        owned.update(clip_scale(sums.gradient_norm, self.clip_norm))

    @cached_property
    def _request(self) -> RoundRequest:
        return RoundRequest(decides_on_norm=self.clip_norm is not None)


@dataclass(frozen=True, kw_only=True)
class SharpnessAware:
    """Two rounds: the gradient where the loss is worst within `radius`, applied where the parameters are.

    Foret et al., "Sharpness-aware minimization for efficiently improving generalization" (2021), equation 2, over the
    global batch (the paper's m-sharpness with one shard). Buffers change in the first round only.

    Args:
        radius: The neighbourhood's size (rho), a Euclidean norm over all parameters.
        clip_norm: As in `Plain`, on the second gradient.
    """

    radius: float
    clip_norm: float | None = None
    num_rounds: ClassVar[int] = 2
    most_rounds: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise UsageError(f"sam_radius={self.radius} is not positive; leave it out for a plain step")
        Plain(clip_norm=self.clip_norm)

    def step(self, owned: Owned) -> Steps:
        sums = yield RoundRequest()
        assert sums.gradient_norm is not None
        before = [parameter.clone() for parameter in owned.parameters]
        for parameter, gradient in zip(owned.parameters, owned.gradients, strict=True):
            parameter.add_(gradient, alpha=self.radius / (sums.gradient_norm + 1e-12))
        try:
            sums = yield RoundRequest(keeps_buffers=False, decides_on_norm=True)
        finally:  # also where the round found something non-finite: the step leaves no trace
            for parameter, values in zip(owned.parameters, before, strict=True):
                parameter.copy_(values)
        owned.update(clip_scale(sums.gradient_norm, self.clip_norm))


def clip_scale(norm: float | None, clip_norm: float | None) -> float:
    """What the gradient is multiplied with so that its norm is at most `clip_norm`.

    As `torch.nn.utils.clip_grad_norm_`, without the 1e-6 that it adds to the norm.

    >>> clip_scale(10.0, 5.0), clip_scale(1.0, 5.0)
    (0.5, 1.0)
    """
    if clip_norm is None:
        return 1.0
    assert norm is not None, "a rule that clips decides on the norm"
    if norm <= clip_norm:
        return 1.0
    return clip_norm / norm if math.isfinite(norm) else 0.0
