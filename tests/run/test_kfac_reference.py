"""Steps of the subspace K-FAC against the papers' formulas, written out densely in float64 for two linear layers.

Martens and Grosse (2015): factors (section 3), damping (6.3), length and momentum by the quadratic (6.4, 7). Martens
(2014): the Gauss-Newton matrix of cross-entropy, Jᵀ (diag p - p pᵀ) J. Only the drawn targets are the package's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from samestep.engine.job import Job
from samestep.engine.losses import sampled_targets
from tests import helpers

NUM_STEPS, HIDDEN = 14, 6  # the factors of step 9 serve steps 10 and 11, those of step 12 step 13
SHAPES = ((HIDDEN, 13), (helpers.NUM_CLASSES, HIDDEN + 1))
"""Of the layers' weights with their biases as the last column."""


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(12, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, helpers.NUM_CLASSES)).double()


def layers_of(flat: Tensor) -> list[Tensor]:
    size = SHAPES[0][0] * SHAPES[0][1]
    return [flat[:size].view(SHAPES[0]), flat[size:].view(SHAPES[1])]


def with_one(values: Tensor) -> Tensor:
    return torch.cat([values, torch.ones(len(values), 1, dtype=torch.float64)], 1)


def answer(flat: Tensor, x: Tensor) -> Tensor:
    first, second = layers_of(flat)
    return with_one((with_one(x) @ first.T).tanh()) @ second.T


def factors(flat: Tensor, x: Tensor, drawn: Tensor) -> list[Tensor]:
    """A and G of both layers: second moments of inputs, and of the gradients of outputs under drawn targets."""
    first, second = layers_of(flat)
    entered = with_one(x)
    between = (entered @ first.T).requires_grad_()
    inner = with_one(between.tanh())
    scores = inner @ second.T
    sent = torch.autograd.grad(functional.cross_entropy(scores, drawn, reduction="sum"), [between, scores])
    moments = [(entered, sent[0]), (inner.detach(), sent[1])]
    return [each.T @ each / len(x) for pair in moments for each in pair]


def direction(gradient: Tensor, found: list[Tensor], damping: float) -> Tensor:
    """(G + √λ/π I) ⊗ (A + π √λ I), solved layer by layer as one dense matrix."""
    result = []
    for number, part in enumerate(layers_of(gradient)):
        inputs, outputs = found[2 * number : 2 * number + 2]
        pi = ((inputs.trace() / len(inputs)) / (outputs.trace() / len(outputs))).sqrt()
        left = outputs + damping**0.5 / pi * torch.eye(len(outputs), dtype=torch.float64)
        right = inputs + damping**0.5 * pi * torch.eye(len(inputs), dtype=torch.float64)
        result.append(torch.linalg.solve(torch.kron(left, right), part.reshape(-1)))
    return torch.cat(result)


def gauss_newton(flat: Tensor, x: Tensor) -> Tensor:
    jacobian = torch.func.jacrev(answer)(flat, x)
    shares = answer(flat, x).softmax(1)
    curved = torch.diag_embed(shares) - shares[:, :, None] * shares[:, None, :]
    return torch.einsum("nap,nab,nbq->pq", jacobian, curved, jacobian) / len(x)


def coefficients(matrix: Any, slopes: Any, loss: Any) -> Any:
    """The best of three regularisers × three lengths by the true loss; shorter ones where the shortest is best."""
    used = np.flatnonzero(np.diag(matrix) > 0)
    scales = np.diag(1 / np.sqrt(np.diag(matrix)[used]))
    tried = []
    for regulariser in (0.0, 0.1, 1.0):
        damped = scales @ matrix[np.ix_(used, used)] @ scales + (regulariser + 1e-6) * np.eye(len(used))
        for length in (0.5, 1.0, 1.5):
            tried.append(np.zeros(len(slopes)))
            tried[-1][used] = -length * scales @ np.linalg.solve(damped, scales @ slopes[used])
    found, least = np.zeros(len(slopes)), loss(np.zeros(len(slopes)))
    for shrunk in range(5):
        candidates = [0.2**shrunk * each for each in tried]
        losses = [loss(each) for each in candidates]
        number = int(np.argmin(losses))
        is_better = losses[number] < least
        if is_better:
            found, least = candidates[number], losses[number]
        if is_better and number != 6:  # the largest regulariser, the smallest length
            break
    return found


def rows_of(job: Job, step: int) -> tuple[Tensor, Tensor]:
    parts = helpers.microbatches(job, step)
    return torch.cat([inputs[0] for inputs, _ in parts]), torch.cat([target for _, target in parts])


def tried_on(job: Job, step: int) -> int:
    """Below the full batch a later step's samples, of which there must be as many as usual."""
    batches = job.batches
    if batches.global_batch >= batches.num_samples:
        return step
    return step + 1 if batches.num_samples_of(step + 1) == batches.global_batch else step + 2


def loss(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(answer(flat, x), y)


def steps(flat: Tensor, job: Job, drawn: list[Tensor], dampings: tuple[float, ...]) -> tuple[Tensor, list[float]]:
    """The parameters after some steps, and the loss before each."""
    previous, running, losses, targets = torch.zeros_like(flat), list[Tensor](), list[float](), torch.cat(drawn)
    for step in range(NUM_STEPS):
        x, y = rows_of(job, step)
        gradient = torch.func.grad(loss)(flat, x, y)
        if step < 10 or step % 4 == 0:
            own, targets = targets[: len(x)], targets[len(x) :]
            fresh = factors(flat, x, own)
            share = 0.4 * len(x) / min(job.batches.global_batch, job.batches.num_samples)
            running = [(1 - share) * old + share * new for old, new in zip(running or fresh, fresh, strict=True)]
        span = torch.stack([*(direction(gradient, running, each) for each in dampings), previous])
        losses.append(float(loss(flat, x, y)))
        tried = rows_of(job, tried_on(job, step))
        matrix = (span @ gauss_newton(flat, tried[0]) @ span.T).numpy()
        slopes = (span @ torch.func.grad(loss)(flat, *tried)).numpy()

        def along(values: Any, flat: Tensor = flat, span: Tensor = span, tried: Any = tried) -> float:
            return float(loss(flat + torch.from_numpy(values) @ span, *tried))

        previous = torch.from_numpy(coefficients(matrix, slopes, along)) @ span
        flat = flat + previous
    return flat, losses


def flat_of(named: dict[str, Tensor]) -> Tensor:
    layers = [torch.cat([named[f"{number}.weight"], named[f"{number}.bias"][:, None]], 1) for number in (0, 2)]
    return torch.cat([layer.detach().reshape(-1) for layer in layers])


@pytest.mark.parametrize("global_batch", [75, 25, 30])  # all samples; a third; with an epoch's short last batch
def test_steps_are_those_of_the_papers(monkeypatch: pytest.MonkeyPatch, global_batch: int) -> None:
    drawn = list[Tensor]()

    def kept(*arguments: Any) -> Tensor:
        drawn.append(sampled_targets(*arguments).clone())
        return drawn[-1]

    monkeypatch.setattr("samestep.engine.curvature.sampled_targets", kept)
    work = helpers.workload(network, train=helpers.samples(dtype=torch.float64))
    plan = helpers.prepared(
        work, optimizer="kfac", momentum=None, steps=NUM_STEPS, global_batch=global_batch, microbatch=10, seed=5
    )
    start = flat_of(dict(helpers.initial(plan).named_parameters()))
    ran = helpers.run(plan)
    wanted, losses = steps(start, plan.job, drawn, (1e-2, 1e-3, 1e-4))
    assert helpers.relative(flat_of(ran.parameters()), wanted) < 1e-9
    assert ran.heard.losses[:4] == pytest.approx(losses[:4], rel=1e-12)
    assert ran.heard.losses == pytest.approx(losses, rel=1e-10)  # every step multiplies what rounding has left
    others, _ = steps(start, plan.job, drawn, (1e-2, 1e-3, 2e-4))
    assert helpers.relative(others, wanted) > 1e-6
