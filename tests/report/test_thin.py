"""Thinned curves keep their spikes, and show nothing that was not there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from samestep.report import thin

values = st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=200)


@given(values, st.integers(1, 20).map(lambda half: 2 * half))
def test_extremes(found: list[float | None], most: int) -> None:
    chosen = thin.extremes(found, most)
    present = [value for value in found if value is not None]
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= most
    assert all(found[index] is not None for index in chosen)
    if present:
        kept = [value for value in (found[index] for index in chosen) if value is not None]
        assert min(kept) == min(present)
        assert max(kept) == max(present)


def test_a_spike_stays() -> None:
    losses: list[float | None] = [1.0] * 100_000
    losses[54_321] = 9.0
    assert 54_321 in thin.extremes(losses)
    assert 54_321 not in thin.spread(len(losses), thin.MOST_DRAWN)  # so that even spreading would have lost it


def test_short_curves_stay_whole() -> None:
    assert thin.extremes([3.0, None, 1.0]) == [0, 2]


@given(st.integers(0, 500), st.integers(2, 50))
def test_spread(length: int, most: int) -> None:
    chosen = thin.spread(length, most)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(length, most)
    if length:
        assert chosen[0] == 0
        assert chosen[-1] == length - 1
