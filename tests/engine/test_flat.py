"""A model over flat memory: views, gradients, and which buffers are what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from samestep.engine import flat
from samestep.engine.flat import FlatModel, plan_buffers, trainable
from samestep.errors import UsageError
from samestep.plan.layout import BLOCK, ParameterSpec, flat_layout
from tests.helpers import Cnn, Mlp, Tied


def laid_out(model: nn.Module) -> tuple[FlatModel, torch.Tensor]:
    found = trainable(model)
    dtype = next(iter(found.values())).dtype
    layout = flat_layout(
        [ParameterSpec(name=name, shape=tuple(p.shape), group=0, is_whole=False) for name, p in found.items()]
    )
    vector = torch.zeros(layout.num_elements, dtype=dtype)
    flat.write_parameters(layout, dict(model.named_parameters()), vector)
    plan = plan_buffers(model, dtype)
    tracked, others = torch.zeros(plan.num_tracked, dtype=dtype), torch.zeros(plan.num_other_bytes, dtype=torch.uint8)
    flat.write_buffers(plan, model, tracked, others)
    return FlatModel(model, layout, plan, parameters=vector, step_tracked=tracked, step_others=others), vector


def test_parameters_are_views_of_the_vector() -> None:
    model = Mlp()
    wanted = {name: values.detach().clone() for name, values in model.named_parameters()}
    _, vector = laid_out(model)
    assert all(torch.equal(values, wanted[name]) for name, values in model.named_parameters())
    vector.zero_()
    assert all(not bool(values.any()) for values in model.parameters())


def test_tied_parameters_are_one_and_frozen_ones_none() -> None:
    model = Tied()
    flat_model, _ = laid_out(model)
    names = [place.spec.name for place in flat_model.layout.places]
    assert names == ["first.weight", "second.bias", "out.weight", "out.bias"]
    assert model.second.weight is model.first.weight


def test_gradients_are_given_per_parameter_and_dropped() -> None:
    model = Tied(has_unused=True)
    flat_model, _ = laid_out(model)
    model(torch.ones(2, 12)).sum().backward()
    assert flat_model.used_parameters().tolist() == [1, 1, 1, 1, 0, 0]
    assert [gradient is not None for gradient in flat_model.gradients()] == [True] * 4 + [False] * 2
    flat_model.drop_gradients()
    assert flat_model.gradients() == [None] * 6


def test_which_buffers_are_what() -> None:
    model = Cnn()
    model.register_buffer("large", torch.zeros(70_000))
    model.register_buffer("other", torch.zeros(3, dtype=torch.float64))
    model.register_buffer("empty", torch.zeros(0, dtype=torch.int64))
    plan = plan_buffers(model, torch.float32)
    assert [place.name for place in plan.tracked] == ["norm.running_mean", "norm.running_var"]
    assert [place.name for place in plan.others] == ["other", "empty", "norm.num_batches_tracked"]
    assert plan.constants == ("large",)
    assert plan.num_tracked % BLOCK == 0
    assert all(place.start % 16 == 0 for place in plan.tracked)
    assert all(place.start % 64 == 0 for place in plan.others)


def test_every_microbatch_starts_from_the_steps_buffers() -> None:
    model = Cnn()
    flat_model, _ = laid_out(model)
    changes = torch.zeros(BLOCK)
    found = []
    for scale in (1.0, 5.0, 1.0):
        flat_model.begin_microbatch()
        model(scale * torch.arange(24.0).view(2, 12))
        flat_model.take_buffer_changes(changes, 3.0, [(0, BLOCK)], is_added=False)
        found.append(changes.clone())
        assert int(flat_model.take_others([(0, 8)])[0].view(torch.int64)) == 1
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    flat_model.take_buffer_changes(changes, 3.0, [(0, BLOCK)], is_added=True)
    assert torch.equal(changes, found[2] + found[2])


def test_a_shared_buffer_stays_shared() -> None:
    model = nn.ModuleList([nn.BatchNorm1d(4), nn.BatchNorm1d(4)])
    first, second = model
    assert isinstance(first, nn.BatchNorm1d)
    assert isinstance(second, nn.BatchNorm1d)
    second.running_mean = first.running_mean
    laid_out(model)
    assert first.running_mean is second.running_mean
    assert first.running_var is not second.running_var


def test_a_model_gets_memory_of_its_own_again() -> None:
    model = Cnn()
    flat_model, vector = laid_out(model)
    layout, plan = flat_model.layout, plan_buffers(model, torch.float32)
    tracked, others = torch.full((plan.num_tracked,), 7.0), torch.zeros(plan.num_other_bytes, dtype=torch.uint8)
    vector.fill_(3.0)
    flat.load_model(model, layout, plan, vector, tracked, others)
    vector.zero_()
    tracked.zero_()
    assert all(bool((values == 3.0).all()) for values in model.parameters())
    assert model.norm.running_mean is not None
    assert model.norm.running_mean.tolist() == [7.0] * 4
    assert int(model.norm.num_batches_tracked) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (nn.Embedding(3, 2, sparse=True), "sparse gradients"),
        (nn.LazyLinear(3), "has no shape yet"),
        (nn.Linear(2, 2).bfloat16(), "dtype is bfloat16; all must be float32, or all float64"),
        (nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2).double()]), "dtype is float32, float64"),
        (nn.Linear(2, 2, device="meta"), "is on meta; build the model on the CPU"),
        (nn.ReLU(), "no trainable parameter"),
    ],
)
def test_models_that_cannot_be_trained(model: nn.Module, text: str) -> None:
    with pytest.raises(UsageError, match=text) as error:
        trainable(model)
    assert "\n" not in str(error.value)
