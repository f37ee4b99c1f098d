"""Laws of scaling: Amdahl's and the Universal Scalability Law, and their parameters from measured speed-ups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from samestep.errors import UsageError
from samestep.measure.stats import FEWEST_ROUNDS, Estimate, Values, median

Law = Literal["Amdahl", "Universal Scalability Law"]

_CURVE_POINTS = 61


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law of scaling, fitted to the speed-up over one worker; or why it is not.

    Args:
        law: Which one.
        parameters: By name, plain numbers: `serial_frac` of Amdahl's law, `contention` and `coherency` of the
            Universal Scalability Law; empty where there is no fit.
        peak_workers: Where more workers begin to slow down. None where that is nowhere in sight: beyond the curve, or
            not shown (the interval of the coherency reaches 0).
        curve: (workers, speed-up over one worker), for drawing, from 1 to 2 × the most workers measured.
        reason: Why there is no fit.
    """

    law: Law
    parameters: Mapping[str, Estimate]
    peak_workers: float | None
    curve: tuple[tuple[float, float], ...]
    reason: str | None


def amdahl(workers: float, serial_frac: float) -> float:
    """Speed-up over one worker by Amdahl's law, S(N) = 1 / (s + (1 - s) / N), a plain number.

    Args:
        workers: N.
        serial_frac: s, the share of one worker's time that does not get shorter with more workers.

    Example:
        >>> round(amdahl(4, 0.1), 3)
        3.077

    References:
        Amdahl: Validity of the single processor approach to achieving large scale computing capabilities, 1967.
    """
    return 1 / (serial_frac + (1 - serial_frac) / workers)


def usl(workers: float, contention: float, coherency: float) -> float:
    """Speed-up over one worker by the Universal Scalability Law, S(N) = N / (1 + a (N - 1) + b N (N - 1)).

    Args:
        workers: N.
        contention: a, the cost of what only one worker can do at a time; with b = 0 it is Amdahl's serial share.
        coherency: b, the cost of what every pair of workers must exchange; above 0, more workers slow down somewhere.

    Example:
        >>> round(usl(4, 0.1, 0.01), 3)
        2.817

    References:
        Gunther: Guerrilla Capacity Planning, 2007.
    """
    return workers / (1 + contention * (workers - 1) + coherency * workers * (workers - 1))


def fit_amdahl(relative: Mapping[int, Sequence[float] | Values]) -> Fit:
    """Amdahl's serial share from measured speed-ups over one worker.

    Least squares of predicted / measured time - 1 over the medians of the rounds, bounded to 0 .. 1. The 95 % interval
    is that of the median of fits to each round by itself (see `stats.median`), whose coverage the tests simulate: 92 to
    98 % from 6 rounds on; with fewer rounds it is all that is possible, 0 .. 1.

    Args:
        relative: Workers → speed-up over one worker, one value a round; needs one count above 1.

    Raises:
        UsageError: Other numbers of rounds, or a speed-up that is not positive.

    Example:
        >>> fit_amdahl({1: [1.0] * 6, 2: [1.8181818] * 6}).parameters["serial_frac"].text()
        '0.100 [0.100, 0.100]'
        >>> fit_amdahl({1: [1.0] * 6}).reason
        'needs two counts of workers, 1 and another; measured was 1'
    """
    workers, speed_ups = _table(relative)
    if len(workers) < 1:
        return no_fit("Amdahl", f"needs two counts of workers, 1 and another; measured was {_counts(relative)}")
    unbounded = float(_serial_fracs(workers, np.median(speed_ups, axis=0)))
    if unbounded > 1:
        return no_fit("Amdahl", "more workers are not faster than one, and Amdahl's law knows no slowing down")
    serial_frac = max(unbounded, 0.0)
    estimate = _estimate(serial_frac, _serial_fracs(workers, speed_ups), most=1.0)
    return Fit(
        law="Amdahl",
        parameters={"serial_frac": estimate},
        peak_workers=None,
        curve=_curve(workers, lambda count: amdahl(count, serial_frac)),
        reason=None,
    )


def fit_usl(relative: Mapping[int, Sequence[float] | Values]) -> Fit:
    """Contention and coherency of the Universal Scalability Law from measured speed-ups over one worker.

    Least squares of predicted / measured time - 1 over the medians of the rounds, both bounded to 0 or more. Intervals
    as in `fit_amdahl`; with fewer than 6 rounds they are all that is possible, 0 and up.

    Args:
        relative: Workers → speed-up over one worker, one value a round; needs two counts above 1.

    Raises:
        UsageError: Other numbers of rounds, or a speed-up that is not positive.

    Example:
        >>> found = fit_usl({n: [usl(n, 0.05, 0.02)] * 6 for n in (1, 2, 4, 8)})
        >>> found.parameters["contention"].text(), found.parameters["coherency"].text()
        ('0.050 [0.050, 0.050]', '0.020 [0.020, 0.020]')
        >>> round(found.peak_workers, 2)
        6.89
        >>> fit_usl({1: [1.0], 2: [1.8]}).reason
        'needs three counts of workers, 1 and two others; measured were 1, 2'
    """
    law: Law = "Universal Scalability Law"
    workers, speed_ups = _table(relative)
    if len(workers) < 2:
        were = "were" if len(relative) > 1 else "was"
        return no_fit(law, f"needs three counts of workers, 1 and two others; measured {were} {_counts(relative)}")
    contention, coherency = map(float, _costs(workers, np.median(speed_ups, axis=0)))
    of_rounds = _unbounded_costs(workers, speed_ups)
    parameters = {
        "contention": _estimate(contention, of_rounds[0], most=math.inf),
        "coherency": _estimate(coherency, of_rounds[1], most=math.inf),
    }
    peak = peak_of_usl(contention, coherency)
    is_shown = parameters["coherency"].low > 0 and peak <= 2 * workers.max()
    return Fit(
        law=law,
        parameters=parameters,
        peak_workers=peak if is_shown else None,
        curve=_curve(workers, lambda count: usl(count, contention, coherency)),
        reason=None,
    )


def peak_of_usl(contention: float, coherency: float) -> float:
    """The number of workers beyond which the Universal Scalability Law slows down: sqrt((1 - a) / b), at least 1.

    >>> peak_of_usl(0.04, 0.01), peak_of_usl(0.04, 0.0), peak_of_usl(1.2, 0.1)
    (9.797958971132712, inf, 1.0)
    """
    return math.inf if coherency == 0 else math.sqrt(max((1 - contention) / coherency, 1.0))


def no_fit(law: Law, reason: str) -> Fit:
    """That a law is not fitted, and why.

    >>> no_fit("Amdahl", "needs two counts of workers").parameters
    {}
    """
    return Fit(law=law, parameters={}, peak_workers=None, curve=(), reason=reason)


def _counts(relative: Mapping[int, object]) -> str:
    return ", ".join(str(count) for count in sorted(relative)) or "nothing"


def _table(relative: Mapping[int, Sequence[float] | Values]) -> tuple[Values, Values]:
    """The counts above 1 in ascending order, and their speed-ups (rounds × counts): one worker's is 1 by definition."""
    if len({len(values) for values in relative.values()}) > 1:
        found = ", ".join(f"{count} workers: {len(values)}" for count, values in sorted(relative.items()))
        raise UsageError(f"other numbers of rounds ({found}): a fit needs speed-ups of the same rounds")
    counts = sorted(count for count in relative if count > 1)
    table = np.array([relative[count] for count in counts], dtype=np.float64).T
    if counts and not (table.size and np.isfinite(table).all() and table.min() > 0):
        raise UsageError("a speed-up must be a number above 0, one a round: leave other rounds out")
    return np.array(counts, dtype=np.float64), table


def _serial_fracs(workers: Values, speed_ups: Values) -> Values:
    """Minimise the sum over N of ((s + (1 - s) / N) S(N) - 1)², for each row of speed-ups."""
    slope, rest = speed_ups * (1 - 1 / workers), 1 - speed_ups / workers
    found: Values = (slope * rest).sum(axis=-1) / (slope * slope).sum(axis=-1)
    return found


def _costs(workers: Values, speed_ups: Values) -> Values:
    """Minimise the sum over N of ((1 + a (N - 1) + b N (N - 1)) S(N) / N - 1)² over a, b >= 0, for a row of speed-ups.

    A quadratic of two variables: where one of them would fall below 0 it is 0, and the other is alone.
    """
    first, second, rest = _terms(workers, speed_ups)
    contention, coherency = _unbounded_costs(workers, speed_ups)
    if contention < 0:
        return np.array([0.0, max(second @ rest / (second @ second), 0.0)])
    if coherency < 0:
        return np.array([max(first @ rest / (first @ first), 0.0), 0.0])
    return np.array([contention, coherency])


def _unbounded_costs(workers: Values, speed_ups: Values) -> Values:
    """The same without bounds, for each row of speed-ups: what noise has pushed below 0 still has its place there."""
    first, second, rest = _terms(workers, speed_ups)
    ff, fs, ss = ((left * right).sum(axis=-1) for left, right in ((first, first), (first, second), (second, second)))
    fr, sr = (first * rest).sum(axis=-1), (second * rest).sum(axis=-1)
    found: Values = np.array([fr * ss - sr * fs, sr * ff - fr * fs]) / (ff * ss - fs * fs)
    return found


def _terms(workers: Values, speed_ups: Values) -> tuple[Values, Values, Values]:
    """What a and b are multiplied with, and what they are to make up for."""
    first = (workers - 1) * speed_ups / workers
    return first, workers * first, 1 - speed_ups / workers


def _estimate(value: float, of_rounds: Values, *, most: float) -> Estimate:
    """A parameter, with the interval of the median of the rounds' own, as far as it is possible."""
    if len(of_rounds) < FEWEST_ROUNDS:
        return Estimate(value=value, low=0.0, high=most)
    found = median(of_rounds)
    low, high = (min(max(bound, 0.0), most) for bound in (found.low, found.high))
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def _curve(workers: Values, law: Callable[[float], float]) -> tuple[tuple[float, float], ...]:
    counts = np.linspace(1, 2 * workers.max(), _CURVE_POINTS)
    return tuple((float(count), law(float(count))) for count in counts)
