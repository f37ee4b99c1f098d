"""The small problem of a step: how far to go along each of a few directions.

Over the span of the directions v_1 .. v_K the loss is modelled by ``L(c) = L + c·b + c·M c / 2``, with b_i = g·v_i and
M_ij = v_i·G v_j, where G is the Gauss-Newton matrix. It is solved exactly, under a few regularisers and step lengths;
which of these *candidates* is taken, their true losses say. All of it is a pure function of sums.

References:
    Martens: Deep learning via Hessian-free optimization, 2010.
    Martens and Grosse: Optimizing neural networks with Kronecker-factored approximate curvature, 2015, section 6.4.
    Martens: New insights and perspectives on the natural gradient method, 2014.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

REGULARISERS = (0.0, 0.1, 1.0)
"""Of the quadratic, after every direction is scaled to curvature 1."""

LENGTHS = (0.5, 1.0, 1.5)
"""Of the minimiser."""

NUM_CANDIDATES = len(REGULARISERS) * len(LENGTHS)

SHORTEST = (len(REGULARISERS) - 1) * len(LENGTHS)
"""Number of the candidate with the largest regulariser and the smallest length."""

SHORTER = 0.2
"""What the candidates are multiplied with for another try."""

_SMALLEST = 1e-6
"""Regulariser that is always there: directions may be nearly the same."""


def num_pairs(num_directions: int) -> int:
    """Entries of the upper triangle of M."""
    return num_directions * (num_directions + 1) // 2


def symmetric(entries: Values, num_directions: int) -> Values:
    """M from its upper triangle, row by row.

    >>> symmetric(np.array([1.0, 2.0, 3.0]), 2)
    array([[1., 2.],
           [2., 3.]])
    """
    matrix = np.zeros((num_directions, num_directions))
    upper = np.triu_indices(num_directions)
    matrix[upper] = entries
    matrix.T[upper] = entries
    return matrix


def candidates(curvature: Values, slopes: Values) -> Values:
    """Coefficients to try, shape (NUM_CANDIDATES, K): ``-length · (M + r I)⁻¹ b`` in scaled directions.

    A direction without curvature, or with one that is not finite, is left out: its coefficient is 0.

    Args:
        curvature: M, shape (K, K).
        slopes: b, shape (K,).

    Example:
        >>> found = candidates(np.diag([2.0, 0.0]), np.array([-1.0, 0.0]))
        >>> found[1].round(3)  # regulariser 0, length 1: the minimiser
        array([0.5, 0. ])
    """
    found = np.zeros((NUM_CANDIDATES, len(slopes)))
    diagonal = np.diag(curvature)
    usable = np.flatnonzero(np.isfinite(curvature).all(axis=1) & np.isfinite(slopes) & (diagonal > 0))
    if not len(usable):
        usable = np.flatnonzero(np.isfinite(diagonal) & np.isfinite(slopes) & (diagonal > 0))[:1]
    if not len(usable):
        return found
    scales = 1.0 / np.sqrt(diagonal[usable])
    scaled = curvature[np.ix_(usable, usable)] * np.outer(scales, scales)
    target = slopes[usable] * scales
    for number, regulariser in enumerate(REGULARISERS):
        damped = scaled + (regulariser + _SMALLEST) * np.eye(len(usable))
        minimiser = -np.linalg.solve(damped, target) * scales
        for place, length in enumerate(LENGTHS):
            found[number * len(LENGTHS) + place, usable] = length * minimiser
    return found


def best(losses: Values, loss: float) -> int | None:
    """The candidate with the smallest loss; None where none is finite and below the loss of standing still.

    >>> best(np.array([2.0, np.nan, 1.0]), 1.5), best(np.array([2.0]), 1.5)
    (2, None)
    """
    usable = np.where(np.isfinite(losses), losses, np.inf)
    number = int(np.argmin(usable))
    return number if usable[number] < loss else None
