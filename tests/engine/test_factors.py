"""Factors of every kind of layer against sums that are written out place by place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from samestep.engine import factors
from samestep.optim.kfac.units import units_of
from tests import helpers

NUM_SAMPLES, WEIGHT = 3, 7.0
SCALE = NUM_SAMPLES / WEIGHT


def collected(model: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """The factors under half the squared outputs, whose gradient is the output; and the output."""
    units = units_of(model)
    leaves = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    with factors.watched(model, units) as seen:
        output = torch.func.functional_call(model, leaves, (x,))
    loss = output.square().sum() / 2
    return factors.collect(units, seen, leaves, loss, NUM_SAMPLES, WEIGHT), output.detach()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=helpers.generator(1), dtype=torch.float64)


def second_moments(rows: list[Tensor]) -> Tensor:
    return torch.stack([torch.outer(row, row) for row in rows]).sum(0)


def check(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert [each.shape for each in found] == [each.shape for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert helpers.relative(one, other) < 1e-12


def with_one(row: Tensor) -> Tensor:
    return torch.cat([row.reshape(-1), torch.ones(1, dtype=torch.float64)])


def test_a_convolution_over_pictures() -> None:
    layer = nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1)).double()
    x = random(NUM_SAMPLES, 2, 4, 7)
    found, output = collected(layer, x)
    assert output.shape[2:] == (4, 3)
    padded = nn.functional.pad(x, (0, 0, 1, 1))
    places = list(product(range(NUM_SAMPLES), range(4), range(3)))
    taken = [with_one(padded[n, :, i : i + 3 : 2, 2 * j : 2 * j + 3]) for n, i, j in places]
    sent = [output[n, :, i, j] for n, i, j in places]
    check(found, [second_moments(taken) / 12, second_moments(sent) * SCALE])


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_convolution_over_series(has_bias: bool) -> None:
    layer = nn.Conv1d(2, 3, 3, stride=2, padding=1, bias=has_bias).double()
    x = random(NUM_SAMPLES, 2, 9)
    found, output = collected(layer, x)
    assert output.shape[2:] == (5,)
    padded = nn.functional.pad(x, (1, 1))
    places = list(product(range(NUM_SAMPLES), range(5)))
    taken = [with_one(padded[n, :, 2 * i : 2 * i + 3]) for n, i in places]
    sent = [output[n, :, i] for n, i in places]
    check(found, [second_moments([row if has_bias else row[:-1] for row in taken]) / 5, second_moments(sent) * SCALE])


@pytest.mark.parametrize("places", [(), (4,), (4, 3), (2, 4, 3)])
def test_a_linear_layer_at_any_places(places: tuple[int, ...]) -> None:
    layer, x = nn.Linear(4, 2).double(), random(NUM_SAMPLES, *places, 4)
    found, output = collected(layer, x)
    taken, sent = [with_one(row) for row in x.reshape(-1, 4)], list(output.reshape(-1, 2))
    check(found, [second_moments(taken) * NUM_SAMPLES / len(taken), second_moments(sent) * SCALE])


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (partial(nn.Linear, 4, 2), (4,)),
        (partial(nn.Linear, 4, 2), (3, 4)),  # then torch's output is a view of a matrix
        (partial(nn.Linear, 4, 2), (2, 3, 4)),
        (partial(nn.Conv1d, 4, 2, 1), (4, 3)),
        (partial(nn.Conv2d, 4, 2, 1), (4, 3, 3)),
    ],
)
def test_an_activation_in_place_changes_nothing(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """It writes over what the layer gave, and the gradient of that is wanted as it was before."""
    torch.manual_seed(0)
    layer, x = build(), random(NUM_SAMPLES, *shape)
    found, wanted = (
        collected(nn.Sequential(layer, nn.ReLU(inplace=is_in_place)).double(), x)[0] for is_in_place in (True, False)
    )
    check(found, wanted)
    assert all(float(each.abs().sum()) > 0 for each in wanted)


def test_a_norm_has_squares() -> None:
    layer, x = nn.LayerNorm(4).double(), random(NUM_SAMPLES, 4)
    found, output = collected(layer, x)
    scaled = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + layer.eps).sqrt()
    slope = sum((output[n] * scaled[n] for n in range(NUM_SAMPLES)), torch.zeros(4, dtype=torch.float64))
    shift = sum((output[n] for n in range(NUM_SAMPLES)), torch.zeros(4, dtype=torch.float64))
    check(found, [slope * slope * SCALE, shift * shift * SCALE])


def test_an_embedding_has_both_products_of_its_gradient() -> None:
    layer, tokens = nn.Embedding(5, 3).double(), torch.tensor([[0, 2], [2, 4], [1, 2]])
    found, output = collected(layer, tokens)
    gradient = torch.zeros(5, 3, dtype=torch.float64)
    for n, place in product(range(NUM_SAMPLES), range(2)):
        gradient[tokens[n, place]] += output[n, place]
    columns, rows = list(gradient), list(gradient.T)
    check(found, [second_moments(columns) * SCALE, second_moments(rows) * SCALE])
