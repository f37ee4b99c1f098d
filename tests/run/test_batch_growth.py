"""`global_batch="auto"`: growths by hand in plain torch, in records and words; the same bits whoever computes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from samestep.data.columns import Rows, Samples
from samestep.engine.faults import VARIABLE
from samestep.errors import StateError, UsageError
from samestep.measure.against.peer import task_of
from samestep.measure.plain import PlainTorch
from samestep.optim.doubling import Growth
from samestep.optim.noise import NoiseScale
from samestep.run import growth as growths
from samestep.run.config import Config, Settings, resolve
from samestep.run.given import make_settings
from samestep.run.outline import outline
from samestep.run.prepare import Choices
from samestep.run.record import Record
from samestep.run.train import train
from samestep.run.workload import Workload
from tests import helpers
from tests.helpers import Everything
from tests.marks import soak

NUM_SAMPLES = 330
COMMON: dict[str, Any] = {
    "global_batch": "auto", "initial_batch": 8, "microbatch": 2, "noise_scale": 1, "optimizer": "adamw", "lr": 0.003,
    "weight_decay": 0.1, "lr_schedule": "cosine", "epochs": 1.5, "seed": 1, "workers": 1,
}  # fmt: skip


def work() -> Workload:
    """Steps of 8, 16 and 32 samples leave epochs of 330 with 2, 10 and 10."""
    return helpers.workload(Everything, train=helpers.samples(NUM_SAMPLES), evaluation=helpers.samples(20))


def plain() -> Workload:
    return helpers.workload(helpers.double(helpers.Mlp), train=helpers.samples(NUM_SAMPLES, dtype=torch.float64))


def noisy() -> Workload:
    """Four layers, and targets that have nothing to do with the inputs."""
    train = helpers.samples(NUM_SAMPLES)
    target = torch.randint(0, helpers.NUM_CLASSES, (NUM_SAMPLES,), generator=helpers.generator(5))
    return helpers.workload(helpers.Wide, train=Samples(train.inputs, Rows(values=target)))


def told(record: Record) -> tuple[Any, ...]:
    """All of a record that may not depend on who computes."""
    steps = [(step.step, step.loss, step.gradient_norm, step.num_samples) for step in record.steps]
    evaluations = [(each.step, each.means, each.is_best) for each in record.evaluations]
    return record.weights_sha256, record.growths, record.num_samples, steps, evaluations


@pytest.fixture(scope="module")
def undisturbed() -> Record:
    record = train(work(), **COMMON).record
    assert len(record.growths) >= 2
    return record


# What a run is.


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_is_that_of_plain_torch_with_the_growths_by_hand(optimizer: str) -> None:
    """The batch, the learning rate and the weight decay double or grow by a root with every growth."""
    settings = {**COMMON, "optimizer": optimizer, "lr": 0.02 if optimizer == "sgd" else 0.003, "momentum": None}
    plan = helpers.prepared(plain(), **settings)
    model, ran = helpers.initial(plan), helpers.run(plan)
    course, loss = plan.job.course(ran.image.decided.tolist()), helpers.summed_cross_entropy()
    decays = [{"params": [p]} for p in model.parameters()]
    made = torch.optim.SGD(decays, momentum=0.9) if optimizer == "sgd" else torch.optim.AdamW(decays)
    bases = [g["weight_decay"] for part in plan.job.update.parts for g in part.groups for _ in g["params"]]
    assert sorted(bases) == [0.0, 0.0, 0.1, 0.1]
    assert len(course.growths) >= 2
    assert ran.image.step == course.num_steps == len(ran.heard.records)
    total = plan.job.batches.samples_before(plan.job.num_steps)
    batches = []
    for step in range(course.num_steps):
        parts, span = [], course.span(step)
        for part in course.microbatches(step):
            indices = torch.from_numpy(plan.job.order.indices(epoch=span.epoch, start=part.start, stop=part.stop))
            columns = tuple(helpers.load(column, indices) for column in plan.job.samples.inputs)
            parts.append((columns, helpers.load(plan.job.samples.target, indices)))
        batches.append(sum(len(target) for _, target in parts))
        seen = sum(batches) - batches[-1] / 2
        factor = 2 ** sum(growth <= step for growth in course.growths)
        rate = factor if optimizer == "sgd" else math.sqrt(factor)
        for group, parameter in zip(made.param_groups, model.parameters(), strict=True):
            group["lr"] = settings["lr"] * 0.5 * (1 + math.cos(math.pi * min(1.0, seen / total))) * rate
            group["weight_decay"] = 0.1 * (factor / rate) if parameter.dim() > 1 else 0.0
        helpers.plain_step(model, parts, loss)
        made.step()
    assert [record.num_samples for record in ran.heard.records] == batches
    for name, values in ran.parameters().items():
        assert torch.allclose(values, model.get_parameter(name), rtol=1e-9, atol=1e-12)


def test_the_record_tells_every_growth(undisturbed: Record) -> None:
    record, first = undisturbed, undisturbed.growths[0]
    assert [growth.global_batch for growth in record.growths] == [16 << n for n in range(len(record.growths))]
    assert record.global_batch == record.growths[-1].global_batch
    sizes = [step.num_samples for step in record.steps]
    assert set(sizes[: first.step]) <= {8, NUM_SAMPLES % 8}
    assert sizes[first.step] == 16
    assert sum(sizes) == record.num_samples >= 1.5 * NUM_SAMPLES
    assert record.num_samples < 1.5 * NUM_SAMPLES + record.global_batch
    assert [each.step for each in record.evaluations] == [
        next(step + 1 for step in range(len(sizes)) if sum(sizes[: step + 1]) == NUM_SAMPLES),
        record.num_steps,
    ]
    said = [text for text in record.notices if text.startswith(f"step {first.step:,}: global batch 8 → 16 (critical")]
    assert len(said) == 1
    assert said[0].endswith("; learning rate × 1.41, weight decay × 1.41 by the square-root rule")
    found = record.as_dict()
    assert found["global_batch"] == record.global_batch
    assert found["growths"][0] == growths.as_dict(first)
    assert (found["config"]["global_batch"], found["config"]["initial_batch"]) == ("auto", 8)
    assert first.found.low >= 16
    assert f"{record.global_batch:,} samples a step" in str(record.critical_batch) or "still pay" in str(
        record.critical_batch
    )


def test_a_longer_run_begins_with_the_shorter_one() -> None:
    settings = {**COMMON, "lr_schedule": "constant"}
    short, long = (train(work(), **{**settings, "epochs": epochs}).record for epochs in (1.1, 1.5))
    assert told(long)[3][: short.num_steps] == told(short)[3]
    assert long.growths[: len(short.growths)] == short.growths


def test_adascale_finds_its_gain_for_the_batch_that_is() -> None:
    record = train(work(), **{**COMMON, "optimizer": "sgd", "batch_rule": "adascale"}).record
    assert record.growths
    assert any(text.endswith("learning rate as every step finds by AdaScale") for text in record.notices)
    assert any("did the work of" in text for text in record.notices)


# Whoever computes.


@pytest.mark.processes
@pytest.mark.parametrize("workers", [2, soak(3), soak(4)])
def test_the_same_bits_on_any_number_of_workers(undisturbed: Record, workers: int) -> None:
    assert told(train(work(), **{**COMMON, "workers": workers}).record) == told(undisturbed)


@pytest.mark.processes
@pytest.mark.parametrize(
    "way",
    [
        soak({"engine": "group", "workers": 2}),
        soak({"engine": "group", "workers": 3}),
        soak({"workers": 2, "backprop": "concurrent"}),
        soak({"workers": 1, "backprop": "concurrent"}),
    ],
)
def test_the_same_bits_in_any_way(undisturbed: Record, way: Mapping[str, Any]) -> None:
    assert told(train(work(), **{**COMMON, **way}).record) == told(undisturbed)


@pytest.mark.processes
@pytest.mark.parametrize("schedule", [soak("1f1b"), soak("gpipe"), soak("interleaved"), soak("zbv")])
def test_the_same_bits_in_stages(schedule: str) -> None:
    wanted = told(train(noisy(), **COMMON).record)
    assert wanted[1]
    assert told(train(noisy(), **{**COMMON, "stages": 2, "workers": 2, "schedule": schedule}).record) == wanted


@pytest.mark.processes
@pytest.mark.parametrize("phase", [soak("update"), soak("snapshot"), soak("forward")])
def test_a_death_after_a_growth_is_a_replay(
    undisturbed: Record, phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = undisturbed.growths[0].step + 1
    marker = tmp_path / "spent"
    monkeypatch.setenv(VARIABLE, f"rank=1,step={at},phase={phase},marker={marker}")
    record = train(work(), **{**COMMON, "workers": 3}).record
    assert marker.exists()
    assert any(" died (" in text for text in record.notices)
    assert told(record) == told(undisturbed)


@pytest.mark.processes
@pytest.mark.parametrize(("first", "then"), [soak(2, 3), (1, 2), soak(3, 1)])
def test_a_resumed_run_has_the_same_bits(first: int, then: int, tmp_path: Path) -> None:
    """It ends between two growths, and a longer one takes it up."""
    settings = {**COMMON, "lr_schedule": "constant"}
    wanted = train(work(), **settings).record
    steps_per_epoch = -(-NUM_SAMPLES // 8)
    short = {**settings, "epochs": (wanted.growths[0].step + 2) / steps_per_epoch, "checkpoint": tmp_path / "states"}
    record = train(work(), **{**short, "workers": first}).record
    assert record.growths == wanted.growths[:1]
    found = train(work(), **{**short, "epochs": COMMON["epochs"], "workers": then, "resume": True}).record
    assert found.first_step == record.num_steps
    assert told(found)[:3] == told(wanted)[:3]
    assert told(record)[3] + told(found)[3] == told(wanted)[3]


# What is asked for.


def made(**settings: Any) -> Config:
    return resolve(make_settings({"workers": 1, **settings}), {"global_batch": 64, "optimizer": "sgd", "lr": 0.1})


def test_it_starts_with_the_workloads_batch() -> None:
    config = made(global_batch="auto")
    assert (config.first_batch, config.microbatch, config.noise_scale) == (64, 8, 10)
    assert made(global_batch="auto", initial_batch=256).microbatch == 32
    assert made(global_batch="auto", noise_scale=2).noise_every == 2
    assert (made().global_batch, made().noise_scale) == (64, 16)
    again = resolve(make_settings({k: v for k, v in config.as_dict().items() if v is not None}), {})
    assert again == config


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"initial_batch": 32}, "initial_batch=32 is for a batch that grows"),
        ({"global_batch": 64, "max_batch": 128}, "max_batch=128 is for a batch that grows"),
        ({"global_batch": "automatic"}, "global_batch"),
        ({"global_batch": "auto", "initial_batch": 0}, "below 1"),
        ({"global_batch": "auto", "noise_scale": "off"}, "noise_scale='off'"),
        ({"global_batch": "auto", "optimizer": "kfac"}, "optimizer='kfac'"),
        ({"global_batch": "auto", "microbatch": 64}, "microbatch=64 of initial_batch=64"),
        ({"global_batch": "auto", "max_batch": 32}, "max_batch=32 below initial_batch=64"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as error:
        made(**settings)
    assert "\n" not in str(error.value)


def test_more_workers_than_the_first_step_has_microbatches_are_refused() -> None:
    with pytest.raises(UsageError, match="workers=5 is more than the 4 microbatches"):
        train(work(), **{**COMMON, "workers": 5})


def test_an_optimizer_of_ones_own_needs_a_rule() -> None:
    def own(groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.01)

    settings = {**COMMON, "optimizer": own, "lr": None, "weight_decay": None}
    with pytest.raises(UsageError, match="batch_rule='linear', 'sqrt' or 'none'"):
        train(work(), **settings)
    record = train(work(), **settings, batch_rule="linear").record
    assert any(text.endswith("learning rate × 2 by the linear rule") for text in record.notices)


def test_there_is_nothing_to_compare_it_with() -> None:
    with pytest.raises(UsageError, match="global_batch='auto': plain torch"):
        task_of(helpers.workload(), Settings(**COMMON))
    with pytest.raises(UsageError, match="global_batch='auto': plain torch"):
        PlainTorch(helpers.workload(), resolve(Settings(**COMMON), {}))


def test_the_plan_says_how_far_it_may_grow() -> None:
    found = outline(work(), Settings(**{**COMMON, "max_batch": 40}), Choices())
    assert (found.global_batch, found.max_batch) == (8, 32)
    assert outline(work(), Settings(global_batch=8, workers=1), Choices()).max_batch is None


def test_another_rule_is_another_run(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    train(work(), **{**COMMON, "epochs": 0.2, "lr_schedule": "constant"}, checkpoint=folder)
    with pytest.raises(StateError, match="doubling="):
        train(work(), **{**COMMON, "lr_schedule": "constant", "max_batch": 16}, checkpoint=folder, resume=True)


def test_an_unknown_end_is_none() -> None:
    scale = NoiseScale(value=None, low=20.0, high=math.inf)
    assert growths.as_dict(Growth(step=5, global_batch=16, found=scale)) == {
        "step": 5, "global_batch": 16, "critical_batch": None, "low": 20.0, "high": None,
    }  # fmt: skip
