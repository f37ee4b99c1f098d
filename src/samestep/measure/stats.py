"""Medians with intervals, ratios taken round by round, and what may be said of two programs' times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from samestep.errors import UsageError

Values = NDArray[np.float64]
Relation = Literal["faster", "slower", "equal", "not shown different"]

FEWEST_ROUNDS = 6
"""From so many values on, their order alone gives a 95 % interval of the median."""

_REPLICATES = 10_000
_SEED = 20_240_229
_WIDE_FRAC = 0.05
_DRIFT_FRAC = 0.02
_OTHERS_FRAC = 0.05


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval; the interval is unbounded where nothing is known.

    Example:
        >>> Estimate(value=1.234, low=1.2, high=1.26).text(2)
        '1.23 [1.20, 1.26]'
        >>> Estimate(value=2.0, low=0.0, high=math.inf).text(1)
        '2.0 [0.0, ?]'
    """

    value: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """Whether anything is known of the interval."""
        return self.low > 0 or math.isfinite(self.high)

    def text(self, digits: int = 3) -> str:
        """Value and interval with so many decimals; "?" stands for a bound that is not known."""
        return f"{self.value:.{digits}f} {self.interval(digits)}"

    def interval(self, digits: int = 3) -> str:
        """The interval alone."""
        low, high = (f"{bound:.{digits}f}" if math.isfinite(bound) else "?" for bound in (self.low, self.high))
        return f"[{low}, {high}]"

    def scaled(self, factor: float) -> Estimate:
        """In another unit: value and bounds times a positive factor."""
        return Estimate(value=self.value * factor, low=self.low * factor, high=self.high * factor)


def median(values: Sequence[float] | Values) -> Estimate:
    """The median and its 95 % interval, in the unit of the values.

    The interval is that of the sign test: two of the sorted values, interpolated to 95 % (Hettmansperger and Sheather).
    It needs no assumption on the distribution: simulated coverage is 94-96 % for normal, log-normal, exponential and
    heavy-tailed values from 6 on, where the percentile bootstrap reaches 93-95 %.

    **Fewer than 6 values** cannot do that: their range covers the median of 5 in 94 %, of 3 in 75 %. The interval is
    then Student's (of logarithms, where all values are positive): 95 % if they are normal (log-normal), and wide.
    A single value has no interval: its bounds are as far as can be.

    Args:
        values: One a round; at least one.

    Raises:
        UsageError: No value, or one that is not finite.

    Example:
        >>> median([3.0, 1.0, 2.0, 4.0, 6.0, 5.0, 7.0]).text(1)
        '4.0 [1.7, 6.3]'
        >>> median([2.0]).text(1)
        '2.0 [0.0, ?]'

    References:
        Hettmansperger, Sheather: Confidence intervals based on interpolated order statistics, 1986.
    """
    return _median(_checked(values), 0.95)


def geometric_mean(cases: Sequence[Sequence[float] | Values], *, most: float = math.inf) -> Estimate:
    """The geometric mean over cases of each case's median, exp(mean(log median)), in the unit of the values.

    The interval holds 95 % of what comes out when rounds are drawn anew within each case (seeded percentile
    bootstrap); simulated coverage is 95-99 % from 6 rounds a case on, but as little as 71 % at 3 rounds and 52 % at 2.
    A case of a single round leaves no interval.

    Args:
        cases: Per case, one positive value a round, usually a ratio.
        most: A case's median counts as this at most.

    Raises:
        UsageError: No case, or a value that is not positive and finite.

    Example:
        >>> geometric_mean([[2.0] * 6, [8.0] * 6]).text(1)
        '4.0 [4.0, 4.0]'
        >>> geometric_mean([[2.0] * 6, [8.0] * 6], most=2.0).value
        2.0
    """
    if not len(cases):
        raise UsageError("a geometric mean of no cases: give at least one")
    found = [_positive(case, "values of a case") for case in cases]
    value = math.exp(np.mean([math.log(min(float(np.median(case)), most)) for case in found]))
    if min(len(case) for case in found) == 1:
        return Estimate(value=value, low=0.0, high=math.inf)
    generator = np.random.default_rng(_SEED)
    logs = [np.log(np.minimum(_resampled_medians(case, generator), most)) for case in found]
    low, high = np.exp(np.quantile(np.mean(logs, axis=0), (0.025, 0.975)))
    return Estimate(value=value, low=float(low), high=float(high))


def ratio(
    numerator: Sequence[float] | Values, denominator: Sequence[float] | Values, *, confidence: float = 0.95
) -> Estimate:
    """The median of numerator / denominator, taken round by round, with its interval (see `median`); no unit.

    What slows a whole round down is in both and drops out.

    Args:
        numerator: Positive values, one a round.
        denominator: Those of the same rounds.
        confidence: Of the interval; below 6 (at 0.99: 8) rounds it is Student's, of logarithms.

    Raises:
        UsageError: Other numbers of rounds, or a value that is not positive and finite.

    Example:
        >>> ratio([2.0, 2.2, 4.0], [1.0, 1.1, 2.0]).text(1)
        '2.0 [2.0, 2.0]'
    """
    if not 0 < confidence < 1:
        raise UsageError(f"confidence={confidence} lies outside of 0 .. 1: give a fraction such as 0.95")
    above, below = _positive(numerator, "numerators"), _positive(denominator, "denominators")
    if len(above) != len(below):
        raise UsageError(
            f"{len(above)} rounds against {len(below)}: ratios are taken round by round, so both need values of "
            "the same rounds"
        )
    return _median(above / below, confidence)


def relate(times: Sequence[float] | Values, reference: Sequence[float] | Values, *, margin: float = 0.02) -> Relation:
    """What the rounds show about times against a reference, paired round by round.

    "faster" or "slower": the 99 % interval of times / reference lies below or above 1. "equal": the whole 95 %
    interval lies within 1 ± margin. Otherwise "not shown different", which is not "equal".

    Args:
        times: Seconds, one value a round.
        reference: Those of the same rounds.
        margin: How far from 1 a ratio may be and still count as equal.

    Example:
        >>> relate([1.0, 1.1, 1.0, 1.2, 1.1, 1.0, 1.1, 1.2], [2.0] * 8)
        'faster'
        >>> relate([1.0] * 8, [1.001] * 8), relate([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
        ('faster', 'not shown different')
        >>> relate([1.0, 1.001, 0.999] * 3, [1.0] * 9)
        'equal'
    """
    sure = ratio(times, reference, confidence=0.99)
    if sure.high < 1:
        return "faster"
    if sure.low > 1:
        return "slower"
    likely = ratio(times, reference)
    return "equal" if 1 - margin <= likely.low and likely.high <= 1 + margin else "not shown different"


def rounds_to_tell(found: Estimate, num_rounds: int, *, margin: float = 0.02) -> int:
    """How many rounds would tell a ratio from 1, or show it equal, if the spread stays as it is.

    An interval shrinks with 1 / sqrt(rounds). A multiple of ten, between 10 more and about ten times as many.

    Args:
        found: The ratio with its 95 % interval.
        num_rounds: From so many rounds.
        margin: What counts as equal (see `relate`).

    Example:
        >>> rounds_to_tell(Estimate(value=1.03, low=1.0, high=1.06), 10)
        20
        >>> rounds_to_tell(Estimate(value=1.0, low=0.965, high=1.035), 10)
        40
    """
    apart = abs(found.value - 1) / 1.31  # a 99 % interval is 1.31 times as wide as one of 95 %
    return _rounds_for(num_rounds, (found.high - found.low) / (2 * max(apart, margin)))


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Whether times can be relied on.

    Args:
        is_stable: Nothing was found.
        warnings: What is unstable, the numbers, and what to run next.
    """

    is_stable: bool
    warnings: tuple[str, ...]


def stability(times: Sequence[float] | Values, *, others_frac: Sequence[float] = ()) -> Stability:
    """Whether a program's times are stable: enough rounds, a narrow interval, no drift, an idle machine.

    Bounds: 6 rounds; the 95 % interval of the median not wider than 5 % of it; the second half of the rounds not
    shown different from the first by more than 2 %; other processes not above 5 % of the processors' time on average.

    Args:
        times: Seconds, one value a round, in the order of the rounds.
        others_frac: Share of the processors' time that other processes took, one value a round; none where not known.

    Example:
        >>> stability([1.0, 1.01] * 5).is_stable
        True
        >>> print(*stability([1.0, 1.2] * 5, others_frac=[0.2] * 10).warnings, sep=chr(10))
        the median's 95 % interval is 18.2 % wide (10 rounds; up to 5 % is stable): measure more with --repeats 110
        other processes took 20 % of the processors' time (up to 20 % in a round): measure on an idle machine
    """
    raw = _positive(times, "times")
    found = (_few(raw), _width(raw), _drift(raw), _disturbance(others_frac))
    warnings = tuple(text for text in found if text is not None)
    return Stability(is_stable=not warnings, warnings=warnings)


def settled(times: Sequence[float] | Values) -> int:
    """How many first values are timing warm-up: slower than the second half by more than its own noise.

    A value is slow above both 1.05 × the second half's median and that median + 3 × its spread (median absolute
    deviation, scaled to a normal's). The warm-up ends before the first value that is not slow, unless the two after it
    are. It cannot be found where it is longer than half of the values or there are fewer than 8: 0 then.

    Args:
        times: Seconds, in the order in which they were taken.

    Example:
        >>> settled([3.0, 1.5, 1.0, 1.1, 1.0, 1.0, 1.1, 1.0])
        2
        >>> settled([1.0, 1.1, 1.0, 1.1, 1.0, 1.0, 1.1, 1.0])
        0
    """
    raw = _positive(times, "times")
    if len(raw) < 8:
        return 0
    half = len(raw) // 2
    middle = float(np.median(raw[half:]))
    spread = 1.4826 * float(np.median(np.abs(raw[half:] - middle)))
    is_slow = raw > max(1.05 * middle, middle + 3 * spread)
    ends = (k for k in range(half) if not is_slow[k] and not (is_slow[k + 1] and is_slow[k + 2]))
    return next(ends, 0)


def _few(times: Values) -> str | None:
    if len(times) >= FEWEST_ROUNDS:
        return None
    rounds = "1 round is" if len(times) == 1 else f"{len(times)} rounds are"
    return f"{rounds} too few for an interval without assumptions (it takes {FEWEST_ROUNDS}): measure with --repeats 10"


def _width(times: Values) -> str | None:
    found = _median(times, 0.95)
    wide = (found.high - found.low) / found.value
    if wide <= _WIDE_FRAC or not math.isfinite(wide):
        return None
    more = _rounds_for(len(times), wide / _WIDE_FRAC)
    return (
        f"the median's 95 % interval is {100 * wide:.1f} % wide ({len(times)} rounds; up to "
        f"{100 * _WIDE_FRAC:.0f} % is stable): measure more with --repeats {more}"
    )


def _drift(times: Values) -> str | None:
    half = len(times) // 2
    if half == 0:
        return None
    first, second = times[:half], times[-half:]
    apart = ratio(second, first)
    if relate(second, first) not in {"faster", "slower"} or abs(apart.value - 1) <= _DRIFT_FRAC:
        return None
    return (
        f"the times drift: the second half of the rounds takes {apart.text(2)} × the first: "
        "let the machine settle (heat, other programs) and measure again"
    )


def _disturbance(others_frac: Sequence[float]) -> str | None:
    if not len(others_frac) or float(np.mean(others_frac)) <= _OTHERS_FRAC:
        return None
    return (
        f"other processes took {100 * np.mean(others_frac):.0f} % of the processors' time (up to "
        f"{100 * np.max(others_frac):.0f} % in a round): measure on an idle machine"
    )


def _rounds_for(num_rounds: int, times_too_wide: float) -> int:
    """Rounds after which an interval is so many times as narrow, as a multiple of ten within bounds."""
    wanted = min(max(num_rounds * times_too_wide**2, num_rounds + 10), 10 * num_rounds + 10)
    return 10 * math.ceil(wanted / 10)


def _checked(values: Sequence[float] | Values) -> Values:
    raw = np.asarray(values, dtype=np.float64)
    if raw.ndim != 1 or len(raw) == 0:
        raise UsageError(f"a median of values of shape {raw.shape}: give a list of one number a round, at least one")
    if not np.isfinite(raw).all():
        bad = int((~np.isfinite(raw)).sum())
        raise UsageError(f"{bad} of {len(raw)} values are not finite: leave those rounds out")
    return raw


def _positive(values: Sequence[float] | Values, what: str) -> Values:
    raw = _checked(values)
    if raw.min() <= 0:
        raise UsageError(f"{what} must be above 0, the lowest is {raw.min():g}: leave such rounds out")
    return raw


def _median(values: Values, confidence: float) -> Estimate:
    ordered = np.sort(values)  # the same bits in any order of the rounds
    value = float(np.median(ordered))
    ranks = _ranks(len(values), confidence)
    if ranks is None:
        low, high = _student(ordered, confidence)
        return Estimate(value=value, low=min(low, value), high=max(high, value))
    lower, share = ranks
    low, high = ordered[[lower, -1 - lower]] + share * (ordered[[lower + 1, -2 - lower]] - ordered[[lower, -1 - lower]])
    return Estimate(value=value, low=float(low), high=float(high))


@lru_cache(maxsize=1024)
def _ranks(num_values: int, confidence: float) -> tuple[int, float] | None:
    """Where the interval's bounds lie among sorted values: (index from either end, share of the way to the next).

    None where even the extremes cover the median with less than the confidence: 1 - 2^(1 - n).
    """
    from scipy.special import bdtr  # noqa: PLC0415 - it takes longer to import than all of numpy

    indices = np.arange((num_values + 1) // 2)
    covers = 1 - 2 * bdtr(indices, num_values, 0.5)  # that the median lies between value `index` from either end
    lower = int(np.count_nonzero(covers >= confidence)) - 1
    if lower < 0:
        return None
    nearer = covers[lower + 1] if lower + 1 < len(covers) else 0.0
    excess = (covers[lower] - confidence) / (covers[lower] - nearer)
    beyond = num_values - lower - 1
    return lower, float(beyond * excess / (lower + 1 + (beyond - lower - 1) * excess))


def _student(values: Values, confidence: float) -> tuple[float, float]:
    """Student's interval of the mean; of the logarithms where all values are positive."""
    if values.min() > 0:
        with np.errstate(over="ignore"):
            low, high = np.exp(_student_of(np.log(values), confidence))
        return float(low), float(high)
    return _student_of(values, confidence)


def _student_of(values: Values, confidence: float) -> tuple[float, float]:
    from scipy.special import stdtrit  # noqa: PLC0415

    count = len(values)
    if count == 1:
        return -math.inf, math.inf
    middle, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(count)
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * error
    return middle - half, middle + half


def _resampled_medians(values: Values, generator: np.random.Generator) -> Values:
    drawn = generator.integers(len(values), size=(_REPLICATES, len(values)))
    medians: Values = np.median(values[drawn], axis=1)
    return medians
