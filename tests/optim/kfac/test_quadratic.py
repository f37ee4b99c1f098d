"""The small problem of a step, against NumPy's own minimum."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from samestep.optim.kfac import quadratic


@given(st.integers(0, 1000), st.integers(1, 4))
def test_one_candidate_is_the_minimiser(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    root = random.normal(size=(size + 3, size))
    matrix, slopes = root.T @ root, random.normal(size=size)
    found = quadratic.candidates(matrix, slopes)
    wanted = -np.linalg.solve(matrix, slopes)
    number = quadratic.LENGTHS.index(1.0)  # of the first regulariser, 0

    def value(c: NDArray[Any]) -> float:
        return float(c @ slopes + c @ matrix @ c / 2)

    assert value(found[number]) <= value(wanted) * (1 - 1e-2)
    assert all(value(found[number]) <= value(other) + 1e-9 for other in found)


def test_the_triangle_becomes_the_matrix() -> None:
    matrix = np.arange(16.0).reshape(4, 4)
    matrix = matrix + matrix.T
    assert (quadratic.symmetric(matrix[np.triu_indices(4)], 4) == matrix).all()
    assert len(matrix[np.triu_indices(4)]) == quadratic.num_pairs(4)


def test_directions_without_curvature_or_without_a_number_are_left_out() -> None:
    matrix = np.diag([2.0, 0.0, 4.0])
    assert (quadratic.candidates(matrix, np.array([1.0, 1.0, 1.0]))[:, 1] == 0).all()
    broken = quadratic.candidates(matrix, np.array([1.0, 1.0, np.nan]))
    assert np.isfinite(broken).all()
    assert (broken[:, 2] == 0).all()
    assert broken[1, 0] != 0
    assert (quadratic.candidates(np.full((2, 2), np.nan), np.ones(2)) == 0).all()


def test_standing_still_is_better_than_what_is_worse_or_not_finite() -> None:
    assert quadratic.best(np.array([np.inf, np.nan, 3.0]), 2.0) is None
    assert quadratic.best(np.array([np.inf, 1.0, 1.5]), 2.0) == 1
