"""Damped Kronecker inverses, against dense ones in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from samestep.optim.kfac import precondition
from tests import helpers


def factor(size: int, seed: int) -> Tensor:
    root = torch.randn(size, size + 2, generator=helpers.generator(seed), dtype=torch.float64)
    return root @ root.T / size


def test_is_the_papers_formula() -> None:
    """Martens and Grosse (2015), section 6.3, with the dense inverse of the damped Kronecker product."""
    inputs, outputs, damping = factor(5, 1), factor(3, 2), 0.01
    gradient = torch.randn(3, 5, generator=helpers.generator(3), dtype=torch.float64)
    pi = math.sqrt((float(inputs.trace()) / 5) / (float(outputs.trace()) / 3))
    eye = torch.eye(5, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    dense = torch.kron(outputs + math.sqrt(damping) / pi * eye[1], inputs + math.sqrt(damping) * pi * eye[0])
    wanted = torch.linalg.solve(dense, gradient.reshape(-1)).view(3, 5)
    assert helpers.relative(precondition.kronecker(inputs, outputs, damping, "w")(gradient), wanted) < 1e-10
    assert helpers.relative(precondition.kronecker(inputs, outputs, 2 * damping, "w")(gradient), wanted) > 1e-3


def test_factors_of_sampled_gradients_give_back_the_blocks() -> None:
    """E[Sᵀ S] = tr(G) A and E[S Sᵀ] = tr(A) G: A ⊗ G comes out, however the scale is shared."""
    inputs, outputs = factor(4, 4), factor(3, 5)
    left, right = torch.linalg.cholesky(outputs), torch.linalg.cholesky(inputs)
    noise = torch.randn(20_000, 3, 4, generator=helpers.generator(6), dtype=torch.float64)
    sampled = left @ noise @ right.T
    sums = (sampled.mT @ sampled).mean(0), (sampled @ sampled.mT).mean(0)
    found = torch.kron(*reversed(list(precondition.balanced(*sums))))
    assert helpers.relative(found, torch.kron(outputs, inputs)) < 0.05


def test_what_cannot_be_inverted_is_named() -> None:
    broken = torch.diag(torch.tensor([1.0, -2.0, 3.0]))
    with pytest.raises(
        precondition.FactorError, match=r"a factor of out\.weight \(3 × 3\) cannot be inverted with damping"
    ):
        precondition.kronecker(broken, torch.eye(3), 1e-4, "out.weight")
    with pytest.raises(precondition.FactorError, match=r"a factor of out\.weight is not finite"):
        precondition.kronecker(torch.full((3, 3), math.inf), torch.eye(3), 1e-4, "out.weight")


def test_no_curvature_leaves_the_gradient() -> None:
    gradient = torch.ones(2, 2)
    assert torch.equal(precondition.kronecker(torch.zeros(2, 2), torch.eye(2), 0.5, "w")(gradient), 2 * gradient)
