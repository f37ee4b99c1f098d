"""What counts as a difference, and what can be told about its cause."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from samestep.data.columns import Dataset, Rows, Samples
from samestep.errors import UsageError
from samestep.measure.verify import Difference, Verdict, compare, find_cause, verify
from samestep.run.config import NumericSettings
from samestep.run.progress import Silent
from samestep.run.workload import Workload


class Noisy(nn.Module):
    def __init__(self, noise: Callable[[], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(1))
        self.noise = noise

    def forward(self, inputs: Tensor) -> Tensor:
        answers: Tensor = self.drop(self.layer(inputs))
        noise = self.noise()
        return answers + noise if isinstance(noise, float) else answers


def workload(noise: Callable[[], object] = lambda: None) -> Workload:
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    part = Samples((Rows(values=inputs),), Rows(values=torch.arange(16) % 2))
    return Workload(name="noisy", model=lambda: Noisy(noise), data=lambda: Dataset(part), loss=nn.CrossEntropyLoss())


def one(name: str) -> dict[int, tuple[Difference, ...]]:
    return {2: (Difference(name, 1, 2, 0.5),)}


def counts() -> Callable[[], float]:
    """State that a module keeps outside of its buffers."""
    counter = itertools.count()
    return lambda: float(next(counter))


class TestCompare:
    def test_equal(self) -> None:
        state = {"w": torch.randn(3, 2), "n": torch.tensor(4), "e": torch.zeros(0)}
        assert compare(state, {name: tensor.clone() for name, tensor in state.items()}) == ()

    @given(st.integers(0, 5), st.integers(0, 31))
    def test_any_bit(self, element: int, bit: int) -> None:
        weights = torch.arange(1.0, 7.0)
        changed = weights.clone()
        changed.view(torch.int32)[element] ^= (1 << bit) - (1 << 32 if bit == 31 else 0)
        (difference,) = compare({"w": weights}, {"w": changed})
        assert (difference.tensor, difference.num_different, difference.num_elements) == ("w", 1, 6)

    def test_bits_and_not_values(self) -> None:
        assert compare({"w": torch.tensor(0.0)}, {"w": torch.tensor(-0.0)}) == (Difference("w", 1, 1, 0.0),)
        nan = torch.tensor([math.nan])
        assert compare({"w": nan}, {"w": nan.clone()}) == ()

    @pytest.mark.parametrize("other", [{}, {"w": torch.zeros(2, 1)}, {"w": torch.zeros(2, dtype=torch.float64)}])
    def test_another_kind(self, other: dict[str, Tensor]) -> None:
        (difference,) = compare({"w": torch.zeros(2)}, other)
        assert (difference.num_different, difference.num_elements) == (2, 2)
        assert math.isnan(difference.largest)

    def test_in_the_order_of_the_model(self) -> None:
        state = {name: torch.zeros(1) for name in "bca"}
        other = {name: torch.ones(1) for name in "abc"}
        assert [difference.tensor for difference in compare(state, other)] == ["b", "c", "a"]


class TestCause:
    @pytest.mark.parametrize(
        ("noise", "expected"),
        [
            (random.random, "Python's random"),
            (lambda: float(np.random.rand()), "numpy.random"),  # noqa: NPY002
            (counts(), "another answer when run again"),
        ],
    )
    def test_is_told(self, noise: Callable[[], float], expected: str) -> None:
        cause = find_cause(workload(noise), one("layer.weight"))
        assert cause is not None
        assert expected in cause

    def test_only_buffers(self) -> None:
        cause = find_cause(workload(), one("seen"))
        assert cause is not None
        assert cause.startswith("only buffers differ")

    def test_unknown_stays_unknown(self) -> None:
        assert find_cause(workload(), one("layer.weight")) is None

    def test_torch_generator_is_given_back(self) -> None:
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        find_cause(workload(), one("layer.weight"))
        assert torch.equal(torch.rand(2), expected)


class TestVerify:
    def verify(self, noise: Callable[[], object], *workers: int) -> Verdict:
        return verify(lambda: workload(noise), NumericSettings(steps=3, global_batch=8), workers, Silent())

    def test_same(self) -> None:
        verdict = self.verify(lambda: None, 1, 1)
        assert verdict.is_same
        assert verdict.first is None
        assert len({trained.sha256 for trained in verdict.trained}) == 1

    def test_different(self) -> None:
        verdict = self.verify(counts(), 1, 1)
        assert not verdict.is_same
        assert verdict.first is not None
        assert verdict.first[1].tensor == "layer.weight"
        assert "another answer" in (verdict.cause or "")

    def test_nothing_to_compare(self) -> None:
        with pytest.raises(UsageError, match="at least one number of workers"):
            self.verify(lambda: None)
