"""The bound of what rounding explains, and the same training in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from samestep.data.columns import Column, Dataset, Rows, Samples, Scale, Windows
from samestep.measure.against import rounding
from samestep.measure.against.habits import Habits
from samestep.measure.against.peer import InProcess, task_of
from samestep.measure.against.rounding import FLOAT32, FLOAT64, Gap, bound, gap, in_float64
from samestep.run.config import Settings
from samestep.run.workload import Workload
from tests import helpers

NORMS = st.floats(1e-6, 1e6)
NO_BUFFERS = frozenset[str]()


def state(*values: float, **more: Tensor) -> dict[str, Tensor]:
    return {"w": torch.tensor(values), **more}


class TestBound:
    @given(NORMS, NORMS, st.integers(1, 10_000))
    def test_grows_with_the_root_of_the_steps_and_with_the_dtype(self, update: float, weights: float, k: int) -> None:
        one = bound(FLOAT32, steps=k, update_norm=update, weights_norm=weights)
        assert bound(FLOAT32, steps=4 * k, update_norm=update, weights_norm=weights) == pytest.approx(2 * one)
        wide = bound(FLOAT64, steps=k, update_norm=update, weights_norm=weights)
        assert one / wide == pytest.approx(2**29)

    def test_small_steps_round_with_their_weights(self) -> None:
        """A step of half a spacing of the weights is lost altogether, and the bound says so."""
        spacing = 2**-23
        assert bound(FLOAT32, steps=1, update_norm=spacing / 2, weights_norm=1.0) > 1

    def test_nothing_trained(self) -> None:
        start = state(1.0, 2.0)
        for other, is_rounding in ((start, True), (state(1.0, 2.1), False), (state(1.0, 2.0 + 2e-7), True)):
            found = gap(start, start, other, buffers=NO_BUFFERS, arithmetic=FLOAT32, steps=4)
            assert found.is_rounding is is_rounding


class TestGap:
    @given(st.lists(st.floats(-10, 10), min_size=3, max_size=3), st.floats(0, 1))
    def test_relative_to_the_update(self, update: list[float], share: float) -> None:
        start = {"w": torch.tensor([3.0, -1.0, 5.0], dtype=torch.float64)}
        moved = torch.tensor(update, dtype=torch.float64)
        end, other = {"w": start["w"] + moved}, {"w": start["w"] + moved * (1 + share)}
        found = gap(start, end, other, buffers=NO_BUFFERS, arithmetic=FLOAT64, steps=1)
        if float(moved.norm()) > 1e-3 and share > 1e-3:
            assert found.relative == pytest.approx(share, rel=1e-6)

    def test_buffers_have_a_norm_of_their_own(self) -> None:
        """A wrong buffer is not hidden by large weights, nor a wrong weight by large buffers."""
        for wrong in ("w", "b"):
            start = {"w": torch.zeros(2), "b": torch.zeros(2)}
            end = {"w": torch.full((2,), 1.0), "b": torch.full((2,), 1.0)}
            end["b" if wrong == "w" else "w"] *= 1e6
            other = {name: values.clone() for name, values in end.items()}
            other[wrong] *= 1.1
            found = gap(start, end, other, buffers=frozenset("b"), arithmetic=FLOAT32, steps=1)
            assert found.relative == pytest.approx(0.1, rel=1e-5)
            assert not found.is_rounding

    def test_counters_count(self) -> None:
        start, end = (state(1.0, n=torch.tensor(count)) for count in (0, 20))
        other = state(1.0, n=torch.tensor(160))
        assert not gap(start, end, other, buffers=frozenset("n"), arithmetic=FLOAT32, steps=20).is_rounding

    @pytest.mark.parametrize("wrong", [math.nan, math.inf])
    def test_what_is_not_finite_is_not_rounding(self, wrong: float) -> None:
        found = gap(state(0.0), state(1.0), state(wrong), buffers=NO_BUFFERS, arithmetic=FLOAT32, steps=1)
        assert not found.is_rounding
        assert not found.is_grown_rounding

    def test_grown(self) -> None:
        assert Gap(1e-7, 1e-12).is_grown_rounding
        assert not Gap(1e-7, 1e-12).is_rounding
        assert not Gap(1e-5, 1e-12).is_grown_rounding


class OfOurs:
    """A column of a class that only its writer knows."""

    num_samples = 8

    def gather(self, indices: Tensor) -> Tensor:
        return indices[:, None].float()


class TestInFloat64:
    @pytest.mark.parametrize(
        "column",
        [
            Rows(values=torch.arange(24, dtype=torch.uint8).view(8, 3), transform=Scale(factor=1 / 255)),
            Rows(values=torch.ones(8, 3)),
            Windows(values=torch.ones(40), length=3, stride=3, offset=1, num_samples=8),
            OfOurs(),
        ],
    )
    def test_columns(self, column: Column) -> None:
        target = Rows(values=torch.arange(8) % 2)
        workload = Workload(
            name="wide", model=lambda: nn.Linear(3, 2), data=lambda: Dataset(Samples((column,), target)),
            loss=nn.CrossEntropyLoss(weight=torch.ones(2)),
        )  # fmt: skip
        wide = in_float64(workload)
        samples, indices = wide.data().train, torch.arange(3)
        assert samples.inputs[0].gather(indices).dtype == torch.float64
        assert torch.equal(samples.inputs[0].gather(indices).float(), column.gather(indices))
        assert samples.target.gather(indices).dtype == torch.int64
        loss: Any = wide.loss
        assert loss.weight.dtype == torch.float64
        assert loss is not workload.loss

    def test_same_initial_weights(self) -> None:
        settings = Settings(steps=1, workers=1)
        narrow = task_of(helpers.workload(helpers.Everything), settings)
        wide = task_of(in_float64(helpers.workload(helpers.Everything)), settings)
        assert wide.arithmetic is FLOAT64
        assert narrow.start.keys() == wide.start.keys()
        for name, values in narrow.start.items():
            assert torch.equal(values, wide.start[name].to(values.dtype)), name

    @pytest.mark.parametrize(
        ("dropout", "habits", "is_rounding"),
        [(0.0, Habits(parts="share", statistics="forwarded"), True), (0.5, Habits(draws="stream"), False)],
    )
    def test_rounding_shrinks_and_nothing_else_does(self, dropout: float, habits: Habits, is_rounding: bool) -> None:
        """Another order of the same sums, and other masks."""
        found = []
        for is_wide in (False, True):
            workload = helpers.workload(lambda: helpers.Mlp(dropout))
            task = task_of(in_float64(workload) if is_wide else workload, Settings(steps=5, global_batch=16, workers=1))
            own = InProcess().train(task, Habits())
            found.append(task.gap(own, InProcess().train(task, habits)))
        narrow, wide = found
        assert wide.is_grown_rounding is is_rounding
        if is_rounding:
            assert 0 < wide.relative < narrow.relative * 1e-6 < 1e-11
        else:
            assert wide.relative == pytest.approx(narrow.relative, rel=1e-2)


def test_arithmetic_follows_dtype_and_autocast() -> None:
    for precision, expected in (("fp32", rounding.FLOAT32), ("bf16", rounding.BFLOAT16)):
        settings = Settings(steps=1, workers=1, precision=precision)  # type: ignore[arg-type]
        assert task_of(helpers.workload(), settings).arithmetic is expected
