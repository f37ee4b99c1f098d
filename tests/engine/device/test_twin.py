"""What runs on a GPU, run by its twin on the CPU: the same step, moved, captured, read late and seeded once."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.data.columns import Rows, Samples, Scale, movable_bytes, moved
from samestep.engine import losses, residence
from samestep.engine.device.seam import one_ahead
from samestep.engine.device.twin import Twin
from samestep.engine.loading import Loading
from samestep.engine.solo import Solo
from samestep.errors import DataError, UsageError
from samestep.plan.order import Order
from samestep.run.prepare import Choices
from tests import helpers
from tests.helpers import Cnn, Cursed, Encoder, Everything, Gated, Heard, Lstm, Mlp, Ran

TWIN = Choices(device="twin")
SETTINGS: dict[str, Any] = {"global_batch": 32, "microbatch": 8, "steps": 4, "optimizer": "adamw", "momentum": None}


def twin(build: Any = Mlp, *, loss: Any = None, train: Any = None, **settings: Any) -> tuple[Ran, dict[str, Any]]:
    """A run of the twin, and what it says of its device."""
    work = helpers.workload(build, loss=loss, train=train, evaluation=helpers.samples(20))
    plan = helpers.prepared(work, TWIN, **{**SETTINGS, **settings})
    heard = Heard()
    solo = Solo(plan.job, plan.image, heard)
    solo.run()
    image = solo.final()
    assert image is not None
    assert solo.device_facts is not None
    return Ran(plan.job, heard, image), solo.device_facts


def on_cpu(build: Any = Mlp, *, loss: Any = None, train: Any = None, **settings: Any) -> Ran:
    work = helpers.workload(build, loss=loss, train=train, evaluation=helpers.samples(20))
    return helpers.run(helpers.prepared(work, **{**SETTINGS, **settings}))


@pytest.mark.parametrize("build", [Mlp, Cnn, Lstm, Encoder])
def test_without_dropout_the_bits_are_the_cpus(build: Any) -> None:
    """5 microbatches in the last step but one: the last one is short, and its graph is another."""
    found, facts = twin(build, steps=7)
    wanted = on_cpu(build, steps=7)
    assert torch.equal(found.image.arrays["parameters"], wanted.image.arrays["parameters"])
    assert torch.equal(found.image.arrays["tracked"], wanted.image.arrays["tracked"])
    assert found.heard.losses == wanted.heard.losses
    assert [each.means for each in found.heard.evaluations] == [each.means for each in wanted.heard.evaluations]
    assert facts["graphs"] == 3
    assert facts["not_captured"] is None
    assert facts["data"] == "on the device"


@pytest.mark.parametrize("optimizer", ["sgd", "lamb", "schedulefreeadamw"])
@pytest.mark.parametrize("more", [{"clip_norm": 0.1, "noise_scale": 1}, {"sam_radius": 0.05}])
def test_other_rules_and_optimisers(optimizer: str, more: dict[str, Any]) -> None:
    found, _ = twin(optimizer=optimizer, **more)
    wanted = on_cpu(optimizer=optimizer, **more)
    assert torch.equal(found.image.arrays["parameters"], wanted.image.arrays["parameters"])


def test_graphs_and_plain_passes_have_the_same_bits_with_dropout() -> None:
    captured, facts = twin(Everything)
    plain, others = twin(Everything, graphs="off")
    again, _ = twin(Everything)
    assert (facts["graphs"], others["graphs"]) == (3, 0)
    for other in (plain, again):
        assert torch.equal(captured.image.arrays["parameters"], other.image.arrays["parameters"])
        assert torch.equal(captured.image.arrays["tracked"], other.image.arrays["tracked"])
    dry = on_cpu(Everything)  # a GPU seeds a microbatch once, a CPU every module
    assert not torch.equal(captured.image.arrays["parameters"], dry.image.arrays["parameters"])


def test_resume_has_the_same_bits() -> None:
    whole, _ = twin(Everything, steps=6)
    plan = helpers.prepared(
        helpers.workload(Everything, evaluation=helpers.samples(20)), TWIN, **{**SETTINGS, "steps": 6}
    )
    first = Solo(replace(plan.job, num_steps=3), plan.image, Heard())
    first.run()
    image = first.final()
    assert image is not None
    second = helpers.run(plan, image=image.copied())
    assert torch.equal(second.image.arrays["parameters"], whole.image.arrays["parameters"])


class Rolling(nn.Module):
    """Draws from Python's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        return scores * (1.0 + 0.0 * random.random())


class Replacing(nn.Module):
    """Puts a new tensor in the place of its buffer."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1.0
        scores: Tensor = self.net(x)
        return scores


class Counting(nn.Module):
    """Counts its calls in Python, and answers accordingly."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        scores: Tensor = self.net(x)
        return scores / (1 + self.calls)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Gated, "waits for a result"),
        (Rolling, "Python's or NumPy's generator"),
        (Replacing, "buffer seen"),
        (Counting, "other bits"),
    ],
)
def test_what_no_graph_can_hold_runs_plainly(build: Any, reason: str) -> None:
    found, facts = twin(build)
    assert facts["graphs"] == 0
    assert reason in facts["not_captured"]
    if build is not Counting:
        wanted = on_cpu(build)
        assert torch.equal(found.image.arrays["parameters"], wanted.image.arrays["parameters"])


def test_culprits_are_found() -> None:
    with pytest.raises(ArithmeticError, match="the loss of microbatch"):
        twin(Cursed, steps=20)


def test_classes_that_the_model_has_no_answer_for_are_found_beforehand() -> None:
    train = helpers.samples()
    assert isinstance(train.target, Rows)
    train.target.tensor[-1] = 9
    with pytest.raises(DataError, match="a label is 9"):
        twin(train=train)


def test_weights_of_classes_and_ignored_targets() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), ignore_index=3)
    found, facts = twin(loss=loss)
    wanted = on_cpu(loss=loss)
    assert facts["graphs"] > 0
    assert helpers.relative(found.image.arrays["parameters"], wanted.image.arrays["parameters"]) < 1e-5
    one, other = losses.summed(loss), losses.summed(loss, is_late=True)
    scores, target = torch.randn(6, 5, generator=helpers.generator()), torch.tensor([0, 3, 1, 4, 2, 3])
    assert float(other(scores, target, 6)[1]) == one(scores, target, 6)[1] == 11.0


class Hungry(nn.Module):
    """More than three samples at once are too much."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        scores: Tensor = self.net(x)
        return scores


def test_too_large_a_microbatch_is_one_line_with_one_that_fits() -> None:
    with pytest.raises(UsageError, match=r"microbatch=8 does not fit .*: microbatch=2 does \(tried\)"):
        twin(Hungry)


class Starved(torch.optim.SGD):
    """Has no memory for its seventh step; on the first five it is tried."""

    num_steps = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.num_steps += 1
        if self.num_steps > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_elsewhere_is_one_line_too() -> None:
    with pytest.raises(UsageError, match=r"is not enough \(in the phase update\): take a larger microbatch"):
        helpers.run(helpers.prepared(helpers.workload(), replace(TWIN, optimizer=Starved), **{**SETTINGS, "steps": 8}))


def test_augmented_data_are_sent_ahead() -> None:
    found, facts = twin(augment="noise=0.1")
    wanted = on_cpu(augment="noise=0.1")
    assert facts["data"] == "sent ahead, batch by batch"
    assert torch.equal(found.image.arrays["parameters"], wanted.image.arrays["parameters"])


@pytest.mark.parametrize(("free_bytes", "is_resident"), [(0, False), (1 << 30, True)])
def test_data_lie_on_the_device_where_they_fit(free_bytes: int, is_resident: bool) -> None:
    job = helpers.prepared(helpers.workload(), TWIN, **SETTINGS).job
    device = Twin(free_bytes)
    loading, plain = Loading(job, 1, 0, device=device), Loading(job, 1, 0)
    assert loading.is_resident is is_resident
    try:
        for step in (0, 1, 2, 0):
            for one, other in zip(loading.batches(step, 0), plain.batches(step, 0), strict=True):
                assert torch.equal(one.inputs[0], other.inputs[0])
                assert torch.equal(one.target, other.target)
    finally:
        loading.close()
        plain.close()


def test_the_share_of_memory_is_kept_to() -> None:
    samples = helpers.samples()
    size, order = movable_bytes(samples), Order(num_samples=samples.num_samples, seed=0)
    assert size == samples.num_samples * (12 * 4 + 8)
    assert residence.feed_on(Twin(int(size / residence.SHARE) + 1), samples, order).is_resident
    assert not residence.feed_on(Twin(int(size / residence.SHARE) - 8), samples, order).is_resident


def test_what_columns_share_is_moved_once_and_foreign_transforms_stay() -> None:
    values = torch.arange(10.0)
    both = Samples((Rows(values=values, transform=Scale(factor=0.5)),), Rows(values=values))
    assert movable_bytes(both) == 40
    there = moved(both, torch.device("cpu"))
    assert there.inputs[0].tensor is there.target.tensor  # type: ignore[attr-defined]
    assert movable_bytes(Samples((Rows(values=values, transform=torch.sin),), Rows(values=values))) is None


def test_batches_are_sent_one_earlier() -> None:
    events: list[str] = []

    def send(batch: Any) -> Any:
        events.append(f"send {batch}")
        return batch

    def receive(batch: Any) -> Any:
        events.append(f"receive {batch}")
        return batch

    assert list(one_ahead(iter([1, 2, 3]), send, receive)) == [1, 2, 3]  # type: ignore[list-item, comparison-overlap]
    assert events == ["send 1", "send 2", "receive 1", "send 3", "receive 2", "receive 3"]
