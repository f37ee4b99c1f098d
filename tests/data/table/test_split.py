"""Rows are kept for evaluation by what they hold: never by their place, and equal rows go the same way."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.data.table import split
from samestep.data.table.raw import Raw, Values, rows_of_block

ALL = ("x0", "x1", "x2", "a", "b", "text")


def table(numbers: npt.NDArray[np.float64], texts: list[str] | None = None, **names: Any) -> Raw:
    values = Values("text")
    for text in texts or []:
        values.codes.setdefault(text, len(values.codes))
    codes = np.array([values.codes[text] for text in texts or []], np.int32)
    number_names = names.get("names", tuple(f"x{place}" for place in range(numbers.shape[1])))
    length = rows_of_block(len(number_names) + bool(texts))
    blocks = [numbers[start : start + length].T.ravel() for start in range(0, len(numbers), length)]
    return Raw(np.concatenate(blocks), codes, number_names, (values,) if texts else (), len(numbers))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_the_place_of_a_row_says_nothing(seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    numbers, texts = rng.integers(0, 5, (40, 2)).astype(float), [str(n) for n in rng.integers(0, 3, 40)]
    found = split.is_evaluation(table(numbers, texts), ALL, frac=0.3, seed=seed)
    moved = np.array(data.draw(st.permutations(range(40))))
    again = split.is_evaluation(table(numbers[moved], [texts[n] for n in moved]), ALL, frac=0.3, seed=seed)
    np.testing.assert_array_equal(again, found[moved])
    for row in range(40):
        same = (numbers == numbers[row]).all(axis=1) & (np.array(texts) == texts[row])
        assert (found[same] == found[row]).all()


def test_the_share_is_about_what_was_asked_for() -> None:
    numbers = np.random.default_rng(0).normal(size=(100_000, 3))
    for frac in (0.0, 0.1, 0.5, 0.9):
        share = split.is_evaluation(table(numbers), ALL, frac=frac, seed=1).mean()
        assert abs(share - frac) < 5 * np.sqrt(frac * (1 - frac) / 100_000) + 1e-12


def test_parts_are_independent_of_values_and_of_other_seeds() -> None:
    """Whole numbers in order, whose bits hardly differ, are as well mixed as any."""
    numbers = np.arange(100_000.0)[:, None]
    first = split.is_evaluation(table(numbers), ALL, frac=0.5, seed=0)
    second = split.is_evaluation(table(numbers), ALL, frac=0.5, seed=1)
    assert abs(first.mean() - 0.5) < 0.01
    assert abs((first == second).mean() - 0.5) < 0.01
    assert abs((first[1:] == first[:-1]).mean() - 0.5) < 0.01
    assert abs(first[::2].mean() - first[1::2].mean()) < 0.02


def test_columns_in_another_order_change_nothing() -> None:
    numbers = np.random.default_rng(0).normal(size=(1000, 2))
    found = split.is_evaluation(table(numbers, names=("a", "b")), ALL, frac=0.3, seed=0)
    other = split.is_evaluation(table(numbers[:, ::-1].copy(), names=("b", "a")), ALL, frac=0.3, seed=0)
    np.testing.assert_array_equal(found, other)


def test_by_a_column_groups_stay_together() -> None:
    rng = np.random.default_rng(0)
    texts = [f"patient {n}" for n in rng.integers(0, 200, 5000)]
    found = split.is_evaluation(table(rng.normal(size=(5000, 2)), texts), ["text"], frac=0.3, seed=0)
    by_patient = {text: {bool(f) for t, f in zip(texts, found, strict=True) if t == text} for text in set(texts)}
    assert all(len(ways) == 1 for ways in by_patient.values())
    assert 0.15 < found.mean() < 0.45


def test_columns_that_are_not_looked_at_do_not_decide() -> None:
    """Equal rows go the same way, whatever number or name stands beside them."""
    numbers = np.stack([np.arange(1000.0), np.repeat(np.arange(10.0), 100)], axis=1)
    found = split.is_evaluation(table(numbers), ["x1"], frac=0.5, seed=0)
    assert all(len(set(found[start : start + 100])) == 1 for start in range(0, 1000, 100))
    assert 0 < found.mean() < 1


def test_both_zeros_and_all_nans_are_one_value() -> None:
    numbers = np.array([[0.0], [-0.0], [np.nan], [-np.nan]])
    found = [split.is_evaluation(table(numbers), ALL, frac=0.5, seed=seed) for seed in range(40)]
    assert all(f[0] == f[1] and f[2] == f[3] for f in found)
    assert any(f[0] != f[2] for f in found)
