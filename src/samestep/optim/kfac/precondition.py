"""Kronecker factors, damped and inverted: ``(A ⊗ G + λ I)⁻¹ g`` for one unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

Inverse = Callable[[Tensor], Tensor]
"""Of a unit's damped curvature: from a gradient to a direction."""


class FactorError(ArithmeticError):
    """A factor has no inverse.

    Args:
        what: Which one.
        fault: Why it has none.
    """

    def __init__(self, what: str, fault: str) -> None:
        super().__init__(f"{what} {fault}")
        self.what = what
        self.fault = fault


def inverse(factors: Sequence[Tensor], damping: float, name: str) -> Inverse:
    """Of a Kronecker product A, G, or of a diagonal; what it needs is computed here, once for many gradients.

    The factors are not kept, but for a diagonal, which is copied.
    """
    if len(factors) == 1:
        return partial(diagonal, squares=factors[0].clone(), damping=damping)
    return kronecker(factors[0], factors[1], damping, name)


def kronecker(inputs: Tensor, outputs: Tensor, damping: float, name: str) -> Inverse:
    """V to ``(G + √λ/π I)⁻¹ V (A + π √λ I)⁻¹``, with π² = (tr A / dim A) / (tr G / dim G).

    Martens and Grosse (2015), section 6.3. A block without curvature gives V / λ.

    Args:
        inputs: A, shape (inputs, inputs).
        outputs: G, shape (outputs, outputs).
        damping: λ.
        name: Of the parameter, for messages.

    Returns:
        A function of V, shape (outputs, inputs).

    Raises:
        FactorError: A factor cannot be inverted.

    Example:
        >>> kronecker(torch.tensor([[1.0]]), torch.tensor([[1.0]]), 1.0, "w")(torch.ones(1, 1))
        tensor([[0.2500]])
    """
    mean_inputs, mean_outputs = float(inputs.trace()) / len(inputs), float(outputs.trace()) / len(outputs)
    if mean_inputs == 0 or mean_outputs == 0:
        return partial(torch.mul, other=1.0 / damping)
    if not (math.isfinite(mean_inputs) and math.isfinite(mean_outputs)):
        raise FactorError(f"a factor of {name}", "is not finite")
    pi = math.sqrt(mean_inputs / mean_outputs)
    left = _cholesky(outputs, math.sqrt(damping) / pi, name)
    right = _cholesky(inputs, math.sqrt(damping) * pi, name)
    return partial(_solved, left=left, right=right)


def _solved(gradient: Tensor, left: Tensor, right: Tensor) -> Tensor:
    half = torch.cholesky_solve(gradient, left)
    return torch.cholesky_solve(half.T.contiguous(), right).T


def diagonal(gradient: Tensor, squares: Tensor, damping: float) -> Tensor:
    """``V / (F + λ)``, element by element."""
    return gradient / (squares + damping)


def balanced(inputs: Tensor, outputs: Tensor) -> Sequence[Tensor]:
    """A and G from sums of Sᵀ S = tr(G) A and S Sᵀ = tr(A) G: divided by the root of tr(A) tr(G), their trace."""
    trace = float(inputs.trace())
    if trace == 0:
        return inputs, outputs
    return inputs / math.sqrt(trace), outputs / math.sqrt(trace)


def _cholesky(factor: Tensor, damping: float, name: str) -> Tensor:
    damped = factor.clone()
    damped.diagonal().add_(damping)
    found: Tensor
    found, info = torch.linalg.cholesky_ex(damped)
    if int(info):
        raise FactorError(
            f"a factor of {name} ({len(factor)} × {len(factor)})", f"cannot be inverted with damping {damping:.3g}"
        )
    return found
