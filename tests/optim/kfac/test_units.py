"""Which parameters share a curvature block, and who inverts what."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from samestep.optim.kfac import units
from samestep.plan.batch import BatchPlan


class Mixed(nn.Module):
    """A layer of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.picture = nn.Conv2d(2, 3, 3)
        self.series = nn.Conv1d(2, 3, 4)
        self.groups = nn.Conv2d(2, 4, 3, groups=2)
        self.norm = nn.LayerNorm(4)
        self.lstm = nn.LSTM(4, 5)
        self.attention = nn.MultiheadAttention(4, 2)
        self.out = nn.Linear(4, 7)
        self.tied = nn.Linear(4, 7, bias=False)
        self.tied.weight = self.table.weight


def test_every_parameter_is_in_one_unit() -> None:
    model = Mixed()
    model.out.bias.requires_grad = False
    found = units.units_of(model)
    names = [name for unit in found for name in (unit.weight, unit.bias) if name is not None]
    assert sorted(names) == sorted(name for name, value in model.named_parameters() if value.requires_grad)
    kinds = {unit.weight: (unit.kind, unit.num_inputs, unit.num_outputs) for unit in found}
    assert kinds["picture.weight"] == ("linear", 2 * 9 + 1, 3)
    assert kinds["series.weight"] == ("linear", 2 * 4 + 1, 3)
    assert kinds["out.weight"] == ("linear", 4, 7)
    assert kinds["table.weight"] == ("matrix", 4, 7)  # used twice
    assert kinds["groups.weight"] == ("matrix", 9, 4)
    assert kinds["lstm.weight_hh_l0"] == ("matrix", 5, 20)
    assert kinds["attention.in_proj_weight"] == ("matrix", 4, 12)
    assert kinds["norm.weight"] == ("diagonal", 4, 1)


def test_a_large_side_is_diagonal() -> None:
    (unit,) = units.units_of(nn.Linear(units.LARGEST_SIDE + 1, 2, bias=False))
    assert unit.kind == "diagonal"


def test_every_inverse_has_one_rank() -> None:
    found = units.units_of(Mixed())
    for world_size in (1, 2, 3, 50):
        jobs = [job for share in units.shares(found, 3, world_size) for job in share]
        assert sorted(jobs) == [(number, damping) for number in range(len(found)) for damping in range(3)]


def test_factors_lie_on_boundaries_of_64_bytes() -> None:
    layout = units.factor_layout(units.units_of(Mixed()))
    assert all(place.start % 16 == 0 for place in layout.places)


def test_a_step_is_tried_on_the_next_batch_that_is_whole() -> None:
    batches = BatchPlan(num_samples=100, global_batch=30, microbatch=10)  # the fourth of an epoch has 10
    found = units.CurvaturePlan(units=(), factors=units.factor_layout(()), trial_rows=20, has_fresh_rows=True)
    assert [found.trial_source(batches, step) for step in range(6)] == [1, 2, 4, 4, 5, 6]
    assert replace(found, trial_rows=10).trial_source(batches, 2) == 3
    assert replace(found, has_fresh_rows=False).trial_source(batches, 2) == 2
