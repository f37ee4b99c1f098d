"""What counts as a difference of two states."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from samestep.measure.differences import Difference, compare


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
        assert compare({"w": torch.tensor(0.0)}, {"w": torch.tensor(-0.0)}) == (Difference("w", 1, 1, 0.0, 0.0),)
        nan = torch.tensor([math.nan])
        assert compare({"w": nan}, {"w": nan.clone()}) == ()

    @pytest.mark.parametrize("other", [{}, {"w": torch.zeros(2, 1)}, {"w": torch.zeros(2, dtype=torch.float64)}])
    def test_another_kind(self, other: dict[str, Tensor]) -> None:
        (difference,) = compare({"w": torch.zeros(2)}, other)
        assert (difference.num_different, difference.num_elements) == (2, 2)
        assert math.isnan(difference.largest)
        assert math.isnan(difference.relative)

    def test_in_the_order_of_the_model(self) -> None:
        state = {name: torch.zeros(1) for name in "bca"}
        other = {name: torch.ones(1) for name in "abc"}
        assert [difference.tensor for difference in compare(state, other)] == ["b", "c", "a"]

    def test_relative(self) -> None:
        (difference,) = compare({"n": torch.tensor([-8, 2])}, {"n": torch.tensor([-8, 4])})
        assert (difference.largest, difference.relative) == (2.0, 0.25)
        (difference,) = compare({"w": torch.zeros(2)}, {"w": torch.ones(2)})
        assert difference.relative == math.inf
