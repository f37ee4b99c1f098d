"""What a module draws depends on (seed, step, round, microbatch, module path, call), and on nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from samestep.engine import randomness
from samestep.engine.randomness import KeyedRandomness, may_draw


class Two(nn.Module):
    """Two dropouts, of which the first is called twice; and a draw of the module's own, after them."""

    def __init__(self, noise: nn.Module | None = None) -> None:
        super().__init__()
        self.noise = noise or nn.Identity()
        self.first = nn.Dropout(0.5)
        self.second = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.noise(x)
        return self.first(x), self.first(x), self.second(x), nn.functional.dropout(x, 0.5)


class Noisy(nn.Module):
    """Draws as much as it likes before the others do."""

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(1000)
        return x


ONES = torch.ones(400)


def masks(
    key: tuple[int, int, int] = (0, 0, 0),
    *,
    seed: int = 1,
    model: Two | None = None,
    before: Callable[[KeyedRandomness], object] = lambda keyed: None,
) -> list[Tensor]:
    model = model or Two()
    with randomness.preserved():
        keyed = KeyedRandomness(model, seed)
        before(keyed)
        keyed.begin(*key)
        found = [values.clone() for values in model(ONES)]
        keyed.close()
    return found


def same(first: list[Tensor], second: list[Tensor]) -> list[bool]:
    return [torch.equal(a, b) for a, b in zip(first, second, strict=True)]


def test_the_same_key_draws_the_same_masks() -> None:
    assert same(masks(), masks()) == [True] * 4


def test_what_ran_before_does_not_matter() -> None:
    model = Two()

    def other_microbatches(keyed: KeyedRandomness) -> None:
        torch.manual_seed(99)
        for microbatch in range(3):
            keyed.begin(5, 0, microbatch)
            model(ONES)

    assert same(masks(), masks(model=model, before=other_microbatches)) == [True] * 4


def test_what_draws_beside_does_not_matter() -> None:
    assert same(masks(), masks(model=Two(Noisy())))[:3] == [True] * 3


@pytest.mark.parametrize("key", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_step_round_and_microbatch_matter(key: tuple[int, int, int]) -> None:
    assert same(masks(), masks(key)) == [False] * 4


def test_the_seed_matters() -> None:
    assert same(masks(), masks(seed=2)) == [False] * 4


def test_path_and_call_matter() -> None:
    found = masks()
    assert len({tuple(values.tolist()) for values in found}) == 4


def test_without_keys_what_draws_beside_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(randomness, "may_draw", lambda module: False)
    assert same(masks(), masks(model=Two(Noisy()))) == [False] * 4


def test_stages_draw_the_same_masks() -> None:
    """A part of the model alone, on another worker, under the same paths."""
    whole = nn.ModuleDict({"a": nn.Dropout(0.5), "b": nn.Dropout(0.5)})
    part = nn.ModuleDict({"b": nn.Dropout(0.5)})
    found = []
    for model, names in ((whole, "ab"), (part, "b")):
        with randomness.preserved():
            keyed = KeyedRandomness(model, 7)
            keyed.begin(3, 0, 2)
            found.append([model[name](ONES) for name in names][-1])
            keyed.close()
    assert torch.equal(*found)


def test_initialisation_is_keyed_by_the_seed() -> None:
    def drawn(seed: int) -> list[float]:
        with randomness.preserved():
            randomness.seed_initialisation(seed)
            return torch.rand(3).tolist()

    assert drawn(1) == drawn(1) != drawn(2)


def test_the_generator_is_given_back() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    masks()
    assert torch.equal(torch.rand(1), wanted)


def test_closing_takes_every_hook_off() -> None:
    model = Two()
    keyed = KeyedRandomness(model, 0)
    assert any(module._forward_pre_hooks for module in model.modules())
    keyed.close()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


class Own(nn.Dropout):
    """A class that we do not know."""


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        (nn.Dropout(0.1), True), (nn.Dropout(0.0), False), (nn.Dropout2d(0.1), True), (nn.AlphaDropout(0.1), True),
        (nn.LSTM(2, 2, 2, dropout=0.1), True), (nn.LSTM(2, 2), False), (nn.MultiheadAttention(4, 2, 0.1), True),
        (nn.MultiheadAttention(4, 2), False), (nn.RReLU(), True), (nn.FractionalMaxPool2d(2, output_size=1), True),
        (nn.Linear(2, 2), False), (nn.Sequential(), False), (Two(), True), (Own(0.0), True),
    ],
)  # fmt: skip
def test_who_may_draw(module: nn.Module, wanted: bool) -> None:
    assert may_draw(module) is wanted


@pytest.mark.parametrize(
    "module",
    [nn.LSTM(4, 4, 2, dropout=0.5), nn.MultiheadAttention(4, 2, 0.5), nn.RReLU(), nn.AlphaDropout(0.5),
     nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5)],
)  # fmt: skip
def test_torchs_drawing_modules_are_keyed(module: nn.Module) -> None:
    x = -torch.ones(3, 5, 4)

    def answer(microbatch: int, salt: int) -> Tensor:
        with randomness.preserved():
            keyed = KeyedRandomness(nn.ModuleList([Noisy(), module]), 0)
            keyed.begin(0, 0, microbatch)
            torch.rand(salt)
            output = module(x, x, x) if isinstance(module, nn.MultiheadAttention) else module(x)
            keyed.close()
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found

    assert torch.equal(answer(0, 1), answer(0, 7))
    assert not torch.equal(answer(0, 1), answer(1, 1))
