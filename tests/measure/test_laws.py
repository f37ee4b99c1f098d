"""Parameters come back from speed-ups that were made with them, and their intervals cover them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.measure.laws import Fit, amdahl, fit_amdahl, fit_usl, peak_of_usl, usl
from samestep.measure.stats import Values

Law = Callable[[int], float]


def measured(law: Law, counts: list[int], *, rounds: int = 20, noise: float = 0.0, seed: int = 0) -> dict[int, Values]:
    """Speed-ups over one worker, as a study takes them: noisy times, and a drift that all counts share."""
    generator = np.random.default_rng(seed)
    drift = np.linspace(1.0, 1.3, rounds)
    times = {count: drift * np.exp(noise * generator.normal(size=rounds)) / law(count) for count in [1, *counts]}
    return {count: times[1] / times[count] for count in times}


def value(fit: Fit, name: str) -> float:
    return fit.parameters[name].value


def covers(fit: Fit, name: str, truth: float) -> bool:
    return fit.parameters[name].low <= truth <= fit.parameters[name].high


class TestFormulas:
    def test_amdahl(self) -> None:
        assert amdahl(4, 0.1) == 1 / (0.1 + 0.9 / 4)
        assert amdahl(1, 0.3) == 1 and amdahl(8, 0) == 8 and amdahl(10**9, 0.1) == pytest.approx(10)

    def test_usl(self) -> None:
        assert usl(4, 0.1, 0.01) == 4 / (1 + 0.1 * 3 + 0.01 * 12)
        assert usl(1, 0.3, 0.2) == 1 and usl(8, 0, 0) == 8

    @given(st.integers(1, 64), st.floats(0, 1))
    def test_without_coherency_they_are_one(self, workers: int, share: float) -> None:
        assert usl(workers, share, 0) == pytest.approx(amdahl(workers, share))

    @given(st.floats(0, 0.9), st.floats(1e-4, 0.5))
    def test_peak(self, contention: float, coherency: float) -> None:
        peak = peak_of_usl(contention, coherency)
        for other in (peak * 0.9, peak * 1.1):
            assert other < 1 or usl(peak, contention, coherency) >= usl(other, contention, coherency)


class TestAmdahl:
    @pytest.mark.parametrize("counts", [[2], [4], [2, 4], [2, 3, 4, 8]])
    @pytest.mark.parametrize("serial_frac", [0.02, 0.1, 0.5])
    def test_recovers(self, serial_frac: float, counts: list[int]) -> None:
        fit = fit_amdahl(measured(lambda count: amdahl(count, serial_frac), counts))
        assert value(fit, "serial_frac") == pytest.approx(serial_frac, rel=0.02)
        assert fit.reason is None and fit.peak_workers is None and fit.law == "Amdahl"

    @pytest.mark.parametrize("rounds", [6, 7, 10, 30])
    def test_noisy_intervals_cover(self, rounds: int) -> None:
        fits = [
            fit_amdahl(measured(lambda count: amdahl(count, 0.1), [2, 4, 8], rounds=rounds, noise=0.03, seed=seed))
            for seed in range(1_000)
        ]
        assert 0.92 <= np.mean([covers(fit, "serial_frac", 0.1) for fit in fits]) <= 0.98
        assert np.median([value(fit, "serial_frac") for fit in fits]) == pytest.approx(0.1, rel=0.05)

    def test_the_simulation_sees_a_wrong_law(self) -> None:
        """A planted error: speed-ups of another serial share are not covered."""
        fits = [
            fit_amdahl(measured(lambda count: amdahl(count, 0.15), [2, 4, 8], noise=0.03, seed=seed))
            for seed in range(20)
        ]
        assert np.mean([covers(fit, "serial_frac", 0.1) for fit in fits]) <= 0.1

    def test_too_few_counts(self) -> None:
        assert fit_amdahl({1: [1.0] * 6}).reason == "needs two counts of workers, 1 and another; measured was 1"
        assert fit_amdahl({}).reason == "needs two counts of workers, 1 and another; measured was nothing"

    def test_slower_with_more(self) -> None:
        fit = fit_amdahl({1: [1.0] * 6, 2: [0.8] * 6})
        assert fit.reason == "more workers are not faster than one, and Amdahl's law knows no slowing down"
        assert fit.parameters == {} and fit.curve == ()

    def test_better_than_ideal_is_no_serial_part(self) -> None:
        assert value(fit_amdahl({1: [1.0] * 6, 2: [2.2] * 6}), "serial_frac") == 0

    def test_few_rounds_have_no_interval(self) -> None:
        found = fit_amdahl(measured(lambda count: amdahl(count, 0.1), [2], rounds=5)).parameters["serial_frac"]
        assert (found.low, found.high) == (0, 1)

    def test_curve(self) -> None:
        curve = fit_amdahl(measured(lambda count: amdahl(count, 0.1), [2, 4])).curve
        assert curve[0] == pytest.approx((1, 1)) and curve[-1] == pytest.approx((8, amdahl(8, 0.1)))


class TestUsl:
    @pytest.mark.parametrize("counts", [[2, 4], [2, 3, 4, 8], [4, 16]])
    @pytest.mark.parametrize(("contention", "coherency"), [(0.05, 0.01), (0.2, 0.002), (0.02, 0.1)])
    def test_recovers(self, contention: float, coherency: float, counts: list[int]) -> None:
        fit = fit_usl(measured(lambda count: usl(count, contention, coherency), counts))
        assert value(fit, "contention") == pytest.approx(contention, rel=0.02)
        assert value(fit, "coherency") == pytest.approx(coherency, rel=0.02)

    @pytest.mark.parametrize("rounds", [6, 7, 10, 30])
    def test_noisy_intervals_cover(self, rounds: int) -> None:
        fits = [
            fit_usl(measured(lambda count: usl(count, 0.1, 0.02), [2, 4, 8], rounds=rounds, noise=0.03, seed=seed))
            for seed in range(1_000)
        ]
        for name, truth in (("contention", 0.1), ("coherency", 0.02)):
            assert 0.92 <= np.mean([covers(fit, name, truth) for fit in fits]) <= 0.98

    @given(st.lists(st.floats(0.2, 20), min_size=3, max_size=3))
    def test_is_the_best_within_bounds(self, speed_ups: list[float]) -> None:
        """Against a search on a grid, also where a parameter sits on its bound."""
        counts = [2, 3, 5]
        fit = fit_usl({count: [speed] for count, speed in zip(counts, speed_ups, strict=True)})
        found = value(fit, "contention"), value(fit, "coherency")

        def cost(contention: float, coherency: float) -> float:
            pairs = zip(counts, speed_ups, strict=True)
            return sum((speed / usl(count, contention, coherency) - 1) ** 2 for count, speed in pairs)

        assert min(found) >= 0
        for first in np.linspace(-0.2, 0.2, 5):
            for second in np.linspace(-0.2, 0.2, 5):
                other = max(found[0] + first, 0), max(found[1] + second, 0)
                assert cost(*found) <= cost(*other) * (1 + 1e-9) + 1e-12

    def test_peak_in_sight(self) -> None:
        fit = fit_usl(measured(lambda count: usl(count, 0.1, 0.02), [2, 4, 8], noise=0.01))
        assert fit.peak_workers == pytest.approx(math.sqrt(0.9 / 0.02), rel=0.1)

    @pytest.mark.parametrize(
        ("law", "rounds", "noise"),
        [
            (lambda count: usl(count, 0.1, 0.0), 20, 0.0),  # more workers are always faster
            (lambda count: usl(count, 0.1, 0.001), 20, 0.0),  # 30 workers, with 8 measured
            (lambda count: usl(count, 0.1, 0.02), 20, 0.5),  # lost in noise
            (lambda count: usl(count, 0.1, 0.02), 5, 0.0),  # too few rounds to show it
        ],
    )
    def test_no_peak_in_sight(self, law: Law, rounds: int, noise: float) -> None:
        assert fit_usl(measured(law, [2, 4, 8], rounds=rounds, noise=noise)).peak_workers is None

    def test_better_than_ideal(self) -> None:
        fit = fit_usl({count: [1.1 * count] * 6 for count in (2, 4, 8)})
        assert value(fit, "contention") == value(fit, "coherency") == 0

    def test_slower_with_more_has_its_peak_at_the_start(self) -> None:
        fit = fit_usl({1: [1.0] * 6, 2: [0.5] * 6, 4: [0.3] * 6})
        assert fit.reason is None and usl(2, value(fit, "contention"), value(fit, "coherency")) < 1

    def test_too_few_counts(self) -> None:
        fit = fit_usl({1: [1.0] * 6, 2: [1.8] * 6})
        assert fit.reason == "needs three counts of workers, 1 and two others; measured were 1, 2"
        assert fit.parameters == {} and fit.peak_workers is None

    def test_few_rounds_have_no_interval(self) -> None:
        fit = fit_usl(measured(lambda count: usl(count, 0.1, 0.02), [2, 4], rounds=5))
        assert [(one.low, one.high) for one in fit.parameters.values()] == [(0, math.inf)] * 2

    def test_is_seeded(self) -> None:
        table = measured(lambda count: usl(count, 0.1, 0.02), [2, 4, 8], noise=0.03)
        assert fit_usl(table) == fit_usl(table)

    def test_an_outlier_round_changes_little(self) -> None:
        table = measured(lambda count: usl(count, 0.1, 0.02), [2, 4, 8], noise=0.005)
        table[4][3] /= 10
        assert value(fit_usl(table), "contention") == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("fit", [fit_amdahl, fit_usl])
def test_refuses(fit: Callable[[dict[int, list[float]]], Fit]) -> None:
    with pytest.raises(UsageError, match=r"1 workers: 2, 2 workers: 3, 4 workers: 2"):
        fit({1: [1.0] * 2, 2: [1.8] * 3, 4: [3.0] * 2})
    for bad in ([], [0.0], [math.nan]):
        with pytest.raises(UsageError, match="a number above 0"):
            fit({2: bad, 4: bad})
