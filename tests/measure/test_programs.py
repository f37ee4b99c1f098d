"""The programs of a study: plain torch takes whole batches, and what fails says so in one line."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.engine.breakdown import step_times
from samestep.engine.events import Phase, Trace, read_file
from samestep.errors import UsageError
from samestep.measure.interleave import deal_turns, stage
from samestep.measure.programs import Task, batches, perform, plain, program
from samestep.measure.slots import Deal, ProgramError, Slot
from samestep.run.config import NumericSettings, Settings, resolve
from samestep.run.workload import Workload
from samestep.workloads import catalog, files
from tests import helpers

NETS = Path(__file__).parents[1] / "cli" / "nets.py"
SETTINGS = NumericSettings()
TASK = Task(name="it", kind="torch", workers=1, threads=1, global_batch=16, microbatch=16)
OURS = replace(TASK, kind="samestep", microbatch=8)


def test_batches_are_whole_and_hold_every_sample_once() -> None:
    drawn = list(islice(batches(20, 6), 6))
    assert all(len(indices) == 6 for indices in drawn)
    for epoch in (drawn[:3], drawn[3:]):
        assert len(set(torch.cat(epoch).tolist())) == 18
    assert drawn[0].tolist() != drawn[3].tolist()


def test_a_batch_larger_than_the_data_is_all_of_them() -> None:
    assert sorted(next(batches(5, 8)).tolist()) == list(range(5))


class Enough(Exception):
    """Ends a program that trains for ever."""


class Counting:
    """A loss that ends the program after some steps and remembers how many samples it saw."""

    def __init__(self, limit: int) -> None:
        self.seen: list[int] = []
        self.limit = limit

    def __call__(self, output: Tensor, target: Tensor) -> Any:
        if len(self.seen) == self.limit:
            raise Enough
        self.seen.append(len(target))
        return nn.functional.cross_entropy(output, target, reduction="none")


def test_plain_torch_trains_and_says_what_it_does(tmp_path: Path) -> None:
    loss, models = Counting(8), list[nn.Module]()

    def build() -> nn.Module:
        models.append(helpers.Mlp())
        return models[-1]

    work = helpers.workload(build, loss=loss)
    config = resolve(Settings(workers=1, optimizer="sgd", lr=1.0, clip_norm=1.0), work.recipe)
    with pytest.raises(Enough):
        plain(work, config, global_batch=16, trace=Trace(tmp_path))
    assert loss.seen == [16] * 8
    found = step_times(read_file(next(tmp_path.iterdir())).since(0))
    assert found.steps.tolist() == list(range(8))
    used = {Phase.DATA, Phase.FORWARD, Phase.BACKWARD, Phase.UPDATE, Phase.BETWEEN}
    assert {Phase(at) for at in (found.phases_s.sum(axis=0) > 0).nonzero()[0]} == used


def test_plain_torch_does_not_take_kfac_for_gradient_descent(tmp_path: Path) -> None:
    work = helpers.workload()
    with pytest.raises(UsageError, match="optimizer='kfac': plain torch has nothing like its step"):
        plain(work, resolve(Settings(workers=1, optimizer="kfac"), {}), global_batch=16, trace=Trace(tmp_path))


def test_plain_torch_does_not_run_away(tmp_path: Path) -> None:
    """Who trains for ever must not diverge, whatever the rate."""
    models, starts = list[nn.Module](), list[Tensor]()

    def build() -> nn.Module:
        models.append(helpers.Mlp())
        starts.append(nn.utils.parameters_to_vector(models[-1].parameters()).detach().clone())
        return models[-1]

    work = helpers.workload(build, loss=Counting(8))
    config = resolve(Settings(workers=1, optimizer="sgd", lr=1e3), work.recipe)
    with pytest.raises(Enough):
        plain(work, config, global_batch=16, trace=Trace(tmp_path))
    moved = nn.utils.parameters_to_vector(models[0].parameters()).detach() - starts[0]
    assert 0 < float(moved.abs().max()) < 1e-3


@pytest.mark.parametrize(("kind", "expected"), [("torch", 16), ("roof", 4)])
def test_a_program_of_the_roof_takes_its_share_of_the_batch(kind: Any, expected: int, tmp_path: Path) -> None:
    loss = Counting(8)
    with pytest.raises(Enough):
        perform(replace(TASK, kind=kind, workers=4), helpers.workload(loss=loss), SETTINGS, tmp_path)
    assert loss.seen == [expected] * 8


@pytest.mark.parametrize(("batch", "expected"), [(16, {8}), (helpers.NUM_SAMPLES, {8, 3})])
def test_samestep_takes_whole_batches_as_plain_torch_does(tmp_path: Path, batch: int, expected: set[int]) -> None:
    """75 samples are 4 batches of 16 and 11 samples that nobody takes."""
    loss = Counting(30)
    with pytest.raises(Enough):
        perform(replace(OURS, global_batch=batch), helpers.workload(loss=loss), SETTINGS, tmp_path)
    assert set(loss.seen) == expected


def test_a_workload_that_cannot_be_sent_is_one_line() -> None:
    lock = threading.Lock()

    def build() -> Workload:
        with lock:
            return catalog.build("digits-mlp")

    with pytest.raises(UsageError, match=r"^the workload cannot be sent to the programs that are measured: .*lock"):
        program(TASK, build, SETTINGS)


def run_for_two_rounds(task: Task, function: str) -> list[Slot]:
    deal, found = Deal(turns=2, slot_s=0.05, start_timeout_s=60.0), list[Slot]()
    made = program(task, partial(files.load, f"{NETS}:{function}"), SETTINGS)
    with stage([made], deal, lambda running: None) as started:
        deal_turns(
            started,
            deal,
            keep=lambda number, slots: found.extend(slots.values()),
            report=lambda number, left_s: None,
        )
    return found


@pytest.mark.processes
def test_every_rank_is_measured() -> None:
    found = run_for_two_rounds(replace(OURS, workers=2), "tiny")
    assert [len(slot.phases) for slot in found] == [2, 2]
    for slot in found:
        total = sum(sum(phases.values()) for phases in slot.phases) / 2
        assert total == pytest.approx(slot.step_s, rel=0.03)
        assert all(phases["waiting"] > 0 for phases in slot.phases)


@pytest.mark.processes
def test_a_model_that_cannot_be_sent_to_workers_is_one_line() -> None:
    with pytest.raises(ProgramError, match=r"^it: ended with exit code 2: .*(sent|pickle)") as caught:
        run_for_two_rounds(replace(OURS, workers=2), "locked")
    assert "Traceback" not in caught.value.trace


@pytest.mark.processes
def test_an_exception_of_the_users_is_told_with_its_traceback() -> None:
    with pytest.raises(ProgramError, match=r"^it: ended with exit code 1: \w+Error: ") as caught:
        run_for_two_rounds(TASK, "garbage_loss")
    assert caught.value.trace.startswith("Traceback")
