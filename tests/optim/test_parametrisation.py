"""Maximal-update parametrisation: the paper's table, and that activations move as much at any width and depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.errors import UsageError
from samestep.optim import build, catalog, parametrisation
from samestep.optim.parametrisation import Law, Parametrisation, Scale
from tests.helpers import generator

N = 8.0
"""Width over the base width."""


class Net(nn.Module):
    """An input, a hidden and an output layer, with biases and a norm."""

    def __init__(self, width: int, *, depth: int = 1) -> None:
        super().__init__()
        self.first = nn.Linear(12, width)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth)])
        self.last = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(self.hidden(self.norm(self.first(x)).relu()))
        return answer


class Branch(nn.Module):
    """``x + w2 relu(w1 x)``."""

    branch_ends = ("inner.2",)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = x + self.inner(x)
        return summed


def residual(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, width), *[Branch(width) for _ in range(depth)], nn.Linear(width, 5))


def drawn(build_net: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    return build_net()


def scaled(
    build_net: Callable[..., nn.Module], width: int, base: int, *, optimizer: str = "sgd", depth_ratio: float = 1.0
) -> tuple[nn.Module, Parametrisation]:
    model, other = drawn(lambda: build_net(width)), drawn(lambda: build_net(base))
    return model, parametrisation.apply(model, other, optimizer=optimizer, depth_ratio=depth_ratio)


# The paper's table.


@pytest.mark.parametrize(
    ("scale", "initial", "sgd", "adam"),
    [
        (Scale(role="input", fan_out=N), 1.0, N, 1.0),
        (Scale(role="hidden", fan_in=N, fan_out=N), 1 / math.sqrt(N), 1.0, 1 / N),
        (Scale(role="output", fan_in=N), 1 / N, 1 / N, 1 / N),
        (Scale(role="fixed"), 1.0, 1.0, 1.0),
        (Scale(role="hidden", fan_in=N, fan_out=N, place="inside", depth=4.0), 1 / math.sqrt(N), 1.0, 1 / (2 * N)),
        (Scale(role="hidden", fan_in=N, fan_out=N, place="end", depth=4.0), 0.5 / math.sqrt(N), 0.25, 0.25 / N),
        (Scale(role="hidden", fan_in=N, fan_out=N, depth=4.0), 1 / math.sqrt(N), 1.0, 1 / N),
    ],
)
def test_the_table_of_the_paper(scale: Scale, initial: float, sgd: float, adam: float) -> None:
    """Table 3 of Yang et al. 2021 (variances there, deviations here); of 2023 the branches."""
    assert (scale.spread, scale.rate("sgd"), scale.rate("adam")) == pytest.approx((initial, sgd, adam))


@pytest.mark.parametrize("law", ["sgd", "adam"])
def test_a_branch_scaled_by_its_weights_is_a_branch_with_a_multiplier(law: Law) -> None:
    """f = c w x with rate r is f = w' x with w' = c w and rate c² r (SGD) or c r (Adam), for 1 / √L = c."""
    depth = 4.0
    c = 1 / math.sqrt(depth)
    inside = Scale(role="hidden", place="inside", depth=depth).rate(law)
    end = Scale(role="hidden", place="end", depth=depth)
    assert end.spread == pytest.approx(c)
    assert end.rate(law) == pytest.approx(inside * (c * c if law == "sgd" else c))


def test_roles_come_from_shapes() -> None:
    _, found = scaled(Net, 512, 64)
    roles = {name: (scale.role, scale.fan_in, scale.fan_out) for name, scale in found.scales.items()}
    assert roles == {
        "first.weight": ("input", 1.0, N), "first.bias": ("input", 1.0, N),
        "norm.weight": ("input", 1.0, N), "norm.bias": ("input", 1.0, N),
        "hidden.0.0.weight": ("hidden", N, N), "hidden.0.0.bias": ("input", 1.0, N),
        "last.weight": ("output", N, 1.0), "last.bias": ("fixed", 1.0, 1.0),
    }  # fmt: skip


class Everything(nn.Module):
    """Layers whose weights have their sides in other orders."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(7, width)
        self.place = nn.Parameter(torch.randn(4, width))
        self.lstm = nn.LSTM(width, width)
        self.up = nn.ConvTranspose2d(3, width, 2)
        self.down = nn.ConvTranspose2d(width, 3, 2)
        self.deep = nn.Conv2d(width, width, 3, groups=width)
        self.own = nn.Parameter(torch.randn(width, width))


def test_roles_of_other_layers() -> None:
    _, found = scaled(Everything, 32, 16)
    roles = {name: scale.role for name, scale in found.scales.items()}
    assert roles["table.weight"] == roles["place"] == roles["up.weight"] == roles["deep.weight"] == "input"
    assert roles["lstm.weight_ih_l0"] == roles["lstm.weight_hh_l0"] == roles["own"] == "hidden"
    assert roles["down.weight"] == "output"
    assert roles["down.bias"] == "fixed"


# Initial values.


def test_initial_values_have_the_spread_of_the_table() -> None:
    model, found = scaled(Net, 512, 64)
    base = dict(drawn(lambda: Net(64)).named_parameters())
    for name, parameter in model.named_parameters():
        wanted = rms(base[name]) * found.scales[name].spread
        assert rms(parameter) == pytest.approx(wanted, rel=1e-5), name
    assert rms(model.get_parameter("norm.weight")) == 1.0
    assert rms(model.get_parameter("norm.bias")) == 0.0
    # torch draws with the deviation 1 / √(3 fan_in): what is left to do is known.
    assert found.scales["hidden.0.0.weight"].initial == pytest.approx(1.0, rel=0.05)
    assert found.scales["last.weight"].initial == pytest.approx(1 / math.sqrt(N), rel=0.1)


def test_at_the_base_width_nothing_changes() -> None:
    model, found = scaled(Net, 64, 64, optimizer="adam")
    for (name, parameter), wanted in zip(model.named_parameters(), drawn(lambda: Net(64)).parameters(), strict=True):
        assert torch.equal(parameter, wanted)
        assert found.rate(name, parameter) == found.scales[name].initial == 1.0


def rms(values: Tensor) -> float:
    return float(values.detach().double().square().mean().sqrt())


# What the optimisers get.


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adam"])
def test_groups_have_the_rates_and_keep_the_decay(optimizer: str) -> None:
    model, found = scaled(Net, 512, 64, optimizer=optimizer)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = list(found.groups(lr=0.1, weight_decay=0.01)(model))
    assert sorted(named[id(p)] for group in groups for p in group["params"]) == sorted(found.scales)
    for group in groups:
        for parameter in group["params"]:
            factor = found.rate(named[id(parameter)], parameter)
            assert group["lr"] == pytest.approx(0.1 * factor)
            decay = 0.01 if parameter.dim() >= 2 else 0.0
            is_by_rate = catalog.entry(optimizer).decays_by_rate
            assert group["weight_decay"] == pytest.approx(decay / factor if is_by_rate else decay)


def test_a_class_decays_as_it_does_by_itself_where_nobody_says_how() -> None:
    model, found = scaled(Net, 512, 64, optimizer="adamw")
    parts = build.parts(model, "adamw", lr=None, groups=found.groups(lr=None, weight_decay=None))
    for group in parts[0].groups:
        has_weights = any(model.get_parameter(name).dim() >= 2 for name in group["params"])
        assert group["lr"] * group["weight_decay"] == pytest.approx(1e-3 * 0.01 if has_weights else 0.0)


def test_no_decay_is_no_decay() -> None:
    model, found = scaled(Net, 512, 64, optimizer="adamw")
    parts = build.parts(model, "adamw", lr=None, groups=found.groups(lr=None, weight_decay=0.0))
    assert [group["weight_decay"] for group in parts[0].groups] == [0.0] * len(parts[0].groups)


def test_muon_follows_the_spectral_norm() -> None:
    """An update of Muon has the norm √max(1, out / in), and √(out / in) over its base's is wanted."""
    model, found = scaled(Net, 512, 4, optimizer="muon")
    base = drawn(lambda: Net(4))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            taken, wanted = (
                math.sqrt(max(1, p.shape[0] / p.shape[1])) * factor / math.sqrt(p.shape[0] / p.shape[1])
                for p, factor in ((parameter, found.rate(name, parameter)), (base.get_parameter(name), 1.0))
            )
            assert taken == pytest.approx(wanted), name
    assert found.rate("first.bias", model.get_parameter("first.bias")) == 1.0  # AdamW's


# The coordinate check.


def moves(model: nn.Module, parts: tuple[build.Part, ...]) -> dict[str, float]:
    """How far the coordinates of every layer's output have moved after a few steps, root mean square."""
    named = dict(model.named_parameters())
    optimizers = [
        build.build(part, [{**g, "params": [named[name] for name in g["params"]]} for g in part.groups])
        for part in parts
    ]
    inputs = torch.randn(64, 12, generator=generator(1))
    target = torch.randint(5, (64,), generator=generator(2))
    before = outputs(model, inputs)
    for _ in range(4):
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()
    return {name: rms(after - before[name]) for name, after in outputs(model, inputs).items()}


def outputs(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, out, name=name: found.__setitem__(name, out.detach().clone()))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Branch)
    ]
    model(inputs)
    for hook in hooks:
        hook.remove()
    return found


def parts_of(model: nn.Module, optimizer: str, lr: float, found: Parametrisation | None) -> tuple[build.Part, ...]:
    groups = None if found is None else found.groups(lr=lr, weight_decay=0.0)
    return build.parts(model, optimizer, lr=lr, groups=groups)


@pytest.mark.parametrize(("optimizer", "lr", "widest"), [("sgd", 0.1, 1024), ("adam", 0.01, 1024), ("muon", 0.02, 256)])
def test_coordinates_move_as_much_at_any_width(optimizer: str, lr: float, widest: int) -> None:
    """The slope of their size over the width, both as logarithms, for every layer."""

    def slopes(*, is_scaled: bool) -> dict[str, float]:
        sizes: dict[int, dict[str, float]] = {}
        for width in (64, widest):
            model, found = scaled(Net, width, 64, optimizer=optimizer)
            if not is_scaled:
                model = drawn(partial(Net, width))
            sizes[width] = moves(model, parts_of(model, optimizer, lr, found if is_scaled else None))
        return {name: math.log(sizes[widest][name] / sizes[64][name]) / math.log(widest / 64) for name in sizes[64]}

    steady, standard = slopes(is_scaled=True), slopes(is_scaled=False)
    assert max(abs(each) for each in steady.values()) < 0.25, steady
    # The answers run away: the test can fail. Muon's only follow the square root of the width.
    assert standard["last"] > steady["last"] + (0.2 if optimizer == "muon" else 0.4), (standard, steady)


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.05), ("adam", 0.003)])
def test_coordinates_move_as_much_at_any_depth(optimizer: str, lr: float) -> None:
    def moved(depth: int, depth_ratio: float) -> float:
        model = drawn(lambda: residual(32, depth))
        base = drawn(lambda: residual(32, depth))
        found = parametrisation.apply(model, base, optimizer=optimizer, depth_ratio=depth_ratio)
        return moves(model, parts_of(model, optimizer, lr, found))[str(depth)]

    base, deep, standard = moved(3, 1.0), moved(48, 16.0), moved(48, 1.0)
    assert 0.4 < deep / base < 2.5
    assert standard / base > 4  # it runs away


# What is refused.


class Shared(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(7, width)
        self.last = nn.Linear(width, 7)
        self.last.weight = self.table.weight


def test_what_is_refused() -> None:
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: scaled(Shared, 16, 8), "table.weight is shared by an embedding and another layer"),
        (lambda: scaled(Net, 16, 8, optimizer="shampoo"), "how the learning rate of 'shampoo' follows the width"),
        (lambda: scaled(Net, 16, 8, depth_ratio=2.0), "Net has no residual branches"),
        (lambda: scaled(Net, 16, 8, depth_ratio=0.0), "depth_ratio=0 is not"),
        (
            lambda: scaled(
                lambda width: nn.Sequential(*[nn.Linear(8, 8)] * 1, *[nn.Linear(8, 8)] * (width // 16)), 16, 8
            ),
            "the base network has no parameter 1.weight",
        ),
        (lambda: scaled(lambda width: nn.Conv2d(3, 3, width), 3, 5), "only outputs and inputs may grow"),
        (lambda: scaled(lambda width: nn.MultiheadAttention(width, 4), 16, 8), "num_heads=8"),
    ]
    for act, text in cases:
        with pytest.raises(UsageError) as error:
            act()
        assert text in str(error.value)
        assert "\n" not in str(error.value)


def test_every_named_optimiser_has_a_law_or_is_refused() -> None:
    known = {name for names in parametrisation._LAWS.values() for name in names}
    assert known <= set(catalog.names())
    for name in set(catalog.names()) - known:
        with pytest.raises(UsageError, match="is not known; take one of"):
            parametrisation.law_of(name)
