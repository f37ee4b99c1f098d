from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samestep.engine import eight_bits
from samestep.plan.layout import BLOCK
from tests import helpers

NUM = 4 * BLOCK


def coded(values: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    codes, scales = torch.zeros(len(values), dtype=torch.uint8), torch.zeros(len(values) // BLOCK, dtype=values.dtype)
    eight_bits.encode(values, codes, scales, factor)
    return codes, scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_value_is_off_by_more_than_half_of_what_a_number_is_worth(dtype: torch.dtype) -> None:
    values = torch.randn(NUM, generator=helpers.generator(), dtype=dtype)
    values[:BLOCK] *= 1e-6  # every block has a scale of its own
    found = eight_bits.decode(*coded(values, 0.25))
    assert found.dtype == dtype
    for block, wanted in zip(found.view(-1, BLOCK), 0.25 * values.view(-1, BLOCK), strict=True):
        worth = wanted.abs().max() / 127
        assert float((block - wanted).abs().max()) <= 0.5001 * float(worth)
        at = wanted.abs().argmax()
        assert float(block[at]) == pytest.approx(float(wanted[at]), rel=1e-6), "the largest one is kept"


def test_a_part_has_the_bits_that_it_has_in_the_whole() -> None:
    values = torch.randn(NUM, generator=helpers.generator())
    codes, scales = coded(values)
    part_codes, part_scales = coded(values[BLOCK : 3 * BLOCK].clone())
    assert torch.equal(part_codes, codes[BLOCK : 3 * BLOCK])
    assert torch.equal(part_scales, scales[1:3])
    whole = eight_bits.decode(codes, scales)
    assert torch.equal(eight_bits.decode(codes[BLOCK:], scales[1:]), whole[BLOCK:])


def test_zeros_and_what_is_hardly_more_stay_finite() -> None:
    values = torch.zeros(NUM)
    values[BLOCK] = 1e-45
    found = eight_bits.decode(*coded(values))
    assert torch.equal(found[:BLOCK], torch.zeros(BLOCK))
    assert float(found.abs().max()) <= 1e-43


def test_what_is_not_finite_stays_so() -> None:
    values = torch.ones(NUM)
    values[3] = torch.inf
    values[BLOCK + 3] = torch.nan
    found = eight_bits.decode(*coded(values)).view(-1, BLOCK)
    assert [bool(torch.isfinite(block).all()) for block in found] == [False, False, True, True]
