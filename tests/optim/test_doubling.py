"""When a batch doubles: by simulated steps of a known noise scale, and step by step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from samestep.errors import UsageError
from samestep.optim import doubling
from samestep.optim.doubling import MOST_GROWTHS, NUM_KEPT, READ_AT, Doubling, Growth, Kept
from samestep.optim.noise import FEWEST_STEPS, Moments, Pair, noise_scale
from samestep.optim.rules import Factors
from samestep.plan.batch import BatchPlan
from samestep.plan.course import Course

NUM_SAMPLES = 1 << 20
RULE = Doubling(max_batch=NUM_SAMPLES, every=1, num_training_samples=NUM_SAMPLES, rule="sqrt", decays_by_rate=True)
NOTHING: Kept = (0.0,) * NUM_KEPT
FIRST = 16
START = Course(start=BatchPlan(num_samples=NUM_SAMPLES, global_batch=FIRST, microbatch=4), length=10**9)
DIMENSIONS = 30


def pair(step: int, batch: int, noise: float, square: float = 1.0) -> Pair:
    """What a step shows that is as it is on average; the noise scale is `noise` / `square`."""
    rest = noise / NUM_SAMPLES
    return Pair(
        step=step,
        microbatch_square=square + noise / 4 - rest,
        square=square + noise / batch - rest,
        num_microbatches=batch // 4,
        num_samples=batch,
    )


def drawn(generator: np.random.Generator, step: int, batch: int, noise: float) -> Pair:
    """A step over endless samples with |G|² = 1 and tr(Σ) = `noise`, in microbatches of 4."""
    deviation = math.sqrt(noise / DIMENSIONS / 4)
    gradients = generator.normal(1 / math.sqrt(DIMENSIONS), deviation, (batch // 4, DIMENSIONS))
    return Pair(
        step=step,
        microbatch_square=float((gradients**2).sum(axis=1).mean()),
        square=float((gradients.mean(axis=0) ** 2).sum()),
        num_microbatches=batch // 4,
        num_samples=batch,
    )


def simulated(seed: int, noise: float, num_steps: int) -> tuple[Growth, ...]:
    """The growths of a run whose noise scale stays the same."""
    generator = np.random.default_rng(seed)
    course, kept = START, NOTHING
    for step in range(num_steps):
        kept, growth = RULE.after(kept, course, step, drawn(generator, step, course.global_batch, noise))
        if growth is not None:
            course = course.grown(growth.step)
    assert RULE.course(START, kept) == course
    return RULE.growths(FIRST, kept)


@pytest.mark.parametrize("noise", [100.0, 200.0])
def test_the_batch_ends_below_the_critical_batch(noise: float) -> None:
    """By less than a factor of two; beyond it only where an interval misses, and each run has several readings."""
    ends = [growths[-1].global_batch if (growths := simulated(seed, noise, 600)) else FIRST for seed in range(40)]
    most = FIRST * 2 ** int(math.log2(noise / FIRST))
    assert sum(end > noise for end in ends) <= 2
    assert sum(end < most for end in ends) <= 2


def test_the_batch_stays_where_twice_as_many_samples_would_be_a_little_too_many() -> None:
    """Its value alone would be above 32 in about a third of the readings, of which each run has a dozen."""
    assert sum(len(simulated(seed, 30.0, 400)) > 0 for seed in range(40)) <= 10


def test_it_grows_at_the_first_reading_that_shows_it() -> None:
    course, kept, found = START, NOTHING, []
    for step in range(40):
        kept, growth = RULE.after(kept, course, step, pair(step, course.global_batch, 100.0))
        if growth is not None:
            found.append(growth)
            course = course.grown(growth.step)
    assert [(growth.step, growth.global_batch) for growth in found] == [(10, 32), (21, 64)], "step 20 begins at 480"
    assert [growth.found.value for growth in found] == pytest.approx([100.0, 100.0])
    assert RULE.growths(FIRST, kept) == tuple(found)


def test_it_waits_for_the_grid_and_learns_nothing_meanwhile() -> None:
    """Step 12 of the batch 16 begins at 192: a multiple of 64, but the window is full at 11 only."""
    course, kept = START, NOTHING
    for step in range(1, 11):
        kept, growth = RULE.after(kept, course, step, pair(step, FIRST, 100.0))
    assert growth is None, "step 11 begins at 176, which is no multiple of 32"
    kept, growth = RULE.after(kept, course, 11, pair(11, FIRST, 0.001))
    assert growth is not None and growth.step == 12
    assert growth.found.value == pytest.approx(100.0)
    assert kept[:6] == NOTHING[:6], "the new batch has a window of its own"


@pytest.mark.parametrize(
    "nothing",
    [
        None,
        Pair(step=0, microbatch_square=5.0, square=1.0, num_microbatches=1, num_samples=16),
        Pair(step=0, microbatch_square=math.nan, square=1.0, num_microbatches=4, num_samples=16),
        Pair(step=0, microbatch_square=5.0, square=1.0, num_microbatches=3, num_samples=11),
    ],
)
def test_a_step_that_shows_nothing_changes_nothing(nothing: Pair | None) -> None:
    kept, _ = RULE.after(NOTHING, START, 0, pair(0, FIRST, 1.0))
    assert RULE.after(kept, START, 1, nothing) == (kept, None)


def test_a_window_ends_when_it_has_been_read_for_the_last_time() -> None:
    """What a network was like long ago does not keep its batch small."""
    kept, counts = NOTHING, []
    for step in range(READ_AT[-1] + 3):
        kept, growth = RULE.after(kept, START, step, pair(step, FIRST, 10.0))
        assert growth is None
        counts.append(kept[0])
    assert counts == [*range(1, READ_AT[-1] + 1), 1, 2, 3]


@pytest.mark.parametrize(("cap", "last"), [(100, 64), (64, 64), (63, 32), (16, 16), (5, 16)])
def test_it_stops_at_its_largest_batch(cap: int, last: int) -> None:
    rule = Doubling(max_batch=cap, every=1, num_training_samples=NUM_SAMPLES, rule="none", decays_by_rate=False)
    course, kept = START, NOTHING
    for step in range(100):
        kept, growth = rule.after(kept, course, step, pair(step, course.global_batch, 1000.0))
        course = course if growth is None else course.grown(growth.step)
    assert course.global_batch == last
    assert [plan.global_batch for plan in rule.plans(START.start)][-1] == last


def test_there_is_room_for_so_many_growths() -> None:
    numbers = [float(n) for growth in range(MOST_GROWTHS) for n in (64 * 2**growth, 5.0, 4.0, 6.0)]
    start = Course(start=BatchPlan(num_samples=1 << 40, global_batch=1, microbatch=1), length=1 << 50)
    rule = Doubling(max_batch=1 << 40, every=1, num_training_samples=1 << 40, rule="none", decays_by_rate=False)
    kept = (*NOTHING[:6], *numbers)
    found = rule.growths(1, kept)
    assert (len(found), found[-1].global_batch) == (MOST_GROWTHS, 1 << MOST_GROWTHS)
    assert len(rule.plans(start.start)) == MOST_GROWTHS + 1


def test_moments_step_by_step_are_those_of_all_steps() -> None:
    generator = np.random.default_rng(3)
    pairs = [drawn(generator, step, 64, 50.0) for step in range(40)]
    moments = Moments()
    for each in pairs:
        moments = moments.after(each.variance, each.square_without_noise(NUM_SAMPLES))
    found, wanted = moments.noise_scale(), noise_scale(pairs, num_training_samples=NUM_SAMPLES)
    assert (found.value, found.low, found.high) == pytest.approx((wanted.value, wanted.low, wanted.high), rel=1e-9)
    assert (found.num_steps, found.reason) == (40, None)


@pytest.mark.parametrize(
    ("rule", "decays", "wanted"),
    [
        ("linear", True, Factors(lr=4.0, weight_decay=1.0)),
        ("sqrt", True, Factors(lr=2.0, weight_decay=2.0)),
        ("sqrt", False, Factors(lr=2.0, weight_decay=1.0)),
        ("none", True, Factors()),
        ("adascale", True, Factors()),
    ],
)
def test_rates_follow_by_the_rule(rule: Any, decays: bool, wanted: Factors) -> None:
    made = Doubling(max_batch=64, every=1, num_training_samples=64, rule=rule, decays_by_rate=decays)
    assert made.factors(16, 64) == wanted


def test_the_fewest_steps_are_those_that_an_interval_takes() -> None:
    assert READ_AT[0] == FEWEST_STEPS


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"optimizer": "kfac"}, "optimizer='kfac'"),
        ({"noise_scale": "off"}, "noise_scale='off'"),
        ({"microbatch": 16}, "microbatch=16 of initial_batch=16"),
        ({"max_batch": 8}, "max_batch=8 below initial_batch=16"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], text: str) -> None:
    fine: dict[str, Any] = {
        "initial_batch": 16, "microbatch": 4, "max_batch": None, "optimizer": "sgd", "noise_scale": 4,
    }  # fmt: skip
    doubling.check(**fine)
    with pytest.raises(UsageError, match=text) as error:
        doubling.check(**{**fine, **changes})
    assert "\n" not in str(error.value)
