"""The rounds of a step of the subspace K-FAC, and the optimiser that takes the step it found."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import numpy as np
from torch.optim import SGD

from samestep.optim.kfac import quadratic
from samestep.optim.rounds import Meeting, Owned, Request, RoundRequest, Steps, Sums, TableRequest

DAMPINGS = (1e-2, 1e-3, 1e-4)
"""λ of the preconditioned gradients: one direction each; how much of each is taken, the quadratic says."""

NUM_DIRECTIONS = len(DAMPINGS) + 1
"""The last one is the step before."""

MOST_TRIALS = 5
"""Rounds of candidates, at most: where the shortest is the best, or none is good, shorter ones are tried."""

NUM_PRODUCTS = quadratic.num_pairs(NUM_DIRECTIONS)

NUM_COLUMNS = max(NUM_PRODUCTS + NUM_DIRECTIONS, quadratic.NUM_CANDIDATES + 1)
"""Numbers that a microbatch gives in one of the small rounds."""


class Curvature(Protocol):
    """What a rank can do about curvature between rounds; each is followed by a meeting of all ranks."""

    @property
    def needs_factors(self) -> bool:
        """Whether this step's samples give factors, or those of a step before are used once more."""

    def publish(self) -> None:
        """Show all ranks the owned gradients, and take the round's factors, if any, into the running means."""

    def precondition(self) -> None:
        """Write this rank's share of the directions."""

    def slopes(self) -> quadratic.Values:
        """g·v of every direction, with the gradient of the step's own samples."""

    def choose(self, coefficients: quadratic.Values) -> None:
        """Put minus the step into the owned gradients, and keep the step as a direction of the next."""

    def put_back(self) -> None:
        """The step is not taken: the running means are as before it. After `choose` there is nothing to put back."""


class Curved(Owned, Protocol):
    """The part of the model that this rank owns, and its curvature."""

    @property
    def curvature(self) -> Curvature: ...


@dataclass(frozen=True, kw_only=True)
class SubspaceKfac:
    """A gradient and factors; directions; products; candidates; the best one is the step.

    Args:
        has_fresh_rows: Whether slopes are taken on other samples than the gradient. A noisy gradient g overstates its
            own slope, g·P g, by the trace of P times the noise's covariance; on samples that g has not seen it does
            not, and the quadratic's minimiser is as long as the noise lets it be.
    """

    has_fresh_rows: bool = False
    num_rounds: ClassVar[int] = 3
    """The gradient, the products, and candidates once."""

    most_rounds: ClassVar[int] = 3 + MOST_TRIALS
    """With the factors' own, and with candidates as often as may be."""

    def step(self, owned: Owned) -> Steps:
        curvature = cast("Curved", owned).curvature
        yield RoundRequest(has_factors=curvature.needs_factors)
        try:
            curvature.publish()
            found = yield from self._best(curvature)
            curvature.choose(found)
        finally:
            curvature.put_back()
        owned.update()

    def _best(self, curvature: Curvature) -> Generator[Request, Sums, quadratic.Values]:
        """Coefficients of the step."""
        yield Meeting()
        curvature.precondition()
        sums = yield TableRequest(kind="products", num_columns=NUM_PRODUCTS + NUM_DIRECTIONS)
        assert sums.table is not None
        matrix = quadratic.symmetric(sums.table[:NUM_PRODUCTS], NUM_DIRECTIONS)
        slopes = sums.table[NUM_PRODUCTS:] if self.has_fresh_rows else curvature.slopes()
        candidates = quadratic.candidates(matrix, slopes)
        found, least = np.zeros(NUM_DIRECTIONS), np.inf
        for _ in range(MOST_TRIALS):
            trials = np.concatenate([np.zeros((1, NUM_DIRECTIONS)), candidates])
            sums = yield TableRequest(kind="losses", num_columns=len(trials), coefficients=trials)
            assert sums.table is not None
            least = min(least, float(sums.table[0]))
            number = quadratic.best(sums.table[1:], least)
            if number is not None:
                found, least = candidates[number], float(sums.table[1 + number])
            if number not in (None, quadratic.SHORTEST):
                break
            candidates = candidates * quadratic.SHORTER
        return found


class Kfac(SGD):
    """Takes the step that `SubspaceKfac` left, negative, in the place of the gradient; alone it is gradient descent.

    Args:
        params: Parameters, or parameter groups.
        lr: Part of the step that is taken; 1 is what the rounds found best.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1.0) -> None:
        super().__init__(params, lr=lr)
