"""The owner computes: any cut gives the bits of the uncut update, and a restored state goes on as if never left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from samestep.errors import UsageError
from samestep.optim import build, catalog, state
from samestep.optim.owner import OwnedUpdate
from samestep.optim.rules import Factors
from samestep.optim.state import UpdatePlan
from samestep.plan import layout
from tests import helpers

NUM_STEPS = 6
WHOLE = {entry.name for entry in catalog.entries() if entry.kind == "whole tensor"}
NAMES = sorted({*catalog.names()} - {"kfac"})
"""Alone, `kfac` is gradient descent: its step is found in the rounds (tests/run/test_kfac.py)."""


class Net(nn.Module):
    """Several blocks of elements in several tensors, none a multiple of anything."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(61, 53)
        self.second = nn.Linear(53, 37, bias=False)
        self.norm = nn.LayerNorm(37)
        self.third = nn.Linear(37, 7)


class Nested(Optimizer):
    """Keeps a list of a list and a dict, a number, and a tensor without dimensions; looks at the whole tensor."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "calls": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["calls"] += 1
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["history"] = [torch.zeros_like(parameter), {"older": torch.zeros_like(parameter)}]
                    state["count"] = 0
                    state["seen"] = torch.tensor(0.0)
                state["count"] += 1
                state["seen"] += parameter.grad.norm()
                state["history"][1]["older"] = state["history"][0].clone()
                state["history"][0] = parameter.grad / (1 + parameter.grad.norm())
                mean = state["history"][0] + 0.5 * state["history"][1]["older"]
                parameter.sub_(mean, alpha=group["lr"] / (state["count"] + group["calls"]))


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def gradient(parameter: Tensor, step: int, number: int) -> Tensor:
    drawn = torch.randn(parameter.shape, generator=helpers.generator(100 * step + number), dtype=torch.float64)
    return drawn.to(parameter.dtype)


class Ranks:
    """All ranks of a run in one process, over the same memory; their number may change between steps."""

    def __init__(self, plan: UpdatePlan, model: nn.Module) -> None:
        self.plan = plan
        named = dict(model.named_parameters())
        self.flat = torch.zeros(plan.layout.num_elements, dtype=next(iter(named.values())).dtype)
        for place in plan.layout.places:
            self.flat[place.start : place.stop] = named[place.spec.name].detach().reshape(-1)
        self.state = {a.name: torch.zeros(a.shape, dtype=getattr(torch, a.dtype)) for a in plan.arrays}
        self.scalars = torch.zeros(len(plan.scalars), dtype=torch.float64)
        self.updates: list[OwnedUpdate] = []
        self.left_alone: frozenset[str] = frozenset()

    def form(self, world_size: int, *, is_restored: bool) -> None:
        owned = layout.owners(self.plan.layout, world_size)
        self.updates = [OwnedUpdate(self.plan, segments, self.flat, self.state) for segments in owned]
        for update in self.updates:
            if self.left_alone:
                update.leave_alone(self.left_alone)
            if is_restored:
                update.restore(self.scalars)

    def run(self, steps: Sequence[int], lr_factor: Callable[[int], float] = lambda step: 1.0) -> None:
        for step in steps:
            whole = torch.zeros_like(self.flat)
            for number, place in enumerate(self.plan.layout.places):
                values = whole[place.start : place.stop].view(place.spec.shape)
                if place.spec.name not in self.left_alone:
                    values.copy_(gradient(values, step, number))
            for update in self.updates:
                for segment, padded in zip(update.segments, update.padded_gradients, strict=True):
                    padded.copy_(whole[segment.start : segment.stop])
            for update in self.updates:
                update.step(Factors(lr=lr_factor(step)))

    def save(self) -> None:
        """Like a snapshot: arrays are in memory already, every rank writes the numbers that it knows."""
        for update in self.updates:
            update.write_scalars(self.scalars)

    def values(self) -> dict[str, Tensor]:
        return {p.spec.name: self.flat[p.start : p.stop].view(p.spec.shape).clone() for p in self.plan.layout.places}


def make_plan(model: nn.Module, optimizer: Any, **options: Any) -> UpdatePlan:
    parts = build.parts(model, optimizer, **{"lr": 0.01, **options})
    return state.plan_update(parts, dict(model.named_parameters()))


def run_cut(plan: UpdatePlan, model: nn.Module, world_size: int, num_steps: int = NUM_STEPS) -> dict[str, Tensor]:
    ranks = Ranks(plan, model)
    ranks.form(world_size, is_restored=False)
    ranks.run(range(num_steps))
    return ranks.values()


def _by_rows(value: Any) -> Any:
    """State as we keep it: LAPACK's matrices (SOAP's) come by columns, and MKL may sum those in another order."""
    if isinstance(value, Tensor):
        return value.contiguous()
    return type(value)(map(_by_rows, value)) if isinstance(value, list | tuple) else value


def torch_reference(model: nn.Module, plan: UpdatePlan, optimizer: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """The torch optimisers on whole parameters."""
    parameters = {name: nn.Parameter(values.detach().clone().to(dtype)) for name, values in model.named_parameters()}
    optimizers = []
    for part in plan.parts:
        groups = [{**group, "params": [parameters[name] for name in group["params"]]} for group in part.groups]
        optimizers.append(part.factory(groups))
    order = [place.spec.name for place in plan.layout.places]
    for step in range(NUM_STEPS):
        for number, name in enumerate(order):
            parameters[name].grad = gradient(parameters[name], step, number)
        for one in optimizers:
            one.step()
            for kept in one.state.values():
                kept.update({key: _by_rows(value) for key, value in kept.items()})
    return {name: values.detach() for name, values in parameters.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_update_equals_torch_on_whole_parameters(name: str) -> None:
    model = net()
    plan = make_plan(model, name, weight_decay=None if name == "rprop" else 0.1)
    found = run_cut(plan, model, 1)
    wanted = torch_reference(model, plan, name, torch.float32)
    whole = {place.spec.name for place in plan.layout.places if place.spec.is_whole}
    assert bool(whole) is (name in WHOLE)
    for key, values in wanted.items():
        if key in whole:
            assert torch.equal(found[key], values), key
        else:
            assert helpers.relative(found[key], values) < 1e-6, key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("world_size", [2, 3, 4, 5])
def test_any_cut_gives_the_same_bits(name: str, world_size: int) -> None:
    model = net()
    plan = make_plan(model, name, weight_decay=None if name == "rprop" else 0.1)
    wanted = run_cut(plan, model, 1)
    found = run_cut(plan, model, world_size)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    assert not any(torch.equal(found[key], model.get_parameter(key)) for key in wanted)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_any_cut_gives_the_same_bits_in_float64(name: str) -> None:
    model = net().double()
    plan = make_plan(model, name)
    wanted, found = run_cut(plan, model, 1), run_cut(plan, model, 3)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_an_optimiser_that_looks_at_its_whole_tensor_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    monkeypatch.setattr(build, "is_element_wise", lambda part, optimizer: True)
    plan = make_plan(model, _NormScaled)
    wanted, found = run_cut(plan, model, 1), run_cut(plan, model, 3)
    assert not all(torch.equal(found[key], wanted[key]) for key in wanted)


class _NormScaled(Optimizer):
    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad / parameter.grad.norm(), alpha=group["lr"])


@pytest.mark.parametrize("name", [*NAMES, "nested", "amsgrad"])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (5, 1)])
def test_a_restored_state_goes_on_with_the_same_bits(name: str, before: int, after: int) -> None:
    model = net()
    kinds: dict[str, Any] = {
        "nested": Nested,
        "amsgrad": lambda groups, lr: torch.optim.AdamW(groups, lr=lr, amsgrad=True),
    }
    plan = make_plan(model, kinds.get(name, name))
    ranks = Ranks(plan, model)
    ranks.form(before, is_restored=False)
    ranks.run(range(3), lambda step: 1.0 / (step + 1))
    ranks.save()
    copies = {key: values.clone() for key, values in ranks.state.items()}
    resumed = Ranks(plan, model)
    resumed.flat, resumed.state, resumed.scalars = ranks.flat.clone(), copies, ranks.scalars.clone()
    resumed.form(after, is_restored=True)
    for one in (ranks, resumed):
        one.run(range(3, NUM_STEPS), lambda step: 1.0 / (step + 1))
        one.save()
    assert torch.equal(ranks.flat, resumed.flat)
    assert torch.equal(ranks.scalars, resumed.scalars)
    for key, values in ranks.state.items():
        assert torch.equal(values, resumed.state[key]), key


def test_a_forgotten_number_would_be_found_out() -> None:
    model = net()
    plan = make_plan(model, "adam")
    ranks = Ranks(plan, model)
    ranks.form(1, is_restored=False)
    ranks.run(range(3))
    resumed = Ranks(plan, model)  # the count of steps stays 0
    resumed.flat, resumed.state = ranks.flat.clone(), {key: values.clone() for key, values in ranks.state.items()}
    resumed.form(1, is_restored=True)
    for one in (ranks, resumed):
        one.run(range(3, NUM_STEPS))
    assert not torch.equal(ranks.flat, resumed.flat)


def test_nested_state_has_a_place_for_every_array_and_number() -> None:
    plan = make_plan(net(), Nested)
    assert {array.path for array in plan.arrays} == {("history", 0), ("history", 1, "older")}
    assert {scalar.path for scalar in plan.scalars} == {("count",), ("seen",), ("", "calls")}
    assert all(segment.place is not None for segment in plan.layout.segments)


@pytest.mark.parametrize("name", ["adamw", "muon", "nested"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_unused_parameters_are_left_alone(name: str, world_size: int) -> None:
    model = net()
    plan = make_plan(model, Nested if name == "nested" else name)
    ranks = Ranks(plan, model)
    ranks.left_alone = frozenset({"second.weight", "norm.bias"})
    ranks.form(world_size, is_restored=False)
    ranks.run(range(3))
    found = ranks.values()
    for key, values in found.items():
        assert torch.equal(values, model.get_parameter(key)) is (key in ranks.left_alone), key


def test_the_learning_rate_factor_scales_every_groups_rate() -> None:
    model = net()
    groups: Any = lambda module: [  # noqa: E731
        {"params": [p for p in module.parameters() if p.dim() > 1], "lr": 0.5},
        {"params": [p for p in module.parameters() if p.dim() == 1]},
    ]
    plan = make_plan(model, "sgd", momentum=0.0, groups=groups)
    ranks = Ranks(plan, model)
    ranks.form(2, is_restored=False)
    ranks.run([0], lambda step: 0.5)
    for number, place in enumerate(plan.layout.places):
        before = model.get_parameter(place.spec.name).detach()
        rate = 0.25 if before.dim() > 1 else 0.005
        wanted = before - rate * gradient(before, 0, number)
        assert helpers.relative(ranks.values()[place.spec.name], wanted) < 1e-6


def test_state_that_is_neither_number_nor_tensor_is_refused() -> None:
    class Texts(_NormScaled):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["note"] = "text"

    with pytest.raises(UsageError, match=r"keeps a str \(state/.*note\), which cannot be saved"):
        make_plan(net(), Texts)


def test_an_optimiser_that_fails_says_so() -> None:
    class Failing(_NormScaled):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            raise RuntimeError("no luck")

    with pytest.raises(UsageError, match=r"optimizer Failing failed on its first steps: no luck"):
        make_plan(net(), Failing)


def test_the_probe_leaves_the_default_generator_alone() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(2)
    torch.manual_seed(1)
    make_plan(net(), "muon")
    assert torch.equal(torch.rand(2), wanted)
