"""Kronecker factors, damped and inverted: ``(A ⊗ G + λ I)⁻¹ g`` for one unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from samestep.errors import NonFiniteError


def kronecker(gradient: Tensor, inputs: Tensor, outputs: Tensor, damping: float, name: str) -> Tensor:
    """``(G + √λ/π I)⁻¹ V (A + π √λ I)⁻¹`` for a gradient V, with π² = (tr A / dim A) / (tr G / dim G).

    Martens and Grosse (2015), section 6.3. A block without curvature gives V / λ.

    Args:
        gradient: V, shape (outputs, inputs).
        inputs: A, shape (inputs, inputs).
        outputs: G, shape (outputs, outputs).
        damping: λ.
        name: Of the parameter, for messages.

    Raises:
        NonFiniteError: A factor cannot be inverted.

    Example:
        >>> kronecker(torch.ones(1, 1), torch.tensor([[1.0]]), torch.tensor([[1.0]]), 1.0, "w")
        tensor([[0.2500]])
    """
    mean_inputs, mean_outputs = float(inputs.trace()) / len(inputs), float(outputs.trace()) / len(outputs)
    if mean_inputs == 0 or mean_outputs == 0:
        return gradient / damping
    if not (math.isfinite(mean_inputs) and math.isfinite(mean_outputs)):
        raise NonFiniteError(f"kfac: a factor of {name} is not finite; look at the data, or at the layer before it")
    pi = math.sqrt(mean_inputs / mean_outputs)
    left = _cholesky(outputs, math.sqrt(damping) / pi, name)
    right = _cholesky(inputs, math.sqrt(damping) * pi, name)
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
        raise NonFiniteError(
            f"kfac: a factor of {name} ({len(factor)} × {len(factor)}) cannot be inverted with damping {damping:.3g}; "
            "inputs of very different size, or no finite numbers: scale the inputs"
        )
    return found
