"""Medians with bootstrap intervals, and geometric means over cases; everything seeded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_REPLICATES = 10_000
_SEED = 20_240_229

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, digits: int = 3) -> str:
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def median(values: Sequence[float] | Values) -> Estimate:
    """The median, and its 95 % percentile interval over resampled values."""
    raw = np.asarray(values, dtype=np.float64)
    return _estimate(float(np.median(raw)), _medians(raw, np.random.default_rng(_SEED)))


def geometric_mean(cases: Sequence[Values], *, most: float = float("inf")) -> Estimate:
    """The geometric mean over cases of each case's median; rounds are resampled within each case.

    Args:
        cases: Per case, one ratio per round.
        most: A case's median counts as this at most.
    """
    generator = np.random.default_rng(_SEED)
    logs = [np.log(np.minimum(_medians(np.asarray(case), generator), most)) for case in cases]
    value = np.mean([np.log(min(float(np.median(case)), most)) for case in cases])
    return _estimate(float(np.exp(value)), np.exp(np.mean(logs, axis=0)))


def _medians(values: Values, generator: np.random.Generator) -> Values:
    drawn = generator.integers(len(values), size=(_REPLICATES, len(values)))
    medians: Values = np.median(values[drawn], axis=1)
    return medians


def _estimate(value: float, replicates: Values) -> Estimate:
    low, high = np.quantile(replicates, (0.025, 0.975))
    return Estimate(value, float(low), float(high))
