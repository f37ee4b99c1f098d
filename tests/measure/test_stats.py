"""Intervals cover what they say, ratios are taken round by round, and "equal" is only said where it is shown."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from samestep.errors import UsageError
from samestep.measure.stats import (
    Estimate,
    Values,
    geometric_mean,
    median,
    ratio,
    relate,
    rounds_to_tell,
    settled,
    stability,
)

NOISE = 0.03


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def covers(found: Estimate, truth: float) -> bool:
    return found.low <= truth <= found.high


def noisy(generator: np.random.Generator, rounds: int, *, noise: float = NOISE, drift: Values | None = None) -> Values:
    times: Values = np.exp(noise * generator.normal(size=rounds))
    return times if drift is None else times * drift


DRAWS: dict[str, tuple[Callable[[np.random.Generator, int], Values], float]] = {
    "normal": (lambda generator, count: generator.normal(10.0, 1.0, count), 10.0),
    "log-normal": (lambda generator, count: generator.lognormal(0.0, 0.5, count), 1.0),
    "with outliers": (lambda generator, count: 50 + generator.standard_t(2, count), 50.0),
}
positive = st.floats(1e-6, 1e6)


class TestMedian:
    @pytest.mark.parametrize("draw", DRAWS)
    @pytest.mark.parametrize("rounds", [6, 10, 20, 30])
    def test_the_interval_covers_the_median(self, rounds: int, draw: str) -> None:
        one, truth = DRAWS[draw]
        generator = rng(rounds)
        covered = np.mean([covers(median(one(generator, rounds)), truth) for _ in range(2_000)])
        assert 0.92 <= covered <= 0.98

    @pytest.mark.parametrize("rounds", [2, 3, 4, 5])
    @pytest.mark.parametrize("draw", ["normal", "log-normal"])
    def test_of_fewer_rounds_too_where_they_are_normal(self, rounds: int, draw: str) -> None:
        one, truth = DRAWS[draw]
        generator = rng(rounds)
        covered = np.mean([covers(median(one(generator, rounds)), truth) for _ in range(2_000)])
        assert 0.92 <= covered <= 0.98

    def test_the_simulation_sees_an_interval_that_is_too_narrow(self) -> None:
        """A planted error: half as wide covers much less."""
        generator, covered = rng(), []
        for _ in range(1_000):
            found = median(generator.normal(10.0, 1.0, 10))
            low, high = (found.value + (bound - found.value) / 2 for bound in (found.low, found.high))
            covered.append(low <= 10 <= high)
        assert np.mean(covered) < 0.85

    @pytest.mark.parametrize("rounds", [10, 20, 30])
    def test_as_wide_as_a_bootstrap(self, rounds: int) -> None:
        ours, theirs = [], []
        for trial in range(40):
            values = rng(trial).normal(10.0, 1.0, rounds)
            found = median(values)
            boot = reference.bootstrap((values,), np.median, n_resamples=500, method="percentile", rng=rng(trial))
            ours.append(found.high - found.low)
            theirs.append(boot.confidence_interval.high - boot.confidence_interval.low)
        assert 0.8 < np.mean(ours) / np.mean(theirs) < 1.25

    def test_two_sorted_values_interpolated(self) -> None:
        """6 values: the extremes cover 96.875 %, the next ones 78.125 %; 35.7 % of the way gives 95 %."""
        share = 5 * 0.1 / (1 + 4 * 0.1)
        found = median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        assert (found.low, found.value, found.high) == pytest.approx((1 + share, 3.5, 6 - share))

    def test_few_values_are_students(self) -> None:
        logs = np.log([1.0, 1.2, 1.5])
        low, high = reference.t.interval(0.95, 2, logs.mean(), reference.sem(logs))
        found = median([1.0, 1.2, 1.5])
        assert (found.low, found.value, found.high) == pytest.approx((np.exp(low), 1.2, np.exp(high)))
        low, high = reference.t.interval(0.95, 2, 1.0, reference.sem([-1.0, 1.0, 3.0]))
        found = median([-1.0, 1.0, 3.0])
        assert (found.low, found.value, found.high) == pytest.approx((low, 1.0, high))

    def test_one_value_has_no_interval(self) -> None:
        assert median([2.0]) == Estimate(value=2.0, low=0.0, high=math.inf)
        assert median([-2.0]) == Estimate(value=-2.0, low=-math.inf, high=math.inf)
        assert median([-2.0]).text(1) == "-2.0 [?, ?]"

    @given(st.lists(positive, min_size=1, max_size=40))
    def test_properties(self, values: list[float]) -> None:
        found = median(values)
        assert found.value == np.median(values)
        assert found.low <= found.value <= found.high
        assert median(sorted(values)) == found
        if len(values) >= 6:
            assert min(values) <= found.low and found.high <= max(values)

    @given(positive, st.integers(2, 40))
    def test_of_equal_values(self, value: float, count: int) -> None:
        found = median([value] * count)
        assert found.low == pytest.approx(value) and found.high == pytest.approx(value)

    @pytest.mark.parametrize(
        ("values", "words"), [([], "at least one"), ([1.0, math.nan, math.inf], "2 of 3 values are not finite")]
    )
    def test_refuses(self, values: list[float], words: str) -> None:
        with pytest.raises(UsageError, match=words):
            median(values)


class TestGeometricMean:
    def test_formula(self) -> None:
        found = geometric_mean([[1.0, 2.0, 4.0], [8.0, 8.0, 8.0]])
        assert found.value == pytest.approx(math.sqrt(2.0 * 8.0))
        assert geometric_mean([[1.0, 2.0, 4.0], [8.0, 8.0, 8.0]], most=3.0).value == pytest.approx(math.sqrt(2.0 * 3.0))

    @pytest.mark.parametrize(("cases", "rounds"), [(2, 6), (4, 10)])
    def test_covers(self, cases: int, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("samestep.measure.stats._REPLICATES", 500)
        generator = rng(1)
        drawn = (np.exp(0.05 * generator.normal(size=(cases, rounds))) for _ in range(1_000))
        assert 0.92 <= np.mean([covers(geometric_mean(list(values)), 1.0) for values in drawn]) <= 0.98

    def test_is_seeded(self) -> None:
        cases = [noisy(rng(1), 10), noisy(rng(2), 10)]
        assert geometric_mean(cases) == geometric_mean(cases)

    def test_a_single_round_has_no_interval(self) -> None:
        found = geometric_mean([[2.0], [8.0] * 6])
        assert found.value == pytest.approx(4.0) and (found.low, found.high) == (0.0, math.inf)

    def test_refuses(self) -> None:
        with pytest.raises(UsageError, match="no cases"):
            geometric_mean([])
        with pytest.raises(UsageError, match="above 0, the lowest is -1"):
            geometric_mean([[1.0, -1.0]])


class TestRatio:
    def test_is_taken_round_by_round(self) -> None:
        """The ratio of medians would be 2 / 1.5."""
        assert ratio([1.0, 2.0, 30.0], [0.5, 4.0, 1.5]).value == 2.0

    def test_what_slows_a_round_down_drops_out(self) -> None:
        drift = np.linspace(1, 3, 20)
        together = ratio(1.1 * noisy(rng(1), 20, drift=drift), noisy(rng(2), 20, drift=drift))
        assert together.text() == ratio(1.1 * noisy(rng(1), 20), noisy(rng(2), 20)).text()
        shuffled = ratio(1.1 * noisy(rng(1), 20, drift=drift), noisy(rng(2), 20, drift=drift[::-1]))
        assert shuffled.high - shuffled.low > 3 * (together.high - together.low)

    @pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
    @pytest.mark.parametrize("rounds", [3, 8, 20])
    def test_covers_as_often_as_asked(self, confidence: float, rounds: int) -> None:
        generator, ones = rng(rounds), np.ones(rounds)
        found = [ratio(noisy(generator, rounds), ones, confidence=confidence) for _ in range(2_000)]
        assert np.mean([covers(one, 1.0) for one in found]) == pytest.approx(confidence, abs=0.03)

    def test_refuses(self) -> None:
        with pytest.raises(UsageError, match="3 rounds against 2"):
            ratio([1.0, 2.0, 3.0], [1.0, 2.0])
        with pytest.raises(UsageError, match="denominators must be above 0, the lowest is 0"):
            ratio([1.0, 2.0], [1.0, 0.0])
        with pytest.raises(UsageError, match=r"confidence=95 lies outside"):
            ratio([1.0], [1.0], confidence=95)


class TestRelate:
    @pytest.mark.parametrize("rounds", [3, 6, 10, 20])
    @pytest.mark.parametrize("is_drifting", [False, True])
    def test_identical_programs(self, rounds: int, is_drifting: bool) -> None:
        generator = rng(rounds)
        drift = np.linspace(1.0, 1.5, rounds) if is_drifting else None
        found = [
            relate(noisy(generator, rounds, drift=drift), noisy(generator, rounds, drift=drift)) for _ in range(100)
        ]
        assert sum(one in {"equal", "not shown different"} for one in found) >= 95

    def test_identical_programs_with_outliers(self) -> None:
        generator, found = rng(5), []
        for _ in range(100):
            times = [noisy(generator, 20) * np.where(generator.random(20) < 0.2, 2.0, 1.0) for _ in range(2)]
            found.append(relate(*times))
        assert sum(one in {"equal", "not shown different"} for one in found) >= 95

    def test_five_percent_slower(self) -> None:
        """With 3 % noise of the ratio nearly always, with 3 % of each program (4.2 % of the ratio) 9 times in 10."""
        generator, ones = rng(), np.ones(20)
        of_ratio = [relate(1.05 * noisy(generator, 20), ones) for _ in range(100)]
        of_each = [relate(1.05 * noisy(generator, 20), noisy(generator, 20)) for _ in range(100)]
        assert of_ratio.count("slower") >= 97
        assert of_each.count("slower") >= 85
        assert "equal" not in of_ratio + of_each and "faster" not in of_ratio + of_each

    def test_five_percent_faster(self) -> None:
        generator = rng()
        found = [relate(noisy(generator, 30), 1.05 * noisy(generator, 30)) for _ in range(100)]
        assert found.count("faster") >= 95

    def test_equal_needs_data(self) -> None:
        generator = rng()
        few = [relate(noisy(generator, 6), noisy(generator, 6)) for _ in range(100)]
        assert few.count("equal") <= 10
        many = [relate(noisy(generator, 200), noisy(generator, 200)) for _ in range(100)]
        assert many.count("equal") >= 95
        assert relate([1.0], [1.0]) == "not shown different"

    def test_three_percent_apart_is_not_equal(self) -> None:
        generator = rng()
        found = [relate(1.03 * noisy(generator, 30), noisy(generator, 30)) for _ in range(200)]
        assert found.count("equal") <= 5

    def test_margin(self) -> None:
        times, other = [1.0, 1.03, 0.97] * 5, [1.0] * 15
        assert relate(times, other) == "not shown different"
        assert relate(times, other, margin=0.05) == "equal"

    def test_a_sure_difference_within_the_margin_is_a_difference(self) -> None:
        assert relate([1.01] * 10, [1.0] * 10) == "slower"


class TestRoundsToTell:
    @given(st.floats(0.5, 2), st.floats(0, 2), st.integers(1, 100))
    def test_is_more_but_not_endless(self, value: float, width: float, rounds: int) -> None:
        found = rounds_to_tell(Estimate(value=value, low=value - width / 2, high=value + width / 2), rounds)
        assert found % 10 == 0 and rounds + 10 <= found <= 10 * rounds + 20

    def test_one_round(self) -> None:
        assert rounds_to_tell(median([1.0]), 1) == 20

    def test_so_many_tell(self) -> None:
        """What it promises, on what it was promised for."""
        generator = rng(3)
        first = 1.03 * noisy(generator, 10), noisy(generator, 10)
        assert relate(*first) == "not shown different"
        more = rounds_to_tell(Estimate(value=1.03, low=0.99, high=1.07), 10)
        found = [relate(1.03 * noisy(generator, 2 * more), noisy(generator, 2 * more)) for _ in range(100)]
        assert found.count("slower") >= 80


class TestStability:
    def test_stable(self) -> None:
        found = stability(noisy(rng(), 20, noise=0.01), others_frac=[0.01] * 20)
        assert found.is_stable and found.warnings == ()

    def test_too_few(self) -> None:
        (warning,) = stability([1.0, 1.0, 1.0]).warnings
        assert warning.startswith("3 rounds are too few") and "--repeats 10" in warning
        assert stability([1.0]).warnings[0].startswith("1 round is too few")
        assert not stability([1.0]).is_stable

    def test_wide(self) -> None:
        (warning,) = stability(noisy(rng(), 20, noise=0.1)).warnings
        assert "the median's 95 % interval is" in warning and "(20 rounds; up to 5 % is stable)" in warning
        assert int(warning.split("--repeats ")[1]) > 20

    def test_drift(self) -> None:
        warnings = stability(noisy(rng(), 20, noise=0.005, drift=np.linspace(1, 1.2, 20))).warnings
        (warning,) = [text for text in warnings if "drift" in text]
        assert "the second half of the rounds takes 1.1" in warning and "measure again" in warning

    def test_a_drift_is_not_found_in_noise(self) -> None:
        generator = rng()
        found = [stability(noisy(generator, 20)).warnings for _ in range(200)]
        assert sum(any("drift" in text for text in warnings) for warnings in found) <= 6

    def test_a_small_drift_is_let_pass(self) -> None:
        assert stability(np.linspace(1, 1.02, 20)).is_stable

    def test_others(self) -> None:
        (warning,) = stability([1.0] * 10, others_frac=[0.0] * 5 + [0.4] * 5).warnings
        assert "20 % of the processors' time (up to 40 % in a round)" in warning
        assert stability([1.0] * 10, others_frac=[0.04] * 10).is_stable


class TestSettled:
    @pytest.mark.parametrize("first", [[], [3.0], [9.0, 2.0, 1.5, 1.2]])
    def test_counts_the_warm_up(self, first: list[float]) -> None:
        generator = rng()
        found = [settled([*first, *noisy(generator, 40, noise=0.01)]) for _ in range(50)]
        assert found.count(len(first)) >= 48

    def test_a_fast_value_among_slow_ones_does_not_end_it(self) -> None:
        assert settled([3.0, 1.0, 3.0, 3.0, *[1.0] * 16]) == 4

    def test_a_slow_value_later_is_none(self) -> None:
        assert settled([1.0, 1.0, 1.0, 5.0, *[1.0] * 16]) == 0

    def test_few_values_tell_nothing(self) -> None:
        assert settled([9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]) == 0

    def test_none_is_found_where_it_is_longer_than_half(self) -> None:
        assert settled([3.0] * 30 + [1.0] * 10) == 0

    @given(st.lists(positive, min_size=1, max_size=40))
    def test_is_less_than_half(self, times: list[float]) -> None:
        assert 0 <= settled(times) <= len(times) // 2
