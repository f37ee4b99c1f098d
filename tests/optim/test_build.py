"""Optimisers by name, by class or callable; groups; and what is refused, in one line each."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from samestep.errors import UsageError
from samestep.optim import build, catalog, state
from samestep.run.prepare import Choices
from tests import helpers
from tests.helpers import Mlp, Tied


def is_one_line(error: pytest.ExceptionInfo[UsageError]) -> bool:
    return "\n" not in str(error.value)


# SOAP works in the eigenbasis of a matrix of low rank, where a last bit of a gradient turns the basis of the null
# space: tests/optim/test_owner.py compares it with its class on the same gradients, bit for bit. Without its
# rounds kfac is gradient descent.
@pytest.mark.parametrize("name", sorted({*catalog.names()} - {"soap", "kfac"}))
def test_every_name_trains_as_torch_does(name: str) -> None:
    """Through the engine, on one worker, against torch's class on whole parameters and the same microbatches."""
    options: dict[str, Any] = {"optimizer": name, "lr": 0.01, "momentum": None}
    work = helpers.workload(helpers.double(Mlp), train=helpers.samples(dtype=torch.float64))
    plan = helpers.prepared(work, steps=8, global_batch=32, microbatch=5, **options)
    model = helpers.initial(plan)
    parts = build.parts(model, name, lr=0.01)
    optimizers = [
        part.factory([{**group, "params": [model.get_parameter(n) for n in group["params"]]} for group in part.groups])
        for part in parts
    ]
    for step in range(8):
        helpers.plain_step(model, helpers.microbatches(plan.job, step), helpers.summed_cross_entropy())
        for optimizer in optimizers:
            optimizer.step()
    ran = helpers.run(plan)
    # Muon orthogonalises in bfloat16: a last bit of a gradient may become a last bit of bfloat16.
    tolerance = 1e-2 if name == "muon" else 1e-9
    for key, values in ran.parameters().items():
        assert helpers.relative(values, model.get_parameter(key).detach()) < tolerance, key


@pytest.mark.parametrize(
    ("refused", "reason"), [(torch.optim.LBFGS, "evaluates the loss"), (torch.optim.SparseAdam, "sparse gradients")]
)
def test_what_cannot_be_used_is_refused(refused: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"{refused.__name__} cannot be used: .*{reason}.* take one of") as error:
        helpers.prepared(helpers.workload(Mlp), Choices(optimizer=refused), momentum=None, steps=1)
    assert is_one_line(error)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("adamx", {}, r"did you mean adamax\?"),
        ("lbfgs", {}, r"optimizer 'lbfgs' cannot be used: it evaluates the loss .* take one of adabelief"),
        ("nero", {}, r"optimizer 'nero' cannot be used: its licence"),
        ("prodigy", {}, r"optimizer 'prodigy' cannot be used: it looks at all parameters at once"),
        ("adamw", {"momentum": 0.9}, r"optimizer 'adamw' has no option 'momentum'; it has lr"),
    ],
)
def test_unknown_names_and_options(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as error:
        build.by_name(name, **options)
    assert is_one_line(error)


def test_what_a_class_refuses_becomes_one_line() -> None:
    part = build.parts(Mlp(), "sgd", lr=0.1, momentum=-1.0)[0]
    with pytest.raises(UsageError, match="cannot be built: Invalid momentum") as error:
        build.build(part, [{"params": [nn.Parameter(torch.zeros(1))]}])
    assert is_one_line(error)


def test_a_decay_that_the_optimiser_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="optimizer 'rprop' has no option 'weight_decay'; it has lr"):
        build.parts(Mlp(), "rprop", weight_decay=0.1)


def test_a_callable_that_returns_something_else() -> None:
    with pytest.raises(UsageError, match=r"returned int, not a torch\.optim\.Optimizer"):
        helpers.prepared(helpers.workload(Mlp), Choices(optimizer=lambda groups: 3), momentum=None, steps=1)  # type: ignore[arg-type,return-value]


def test_sgd_has_momentum_unless_told_otherwise() -> None:
    for given, wanted in ((None, 0.9), (0.0, 0.0), (0.5, 0.5)):
        part = build.parts(Mlp(), "sgd", lr=0.1, momentum=given)[0]
        assert build.build(part, [{"params": [nn.Parameter(torch.zeros(1))]}]).defaults["momentum"] == wanted


@pytest.mark.parametrize("kind", ["class", "partial", "callable"])
def test_classes_and_callables_train_like_the_name(kind: str) -> None:
    kinds: dict[str, Any] = {
        "class": torch.optim.RMSprop,
        "partial": partial(torch.optim.RMSprop, alpha=0.99),
        "callable": lambda groups, lr: torch.optim.RMSprop(groups, lr=lr),
    }
    settings: dict[str, Any] = {"lr": 0.01, "momentum": None, "steps": 3, "global_batch": 32, "microbatch": 8}
    work = helpers.workload(Mlp)
    named = helpers.run(helpers.prepared(work, optimizer="rmsprop", **settings))
    given = helpers.run(helpers.prepared(work, Choices(optimizer=kinds[kind]), **settings))
    assert torch.equal(named.image.arrays["parameters"], given.image.arrays["parameters"])


def test_weights_decay_and_biases_do_not() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    part = build.parts(model, "adamw", weight_decay=0.1)[0]
    assert [(group["params"], group["weight_decay"]) for group in part.groups] == [
        (("0.weight",), 0.1),
        (("0.bias", "1.weight", "1.bias"), 0.0),
    ]


@pytest.mark.parametrize(
    ("optimizer", "weight_decay", "wanted"),
    [
        ("adamw", None, {"hidden.weight": 0.01, "hidden.bias": 0.0}),
        ("adamw", 0.0, {"hidden.weight": 0.0, "hidden.bias": 0.0}),
        ("muon", None, {"hidden.weight": 0.1, "hidden.bias": 0.0}),
        ("muon", 0.0, {"hidden.weight": 0.0, "hidden.bias": 0.0}),
        ("muon", 0.2, {"hidden.weight": 0.2, "hidden.bias": 0.0}),
        ("soap", None, {"hidden.weight": 0.0, "hidden.bias": 0.0}),
        (torch.optim.AdamW, None, {"hidden.weight": 0.01, "hidden.bias": 0.01}),
        (torch.optim.AdamW, 0.0, {"hidden.weight": 0.0, "hidden.bias": 0.0}),
        (torch.optim.AdamW, 0.3, {"hidden.weight": 0.3, "hidden.bias": 0.0}),
    ],
)
def test_what_decays_is_what_was_asked_for(optimizer: Any, weight_decay: float | None, wanted: Any) -> None:
    model = Mlp()
    found = {}
    for part in build.parts(model, optimizer, weight_decay=weight_decay):
        built = build.build(
            part, [{**group, "params": [model.get_parameter(n) for n in group["params"]]} for group in part.groups]
        )
        for named, group in zip(part.groups, built.param_groups, strict=True):
            found.update(dict.fromkeys(named["params"], group["weight_decay"]))
    assert {name: found[name] for name in wanted} == wanted


def test_groups_of_the_callers_decay_where_they_do_not_say_themselves() -> None:
    def split(model: Any) -> Any:
        return [
            {"params": [model.hidden.weight, model.hidden.bias], "lr": 0.5},
            {"params": [model.out.weight, model.out.bias], "weight_decay": 0.7},
        ]

    (part,) = build.parts(Mlp(), "adamw", weight_decay=0.1, groups=split)
    assert [dict(group) for group in part.groups] == [
        {"params": ("hidden.weight",), "lr": 0.5, "weight_decay": 0.1},
        {"params": ("hidden.bias",), "lr": 0.5, "weight_decay": 0.0},
        {"params": ("out.weight", "out.bias"), "weight_decay": 0.7},
    ]


def test_decay_in_training_touches_weights_only() -> None:
    work = helpers.workload(Mlp)
    settings: dict[str, Any] = {"lr": 0.1, "steps": 1, "global_batch": 32, "microbatch": 8}
    plan = helpers.prepared(work, **settings)
    before = helpers.initial(plan)
    plain = helpers.run(plan).parameters()
    decayed = helpers.run(helpers.prepared(work, weight_decay=0.5, **settings)).parameters()
    for name, values in plain.items():
        shrunk = values - 0.1 * 0.5 * before.get_parameter(name).detach()
        assert torch.equal(decayed[name], values) is name.endswith("bias")
        if name.endswith("weight"):
            assert helpers.relative(decayed[name], shrunk) < 1e-6


def test_muon_takes_matrices_and_adamw_the_rest() -> None:
    parts = build.parts(Mlp(), "muon", lr=0.02)
    assert [group["params"] for part in parts for group in part.groups] == [
        ("hidden.weight", "out.weight"),
        ("hidden.bias", "out.bias"),
    ]
    plan = state.plan_update(parts, dict(Mlp().named_parameters()))
    whole = {place.spec.name: place.spec.is_whole for place in plan.layout.places}
    assert whole == {"hidden.weight": True, "out.weight": True, "hidden.bias": False, "out.bias": False}


def test_frozen_parameters_are_left_out_and_tied_ones_appear_once() -> None:
    part = build.parts(Tied(), "sgd")[0]
    assert part.groups[0]["params"] == ("first.weight", "second.bias", "out.weight", "out.bias")


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        (lambda model: [{"params": [model.hidden.weight]}], r"hidden\.bias, out\.weight, out\.bias in no parameter"),
        (lambda model: [{"params": [*model.parameters(), model.out.bias]}], r"out\.bias is in two parameter groups"),
        (lambda model: [{"params": [nn.Parameter(torch.zeros(1))]}], "not a trainable parameter of the model"),
    ],
)
def test_groups_must_hold_every_parameter_once(groups: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text) as error:
        build.parts(Mlp(), "sgd", groups=groups)
    assert is_one_line(error)


def test_a_model_without_trainable_parameters() -> None:
    model = nn.Linear(2, 2).requires_grad_(requires_grad=False)
    with pytest.raises(UsageError, match="no trainable parameter"):
        build.parts(model, "sgd")
