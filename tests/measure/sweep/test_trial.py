"""A run of a sweep: a real training, told by its parts; what goes wrong in it is said and goes no further."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.data.columns import Dataset, Rows, Samples
from samestep.engine.losses import TokenLoss
from samestep.errors import UsageError
from samestep.measure.sweep import parts, study, trial
from samestep.measure.sweep.halving import Outcome, Run
from samestep.measure.sweep.pool import Pool
from samestep.measure.sweep.space import Decay, Point
from samestep.measure.sweep.target import parse_goal
from samestep.measure.sweep.trial import Finished, Subject, Trial, from_dict, perform
from samestep.run.config import NumericSettings
from samestep.run.train import train
from samestep.run.workload import Workload
from samestep.workloads import catalog
from tests.marks import soak

DIGITS = partial(catalog.build, "digits-mlp", width=16, depth=1)
POINT = Point(lr=0.1, weight_decay=1e-6, momentum=0.9, label_smoothing=0.0, decay=Decay(until=1.0, to=1.0))


def subject(goal: str = "error<=0.2", build: Any = DIGITS) -> Subject:
    return Subject(build=build, settings=NumericSettings(), goal=parse_goal(goal), rows=None)


def told(stage: Any = "choose", *, steps: int = 60, seed: int = 0, **point: Any) -> Trial:
    run = Run(stage=stage, trial=0, steps=steps, seed=seed)
    return Trial(optimizer="sgd", batch=128, run=run, point=replace(POINT, **point))


def perform_on_digits(what: Trial, goal: str = "error<=0.2") -> Finished:
    workload = DIGITS()
    return perform(workload, parts.split(workload.data(), workload.name), subject(goal), what)


def test_a_run_ends_where_it_reaches_the_target() -> None:
    found = perform_on_digits(told())
    assert found.outcome.failure is None
    step = found.outcome.reached_step
    assert step is not None and step < 60 and step % 3 == 0, "read every twentieth of the budget"
    assert found.num_steps == step
    assert found.evaluations[-1] == (step, found.outcome.best)
    assert found.outcome.best is not None and found.outcome.best <= 0.2
    assert all(value > 0.2 for _, value in found.evaluations[:-1])
    assert found.num_samples == sum([*[128] * 10, 68][i % 11] for i in range(step)), "short last batches count as such"
    assert found.step_s is not None and 0 < found.step_s < found.wall_s
    assert from_dict(found.as_dict()) == found


def test_the_run_is_that_of_samestep_train() -> None:
    """The same numbers as from the public function, given the same parts."""
    workload = DIGITS()
    divided = parts.split(workload.data(), workload.name)
    plain = replace(workload, data=lambda: divided.dataset(is_reported=False), recipe={})
    record = train(
        plain, workers=1, global_batch=128, steps=20, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-6,
        evaluate_every=1, seed=0,
    ).record  # fmt: skip
    found = perform_on_digits(told(steps=20), "accuracy>=0.999")
    assert [value for _, value in found.evaluations] == [each.means["accuracy"] for each in record.evaluations]


def test_the_reported_part_is_another_one() -> None:
    first, second = (perform_on_digits(told(stage, steps=20), "loss<=0.0001") for stage in ("choose", "report"))
    assert first.evaluations != second.evaluations
    assert perform_on_digits(told("confirm", steps=20), "loss<=0.0001").evaluations == first.evaluations


def test_settings_and_seed_matter() -> None:
    found = [
        perform_on_digits(told(steps=20, **changed), "loss<=0.0001").evaluations
        for changed in ({}, {"seed": 1}, {"decay": Decay(until=0.5, to=0.01)}, {"weight_decay": 0.1})
    ]
    assert len(set(found)) == len(found)


def test_all_rounds_of_kfac_count() -> None:
    asked = replace(told(steps=3, lr=1.0, momentum=None, weight_decay=None), optimizer="kfac")
    found = perform_on_digits(asked, "accuracy>=0.999")
    assert found.outcome.failure is None
    assert 4 <= found.rounds_per_step <= 8  # gradient, factors, products, candidates once or more
    assert found.num_samples == pytest.approx(3 * 128 * found.rounds_per_step)  # all of them read whole batches


def test_kfac_is_not_tuned_and_gets_as_many_seeds() -> None:
    wishes = study.Wishes(
        batches=(256,), optimizers=("kfac", "sgd"), goal="error<=0.2", trials=4, seeds=3, first_steps=8, most_steps=8
    )
    planned = study.plan(DIGITS, NumericSettings(), wishes).study
    first = {cell[0]: move.runs for cell, move in study.moves(planned, {}).items()}
    assert {name: len(runs) for name, runs in first.items()} == {"kfac": 1, "sgd": 4}
    found = {(("kfac", 256), run): Outcome(reached_step=5, best=0.1) for run in first["kfac"]}
    assert len(study.moves(planned, found)["kfac", 256].runs) == 3


def test_a_diverging_run_is_said() -> None:
    found = perform_on_digits(told(lr=1e30))
    assert found.outcome.reached_step is None and found.outcome.best is None
    assert found.outcome.failure is not None and found.outcome.failure.startswith("diverged: ")


def test_what_the_workload_raises_is_said() -> None:
    workload = replace(DIGITS(), model=lambda: nn.Linear(3, 3))
    found = perform(workload, parts.split(workload.data(), "x"), subject(), told())
    assert found.outcome.failure is not None
    assert "RuntimeError: " in found.outcome.failure


def test_label_smoothing_goes_into_the_loss() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.ones(3), ignore_index=7)
    found = trial.smoothed(loss, 0.1)
    assert (found.label_smoothing, found.ignore_index) == (0.1, 7)
    assert found.weight is loss.weight
    tokens = trial.smoothed(TokenLoss(), 0.1)
    assert (type(tokens), tokens.label_smoothing) == (TokenLoss, 0.1)
    assert trial.smoothed(nn.MSELoss(), 0.0).reduction == "mean"
    with pytest.raises(UsageError, match=r"label smoothing goes with nn\.CrossEntropyLoss, and the loss is MSELoss"):
        trial.smoothed(nn.MSELoss(), 0.1)


# ---------------------------------------------------------------- processes


class Fatal(nn.Module):
    """Ends its process in the forward pass; a file counts how often."""

    def __init__(self, counter: Path, times: int) -> None:
        super().__init__()
        self.layer, self.counter, self.times = nn.Linear(2, 2), counter, times

    def forward(self, inputs: Tensor) -> Tensor:
        with open(self.counter, "a+b") as file:
            if file.tell() < self.times:
                file.write(b".")
                file.flush()
                os._exit(3)
        answers: Tensor = self.layer(inputs)
        return answers


def fatal(counter: Path, times: int) -> Workload:
    values = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
    part = Samples((Rows(values=values),), Rows(values=(values[:, 0] > 0).long()))
    return Workload(
        name="fatal", model=lambda: Fatal(counter, times), data=lambda: Dataset(part, part), loss=nn.CrossEntropyLoss()
    )


@pytest.mark.processes
@pytest.mark.parametrize(("times", "failure"), [(1, None), soak(9, "its process ended (exit code 3), 2 times")])
def test_a_run_whose_process_dies_is_tried_again_once(tmp_path: Path, times: int, failure: str | None) -> None:
    about = subject("loss<=0.0001", partial(fatal, tmp_path / "counter", times))
    what = replace(told(steps=2), batch=8)
    with Pool(about, 1, 1) as pool:
        pool.start(what)
        assert not pool.has_room
        done, found = pool.wait()
        assert pool.has_room and pool.running == ()
    assert done == what
    assert found.outcome.failure == failure


def test_a_workload_that_cannot_be_sent(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file, pytest.raises(UsageError, match="cannot be sent to the processes"):
        Pool(subject(build=lambda: file), 1, 1)


# ---------------------------------------------------------------- plans


def planned(**other: Any) -> study.Planned:
    wishes = {"batches": (64, "full"), "optimizers": ("sgd",), "goal": "val_error<=0.2", "trials": 4, **other}
    settings = wishes.pop("settings", NumericSettings())
    return study.plan(DIGITS, settings, study.Wishes(**wishes))


def test_a_plan_settles_what_is_open() -> None:
    found = planned(batches=("full", 256, 64, 64), optimizers=("adamw", "sgd", "adamw")).study
    assert found.batches == (64, 256, 1348)
    assert found.optimizers == ("adamw", "sgd")
    assert (found.num_train, found.num_choosing, found.num_reported) == (1348, 270, 179)
    assert found.budgets[-1] == round(30 * 1348 / 64), "30 epochs at the smallest batch, as the recipe"
    assert len(found.cells) == 6
    assert {len(found.points(cell)) for cell in found.cells} == {4}


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"batches": (64, 5000)}, "batches=5000 is larger than the 1348 samples that are trained on"),
        ({"batches": (0,)}, "batches=0 is below 1"),
        ({"batches": ()}, "sweep needs at least one batch"),
        ({"optimizers": ()}, "sweep needs at least one optimizer"),
        ({"optimizers": ("sdg",)}, r"optimizer 'sdg' is not known; did you mean sgd\?"),
        ({"trials": 0}, "trials=0 is below 1: nothing would be tried"),
        ({"seeds": 0}, "seeds=0 is below 1"),
        ({"goal": "val_f1>=0.5"}, "names the metric 'f1', and digits-mlp has loss, accuracy, error"),
        ({"goal": "error"}, "is not metric<=value"),
        ({"rows": 10_000}, "rows=10000 is more than the 1618 training samples"),
        ({"most_steps": 0}, "most_steps=0"),
        ({"first_steps": 9, "most_steps": 8}, "first_steps=9 to most_steps=8"),
        ({"goal": "loss<=0.1", "has_label_smoothing": True}, "label smoothing changes the loss"),
        ({"settings": NumericSettings(lr=0.1, steps=3)}, "steps, lr: a sweep decides such settings itself"),
        ({"settings": NumericSettings(base_batch=64)}, "base_batch: a sweep decides such settings itself"),
        ({"settings": NumericSettings(batch_rule="sqrt")}, "batch_rule: a sweep decides such settings itself"),
        ({"settings": NumericSettings(microbatch=100)}, "microbatch=100 is larger than global_batch=64"),
    ],
)
def test_a_plan_that_cannot_be(other: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        planned(**other)


def test_averaging_is_open_to_all_that_do_not_average_by_themselves() -> None:
    made = planned(has_averaging=True, optimizers=("sgd", "schedulefreesgd"), trials=2)
    shares = {cell[0]: [point.averaging for point in made.study.points(cell)] for cell in made.study.cells}
    assert all(shares["sgd"]) and not any(shares["schedulefreesgd"])
