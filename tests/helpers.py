"""Small workloads, jobs without a run around them, and a plain-torch trainer to compare with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from samestep.data.columns import Column, Dataset, Rows, Samples
from samestep.engine.job import Image, Job
from samestep.engine.loop import EvaluationRecord, StepRecord
from samestep.engine.solo import Solo
from samestep.run.config import Settings, resolve
from samestep.run.metrics import accuracy
from samestep.run.prepare import Choices, Prepared, prepare
from samestep.run.record import Record
from samestep.run.train import train
from samestep.run.workload import Workload
from samestep.workloads import catalog

NUM_CLASSES = 5
NUM_SAMPLES = 75
"""No multiple of a batch: the last one of an epoch is short."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Mlp(nn.Module):
    """12-32-5 with dropout after the hidden layer."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 32)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(32, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.dropout(self.hidden(x).relu()))
        return scores


class Cursed(nn.Module):
    """Scores that are no numbers where a sample's first one is large."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        return scores * float("nan") if bool((x[:, 0].abs() > 2.4).any()) else scores


class Brittle(nn.Module):
    """Scores that are no numbers for some samples as soon as one parameter has left zero: in a step's second round."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp()
        self.edge = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x) + self.edge * x[:, :NUM_CLASSES]
        return scores * float("nan") if bool(self.edge != 0) and bool((x[:, 0].abs() > 1.5).any()) else scores


class Gated(nn.Module):
    """Reads a number inside of its forward pass, so no graph can hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        return scores * 2 if scores.detach().abs().max().item() > 1e6 else scores


class Wide(nn.Module):
    """12-512-512-5: large enough for helpers, four samples at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU())
        self.out = nn.Linear(512, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.layers(x))
        return scores


class Cnn(nn.Module):
    """One convolution with batch norm over images of 3 × 4."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Linear(4 * 12, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.norm(self.convolution(x.view(-1, 1, 3, 4))).relu().flatten(1))
        return scores


class Lstm(nn.Module):
    """An LSTM over 4 steps of 3 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 8, batch_first=True)
        self.out = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.lstm(x.view(-1, 4, 3))[0][:, -1])
        return scores


class Encoder(nn.Module):
    """A transformer encoder layer over 3 tokens of 4 numbers, with dropout in three modules and in attention."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 16, dropout=dropout, batch_first=True)
        self.out = nn.Linear(4, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.layer(x.view(-1, 3, 4)).mean(1))
        return scores


class Tied(nn.Module):
    """An encoder and a decoder that share one matrix; a frozen layer in front; an unused one beside."""

    def __init__(self, *, has_unused: bool = False) -> None:
        super().__init__()
        self.frozen = nn.Linear(12, 12)
        self.frozen.requires_grad_(requires_grad=False)
        self.first = nn.Linear(12, 12, bias=False)
        self.second = nn.Linear(12, 12)
        self.second.weight = self.first.weight
        self.out = nn.Linear(12, NUM_CLASSES)
        if has_unused:
            self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.second(self.first(self.frozen(x)).tanh()).tanh())
        return scores


class Everything(nn.Module):
    """Dropout, batch norm, tied and frozen parameters, and enough elements to be cut into many slices."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(12, 48)
        self.frozen.requires_grad_(requires_grad=False)
        self.norm = nn.BatchNorm1d(48)
        self.first = nn.Linear(48, 48, bias=False)
        self.dropout = nn.Dropout(0.2)
        self.second = nn.Linear(48, 48)
        self.second.weight = self.first.weight
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.out = nn.Linear(48, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.first(self.norm(self.frozen(x))).relu())
        x = self.attention(self.second(x).view(-1, 6, 8)).flatten(1)
        scores: Tensor = self.out(nn.functional.dropout(x, 0.1, self.training))
        return scores


def samples(num_samples: int = NUM_SAMPLES, dtype: torch.dtype = torch.float32, ignored: int | None = None) -> Samples:
    """Classes that can be learnt from 12 numbers; every fourth target is `ignored`, where that is given."""
    inputs = torch.randn(num_samples, 12, generator=generator(1), dtype=torch.float64)
    target = (inputs @ torch.randn(12, NUM_CLASSES, generator=generator(2), dtype=torch.float64)).argmax(1)
    if ignored is not None:
        target[::4] = ignored
    return Samples((Rows(values=inputs.to(dtype)),), Rows(values=target))


def workload(
    build: Callable[[], nn.Module] = Mlp,
    *,
    loss: Any = None,
    train: Samples | None = None,
    evaluation: Samples | None = None,
    **options: Any,
) -> Workload:
    """A workload over `samples`."""
    data = Dataset(train or samples(), evaluation)
    return Workload(
        name="test",
        model=build,
        data=lambda: data,
        loss=loss or nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        **options,
    )


def double(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same network in float64."""
    return lambda: build().double()


@dataclass
class Heard:
    """Writes down what a run says."""

    records: list[StepRecord] = field(default_factory=list)
    evaluations: list[EvaluationRecord] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def steps(self, records: list[StepRecord]) -> None:
        self.records.extend(records)

    def evaluating(self, step: int) -> None:
        pass

    def evaluated(self, record: EvaluationRecord, number: int) -> None:
        self.evaluations.append(record)

    def warn_unused(self, names: list[str]) -> None:
        self.unused.extend(names)

    @property
    def losses(self) -> list[float]:
        return [record.loss for record in self.records]


def prepared(work: Workload, choices: Choices | None = None, **settings: Any) -> Prepared:
    """A job, with nothing run."""
    config = resolve(Settings(**{"workers": 1, "optimizer": "sgd", "momentum": 0.0, **settings}), work.recipe)
    return prepare(work, config, choices or Choices(), has_callbacks=False)


@dataclass
class Ran:
    """What a run in this process left: its job, what it said, and its last state."""

    job: Job
    heard: Heard
    image: Image

    def parameters(self) -> dict[str, Tensor]:
        """By name, as copies."""
        flat = self.image.arrays["parameters"]
        places = self.job.update.layout.places
        return {p.spec.name: flat[p.start : p.stop].view(p.spec.shape).clone() for p in places}

    def tracked(self) -> dict[str, Tensor]:
        """Tracked buffers by name, as copies."""
        flat, places = self.image.arrays["tracked"], self.job.buffers.tracked
        return {p.name: flat[p.start : p.start + p.num_elements].view(p.shape).clone() for p in places}

    def other(self, name: str) -> Tensor:
        """One of the other buffers, as a copy."""
        place = next(place for place in self.job.buffers.others if place.name == name)
        kind: torch.dtype = getattr(torch, place.dtype)
        raw = self.image.arrays["others"][place.start : place.start + place.num_elements * kind.itemsize]
        return raw.clone().view(kind).view(place.shape)


def run(plan: Prepared, job: Job | None = None, image: Image | None = None) -> Ran:
    """Run a job on one worker, without record or files."""
    job, heard = job or plan.job, Heard()
    solo = Solo(job, image or plan.image, heard)
    solo.run()
    final = solo.final()
    assert final is not None
    return Ran(job, heard, final)


def gradients(work: Workload, *, choices: Choices | None = None, **settings: Any) -> dict[str, Tensor]:
    """The mean gradient of the first step, read off a step of SGD with lr 1."""
    plan = prepared(work, choices, **{"lr": 1.0, "steps": 1, **settings})
    before = {name: values.detach().clone() for name, values in plan.job.model.named_parameters()}
    after = run(plan).parameters()
    return {name: before[name] - values for name, values in after.items()}


def initial(plan: Prepared) -> nn.Module:
    """A copy of a job's model, before it runs."""
    return copy.deepcopy(plan.job.model)


def load(column: Column, indices: Tensor) -> Tensor:
    return column.gather(indices)


def microbatches(job: Job, step: int) -> list[tuple[tuple[Tensor, ...], Tensor]]:
    """The tensors of a step's microbatches, by the plan alone."""
    found = []
    for part in job.batches.microbatches(step):
        epoch = job.batches.span(step).epoch
        indices = torch.from_numpy(job.order.indices(epoch=epoch, start=part.start, stop=part.stop))
        inputs = tuple(load(column, indices) for column in job.samples.inputs)
        found.append((inputs, load(job.samples.target, indices)))
    return found


def plain_step(
    model: nn.Module,
    parts: Sequence[tuple[tuple[Tensor, ...], Tensor]],
    loss: Callable[[Any, Tensor], tuple[Tensor, float]],
) -> float:
    """Plain torch: accumulate the gradient of a sum over microbatches, divide by the weight; the mean loss."""
    for parameter in model.parameters():
        parameter.grad = None
    total, weight = 0.0, 0.0
    for inputs, target in parts:
        value, part_weight = loss(model(*inputs), target)
        value.backward()  # type: ignore[no-untyped-call]
        total, weight = total + value.item(), weight + part_weight
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= weight
    return total / weight


def summed_cross_entropy(
    weights: Tensor | None = None, ignored: int = -100
) -> Callable[[Tensor, Tensor], tuple[Tensor, float]]:
    """Cross-entropy as (sum, what torch's mean divides by), written out."""

    def loss(output: Tensor, target: Tensor) -> tuple[Tensor, float]:
        kept = target != ignored
        per_class = torch.ones(output.shape[1], dtype=output.dtype) if weights is None else weights
        factor = per_class[target[kept]]
        picked = output[kept].log_softmax(1).gather(1, target[kept].unsqueeze(1)).squeeze(1)
        return -(picked * factor).sum(), float(factor.double().sum())

    return loss


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest element."""
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max().clamp_min(1e-30))


def with_loss(job: Job, loss: Any) -> Job:
    """The job with another summed loss."""
    return replace(job, loss=loss)


def check_built_in(
    name: str, ways: Sequence[dict[str, Any]], *, sizes: Mapping[str, int] | None = None, **more: Any
) -> None:
    """A built-in workload gives the same weights and evaluation as on one worker, in each of several ways.

    Args:
        name: Of the workload.
        ways: Settings that must not matter.
        sizes: Of the network, where it is not to have its own.
        more: Settings of all runs.
    """
    settings: dict[str, Any] = {"steps": 5, "evaluate_every": 5, **more}

    def run(**way: Any) -> Record:
        return train(catalog.build(name, **(sizes or {})), **settings, **way).record

    wanted = run(workers=1)
    for way in ways:
        found = run(**way)
        assert found.weights_sha256 == wanted.weights_sha256, way
        assert found.evaluations[-1].means == wanted.evaluations[-1].means, way
