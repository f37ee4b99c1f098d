from __future__ import annotations

import hashlib
import math
import tracemalloc
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.plan import keys, order
from samestep.plan.order import Order

Array = npt.NDArray[np.int64]

SIZES = [
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
    13,
    16,
    17,
    25,
    31,
    97,
    100,
    101,
    255,
    256,
    257,
    997,
    1009,
    4096,
    7919,
    60000,
]

MAX_SCORE = 5.5
"""Scores are standard normal for uniform permutations: one in 5e7 is above this (and all seeds are fixed)."""

seeds = st.integers(0, 2**64 - 1)
sizes = st.one_of(st.integers(1, 40), st.integers(1, 5000), st.sampled_from(SIZES))
large_sizes = st.one_of(st.integers(1, 1000), st.integers(1, 2**62), st.integers(0, 62).map(lambda bits: 2**bits))


def whole(num_samples: int, seed: int = 0, epoch: int = 0) -> Array:
    return Order(num_samples=num_samples, seed=seed).indices(epoch=epoch, start=0, stop=num_samples)


# --- a permutation, with random access ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", SIZES)
@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_an_epoch_visits_each_sample_once(num_samples: int, seed: int) -> None:
    indices = whole(num_samples, seed, epoch=3)
    assert indices.dtype == np.int64 and indices.shape == (num_samples,)
    assert np.array_equal(np.sort(indices), np.arange(num_samples))


def test_an_epoch_of_every_small_size_visits_each_sample_once() -> None:
    for num_samples in range(1, 400):
        assert np.array_equal(np.sort(whole(num_samples, seed=num_samples)), np.arange(num_samples))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(sizes, seeds, st.integers(0, 10**6))
def test_an_order_is_a_permutation(num_samples: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(whole(num_samples, seed, epoch)), np.arange(num_samples))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(sizes, seeds, st.integers(0, 1000), st.booleans(), st.data())
def test_random_access_equals_a_slice_of_the_whole(
    num_samples: int, seed: int, epoch: int, is_shuffled: bool, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, num_samples))
    stop = data.draw(st.integers(start, num_samples))
    plan = Order(num_samples=num_samples, seed=seed, is_shuffled=is_shuffled)
    part = plan.indices(epoch=epoch, start=start, stop=stop)
    assert part.dtype == np.int64
    assert np.array_equal(part, plan.indices(epoch=epoch, start=0, stop=num_samples)[start:stop])


@settings(deadline=None, derandomize=True, max_examples=100)
@given(sizes, seeds, st.lists(st.integers(0, 5000), max_size=6))
def test_any_cut_of_an_epoch_gives_the_same_order(num_samples: int, seed: int, cuts: list[int]) -> None:
    plan = Order(num_samples=num_samples, seed=seed)
    edges = sorted({0, num_samples, *(min(cut, num_samples) for cut in cuts)})
    parts = [plan.indices(epoch=1, start=start, stop=stop) for start, stop in pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), whole(num_samples, seed, epoch=1))


# --- the same network in Python's integers, and its inverse: an oracle for sizes that cannot be listed -----------


def network(num_samples: int, seed: int, epoch: int) -> tuple[int, int, list[int]]:
    width_a = math.isqrt(num_samples - 1) + 1
    return width_a, -(-num_samples // width_a), [keys.key(seed, epoch, number) % 2**32 for number in range(6)]


def hash_below(value: int, round_key: int, bound: int) -> int:
    x = (value ^ round_key) % 2**32
    x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
    x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
    return (x ^ x >> 16) * bound // 2**32


def image_of(position: int, num_samples: int, seed: int, epoch: int) -> int:
    a, b, round_keys = network(num_samples, seed, epoch)
    while True:
        left, right = divmod(position, b)
        for number, round_key in enumerate(round_keys):
            if number % 2 == 0:
                left = (left + hash_below(right, round_key, a)) % a
            else:
                right = (right + hash_below(left, round_key, b)) % b
        position = left * b + right
        if position < num_samples:
            return position


def position_of(index: int, num_samples: int, seed: int, epoch: int) -> int:
    a, b, round_keys = network(num_samples, seed, epoch)
    while True:
        left, right = divmod(index, b)
        for number, round_key in reversed(list(enumerate(round_keys))):
            if number % 2 == 0:
                left = (left - hash_below(right, round_key, a)) % a
            else:
                right = (right - hash_below(left, round_key, b)) % b
        index = left * b + right
        if index < num_samples:
            return index


@settings(deadline=None, derandomize=True, max_examples=200)
@given(large_sizes, seeds, st.integers(0, 2**40), st.data())
def test_any_size_up_to_the_largest_agrees_with_python_integers_and_inverts(
    num_samples: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    position = data.draw(st.one_of(st.integers(0, num_samples - 1), st.just(num_samples - 1)))
    plan = Order(num_samples=num_samples, seed=seed)
    index = int(plan.indices(epoch=epoch, start=position, stop=position + 1)[0])
    assert 0 <= index < num_samples
    assert index == image_of(position, num_samples, seed, epoch)
    assert position_of(index, num_samples, seed, epoch) == position


# --- memory and work at a billion samples ------------------------------------------------------------------------


def count_permuted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many values each pass of the network permutes."""
    permuted: list[int] = []
    original = order._permute

    def counted(values: order._Words, width_a: int, width_b: int, round_keys: list[int]) -> order._Words:
        permuted.append(values.size)
        return original(values, width_a, width_b, round_keys)

    monkeypatch.setattr(order, "_permute", counted)
    return permuted


@pytest.mark.parametrize("num_samples", [10**9, 2**62])
def test_random_access_into_a_huge_epoch_costs_memory_of_the_slice_only(num_samples: int) -> None:
    plan = Order(num_samples=num_samples, seed=1)
    plan.indices(epoch=0, start=0, stop=1)
    tracemalloc.start()
    try:
        indices = plan.indices(epoch=0, start=num_samples - 1000, stop=num_samples)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 200_000
    assert len(set(indices.tolist())) == 1000


@pytest.mark.parametrize("num_samples", [10**9, 10**9 + 7, 2**62])
def test_random_access_into_a_huge_epoch_costs_work_of_the_slice_only(
    num_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    permuted = count_permuted(monkeypatch)
    Order(num_samples=num_samples, seed=1).indices(epoch=0, start=num_samples // 2, stop=num_samples // 2 + 1000)
    assert 1000 <= sum(permuted) <= 1010


@pytest.mark.parametrize("num_samples", [2, 3, 5, 7, 11, 101, 7919, 60000, 65537])
def test_fewer_than_two_square_roots_of_positions_walk(num_samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    permuted = count_permuted(monkeypatch)
    whole(num_samples)
    assert permuted[0] == num_samples
    assert sum(permuted[1:2]) < 2 * math.sqrt(num_samples)
    assert sum(permuted) - num_samples <= num_samples // 2 + 2 * math.sqrt(num_samples)


# --- epochs, seeds, no shuffling, mistakes -----------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(50, 5000), st.sets(st.tuples(seeds, st.integers(0, 10**6)), min_size=2, max_size=4))
def test_the_order_differs_by_epoch_and_seed(num_samples: int, runs: set[tuple[int, int]]) -> None:
    assert len({whole(num_samples, seed, epoch).tobytes() for seed, epoch in runs}) == len(runs)


def test_neighbouring_epochs_and_seeds_give_distinct_orders() -> None:
    orders = {(seed, epoch): whole(100, seed, epoch).tobytes() for seed in range(30) for epoch in range(30)}
    assert len(set(orders.values())) == 900


@settings(deadline=None, derandomize=True, max_examples=50)
@given(sizes, seeds, st.integers(0, 1000))
def test_without_shuffling_every_epoch_keeps_the_order_of_the_data(num_samples: int, seed: int, epoch: int) -> None:
    plan = Order(num_samples=num_samples, seed=seed, is_shuffled=False)
    assert np.array_equal(plan.indices(epoch=epoch, start=0, stop=num_samples), np.arange(num_samples))


def test_an_empty_slice_is_empty() -> None:
    for is_shuffled in (True, False):
        for at in (0, 3, 5):
            indices = Order(num_samples=5, seed=0, is_shuffled=is_shuffled).indices(epoch=0, start=at, stop=at)
            assert indices.shape == (0,) and indices.dtype == np.int64


@pytest.mark.parametrize("num_samples", [0, -1, 2**62 + 1])
def test_a_size_out_of_range_is_refused_with_the_number_and_the_rule(num_samples: int) -> None:
    with pytest.raises(UsageError, match=rf"num_samples={num_samples} .*1 \.\. 2\*\*62"):
        Order(num_samples=num_samples, seed=0)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 6)])
def test_positions_outside_of_the_epoch_are_our_mistake(start: int, stop: int) -> None:
    with pytest.raises(AssertionError):
        Order(num_samples=5, seed=0).indices(epoch=0, start=start, stop=stop)


# --- golden values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_samples", "seed", "epoch", "start", "golden"),
    [
        (3, 0, 0, 0, [0, 2, 1]),
        (10, 0, 0, 0, [5, 7, 6, 1, 0, 8, 9, 3, 4, 2]),
        (10, 0, 1, 0, [1, 4, 3, 7, 2, 6, 5, 0, 8, 9]),
        (10, 1, 0, 0, [3, 2, 4, 5, 6, 7, 8, 9, 1, 0]),
        (60000, 0, 0, 59990, [24668, 5658, 5601, 33623, 20070, 17394, 47131, 27432, 50383, 12672]),
        (
            10**9,
            7,
            2,
            123456789,
            [
                239871972,
                393684154,
                425665291,
                236841604,
                589612599,
                375662993,
                449434716,
                199742581,
                635285072,
                490449923,
            ],
        ),
        (
            2**62,
            7,
            2,
            2**61,
            [
                1720378892666435765,
                3453154584591745763,
                2145990780669967319,
                3296993788552299896,
                1913070742969901894,
                4541121701302556663,
                2563297611767239528,
                3276923100920029054,
                615357790868844463,
                1292684029155863361,
            ],
        ),
    ],
)
def test_golden_orders(num_samples: int, seed: int, epoch: int, start: int, golden: list[int]) -> None:
    """A change here changes the bits of every run: never edit without a major version."""
    stop = min(start + 10, num_samples)
    assert Order(num_samples=num_samples, seed=seed).indices(epoch=epoch, start=start, stop=stop).tolist() == golden


def test_golden_order_of_a_whole_epoch() -> None:
    little_endian = whole(60000, seed=1).astype("<i8").tobytes()
    assert hashlib.blake2b(little_endian, digest_size=16).hexdigest() == "84998929fbf762bd0d1d05049ad8ad0b"


# --- statistics: a score is standard normal for uniform permutations ---------------------------------------------


def chi_square_score(values: Array, num_values: int, num_bins: int) -> float:
    """Chi-square of values that should be uniform on ``range(num_values)``, as a normal score.

    References: E. B. Wilson and M. M. Hilferty, "The distribution of chi-square", 1931.
    """
    bins = np.arange(num_values) * num_bins // num_values
    expected = np.bincount(bins, minlength=num_bins) * (values.size / num_values)
    assert expected.min() >= 20
    observed = np.bincount(bins[values], minlength=num_bins)
    freedom = num_bins - 1
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    spread = 2 / (9 * freedom)
    return float(((chi_square / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread))


def correlation_score(one: Array, other: Array) -> float:
    return float(np.corrcoef(one, other)[0, 1] * math.sqrt(one.size))


def images(num_samples: int, start: int, stop: int, num_runs: int, by: str = "seed") -> Array:
    """Images of positions ``start .. stop - 1`` in many runs (by seed) or many epochs of one; a row each."""
    if by == "seed":
        orders = [(Order(num_samples=num_samples, seed=seed), 0) for seed in range(num_runs)]
    else:
        orders = [(Order(num_samples=num_samples, seed=0), epoch) for epoch in range(num_runs)]
    return np.stack([plan.indices(epoch=epoch, start=start, stop=stop) for plan, epoch in orders])


def positions_score(num_samples: int, start: int, num_runs: int = 3000, by: str = "seed") -> float:
    """The worst of: images of 4 positions uniform; neighbours independent (100 cells); their gap uniform."""
    drawn = images(num_samples, start, start + 4, num_runs, by)
    scores = [chi_square_score(drawn[:, column], num_samples, min(64, num_samples)) for column in range(4)]
    tens = drawn * 10 // num_samples
    if num_samples >= 1000:
        scores.append(chi_square_score(tens[:, 0] * 10 + tens[:, 1], 100, 100))
        scores.append(chi_square_score((drawn[:, 1] - drawn[:, 0]) % num_samples, num_samples, 64))
    return max(scores)


def spacing_score(num_samples: int, seed: int) -> float:
    """The worst of many lags, those of the network's own grid too: gaps within one order should be uniform."""
    width_b = network(num_samples, seed, 0)[1]
    indices = whole(num_samples, seed)
    lags = (1, 2, 3, width_b - 1, width_b, width_b + 1, 2 * width_b)
    gaps = {lag: (indices[lag:] - indices[:-lag]) % num_samples for lag in lags}
    correlations = (abs(correlation_score(indices[lag:], indices[:-lag])) for lag in lags)
    return max(*(chi_square_score(gap, num_samples, 100) for gap in gaps.values()), *correlations)


@pytest.mark.parametrize("by", ["seed", "epoch"])
@pytest.mark.parametrize(("num_samples", "start"), [(7, 2), (10, 0), (64, 30), (1000, 300), (60000, 0), (60000, 59996)])
def test_the_image_of_a_position_is_uniform_and_its_neighbour_independent(
    num_samples: int, start: int, by: str
) -> None:
    assert positions_score(num_samples, start, by=by) < MAX_SCORE


def test_the_six_orders_of_three_samples_are_equally_frequent() -> None:
    drawn = images(3, 0, 3, num_runs=3000)
    codes = drawn @ np.array([9, 3, 1])
    _, numbers = np.unique(codes, return_inverse=True)
    assert numbers.max() == 5
    assert chi_square_score(numbers.astype(np.int64), 6, 6) < MAX_SCORE


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gaps_within_an_order_are_uniform(seed: int) -> None:
    assert spacing_score(60000, seed) < MAX_SCORE


def test_orders_of_neighbouring_epochs_and_seeds_are_not_correlated() -> None:
    orders = [whole(60000, seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    identity = np.arange(60000)
    for number, one in enumerate(orders):
        for other in [identity, *orders[:number]]:
            assert abs(correlation_score(one, other)) < MAX_SCORE
            assert (one == other).sum() <= 15  # Poisson with mean 1: more than 15 has odds of 2e-14


def test_a_global_batch_mixes_the_whole_data_set() -> None:
    """The mean of a batch's indices has the spread of a sample without replacement."""
    num_samples, batch = 60000, 600
    means = whole(num_samples, seed=5).reshape(-1, batch).mean(axis=1)
    spread = math.sqrt((num_samples**2 - 1) / 12 / batch * (1 - batch / num_samples))
    scores = (means - (num_samples - 1) / 2) / spread
    assert np.abs(scores).max() < MAX_SCORE
    assert 0.5 < scores.std() < 1.6  # 100 scores: 1 ± 0.071


def test_the_score_of_positions_catches_a_planted_weak_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_ROUNDS", 1)
    assert positions_score(1000, 300) > 2 * MAX_SCORE


@pytest.mark.parametrize("num_rounds", [1, 2, 3, 4])
def test_the_score_of_gaps_catches_a_planted_weak_network(num_rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_ROUNDS", num_rounds)
    assert max(spacing_score(60000, seed) for seed in (0, 1, 2)) > 2 * MAX_SCORE


def test_the_score_of_positions_catches_planted_bias() -> None:
    """One value in fifty is moved to the first half."""
    drawn = images(60000, 300, 301, num_runs=4000)[:, 0]
    biased = np.where(np.arange(drawn.size) % 50 == 0, drawn // 64, drawn)
    assert chi_square_score(drawn, 60000, 64) < MAX_SCORE < chi_square_score(biased, 60000, 64)


# --- block by block, for data larger than memory -----------------------------------------------------------------


blocks = st.integers(1, 300)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(sizes, blocks, seeds, st.integers(0, 1000), st.data())
def test_block_by_block_it_is_a_permutation_with_random_access(
    num_samples: int, block: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    plan = Order(num_samples=num_samples, seed=seed, block=block)
    everything = plan.indices(epoch=epoch, start=0, stop=num_samples)
    assert everything.dtype == np.int64
    assert np.array_equal(np.sort(everything), np.arange(num_samples))
    start = data.draw(st.integers(0, num_samples))
    stop = data.draw(st.integers(start, num_samples))
    assert np.array_equal(plan.indices(epoch=epoch, start=start, stop=stop), everything[start:stop])


@settings(deadline=None, derandomize=True, max_examples=100)
@given(sizes, blocks, seeds)
def test_spans_tell_what_is_read(num_samples: int, block: int, seed: int) -> None:
    plan = Order(num_samples=num_samples, seed=seed, block=block)
    everything, position, total = plan.indices(epoch=2, start=0, stop=num_samples), 0, 0
    while position < num_samples:
        stop, spans = plan.spans(2, position)
        rows = np.concatenate([np.arange(*span) for span in spans])
        assert np.array_equal(np.sort(everything[position:stop]), np.sort(rows))
        assert plan.spans(2, stop - 1) == (stop, spans)
        assert num_samples <= block or len(rows) <= 16 * block
        position, total = stop, total + len(rows)
    assert total == num_samples


def test_blocks_and_the_samples_in_them_are_mixed() -> None:
    plan = Order(num_samples=100_000, seed=1, block=100)
    first, second = (plan.indices(epoch=epoch, start=0, stop=100_000) for epoch in (0, 1))
    assert not np.array_equal(first, second)
    assert len(set((first[:1600] // 100).tolist())) == 16
    assert np.abs(np.diff(first // 100)).mean() > 100  # blocks of a group come from everywhere
    correlation = np.corrcoef(first, np.arange(100_000))[0, 1]
    assert abs(correlation) < 0.15


def test_random_access_block_by_block_into_a_huge_epoch_is_cheap() -> None:
    plan = Order(num_samples=10**12 + 5, seed=1, block=4096)
    tracemalloc.start()
    try:
        plan.indices(epoch=0, start=10**11, stop=10**11 + 1000)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 200_000


def test_a_block_holds_samples() -> None:
    with pytest.raises(UsageError, match="a block of 0 samples holds none"):
        Order(num_samples=5, seed=0, block=0)
