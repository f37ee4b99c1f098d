"""Points: the same number everywhere, inside of the bounds, spread, and the same every time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.measure.sweep import space
from samestep.measure.sweep.space import Decay, points, seed_of, space_of
from samestep.optim import build, catalog
from tests import helpers

NAMES = (*catalog.names(), "an optimiser that nobody has declared")


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    batch=st.integers(1, 1 << 20),
    num_trials=st.integers(1, 40),
    seed=st.integers(-(2**63), 2**63 - 1),
    smoothing=st.booleans(),
)
def test_every_cell_has_as_many_points_within_the_bounds(
    name: str, batch: int, num_trials: int, seed: int, smoothing: bool
) -> None:
    bounds = space_of(name)
    found = points(bounds, num_trials, has_label_smoothing=smoothing, seed=seed_of(seed, name, batch))
    assert len(found) == len(set(found)) == (num_trials if bounds.is_tuned else 1)
    for point in found:
        assert bounds.lr[0] <= point.lr <= bounds.lr[1]
        assert (point.weight_decay is None) == (bounds.weight_decay is None)
        if point.weight_decay is not None and bounds.weight_decay is not None:
            assert bounds.weight_decay[0] <= point.weight_decay <= bounds.weight_decay[1]
        assert (point.momentum is None) == (bounds.one_minus_momentum is None)
        if point.momentum is not None and bounds.one_minus_momentum is not None:
            assert -1e-12 <= point.momentum <= 1 - bounds.one_minus_momentum[0] + 1e-12
        assert 0.0 <= point.label_smoothing <= 0.2
        assert smoothing or point.label_smoothing == 0.0
        assert 0.5 <= point.decay.until <= 1.0
        assert 1e-3 <= point.decay.to <= 1.0


@pytest.mark.parametrize("name", catalog.names())
def test_an_optimiser_takes_what_is_searched(name: str) -> None:
    (point,) = points(space_of(name), 1, has_label_smoothing=False, seed=0)
    assert build.parts(helpers.Mlp(), name, lr=point.lr, momentum=point.momentum, weight_decay=point.weight_decay)


def test_the_same_seed_gives_the_same_points_and_another_cell_others() -> None:
    def of(name: str, batch: int, seed: int = 0) -> tuple[space.Point, ...]:
        return points(space_of(name), 8, has_label_smoothing=False, seed=seed_of(seed, name, batch))

    assert of("sgd", 64) == of("sgd", 64)
    assert len({of("sgd", 64), of("sgd", 128), of("adam", 64), of("nadam", 64), of("sgd", 64, seed=1)}) == 5


def test_more_trials_keep_the_first_ones() -> None:
    few, many = (points(space_of("sgd"), number, has_label_smoothing=False, seed=3) for number in (5, 16))
    assert many[:5] == few


def test_searching_label_smoothing_moves_no_other_setting() -> None:
    plain, smoothed = (points(space_of("sgd"), 8, has_label_smoothing=flag, seed=3) for flag in (False, True))
    assert [point.lr for point in plain] == [point.lr for point in smoothed]
    assert all(point.label_smoothing > 0 for point in smoothed)


def test_learning_rates_are_spread_evenly_over_the_logarithm() -> None:
    """Each of 16 equal stretches holds one of 16 points: a Sobol sequence is a net, and random points are none."""
    low, high = space_of("sgd").lr
    found = points(space_of("sgd"), 16, has_label_smoothing=False, seed=1)
    shares = [math.log(point.lr / low) / math.log(high / low) for point in found]
    assert sorted(int(16 * share) for share in shares) == list(range(16))
    random = np.random.default_rng(0).uniform(size=16)
    assert sorted(int(16 * share) for share in random) != list(range(16)), "the oracle"


def test_no_trial_is_refused() -> None:
    with pytest.raises(UsageError, match="trials=0 is below 1: nothing would be tried"):
        points(space_of("sgd"), 0, has_label_smoothing=False, seed=0)


@given(until=st.floats(0.01, 1.0), to=st.floats(1e-3, 1.0), at=st.floats(0, 1), later=st.floats(0, 1))
def test_a_decay_falls_from_one_and_stays(until: float, to: float, at: float, later: float) -> None:
    decay = Decay(until=until, to=to)
    assert decay(0.0) == 1.0
    assert decay(1.0) == pytest.approx(to)
    assert decay(min(at, later)) >= decay(max(at, later)) >= to - 1e-12


def test_searching_averaging_moves_no_other_setting() -> None:
    plain, averaged = (
        points(space_of("sgd"), 16, has_label_smoothing=True, has_averaging=flag, seed=3) for flag in (False, True)
    )
    assert tuple(replace(point, averaging=None) for point in averaged) == plain
    shares = sorted(point.averaging or 0.0 for point in averaged)
    assert 0.02 <= shares[0] < 0.03 and 0.4 < shares[-1] <= 0.5
    assert len({*shares}) == 16
    assert "averaged over" in averaged[0].text() and "averaged over" not in plain[0].text()


def test_kfac_has_one_setting_its_own() -> None:
    (point,) = points(space_of("kfac"), 16, has_label_smoothing=True, has_averaging=True, seed=3)
    assert (point.lr, point.weight_decay, point.momentum, point.averaging) == (1.0, None, None, None)
    assert {point.decay(share) for share in (0.0, 0.5, 1.0)} == {1.0}


def test_what_is_not_tuned_has_the_usual_label_smoothing_where_it_is_open_to_all() -> None:
    for is_open, amount in ((True, 0.1), (False, 0.0)):
        (point,) = points(space_of("kfac"), 16, has_label_smoothing=is_open, seed=3)
        assert point.label_smoothing == amount
