"""Local steps: the same bits for any number of workers, and what plain torch makes of the paper's algorithm."""

from __future__ import annotations

import copy
import re
import signal
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.engine.faults import VARIABLE
from samestep.errors import Interrupted, NonFiniteError, StateError, UsageError
from samestep.measure.against.peer import task_of
from samestep.measure.auto import train as train_auto
from samestep.optim.schedules import linear
from samestep.plan.local import PeriodPlan
from samestep.run.config import Settings, resolve
from samestep.run.record import Record
from samestep.run.session import Result
from samestep.run.toml import as_toml
from samestep.run.train import train
from samestep.run.workload import Workload
from tests import helpers
from tests.helpers import Everything, Mlp
from tests.marks import soak

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

# Four replicas of 8 samples in microbatches of 3, 3 and 2; the last step of an epoch has 16; the last period two steps.
COMMON: dict[str, Any] = {
    "sync": "local:4", "global_batch": 32, "microbatch": 3, "steps": 14, "lr": 0.02, "workers": 1,
}  # fmt: skip
EVERYTHING: dict[str, Any] = {
    **COMMON, "microbatch": 2, "optimizer": "muon", "sam_radius": 0.05, "clip_norm": 0.5, "weight_decay": 0.01,
    "lr_schedule": "cosine", "lr_warmup": 0.3, "evaluate_every": 5,
}  # fmt: skip


def everything() -> Workload:
    return helpers.workload(Everything, train=helpers.samples(80), evaluation=helpers.samples(20))


def uneven() -> Workload:
    """An epoch of 66 samples: its last step has two, so that two of four replicas have none of it."""
    return helpers.workload(lambda: Mlp(dropout=0.3), train=helpers.samples(66))


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "everything": (everything, EVERYTHING),
    "8 bits": (everything, {**EVERYTHING, "outer_quantise": "int8", "optimizer": "adamw"}),
    "uneven": (uneven, {**COMMON, "optimizer": "soap", "replicas": 5, "global_batch": 33, "evaluate_every": 1}),
    "float64": (
        lambda: helpers.workload(helpers.double(Mlp), train=helpers.samples(dtype=torch.float64)),
        {**COMMON, "outer_quantise": "int8", "outer_momentum": 0.0, "optimizer": "rprop"},
    ),
    "helpers": (
        lambda: helpers.workload(helpers.Wide),
        {**COMMON, "sync": "local:3", "steps": 6, "backprop": "concurrent", "replicas": 3},
    ),
}


def summary(result: Result) -> tuple[Any, ...]:
    """All that must not depend on workers and engines, of one run."""
    record, best = result.record, result.best_state
    assert record.end == "finished"
    return (
        record.weights_sha256,
        [(step.step, step.loss, step.gradient_norm, step.num_samples) for step in record.steps],
        [(evaluation.step, dict(evaluation.means), evaluation.is_best) for evaluation in record.evaluations],
        None if best is None else {name: values.tolist() for name, values in best.items()},
        (record.num_steps, record.num_samples, record.last_loss),
    )


@cache
def alone(case: str) -> tuple[Any, ...]:
    build, settings = CASES[case]
    return summary(train(build(), **settings))


@pytest.mark.parametrize(
    ("case", "way"),
    [
        ("everything", {"workers": 3}),
        soak("8 bits", {"workers": 2, "engine": "group"}),
        *(soak(case, {"workers": workers}) for case in CASES for workers in (2, 3)),
        *(soak(case, {"workers": workers, "engine": "group"}) for case in CASES for workers in (1, 2, 3)),
        soak("everything", {"workers": 4}),
        soak("8 bits", {"workers": 4, "engine": "group"}),
        soak("uneven", {"workers": 5}),
    ],
)
def test_same_bits(case: str, way: dict[str, Any]) -> None:
    build, settings = CASES[case]
    assert summary(train(build(), **{**settings, **way})) == alone(case)


def test_periods_evaluations_and_samples() -> None:
    _, steps, evaluations, best, totals = alone("everything")
    assert [(step, num_samples) for step, _, _, num_samples in steps] == [(3, 112), (7, 112), (11, 96), (13, 64)]
    assert [step for step, _, _ in evaluations] == [8, 12, 14]  # the meetings at or after steps 5 and 10, and the end
    assert best is not None
    assert totals[:2] == (14, 384)


def test_what_decides_the_bits() -> None:
    changes: list[dict[str, Any]] = [
        {}, {"sync": "local:5"}, {"sync": "step"}, {"replicas": 3}, {"seed": 1},
        {"outer_lr": 0.6}, {"outer_momentum": 0.8}, {"outer_quantise": "int8"},
    ]  # fmt: skip
    digests = {train(uneven(), **{**COMMON, **changed}).record.weights_sha256 for changed in changes}
    assert len(digests) == len(changes)


# --- beside plain torch ------------------------------------------------------------------------------------------


def diloco(model: nn.Module, plan: PeriodPlan, order: Any, inputs: Tensor, target: Tensor, lr: float) -> float:
    """Algorithm 1 of Douillard et al., written out; trains `model` and gives the mean loss of the last period."""
    replicas = [copy.deepcopy(model) for _ in range(plan.num_replicas)]
    inner = [torch.optim.AdamW(replica.parameters(), lr=lr, weight_decay=0.0) for replica in replicas]
    outer = torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    start = 0
    losses: list[float] = []
    while start < plan.num_steps:
        stop, losses = plan.next_step(start), []
        for number, (replica, optimizer) in enumerate(zip(replicas, inner, strict=True)):
            replica.load_state_dict(model.state_dict())
            for step in range(start, stop):
                span = plan.of_replica(number).span(step)
                if span.start == span.stop:
                    continue
                rows = torch.from_numpy(order.indices(epoch=span.epoch, start=span.start, stop=span.stop))
                middle = 0.5 * (plan.samples_before(step) + plan.samples_before(step + 1))
                optimizer.param_groups[0]["lr"] = lr * linear(middle / plan.samples_before(plan.num_steps))
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(replica(inputs[rows]), target[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(replica.parameters(), 0.4)
                optimizer.step()
                losses += [loss.item()] * len(rows)
        for mine, *theirs in zip(model.parameters(), *(each.parameters() for each in replicas), strict=True):
            mine.grad = torch.stack([mine.detach() - each.detach() for each in theirs]).mean(0)
        outer.step()
        start = stop
    return sum(losses) / len(losses)


@pytest.mark.parametrize("num_samples", [75, 66])
def test_it_is_the_papers_algorithm(num_samples: int) -> None:
    samples = helpers.samples(num_samples, dtype=torch.float64)
    work = helpers.workload(helpers.double(Mlp), train=samples)
    settings = {**COMMON, "optimizer": "adamw", "weight_decay": 0.0, "clip_norm": 0.4, "lr_schedule": "linear"}
    plan = helpers.prepared(work, **settings, momentum=None)
    wanted = helpers.initial(plan)
    rows = torch.arange(num_samples)
    loss = diloco(
        wanted,
        plan.job.batches,  # type: ignore[arg-type]
        plan.job.order,
        helpers.load(samples.inputs[0], rows),
        helpers.load(samples.target, rows),
        0.02,
    )
    found = train(work, **settings)
    for name, values in wanted.state_dict().items():
        assert helpers.relative(found.model.state_dict()[name], values) < 1e-5  # clip_grad_norm_ adds 1e-6
    assert found.record.last_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_replica_that_meets_nobody_in_every_step_trains_as_ever(optimizer: str) -> None:
    work = partial(helpers.workload, helpers.double(Mlp), train=helpers.samples(dtype=torch.float64))
    settings = {**COMMON, "optimizer": optimizer, "microbatch": 4}
    wanted = train(work(), **{**settings, "sync": "step"})
    single = {"sync": "local:1", "replicas": 1, "outer_lr": 1.0, "outer_momentum": 0.0}
    found = train(work(), **{**settings, **single})
    for name, values in wanted.model.state_dict().items():
        assert helpers.relative(found.model.state_dict()[name], values) < 1e-12


def test_buffers_are_the_mean_of_the_replicas() -> None:
    """One period of two steps from which every replica ends with running statistics of its own."""
    work = helpers.workload(helpers.Cnn, train=helpers.samples(64))
    plan = helpers.prepared(work, **{**COMMON, "steps": 2, "microbatch": 4, "lr": 0.0, "optimizer": "sgd"})
    job, ends = plan.job, []
    assert isinstance(job.batches, PeriodPlan)
    for replica in range(4):
        model = helpers.initial(plan).train()
        mean = model.get_buffer("norm.running_mean")
        for step in range(2):
            before, after = mean.clone(), []
            for part in job.batches.of_replica(replica).microbatches(step):
                rows = torch.from_numpy(job.order.indices(epoch=0, start=part.start, stop=part.stop))
                mean.copy_(before)
                model(helpers.load(job.samples.inputs[0], rows))
                after.append(mean.clone())
            mean.copy_(torch.stack(after).mean(0))
        ends.append(mean)
    found = helpers.run(plan)
    assert helpers.relative(found.tracked()["norm.running_mean"], torch.stack(ends).mean(0)) < 1e-5
    assert int(found.other("norm.num_batches_tracked")) == 2


# --- when something happens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "step", "phase", "workers"),
    [(1, 4, "backward", 2), soak(2, 4, "backward", 3), soak(0, 8, "update", 2),
     soak(1, 4, "barrier after the contributions", 2), soak(0, 4, "snapshot", 2), soak(1, 12, "evaluation", 2)],
)  # fmt: skip
@pytest.mark.soak
def test_a_death_is_a_replay_from_a_meeting(
    rank: int, step: int, phase: str, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "spent"
    monkeypatch.setenv(VARIABLE, f"rank={rank},step={step},phase={phase},marker={marker}")
    found = train(everything(), **{**EVERYTHING, "workers": workers})
    assert marker.exists(), "nobody died"
    assert any(" died (" in text for text in found.record.notices)
    assert summary(found) == alone("everything")


@pytest.mark.parametrize(("before", "after"), [({"workers": 2}, {"workers": 1}), soak({"workers": 1}, {"workers": 3})])
def test_it_goes_on_on_other_workers(before: dict[str, Any], after: dict[str, Any], tmp_path: Path) -> None:
    _, settings = CASES["8 bits"]
    save = {"checkpoint": tmp_path / "state"}
    shorter = train(
        everything(), **{**settings, **save, **before, "lr_warmup": 0.0, "lr_schedule": "constant", "steps": 8}
    )
    assert shorter.record.num_steps == 8
    longer = {**settings, "lr_warmup": 0.0, "lr_schedule": "constant", "steps": 16}
    found = train(everything(), **{**longer, **save, **after, "resume": True})
    assert found.record.first_step == 8
    assert found.record.weights_sha256 == train(everything(), **longer).record.weights_sha256


@pytest.mark.soak
@pytest.mark.parametrize("way", [{"workers": 2, "engine": "group"}, {"workers": 3}])
def test_it_goes_on_from_any_checkpoint(way: dict[str, Any], tmp_path: Path) -> None:
    settings = {**EVERYTHING, "steps": 200, "checkpoint": tmp_path / "state", "checkpoint_every_s": 0.001}
    wanted = train(everything(), **{**EVERYTHING, "steps": 200}).record
    assert train(everything(), **{**settings, **way}).record.weights_sha256 == wanted.weights_sha256
    headers = sorted((tmp_path / "state").glob("step-*.json"))
    assert len(headers) == 3
    headers[-1].unlink()
    found = train(everything(), **settings, resume=True).record
    assert 0 < found.first_step < 200
    assert found.first_step % 4 == 0
    assert found.weights_sha256 == wanted.weights_sha256


def test_a_period_that_was_closed_early_is_not_gone_on_with(tmp_path: Path) -> None:
    save = {"checkpoint": tmp_path / "state"}
    train(uneven(), **{**COMMON, **save, "steps": 6})
    with pytest.raises(StateError, match="last_period_ends_at=6 and this one has last_period_ends_at=None"):
        train(uneven(), **{**COMMON, **save, "steps": 12, "resume": True})
    with pytest.raises(StateError, match="sync=local:4 and this one has sync=local:2"):
        train(uneven(), **{**COMMON, **save, "steps": 6, "sync": "local:2", "resume": True})


class _Interrupting(nn.Module):
    """Sends a Ctrl-C in one of its forward passes."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.net, self.at, self.calls = Mlp(dropout=0.3), at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            signal.raise_signal(signal.SIGINT)
        scores: Tensor = self.net(x)
        return scores


def test_a_stop_within_a_period_leaves_the_state_before_it(tmp_path: Path) -> None:
    """On one worker, in the third replica of the second period: what the first two keep must not count."""
    work = partial(helpers.workload, train=helpers.samples(64))
    settings = {**COMMON, "optimizer": "adamw", "steps": 12}
    with pytest.raises(Interrupted, match="at step 4;"):
        train(work(lambda: _Interrupting(4 * 4 * 3 + 2 * 4 * 3 + 5)), **settings, checkpoint=tmp_path / "state")
    found = train(work(lambda: _Interrupting(-1)), **settings, checkpoint=tmp_path / "state", resume=True)
    wanted = train(work(lambda: _Interrupting(-1)), **settings)
    assert found.record.first_step == 4
    assert found.record.weights_sha256 == wanted.record.weights_sha256


@pytest.mark.parametrize("way", [{"workers": 2}, soak({"workers": 3}), soak({"workers": 2, "engine": "group"})])
def test_what_is_not_finite_is_named_as_on_one_worker(way: dict[str, Any]) -> None:
    texts, states = [], []
    for each in ({"workers": 1}, way):
        made: list[nn.Module] = []

        def build(made: list[nn.Module] = made) -> nn.Module:
            made.append(helpers.Cursed())
            return made[-1]

        with pytest.raises(NonFiniteError) as caught:
            train(helpers.workload(build), **{**COMMON, "sync": "local:2", **each})
        texts.append(str(caught.value))
        states.append({name: values.tolist() for name, values in made[-1].state_dict().items()})
    assert texts[0] == texts[1]
    assert states[0] == states[1]
    assert re.match(r"step \d+: the loss of microbatch \d of replica \d is not finite; the parameters are", texts[0])


# --- what travels ------------------------------------------------------------------------------------------------


def sent(**settings: Any) -> tuple[Record, int]:
    result = train(helpers.workload(helpers.Wide, train=helpers.samples(64)), **settings, engine="group", machines=2)
    assert result.record.sent_bytes is not None
    return result.record, sum(4 * parameter.numel() for parameter in result.model.parameters())


@pytest.mark.parametrize(("quantise", "share"), [soak("none", 1.0), ("int8", 0.25)])
def test_only_meetings_send(quantise: str, share: float) -> None:
    """A meeting costs what a step does; in 8 bits a quarter of it, both ways."""
    settings = {**COMMON, "microbatch": 4, "steps": 8, "workers": 2, "replicas": 2, "optimizer": "sgd"}
    record, num_bytes = sent(**settings, outer_quantise=quantise)
    assert record.sent_bytes is not None
    assert record.sent_bytes["contributions"] / 2 == pytest.approx(share * num_bytes / 2, rel=0.05)
    assert record.sent_bytes["update"] / 2 == pytest.approx(share * num_bytes / 2, rel=0.05)


# --- what is asked for -------------------------------------------------------------------------------------------


def test_what_is_left_open() -> None:
    plain, local = (resolve(Settings(workers=1, sync=sync, global_batch=64), {}) for sync in (None, "local:8"))
    assert (plain.sync, plain.replicas, plain.outer_lr, plain.noise_scale, plain.microbatch) == (
        "step",
        None,
        None,
        16,
        8,
    )
    assert (local.replicas, local.outer_lr, local.outer_momentum, local.outer_quantise) == (4, 0.7, 0.9, "none")
    assert local.noise_scale == "off"
    assert resolve(Settings(workers=1, sync="local:8", replicas=32, global_batch=64), {}).microbatch == 2
    assert 'sync = "local:8"\nreplicas = 4' in as_toml(local.as_dict())
    assert "replicas" not in as_toml(plain.as_dict())
    assert resolve(Settings(sync="local:8", replicas=1), {}).workers == 1
    recipe = {"sync": "local:8", "replicas": 3}
    assert resolve(Settings(workers=1), recipe).replicas == 3
    assert resolve(Settings(workers=1, sync="step"), recipe).replicas is None


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"sync": "local"}, "sync='local' is not known; take 'step'"),
        ({"sync": "step", "replicas": 2}, "replicas=2 goes with sync='local:H', and sync is 'step'"),
        ({"sync": "step", "outer_quantise": "int8"}, "outer_quantise='int8' goes with sync='local:H'"),
        ({"workers": 5}, "workers=5 is more than the 4 replicas"),
        ({"replicas": 0}, "replicas=0 is below 1"),
        ({"replicas": 33}, "replicas=33 share the 32 samples of a step"),
        ({"outer_lr": 0.0}, "outer_lr=0 is not a finite number above 0"),
        ({"outer_momentum": 1.0}, "outer_momentum=1 is not in 0 .. 1"),
        ({"stages": 2, "workers": 2}, "sync='local:4' and stages=2 do not go together"),
        ({"optimizer": "kfac"}, "sync='local:4' and optimizer='kfac' do not go together"),
        ({"optimizer": "schedulefreeadamw"}, "an optimizer that is judged by an average of its own"),
        ({"averaging": 0.5}, "sync='local:4' and averaging=0.5 do not go together"),
        ({"noise_scale": 4}, "sync='local:4' and noise_scale=4 do not go together"),
        ({"base_batch": 8}, "sync='local:4' and base_batch=8 do not go together"),
        ({"parallel": "auto"}, "parallel='auto' and sync='local:4' do not go together"),
    ],
)
def test_what_does_not_go(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        train_auto(uneven(), **{**COMMON, **settings})


def test_plain_torch_has_no_such_steps() -> None:
    with pytest.raises(UsageError, match="--against and sync='local:4' do not go together"):
        task_of(helpers.workload(), Settings(workers=1, sync="local:4"))
