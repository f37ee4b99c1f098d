"""Every cause is planted, and named; and nothing else is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from samestep.data.columns import Dataset, Rows, Samples
from samestep.measure.against import causes
from samestep.measure.against.causes import diagnose, find_cause
from samestep.measure.against.habits import Habits, usual
from samestep.measure.against.peer import InProcess, Task, task_of
from samestep.measure.against.rounding import in_float64
from samestep.measure.differences import Difference
from samestep.run.config import Settings
from samestep.run.workload import Workload
from tests import helpers

OWN = Habits(threads=1)


class Noisy(nn.Module):
    def __init__(self, noise: Callable[[], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(1))
        self.noise = noise

    def forward(self, inputs: Tensor) -> Tensor:
        answers: Tensor = self.drop(self.layer(inputs))
        noise = self.noise()
        return answers * (1.0 + noise) if isinstance(noise, float) else answers


def noisy(noise: Callable[[], object] = lambda: None) -> Workload:
    inputs = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    part = Samples((Rows(values=inputs),), Rows(values=torch.arange(16) % 2))
    return Workload(name="noisy", model=lambda: Noisy(noise), data=lambda: Dataset(part), loss=nn.CrossEntropyLoss())


def one(name: str) -> dict[int, tuple[Difference, ...]]:
    return {2: (Difference(name, 1, 2, 0.5, 0.5),)}


def counts() -> Callable[[], float]:
    """State that a module keeps outside of its buffers."""
    counter = itertools.count()
    return lambda: float(next(counter))


class TestFindCause:
    @pytest.mark.parametrize(
        ("noise", "expected"),
        [
            (random.random, "Python's random"),
            (lambda: float(np.random.rand()), "numpy.random"),  # noqa: NPY002
            (lambda: torch.set_num_threads(2), "number of threads (1 before, 2 after)"),
            (counts(), "another answer when run again"),
        ],
    )
    def test_is_told(self, noise: Callable[[], object], expected: str) -> None:
        (cause,) = find_cause(noisy(noise), one("layer.weight"))
        assert expected in cause

    def test_several(self) -> None:
        found = find_cause(noisy(lambda: random.random() + np.random.rand()), one("layer.weight"))  # noqa: NPY002
        assert len(found) == 2

    def test_only_buffers(self) -> None:
        (cause,) = find_cause(noisy(), one("seen"))
        assert cause.startswith("only buffers differ")

    def test_unknown_stays_unknown(self) -> None:
        assert find_cause(noisy(), one("layer.weight")) == ()

    def test_torch_generator_is_given_back(self) -> None:
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        find_cause(noisy(), one("layer.weight"))
        assert torch.equal(torch.rand(2), expected)


def mean_of_kept(output: Tensor, target: Tensor) -> Tensor:
    """A mean over what is not ignored: of microbatches, samestep cannot tell how much it weighs."""
    return functional.cross_entropy(output, target, ignore_index=0)


def normalised(output: Tensor) -> Tensor:
    return (output - output.mean(0)) / (output.std(0) + 0.1)


class Contrast(nn.Module):
    """Statistics of a batch by other means than BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.net = helpers.Mlp()

    def forward(self, x: Tensor) -> Tensor:
        return normalised(self.net(x))


class Counts(nn.Module):
    """A buffer that is no BatchNorm's."""

    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = helpers.Mlp()
        self.register_buffer("largest", torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        self.largest.copy_(torch.maximum(self.largest, x.detach().amax(0)))
        scores: Tensor = self.net(x)
        return scores


class Sums(nn.Module):
    """A long sum, whose bits depend on the number of threads."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        long = torch.linspace(0.1, 1.0, 300_001)
        scores: Tensor = self.out(x) * (long * x[:1, :1]).mean()
        return scores


def task(work: Workload, *, is_wide: bool = True, **settings: Any) -> Task:
    given = {"steps": 5, "global_batch": 16, "microbatch": 4, "optimizer": "sgd", "lr": 0.1, "workers": 1, **settings}
    return task_of(in_float64(work) if is_wide else work, Settings(**given))


IGNORED = helpers.workload(helpers.Mlp, train=helpers.samples(ignored=0), loss=nn.CrossEntropyLoss(ignore_index=0))
CLASS_WEIGHTS = helpers.workload(loss=nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 2.0, 3.0, 4.0])))
SUM = helpers.workload(loss=nn.CrossEntropyLoss(reduction="sum"))
DROPOUT, PLAIN = helpers.workload(lambda: helpers.Mlp(0.5)), helpers.workload()
ACCUMULATES = {"parts": "microbatches", "mean": "mean of means", "last_batch": "weighted"}

PLANTED: dict[str, tuple[Workload, dict[str, Any], dict[str, Any], str]] = {
    "order": (PLAIN, {"order": "DistributedSampler"}, {}, "order: torch takes the samples in DistributedSampler's"),
    "dropped": (PLAIN, {"last_batch": "dropped"}, {}, "last batch: an epoch ends with 11 samples instead of 16, which"),
    "padded": (PLAIN, {"last_batch": "padded"}, {}, "torch fills up with samples that the epoch has had"),
    "mean over unequal": (
        PLAIN, {**ACCUMULATES, "mean": "weighted", "last_batch": "mean of means"}, {"microbatch": 8},
        "last batch: an epoch ends with 11 samples instead of 16, which torch splits into 8 + 3",
    ),
    "short microbatch": (
        PLAIN, ACCUMULATES, {"global_batch": 20, "microbatch": 8}, "unequal weight (8 + 8 + 4 samples)",
    ),
    "class weights": (CLASS_WEIGHTS, ACCUMULATES, {}, "mean of means: torch averages means of unequal weight (class"),
    "ignored targets": (IGNORED, ACCUMULATES, {}, "unequal weight (ignored targets)"),
    "no class weights": (
        PLAIN, {"loss": "own, unweighted"}, {"class_weights": "balanced"},
        "loss weights: torch's loss does not weigh the classes",
    ),
    "sum": (SUM, {}, {}, "loss weights: the loss is a sum for torch (reduction='sum')"),
    "mean of its own": (
        replace(IGNORED, loss=mean_of_kept), {}, {}, "loss weights: the mean that the loss gives for all of torch's",
    ),
    "clipping": (PLAIN, {}, {"clip_norm": 1e-3, "lr": 100.0}, "clipping: torch's clip_grad_norm_ adds 1e-6"),
    "BatchNorm": (
        helpers.workload(helpers.Cnn), {}, {"last_batch": "drop"},
        "BatchNorm: torch normalises a whole batch and samestep each microbatch of 4",
    ),
    "buffers": (helpers.workload(Counts), {}, {}, "buffers: torch's buffers follow what it forwards (a whole batch)"),
    "dropout": (DROPOUT, {}, {}, "dropout: torch draws from torch's default generator"),
    "parts": (helpers.workload(Contrast), {}, {}, "parts: the answer for a sample depends on what is forwarded with"),
}  # fmt: skip


class TestDiagnose:
    def diagnose(self, given: Task, habits: Habits, reference: dict[str, Tensor] | None = None) -> tuple[str, ...]:
        trainer = InProcess()
        trained, own = trainer.train(given, habits), trainer.train(given, OWN)
        return diagnose(trainer, given, "torch", habits, trained, reference or own, lambda gap: gap.is_grown_rounding)

    @pytest.mark.parametrize("name", PLANTED)
    def test_planted(self, name: str) -> None:
        """Each is the only cause that is named."""
        work, habits, settings, expected = PLANTED[name]
        (cause,) = self.diagnose(task(work, **settings), replace(usual("torch"), **habits))
        assert expected in cause
        assert "doing as samestep does moves the peer's update by" in cause

    def test_nothing_planted(self) -> None:
        for work in (PLAIN, CLASS_WEIGHTS, IGNORED, helpers.workload(helpers.Encoder)):
            assert self.diagnose(task(work), usual("torch")) == ()

    def test_several(self) -> None:
        work = helpers.workload(helpers.Everything)
        habits = replace(usual("torch"), order="DistributedSampler", last_batch="dropped")
        found = self.diagnose(task(work, last_batch="drop", clip_norm=1e-3, lr=100.0), habits)
        assert [cause.split(":")[0] for cause in found] == ["order", "clipping", "BatchNorm", "dropout"]

    def test_what_is_left(self) -> None:
        given = task(DROPOUT)
        other = {name: values * 1.1 for name, values in InProcess().train(given, OWN).items()}
        first, second = self.diagnose(given, usual("torch"), other)
        assert first.startswith("dropout")
        assert second.startswith("something else: with all of that changed")

    def test_unknown_stays_unknown(self) -> None:
        given = task(PLAIN)
        other = {name: values * 1.1 for name, values in InProcess().train(given, OWN).items()}
        assert self.diagnose(given, usual("torch"), other) == ()

    def test_a_run_that_does_not_come_to_the_last_batch(self) -> None:
        assert self.diagnose(task(PLAIN, steps=4), replace(usual("torch"), last_batch="dropped")) == ()


class TestThreads:
    def test_planted(self) -> None:
        given = task(helpers.workload(Sums), is_wide=False)
        (cause,) = causes.find_threads(given, "torch", Habits(threads=2))
        assert cause.startswith("threads: torch ran with 2 inside an operation and samestep with 1")
        assert causes.find_threads(given, "torch", Habits(threads=1)) == ()
        assert causes.find_threads(given, "DDP", Habits()) == ()

    def test_other_threads_and_the_same_bits(self) -> None:
        assert causes.find_threads(task(PLAIN, is_wide=False), "torch", Habits(threads=2)) == ()


def test_is_drawing() -> None:
    assert causes.is_drawing(task(DROPOUT))
    assert not causes.is_drawing(task(PLAIN))
