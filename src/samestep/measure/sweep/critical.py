"""Where more samples a step stop to save steps: the end of perfect scaling, and the critical batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samestep.errors import UsageError
from samestep.measure.stats import Estimate, Values

TOLERANCE = 1.25
"""Steps × batch may be so many times that of the smallest batch, and scaling still counts as perfect."""

FEWEST_BATCHES = 3
_FEWEST_SEEDS = 3

_REACH = 100.0
"""A critical batch is looked for up to so many times beyond the batches that were tried."""

_REPLICATES = 1_000
_SEED = 20_181_214
_CURVE_POINTS = 41


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The critical batch of an optimiser, or why there is none.

    Args:
        least_steps: S_min, the steps that no batch goes below.
        critical_batch: B_crit in samples.
        curve: (batch, steps), for drawing.
        reason: Why there is no fit.
    """

    least_steps: Estimate | None = None
    critical_batch: Estimate | None = None
    curve: tuple[tuple[float, float], ...] = ()
    reason: str | None = None


def steps_at(batch: float, least_steps: float, critical_batch: float) -> float:
    """Steps to the target, S = S_min (1 + B_crit / B).

    Args:
        batch: B, samples a step.
        least_steps: S_min.
        critical_batch: B_crit; at this batch twice as many steps as at an unbounded one are needed, and twice as many
            samples as at a tiny one.

    Example:
        >>> steps_at(1000, 50, 1000)
        100.0

    References:
        McCandlish, Kaplan, Amodei: An empirical model of large-batch training, 2018, equation 2.11.
    """
    return least_steps * (1 + critical_batch / batch)


def fit(steps: Mapping[int, Sequence[float]]) -> Fit:
    """The critical batch from measured steps to the target.

    Least squares of the logarithms of the medians over seeds, the critical batch bounded to 100 times beyond the
    batches tried. The 95 % interval is a percentile bootstrap over seeds, each batch for itself; a bound at the edge of
    what is looked through is not known, and with fewer than 3 seeds none is. In simulations (steps that spread by 10 %,
    4 or 6 batches) it covered 94-95 % with 3 seeds, 98-99 % with 5 and 9.

    Args:
        steps: Batch → steps to the target, one value a seed; infinite where a seed never reached it.

    Raises:
        UsageError: A batch without a seed, or steps that are not above 0.

    Example:
        >>> found = fit({batch: [steps_at(batch, 40, 500)] * 5 for batch in (64, 256, 1024, 4096)})
        >>> found.critical_batch.text(0), found.least_steps.text(1)
        ('500 [500, 500]', '40.0 [40.0, 40.0]')
        >>> fit({64: [100.0], 128: [50.0]}).reason
        'needs three batches that reach the target, and 2 did'
    """
    for batch, values in steps.items():
        if not len(values) or not min(values) > 0:
            raise UsageError(f"steps at batch {batch} are {list(values)}: give one number above 0 a seed")
    reached = {batch: np.asarray(steps[batch], dtype=np.float64) for batch in sorted(steps)}
    reached = {batch: values for batch, values in reached.items() if math.isfinite(np.median(values))}
    if len(reached) < FEWEST_BATCHES:
        return Fit(reason=f"needs three batches that reach the target, and {len(reached)} did")
    batches = np.array(list(reached), dtype=np.float64)
    least, critical = _fitted(batches, np.array([np.median(values) for values in reached.values()]))
    low, high = batches[0] / _REACH, batches[-1] * _REACH
    if critical > 0.99 * high:
        return Fit(reason=f"no bend in sight: up to {batches[-1]:.0f} samples, twice the batch halves the steps")
    if critical < 1.01 * low:
        return Fit(reason=f"no slope in sight: from {batches[0]:.0f} samples on, a larger batch saves no steps")
    bounds = np.array([[0.0, 0.0], [math.inf, math.inf]])
    if min(map(len, reached.values())) >= _FEWEST_SEEDS:
        bounds = np.quantile(_replicates(batches, list(reached.values())), (0.025, 0.975), axis=0)
    return Fit(
        least_steps=Estimate(value=least, low=float(bounds[0, 0]), high=float(bounds[1, 0])),
        critical_batch=Estimate(
            value=critical,
            low=0.0 if bounds[0, 1] < 1.01 * low else float(bounds[0, 1]),
            high=math.inf if bounds[1, 1] > 0.99 * high else float(bounds[1, 1]),
        ),
        curve=tuple(
            (float(batch), steps_at(float(batch), least, critical))
            for batch in np.geomspace(batches[0], batches[-1], _CURVE_POINTS)
        ),
    )


def perfect_until(steps: Mapping[int, float], tolerance: float = TOLERANCE) -> int | None:
    """The largest batch up to which scaling is perfect: steps × batch stays within a tolerance of the smallest one's.

    Args:
        steps: Batch → steps to the target; infinite where it was not reached.
        tolerance: How many times the samples of the smallest batch that reached it still count.

    Returns:
        None where no batch reached the target.

    Example:
        >>> perfect_until({64: 800, 128: 400, 256: 210, 512: 150})
        256
    """
    reached = {batch: steps[batch] for batch in sorted(steps) if math.isfinite(steps[batch])}
    if not reached:
        return None
    last = least = next(iter(reached))
    for batch, number in reached.items():
        if batch * number > tolerance * least * reached[least]:
            break
        last = batch
    return last


def _fitted(batches: Values, medians: Values) -> tuple[float, float]:
    """S_min and B_crit: for any B_crit the best log S_min is a mean, so one unknown is left."""
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 - it takes longer to import than all of numpy

    logs = np.log(medians)

    def spread(log_critical: float) -> float:
        return float(np.var(logs - np.log1p(np.exp(log_critical) / batches)))

    bounds = (math.log(batches[0] / _REACH), math.log(batches[-1] * _REACH))
    found = minimize_scalar(spread, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    critical = math.exp(found.x)
    return math.exp(float(np.mean(logs - np.log1p(critical / batches)))), critical


def _replicates(batches: Values, seeds: Sequence[Values]) -> Values:
    """(S_min, B_crit) of medians over seeds that are drawn anew; shape (replicates, 2)."""
    generator = np.random.default_rng(_SEED)
    drawn = np.stack(
        [
            np.median(values[generator.integers(len(values), size=(_REPLICATES, len(values)))], axis=1)
            for values in seeds
        ],
        axis=1,
    )
    drawn = drawn[np.isfinite(drawn).sum(axis=1) >= FEWEST_BATCHES]
    rows, counts = np.unique(drawn, axis=0, return_counts=True)
    fitted = []
    for row in rows:
        is_finite = np.isfinite(row)
        fitted.append(_fitted(batches[is_finite], row[is_finite]))
    found: Values = np.repeat(np.array(fitted), counts, axis=0)
    return found
