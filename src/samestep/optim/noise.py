"""The noise scale: how far the gradients of a step's microbatches lie apart, and what that says of larger batches.

A step gives a *pair* of squared gradient norms at two batch sizes, the microbatch's and the global batch's. From pairs
come unbiased estimates of tr(Σ), the variance of one sample's gradient, and of |G|², the squared gradient over all
training samples; their ratio is the noise scale, in samples. Nothing here changes a weight.

References:
    McCandlish, Kaplan, Amodei et al.: An empirical model of large-batch training, 2018, sections 2.2 and A.1.
    Fieller: Some problems in interval estimation, 1954.
    Welford: Note on a method for calculating corrected sums of squares and products, 1962.
    Cochran: Sampling techniques, 1977, section 2.6 (samples that are drawn without being put back).
    Abramowitz, Stegun: Handbook of mathematical functions, 1964, 26.7.5 (Student's distribution).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from samestep.plan import keys

FEWEST_STEPS = 10
"""Below so many steps nothing is said."""

MOST_STEPS = 256
"""No more are averaged: the noise scale changes while a network learns."""

_NORMAL = 1.959963984540054
"""Between minus and plus this lies 95 % of a normal distribution."""

Values = NDArray[np.float64]


def is_looked_at(step: int, every: int | None) -> bool:
    """Whether the norms of a step's microbatch gradients are taken: on one step of each `every`, on none for None.

    A function of the step's number alone. Which of the `every` it is, a hash says: so it does not keep time with the
    epochs, whose last step may be short.

    >>> [step for step in range(12) if is_looked_at(step, 4)]
    [1, 7, 9]
    >>> sum(is_looked_at(step, 16) for step in range(16_000))
    1000
    """
    if every is None:
        return False
    stretch, number = divmod(step, every)
    return number == _chosen(stretch, every)


@lru_cache(1)
def _chosen(stretch: int, every: int) -> int:
    return keys.key(stretch) % every


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What all ranks know of the microbatch gradients g_j of a round.

    Args:
        mean_square: Σ w_j |g_j|² / Σ w_j: g_j is the mean gradient of microbatch j, w_j its weight in the loss.
        num_microbatches: Those that have a weight.
    """

    mean_square: float
    num_microbatches: int


def spread(squares: Values, weights: Values, num_samples: float) -> Spread:
    """The spread of a round.

    Args:
        squares: |h_j|², where h_j is the gradient of microbatch j's summed loss, divided by `num_samples`; (M,).
        weights: w_j, what the mean loss of microbatch j divides by; shape (M,). One that is 0 tells nothing.
        num_samples: Samples of the step.

    Example:
        >>> spread(np.array([0.25, 0.25]), np.array([2.0, 2.0]), 4.0)  # g_j = h_j × 4 / 2 = 2 h_j
        Spread(mean_square=1.0, num_microbatches=2)
    """
    counts = weights > 0
    total = float((squares[counts] / weights[counts]).sum())
    return Spread(
        mean_square=num_samples**2 * total / float(weights.sum()) if total else 0.0,
        num_microbatches=int(np.count_nonzero(counts)),
    )


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What one step tells.

    Args:
        step: Its number.
        microbatch_square: Σ w_j |g_j|² / Σ w_j over its microbatches (see `Spread`).
        square: |G_B|², the squared norm of the gradient of its mean loss.
        num_microbatches: M, those that have a weight.
        num_samples: B.
    """

    step: int
    microbatch_square: float
    square: float
    num_microbatches: int
    num_samples: int

    @property
    def is_usable(self) -> bool:
        """Whether there are two batch sizes, and finite norms."""
        is_finite = math.isfinite(self.microbatch_square) and math.isfinite(self.square)
        return is_finite and self.num_microbatches > 1

    @property
    def variance(self) -> float:
        """An unbiased estimate of tr(Σ), from the usable pair of one step.

        tr(Σ) = B (Σ w_j |g_j|² / Σ w_j - |G_B|²) / (M - 1), the mean square between groups in an analysis of variance.
        For equal microbatches of b samples it is (|g_j|² - |G_B|²) / (1/b - 1/B), which is McCandlish et al.'s A.1.
        """
        return self.num_samples * (self.microbatch_square - self.square) / (self.num_microbatches - 1)

    def square_without_noise(self, num_training_samples: int | None = None) -> float:
        """An unbiased estimate of |G|²: |G_B|² - tr(Σ) (1/B - 1/N).

        Args:
            num_training_samples: N, of which the B are drawn without being put back; None: there is no end of them.
        """
        rest = 1 / num_training_samples if num_training_samples else 0.0
        return self.square - self.variance * (1 / self.num_samples - rest)


@dataclass(frozen=True, kw_only=True)
class NoiseScale:
    """The noise scale tr(Σ) / |G|², in samples, and its 95 % interval.

    Args:
        value: None where it cannot be told.
        low: 0 where nothing is known.
        high: Infinite where nothing is known: the gradient may be 0 but for its noise.
        num_steps: From so many steps.
        reason: Why there is no value; None where there is one.
    """

    value: float | None
    low: float = 0.0
    high: float = math.inf
    num_steps: int = 0
    reason: str | None = None


def noise_scale(pairs: Sequence[Pair], *, num_training_samples: int | None = None) -> NoiseScale:
    """The noise scale over some steps of a run.

    tr(Σ) and |G|² are averaged over the steps, each step with the weight of its samples, and divided then: a mean of
    ratios would be biased. The interval is Fieller's for a ratio of two means, with Student's distribution. It takes
    the steps as independent; what the noise scale itself changes between them makes it wider. It has no upper end where
    the mean of |G|² is not shown different from 0.

    Args:
        pairs: Those with one microbatch, or with a norm that is not finite, are passed over.
        num_training_samples: See `Pair.square_without_noise`.

    Example:
        >>> pairs = [Pair(step=n, microbatch_square=2 + n % 2 / 9, square=1.2, num_microbatches=8, num_samples=64)
        ...          for n in range(40)]
        >>> found = noise_scale(pairs)
        >>> round(found.value, 2), round(found.low, 2), round(found.high, 2), found.num_steps
        (7.26, 7.09, 7.43, 40)
        >>> noise_scale(pairs[:3]).reason
        '3 steps were looked at, and it takes 10'
    """
    usable = [pair for pair in pairs if pair.is_usable]
    if len(usable) < FEWEST_STEPS:
        steps = "1 step was" if len(usable) == 1 else f"{len(usable)} steps were"
        return NoiseScale(value=None, num_steps=len(usable), reason=f"{steps} looked at, and it takes {FEWEST_STEPS}")
    samples = np.array([pair.num_samples for pair in usable], np.float64)
    weights = samples / samples.mean()
    variances = weights * [pair.variance for pair in usable]
    squares = weights * [pair.square_without_noise(num_training_samples) for pair in usable]
    variance, square = float(variances.mean()), float(squares.mean())
    over, under = variances - variance, squares - square
    return Moments(
        count=len(usable),
        variance=variance,
        square=square,
        variances=float((over * over).sum()),
        both=float((over * under).sum()),
        squares=float((under * under).sum()),
    ).noise_scale()


@dataclass(frozen=True, kw_only=True)
class Moments:
    """All that a noise scale needs of the estimates of some steps.

    Args:
        count: Steps.
        variance: The mean of tr(Σ).
        square: The mean of |G|².
        variances: The sum of squares of tr(Σ), less its mean.
        both: The sum of products of tr(Σ) and |G|², each less its mean.
        squares: The sum of squares of |G|², less its mean.
    """

    count: int = 0
    variance: float = 0.0
    square: float = 0.0
    variances: float = 0.0
    both: float = 0.0
    squares: float = 0.0

    def after(self, variance: float, square: float) -> Moments:
        """With one more step; what came before need not be kept (Welford 1962)."""
        count = self.count + 1
        over, under = variance - self.variance, square - self.square
        rest = self.count / count
        return Moments(
            count=count,
            variance=self.variance + over / count,
            square=self.square + under / count,
            variances=self.variances + rest * over * over,
            both=self.both + rest * over * under,
            squares=self.squares + rest * under * under,
        )

    def noise_scale(self) -> NoiseScale:
        """The noise scale over the steps, at least two, and its interval."""
        low, high = self._fieller()
        value, reason = None, None
        if self.variance <= 0:
            reason = "the gradients of the microbatches hardly differ"
        elif self.square <= 0:
            reason = "the gradient is lost in its noise"
        else:
            value = self.variance / self.square
        return NoiseScale(value=value, low=low, high=high, num_steps=self.count, reason=reason)

    def _fieller(self) -> tuple[float, float]:
        """The part of Fieller's 95 % interval of variance / square that lies above 0.

        All ratios r for which the mean of variance - r × square is not shown different from 0:
        (n - r d)² <= t² (v_nn - 2 r v_nd + r² v_dd), which is a r² - 2 b r + c <= 0.
        """
        over, under = self.variance, self.square
        scale = student(self.count - 1) ** 2 / (self.count * (self.count - 1))
        a = under**2 - scale * self.squares
        b = over * under - scale * self.both
        c = over**2 - scale * self.variances
        root = math.sqrt(max(b * b - a * c, 0.0))
        if a > 0:  # the denominator is shown different from 0
            return (max((b - root) / a, 0.0), max((b + root) / a, 0.0)) if under > 0 else (0.0, math.inf)
        if c > 0 and over > 0 and b + root > 0:  # the numerator alone is: the ratio may be endless
            return c / (b + root), math.inf
        return 0.0, math.inf


def student(freedom: int) -> float:
    """Between minus and plus this lies 95 % of Student's distribution, to four digits from 9 degrees of freedom on.

    An expansion in 1 / freedom, since SciPy takes longer to import than many a run to train.

    >>> [round(student(freedom), 3) for freedom in (9, 30, 255)]
    [2.262, 2.042, 1.969]
    """
    z = _NORMAL
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))
