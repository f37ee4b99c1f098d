"""The noise scale on problems with a known answer: unbiased, with an interval that covers it, and silent where it must.

Gradients are simulated: 12 numbers a sample, with a covariance of very different variances.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import stdtrit

from samestep.optim.noise import FEWEST_STEPS, Pair, is_looked_at, noise_scale, spread, student
from tests.marks import soak

Values = NDArray[np.float64]

DEVIATIONS = np.geomspace(0.2, 3.0, 12)
VARIANCE = float((DEVIATIONS**2).sum())
GRADIENT = np.full(12, 0.15)
SQUARE = float((GRADIENT**2).sum())
TRUE = VARIANCE / SQUARE
"""About 92 samples."""

UNEQUAL = (8, 8, 8, 3)


def pair_of(samples: Values, sizes: tuple[int, ...], weights: Values | None = None, step: int = 0) -> Pair:
    """The pair of a step whose samples' gradients are `samples`, shape (B, 12), cut into microbatches.

    Args:
        samples: The gradient of each sample's loss.
        sizes: Samples of each microbatch.
        weights: Of the samples' losses, shape (B,).
        step: Its number.
    """
    weights = np.ones(len(samples)) if weights is None else weights
    cuts = np.cumsum(sizes)[:-1]
    sums = np.stack([part.sum(axis=0) for part in np.split(samples * weights[:, None], cuts)])
    part_weights = np.array([part.sum() for part in np.split(weights, cuts)])
    found = spread(((sums / len(samples)) ** 2).sum(axis=1), part_weights, len(samples))
    mean = sums.sum(axis=0) / weights.sum()
    return Pair(
        step=step,
        microbatch_square=found.mean_square,
        square=float(mean @ mean),
        num_microbatches=found.num_microbatches,
        num_samples=len(samples),
    )


def drawn(generator: np.random.Generator, count: int, gradient: Values = GRADIENT) -> Values:
    return gradient + DEVIATIONS * generator.standard_normal((count, 12))


def simulated(
    num_steps: int, sizes: tuple[int, ...] = (8,) * 8, *, seed: int = 0, gradient: Values = GRADIENT
) -> list[Pair]:
    """Pairs of steps over endless samples."""
    samples = drawn(np.random.default_rng(seed), num_steps * sum(sizes), gradient).reshape(num_steps, sum(sizes), 12)
    sums = np.add.reduceat(samples, [0, *np.cumsum(sizes)[:-1]], axis=1)
    squares = ((sums / sum(sizes)) ** 2).sum(axis=2)
    means = ((sums.sum(axis=1) / sum(sizes)) ** 2).sum(axis=1)
    spreads = [spread(each, np.array(sizes, np.float64), sum(sizes)) for each in squares]
    return [
        Pair(
            step=step,
            microbatch_square=found.mean_square,
            square=float(square),
            num_microbatches=found.num_microbatches,
            num_samples=sum(sizes),
        )
        for step, (found, square) in enumerate(zip(spreads, means, strict=True))
    ]


# Which steps.


@pytest.mark.parametrize("every", [1, 2, 16])
def test_one_step_of_each_stretch(every: int) -> None:
    looked_at = [step for step in range(4000) if is_looked_at(step, every)]
    assert [step // every for step in looked_at] == list(range(4000 // every))


def test_the_looks_do_not_keep_time_with_epochs() -> None:
    places = [step % 16 for step in range(16_000) if is_looked_at(step, 16)]
    counts = np.bincount(places, minlength=16)
    assert counts.min() > 30 and counts.max() < 100


def test_none_is_never() -> None:
    assert not any(is_looked_at(step, None) for step in range(100))


# Pairs.


def test_equal_microbatches_give_the_papers_formulas() -> None:
    """McCandlish et al., appendix A.1, with the small batch b and the large one B."""
    pair = simulated(1)[0]
    small, large = 8, 64
    square = (large * pair.square - small * pair.microbatch_square) / (large - small)
    variance = (pair.microbatch_square - pair.square) / (1 / small - 1 / large)
    assert pair.variance == pytest.approx(variance, rel=1e-12)
    assert pair.square_without_noise() == pytest.approx(square, rel=1e-12)


@pytest.mark.parametrize("sizes", [(8,) * 8, (1,) * 16, UNEQUAL, (31, 1)])
def test_estimates_are_unbiased_at_any_sizes(sizes: tuple[int, ...]) -> None:
    pairs = simulated(20_000, sizes)
    for estimates, truth in (
        ([pair.variance for pair in pairs], VARIANCE),
        ([pair.square_without_noise() for pair in pairs], SQUARE),
    ):
        error = float(np.std(estimates)) / math.sqrt(len(estimates))
        assert float(np.mean(estimates)) == pytest.approx(truth, abs=4 * error)
    assert np.mean([pair.variance for pair in pairs]) == pytest.approx(VARIANCE, rel=0.05)


def test_a_plain_mean_of_unequal_microbatches_would_be_biased() -> None:
    """The oracle itself: microbatches of 31 samples and of 1 must not count alike."""
    generator = np.random.default_rng(0)
    estimates = []
    for _ in range(2000):
        samples = drawn(generator, 32)
        means = np.stack([samples[:31].mean(axis=0), samples[31]])
        plain = float((means**2).sum(axis=1).mean())
        pair = Pair(
            step=0,
            microbatch_square=plain,
            square=float((samples.mean(axis=0) ** 2).sum()),
            num_microbatches=2,
            num_samples=32,
        )
        estimates.append(pair.variance)
    assert np.mean(estimates) > 2 * VARIANCE


def test_weighted_losses() -> None:
    """Class weights: the answer is B times the variance of the step's gradient, which is a ratio of two sums."""
    generator = np.random.default_rng(1)
    pairs, means = [], []
    for _ in range(6000):
        classes = generator.integers(2, size=64)
        samples = np.where(classes[:, None] == 1, 1.0, -0.5) + drawn(generator, 64)
        weights = np.where(classes == 1, 3.0, 0.5)
        pairs.append(pair_of(samples, (16,) * 4, weights))
        means.append((samples * weights[:, None]).sum(axis=0) / weights.sum())
    variance = 64 * float(np.var(means, axis=0, ddof=1).sum())
    square = float((np.mean(means, axis=0) ** 2).sum())
    assert np.mean([pair.variance for pair in pairs]) == pytest.approx(variance, rel=0.05)
    assert np.mean([pair.square_without_noise() for pair in pairs]) == pytest.approx(square, rel=0.05)


def test_microbatches_without_weight_tell_nothing() -> None:
    generator = np.random.default_rng(2)
    samples, weights = drawn(generator, 32), np.ones(32)
    weights[:8] = 0.0
    masked = pair_of(samples, (8,) * 4, weights)
    assert masked.num_microbatches == 3
    kept = pair_of(samples[8:], (8,) * 3)
    assert masked.microbatch_square == pytest.approx(kept.microbatch_square, rel=1e-12)
    assert masked.square == pytest.approx(kept.square, rel=1e-12)


def test_a_step_without_any_weight() -> None:
    assert spread(np.zeros(4), np.zeros(4), 32.0).num_microbatches == 0
    assert not pair_of(np.zeros((1, 12)), (1,)).is_usable


def test_samples_that_are_not_put_back() -> None:
    """Of 100 training samples 64 are drawn: the gradient over all 100 is what counts, and it is known."""
    generator = np.random.default_rng(3)
    training = drawn(generator, 100)
    square = float((training.mean(axis=0) ** 2).sum())
    pairs = [pair_of(training[generator.permutation(100)[:64]], (8,) * 8) for _ in range(4000)]
    assert np.mean([pair.square_without_noise(100) for pair in pairs]) == pytest.approx(square, rel=0.05)
    assert np.mean([pair.variance for pair in pairs]) == pytest.approx(np.var(training, axis=0, ddof=1).sum(), rel=0.05)
    as_if_endless = np.mean([pair.square_without_noise() for pair in pairs])
    assert as_if_endless < 0.7 * square


def test_a_step_of_all_samples_has_the_gradient_itself() -> None:
    training = drawn(np.random.default_rng(4), 100)
    pair = pair_of(training, (10,) * 10)
    assert pair.square_without_noise(100) == pytest.approx(float((training.mean(axis=0) ** 2).sum()), rel=1e-12)


# The noise scale and its interval.


@pytest.mark.parametrize("sizes", [(8,) * 8, UNEQUAL])
def test_the_noise_scale_is_right(sizes: tuple[int, ...]) -> None:
    found = noise_scale(simulated(10_000, sizes, seed=5))
    assert found.value == pytest.approx(TRUE, rel=0.05)
    assert found.reason is None
    assert found.low < TRUE < found.high


def test_short_steps_among_long_ones() -> None:
    long, short = simulated(3000, seed=6), simulated(3000, UNEQUAL, seed=7)
    found = noise_scale([pair for both in zip(long, short, strict=True) for pair in both])
    assert found.value == pytest.approx(TRUE, rel=0.05)


@pytest.mark.parametrize("num_steps", [FEWEST_STEPS, 40, soak(200)])
def test_the_interval_covers_the_truth_as_often_as_it_says(num_steps: int) -> None:
    trials = [noise_scale(simulated(num_steps, seed=seed)) for seed in range(600)]
    covered = np.mean([found.low <= TRUE <= found.high for found in trials])
    assert 0.92 <= covered <= 0.98


def test_more_steps_make_it_narrower() -> None:
    few, many = (noise_scale(simulated(count, seed=8)) for count in (200, 3200))
    assert many.high - many.low < 0.4 * (few.high - few.low)


def test_a_gradient_that_is_noise_alone_has_no_upper_end() -> None:
    trials = [noise_scale(simulated(100, seed=seed, gradient=np.zeros(12))) for seed in range(200)]
    assert np.mean([math.isinf(found.high) for found in trials]) > 0.95
    lost = [found for found in trials if found.value is None]
    assert len(lost) > 50
    assert {found.reason for found in lost} == {"the gradient is lost in its noise"}
    assert np.median([found.low for found in trials]) > 100


def test_gradients_that_are_all_alike() -> None:
    pairs = [
        Pair(step=n, microbatch_square=1.0 + (n % 3 - 1.5) * 1e-9, square=1.0, num_microbatches=8, num_samples=64)
        for n in range(30)
    ]
    found = noise_scale(pairs)
    assert found.value is None
    assert found.reason == "the gradients of the microbatches hardly differ"
    assert found.low == 0.0
    assert found.high == pytest.approx(0.0, abs=1e-6)


def test_steps_that_tell_nothing_are_passed_over() -> None:
    pairs = simulated(50, seed=9)
    planted = [
        Pair(step=50, microbatch_square=math.inf, square=1.0, num_microbatches=8, num_samples=64),
        Pair(step=51, microbatch_square=1.0, square=math.nan, num_microbatches=8, num_samples=64),
        Pair(step=52, microbatch_square=1.0, square=1.0, num_microbatches=1, num_samples=64),
    ]
    assert noise_scale([*planted, *pairs]) == noise_scale(pairs)
    assert noise_scale(planted).reason == f"0 steps were looked at, and it takes {FEWEST_STEPS}"


def test_zeros_are_no_division_by_zero() -> None:
    zero = [Pair(step=n, microbatch_square=0.0, square=0.0, num_microbatches=8, num_samples=64) for n in range(20)]
    found = noise_scale(zero)
    assert (found.value, found.low, found.high) == (None, 0.0, math.inf)


@pytest.mark.parametrize("freedom", [9, 15, 40, 255, 10_000])
def test_students_distribution(freedom: int) -> None:
    assert student(freedom) == pytest.approx(float(stdtrit(freedom, 0.975)), rel=1e-4)
