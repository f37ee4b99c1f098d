"""The noise scale of real trainings: known answers, plain torch's norms, the same bits on any number of workers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.data.columns import Rows, Samples
from samestep.optim.noise import NoiseScale, Pair
from samestep.run.critical_batch import Pairs, sentence, short
from samestep.run.record import Record
from samestep.run.train import train
from samestep.run.workload import Workload
from tests import helpers
from tests.helpers import Cnn, Everything, Wide
from tests.marks import soak

CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.25])

# Short last batches (75 or 76 samples), M = 7 with a shorter last microbatch.
COMMON: dict[str, Any] = {"global_batch": 27, "microbatch": 4, "steps": 12, "workers": 1, "noise_scale": 1}


def pairs_of(record: Record) -> list[Pair]:
    assert record.pairs is not None
    return list(record.pairs)


# A known answer.

NUM_SAMPLES = 3000


class Location(nn.Module):
    """A place: its distance to a sample is the answer, half its square the loss, so gradients are place - sample."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.full((10,), 0.3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.place - x


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return 0.5 * output.square().sum(dim=1)


def points() -> Tensor:
    deviations = torch.linspace(0.5, 3.0, 10, dtype=torch.float64)
    drawn = deviations * torch.randn(NUM_SAMPLES, 10, generator=helpers.generator(5), dtype=torch.float64)
    return drawn - drawn.mean(dim=0)  # so the gradient is the place, up to rounding


def location() -> Workload:
    samples = Samples((Rows(values=points()),), Rows(values=torch.zeros(NUM_SAMPLES, dtype=torch.float64)))
    return helpers.workload(Location, loss=half_square, train=samples)


def test_the_noise_scale_of_a_training_whose_gradients_are_known() -> None:
    """With a learning rate of 0 the place stays. 3,000 samples are 46 steps of 64 and a short one of 7 microbatches."""
    settings: dict[str, Any] = {"global_batch": 64, "microbatch": 8, "steps": 47 * 10, "optimizer": "sgd", "lr": 0.0}
    record = train(location(), workers=1, noise_scale=1, **settings).record
    variance, square = float(points().var(dim=0).sum()), 10 * 0.3**2
    pairs = pairs_of(record)
    assert len(pairs) == 470
    assert math.fsum(p.variance for p in pairs) / 470 == pytest.approx(variance, rel=0.05)
    assert math.fsum(p.square_without_noise(NUM_SAMPLES) for p in pairs) / 470 == pytest.approx(square, rel=0.05)
    assert record.pairs is not None
    found = record.pairs.noise_scale()
    assert found.num_steps == 235
    assert found.value == pytest.approx(variance / square, rel=0.05)
    assert found.low < variance / square < found.high
    assert record.critical_batch == f"{short(found)}: more samples a step than 64 save hardly any steps"


# Plain torch's norms.


@pytest.mark.parametrize("loss", ["plain", "weighted and masked"])
def test_pairs_are_those_of_plain_torch(loss: str) -> None:
    weights, ignored = (None, -100) if loss == "plain" else (CLASS_WEIGHTS.double(), 3)
    train_samples = helpers.samples(dtype=torch.float64, ignored=None if loss == "plain" else 3)
    work = helpers.workload(
        helpers.double(helpers.Mlp),
        loss=nn.CrossEntropyLoss(weight=weights, ignore_index=ignored),
        train=train_samples,
    )
    plan = helpers.prepared(work, **{**COMMON, "lr": 0.1, "steps": 6})
    model, ran = helpers.initial(plan), helpers.run(plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    summed = helpers.summed_cross_entropy(weights, ignored)
    assert len(ran.heard.records) == 6
    for step, record in enumerate(ran.heard.records):
        parts = helpers.microbatches(plan.job, step)
        parts = [(inputs, target) for inputs, target in parts if bool((target != ignored).any())]
        part_weights = [float(summed(model(*inputs), target)[1]) for inputs, target in parts]
        squares = [squared_gradient(model, [part], summed) for part in parts]
        square = squared_gradient(model, parts, summed)
        optimizer.step()
        pair = record.pair
        assert pair is not None
        weighted = sum(w * s for w, s in zip(part_weights, squares, strict=True)) / sum(part_weights)
        assert pair.microbatch_square == pytest.approx(weighted, rel=1e-9)
        assert pair.square == pytest.approx(square, rel=1e-9)
        assert (pair.step, pair.num_microbatches) == (step, len(parts))
        assert pair.num_samples == (27 if step % 3 < 2 else 21)


def squared_gradient(model: nn.Module, parts: Any, loss: Any) -> float:
    helpers.plain_step(model, parts, loss)
    return float(sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None))


def test_sam_looks_at_its_first_round() -> None:
    work = helpers.workload(helpers.double(helpers.Mlp), train=helpers.samples(dtype=torch.float64))
    plain, sam = (
        helpers.run(helpers.prepared(work, **{**COMMON, "steps": 1, **rule})).heard.records[0].pair
        for rule in ({}, {"sam_radius": 0.3})
    )
    assert plain is not None
    assert plain == sam


# The same bits.


def weighted() -> Workload:
    loss = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, ignore_index=3)
    return helpers.workload(Everything, loss=loss, train=helpers.samples(76, ignored=3))


CASES: dict[str, tuple[Workload, dict[str, Any], tuple[int, ...]]] = {
    "everything": (weighted(), {"optimizer": "muon", "lr": 0.02, "sam_radius": 0.05, "clip_norm": 0.5}, (1, 2, 3)),
    "channels last": (helpers.workload(Cnn, train=helpers.samples(76)), {"channels_last": True}, (1, 3)),
    "concurrent": (helpers.workload(Wide), {"backprop": "concurrent"}, (1, 2)),
}


@pytest.mark.processes
@pytest.mark.parametrize("case", ["everything", *(soak(case) for case in CASES if case != "everything")])
def test_pairs_have_the_same_bits_on_any_number_of_workers_and_change_no_weight(case: str) -> None:
    work, options, numbers = CASES[case]
    first, *others = [train(work, **{**COMMON, **options, "workers": workers}).record for workers in numbers]
    assert len(pairs_of(first)) == 12
    assert all(pairs_of(record) == pairs_of(first) for record in others)
    off = train(work, **{**COMMON, **options, "noise_scale": "off"}).record
    assert pairs_of(off) == []
    assert {record.weights_sha256 for record in (first, *others)} == {off.weights_sha256}


def test_one_step_in_sixteen_is_looked_at_by_default() -> None:
    settings: dict[str, Any] = {"global_batch": 27, "microbatch": 4, "steps": 48}
    every = pairs_of(train(helpers.workload(), workers=1, noise_scale=1, **settings).record)
    some = pairs_of(train(helpers.workload(), workers=1, **settings).record)
    assert [pair.step // 16 for pair in some] == [0, 1, 2]
    assert some == [every[pair.step] for pair in some]


# What is said.


def test_one_microbatch_is_not_enough() -> None:
    settings = {**COMMON, "microbatch": 27}
    record = train(helpers.workload(), **settings).record
    assert record.critical_batch == "critical batch not told: one microbatch a step"
    assert pairs_of(record) == []


def test_a_last_step_of_one_microbatch_is_passed_over() -> None:
    """75 samples: two steps of 36 in four microbatches, and one of 3 samples."""
    record = train(helpers.workload(), **{**COMMON, "global_batch": 36, "microbatch": 9}).record
    assert [pair.step % 3 for pair in pairs_of(record)] == [0, 1] * 4


def test_too_few_steps_and_off_are_told() -> None:
    few = train(helpers.workload(), **{**COMMON, "steps": 3, "noise_scale": 2}).record
    assert few.critical_batch is not None
    assert few.critical_batch.startswith("critical batch not told: ")
    assert few.critical_batch.endswith("looked at, and it takes 10; noise_scale=1 looks at every step")
    off = train(helpers.workload(), **{**COMMON, "steps": 3, "noise_scale": "off"}).record
    assert off.critical_batch == "critical batch not told: noise_scale is off"


TOLD = NoiseScale(value=1912.3, low=1403.0, high=2588.0)


@pytest.mark.parametrize(
    ("found", "batch", "says"),
    [
        (TOLD, 480, "about 1,900 [1,400, 2,600]: 4 times as many workers would still pay"),
        (TOLD, 1300, "about 1,900 [1,400, 2,600]: 1.5 times as many workers would still pay"),
        (TOLD, 2000, "about 1,900 [1,400, 2,600]: 2,000 samples a step are about as many as pay"),
        (TOLD, 4096, "about 1,900 [1,400, 2,600]: more samples a step than 4,096 save hardly any steps"),
        (TOLD, 10_000, "about 1,900 [1,400, 2,600]: a step holds all 5,000 training samples already"),
        (NoiseScale(value=9e9, low=6e3, high=9e10), 500,
         "about 9,000,000,000 [6,000, 90,000,000,000]: 10 times as many workers would still pay"),
        (NoiseScale(value=1912.3, low=1403.0), 480,
         "about 1,900 [1,400, ?]: at least 2.9 times as many workers would still pay"),
        (NoiseScale(value=29.0, low=0.0), 512,
         "about 29 [0, ?]: whether more samples a step than 512 would pay cannot be told"),
        (NoiseScale(value=None, low=1403.0, reason="because"), 480, "above 1,400: because"),
        (NoiseScale(value=None, high=0.0, reason="because"), 480, "below 1.0: because"),
        (NoiseScale(value=None, reason="because"), 480, "not told: because"),
    ],
)  # fmt: skip
def test_what_it_says_of_the_global_batch(found: NoiseScale, batch: int, says: str) -> None:
    assert sentence(found, global_batch=batch, num_training_samples=5000) == f"critical batch {says}"


def test_short_is_the_beginning_of_the_sentence() -> None:
    found = sentence(TOLD, global_batch=1, num_training_samples=5000)
    assert found.startswith(f"{short(TOLD)}: ")


def test_the_later_half_is_averaged() -> None:
    """The noise scale is 8 at first and 64 later: 64 × (2 - 1) / 7 over 1 - 1 / 7, and 8 times as much."""
    pairs = Pairs(every=1, num_training_samples=10**9, num_microbatches=8)
    for step in range(40):
        variance = 1.0 if step < 20 else 8.0
        square = 1.0 + variance * (1 + step % 2 / 100)
        pairs.append(
            Pair(
                step=step,
                microbatch_square=square,
                square=1.0 + variance / 8,
                num_microbatches=8,
                num_samples=64,
            )
        )
    found = pairs.noise_scale()
    assert found.num_steps == 20
    assert found.value == pytest.approx(64.0, rel=0.02)


def test_the_record_holds_the_pairs_and_what_they_come_to(tmp_path: Path) -> None:
    record = train(helpers.workload(), **{**COMMON, "steps": 30, "out": tmp_path}).record
    kept = json.loads((tmp_path / "record.json").read_bytes())
    assert kept["critical_batch"] == record.critical_batch
    found = kept["noise_scale"]
    assert (found["every"], found["num_steps"]) == (1, 15)
    columns = found["pairs"]
    assert [Pair(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)] == pairs_of(
        record
    )
    summary = record.summary()
    assert summary["noise_scale"] == {name: value for name, value in found.items() if name not in ("every", "pairs")}
