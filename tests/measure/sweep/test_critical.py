"""The critical batch: found again where it is known, and not made up where it is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.measure.sweep import critical
from samestep.measure.sweep.critical import fit, perfect_until, steps_at

BATCHES = (64, 256, 1024, 4096)


@settings(max_examples=30, deadline=None)
@given(least=st.floats(1, 1e5), bend=st.floats(30, 10_000))
def test_a_known_critical_batch_is_found(least: float, bend: float) -> None:
    found = fit({batch: [steps_at(batch, least, bend)] * 3 for batch in BATCHES})
    assert found.reason is None and found.critical_batch is not None and found.least_steps is not None
    assert found.critical_batch.value == pytest.approx(bend, rel=1e-3)
    assert found.least_steps.value == pytest.approx(least, rel=1e-3)
    for batch, steps in found.curve:
        assert steps == pytest.approx(steps_at(batch, least, bend), rel=1e-3)


def test_noisy_steps_have_an_interval_that_holds_it() -> None:
    generator = np.random.default_rng(5)
    drawn = {batch: steps_at(batch, 40, 500) * generator.lognormal(0, 0.1, 5) for batch in BATCHES}
    steps = {batch: values.tolist() for batch, values in drawn.items()}
    found = fit(steps).critical_batch
    assert found is not None
    assert 250 < found.low < found.value < found.high < 1000
    assert found.low < 500 < found.high
    assert fit(steps).critical_batch == found, "the same bits every time"


def test_few_seeds_have_no_interval() -> None:
    found = fit({batch: [steps_at(batch, 40, 500)] * 2 for batch in BATCHES}).critical_batch
    assert found is not None
    assert (found.low, found.high) == (0.0, math.inf)


def test_no_bend_and_no_slope_are_said() -> None:
    perfect = fit({batch: [1e6 / batch] * 3 for batch in BATCHES})
    assert perfect.critical_batch is None
    assert perfect.reason == "no bend in sight: up to 4096 samples, twice the batch halves the steps"
    flat = fit({batch: [50.0] * 3 for batch in BATCHES})
    assert flat.reason == "no slope in sight: from 64 samples on, a larger batch saves no steps"


def test_batches_that_most_seeds_never_reach_do_not_count() -> None:
    steps = {batch: [steps_at(batch, 40, 500)] * 3 for batch in BATCHES}
    steps[64] = [math.inf, math.inf, steps[64][0]]
    found = fit(steps)
    assert found.critical_batch is not None
    assert found.critical_batch.value == pytest.approx(500, rel=1e-3)
    assert found.curve[0][0] == pytest.approx(256)
    steps[256] = [math.inf] * 3
    assert fit(steps).reason == "needs three batches that reach the target, and 2 did"


def test_one_seed_that_never_reached_it_is_drawn_too() -> None:
    steps = {batch: [steps_at(batch, 40, 500)] * 3 for batch in BATCHES}
    steps[64] = [math.inf, *steps[64][1:]]
    found = fit(steps).critical_batch
    assert found is not None
    assert found.value == pytest.approx(500, rel=1e-3)


@pytest.mark.parametrize("values", [[], [0.0], [-1.0, 2.0]])
def test_steps_that_cannot_be(values: list[float]) -> None:
    with pytest.raises(UsageError, match="steps at batch 64 are"):
        fit({64: values, 128: [1.0], 256: [1.0]})


@given(least=st.floats(1, 1e4), bend=st.floats(1, 1e5), first=st.integers(1, 512))
def test_scaling_is_perfect_as_far_as_the_law_says(least: float, bend: float, first: int) -> None:
    """S B = S_min (B + B_crit): within 1.25 × of the smallest batch's up to B = 1.25 B_0 + 0.25 B_crit."""
    batches = [first * 2**power for power in range(10)]
    limit = critical.TOLERANCE * first + (critical.TOLERANCE - 1) * bend
    expected = max(batch for batch in batches if batch <= limit * (1 + 1e-9))
    assert perfect_until({batch: steps_at(batch, least, bend) for batch in batches}) == expected


def test_batches_that_were_not_reached_end_nothing() -> None:
    assert perfect_until({64: math.inf, 128: 100.0, 256: math.inf, 512: 25.0}) == 512
    assert perfect_until({64: math.inf}) is None
    assert perfect_until({}) is None
    assert perfect_until({64: 100.0, 128: 99.0, 256: 25.0}) == 64, "what comes after a bend does not count"
