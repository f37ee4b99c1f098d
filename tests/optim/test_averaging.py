"""Weight averaging: by hand, around any kind of optimiser, with the same bits on any number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from samestep.errors import UsageError
from samestep.run.train import train
from tests import helpers
from tests.helpers import Everything, Mlp

COMMON: dict[str, Any] = {
    "global_batch": 27, "microbatch": 4, "steps": 9, "workers": 1, "lr": 0.02, "averaging": 0.4, "evaluate_every": 4,
}  # fmt: skip


def test_the_average_is_over_the_last_share_of_the_steps() -> None:
    """By hand, in float64: SGD's weights after every step, and the weights of the average written out."""
    work = helpers.workload(helpers.double(Mlp), train=helpers.samples(dtype=torch.float64))
    settings = {**COMMON, "optimizer": "sgd", "momentum": 0.0}
    plan = helpers.prepared(work, **{**settings, "averaging": None})
    model, loss = helpers.initial(plan), helpers.summed_cross_entropy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    wanted: dict[str, Any] = {}
    for step in range(9):
        helpers.plain_step(model, helpers.microbatches(plan.job, step), loss)
        optimizer.step()
        part = min(1.0, 1 / (0.4 * (step + 1)))
        for name, values in model.named_parameters():
            wanted[name] = (1 - part) * wanted.get(name, 0.0) + part * values.detach().clone()
    found = train(work, **settings).model
    for name, values in found.named_parameters():
        assert torch.allclose(values, wanted[name], rtol=1e-9, atol=1e-12), name
        assert not torch.allclose(values, model.get_parameter(name), rtol=1e-4)


@pytest.mark.parametrize(
    "optimizer", ["muon", *(pytest.param(name, marks=pytest.mark.soak) for name in ("adamw", "soap", "lamb"))]
)
def test_a_resumed_run_has_the_same_bits_with_any_optimiser(optimizer: str, tmp_path: Path) -> None:
    def work() -> Any:
        return helpers.workload(Everything, train=helpers.samples(76), evaluation=helpers.samples(20))

    settings = {**COMMON, "optimizer": optimizer}
    wanted, folder = train(work(), **settings).record, tmp_path / "states"
    train(work(), **{**settings, "steps": 5}, checkpoint=folder)
    found = train(work(), **settings, checkpoint=folder, resume=True).record
    assert (found.first_step, found.weights_sha256) == (5, wanted.weights_sha256)
    assert train(work(), **{**settings, "averaging": None}).record.weights_sha256 != wanted.weights_sha256
    often = train(work(), **{**settings, "evaluate_every": 1}).record
    assert often.weights_sha256 == wanted.weights_sha256, "looking changes nothing"


@pytest.mark.processes
@pytest.mark.parametrize("workers", [3, pytest.param(2, marks=pytest.mark.soak)])
@pytest.mark.soak
def test_the_same_bits_on_any_number_of_workers(workers: int) -> None:
    def summary(workers: int) -> Any:
        work = helpers.workload(Everything, train=helpers.samples(76), evaluation=helpers.samples(20))
        record = train(work, **{**COMMON, "optimizer": "muon", "workers": workers}).record
        return record.weights_sha256, [each.means for each in record.evaluations]

    assert summary(workers) == summary(1)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"averaging": 0.0}, "averaging=0 is a share"),
        ({"averaging": 1.5}, "averaging=1.5 is a share"),
        ({"optimizer": "schedulefreesgd"}, "ScheduleFreeSGD averages by itself"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as error:
        train(helpers.workload(), **{**COMMON, **settings})
    assert "\n" not in str(error.value)
