"""An optimiser that looks at several tensors together is found out by what it does, whatever its name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from samestep.errors import UsageError
from samestep.optim import catalog
from samestep.run.prepare import Choices
from tests import helpers


class Clipping(SGD):
    """Gradients are clipped by their norm over all tensors."""

    def __init__(self, params: Iterable[Any], lr: float = 0.1, *, longest: float = 1.0) -> None:
        super().__init__(params, lr=lr)
        self.longest = longest

    def step(self, closure: Any = None) -> Any:
        given = [parameter for group in self.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(given, self.longest)
        return super().step(closure)


class Drawing(SGD):
    """Every tensor is moved by what a generator of its own draws."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                generator = torch.Generator().manual_seed(parameter.numel())
                parameter.grad += torch.randn(parameter.shape, generator=generator)
        return super().step(closure)


def plan(optimizer: Any, build: Any = helpers.Mlp) -> Any:
    return helpers.prepared(helpers.workload(build), Choices(optimizer=optimizer), momentum=None, steps=1)


@pytest.mark.parametrize("kind", [pytorch_optimizer.Prodigy, pytorch_optimizer.DAdaptAdam, Clipping])
def test_one_that_looks_at_several_tensors_is_refused(kind: type[Optimizer]) -> None:
    before = torch.get_rng_state()
    with pytest.raises(UsageError, match=f"optimizer {kind.__name__} looks at several tensors together") as error:
        plan(kind)
    assert "\n" not in str(error.value)
    assert torch.equal(torch.get_rng_state(), before)


def test_groups_are_looked_at_together() -> None:
    def groups(model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": [parameter]} for parameter in model.parameters()]

    choices = Choices(optimizer=Clipping, parameter_groups=groups)
    with pytest.raises(UsageError, match="optimizer Clipping looks at several tensors together"):
        helpers.prepared(helpers.workload(), choices, momentum=None, steps=1)


class Single(nn.Module):
    """One tensor: nothing beside which it could be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(helpers.NUM_CLASSES, 12))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def test_one_that_treats_every_tensor_apart_is_not() -> None:
    plan(Drawing)
    plan(lambda groups, **options: Clipping(groups, longest=1e9, **options))
    plan(Clipping, Single)


@pytest.mark.parametrize("name", sorted({*catalog.names()} - {"muon"}))
def test_no_named_one_is_found_out_as_a_class(name: str) -> None:
    """Muon takes matrices only, so a class alone cannot have this network."""
    plan(catalog.entry(name).load())
