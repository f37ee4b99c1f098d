"""The peer: the same training as a user of plain torch, or of DistributedDataParallel, would write it.

Same initial weights, same sample order, same optimiser and learning rates; everything else as its `Habits` say, so that
a run can be done again with one thing changed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from samestep.engine import numerics
from samestep.engine.job import Job
from samestep.engine.randomness import KeyedRandomness, preserved
from samestep.errors import UsageError
from samestep.measure.against.habits import Habits, Part, batch_of, parts
from samestep.measure.against.rounding import BFLOAT16, FLOAT32, FLOAT64, Arithmetic, Gap, gap
from samestep.measure.plain import mean_of
from samestep.optim import build, rounds
from samestep.plan.batch import cut
from samestep.run import curvature, syncing
from samestep.run.config import Config, Settings, resolve
from samestep.run.prepare import Choices, balanced_weights, prepare
from samestep.run.ways import check_cpu
from samestep.run.workload import Loss, Workload

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a peer trains.

    Args:
        job: As samestep would run it: model, data, plans.
        loss: What the peer minimises, class weights included.
        unweighted_loss: The same without them.
    """

    job: Job
    loss: Loss
    unweighted_loss: Loss

    @property
    def arithmetic(self) -> Arithmetic:
        """What rounding does to a step. Autocast leaves float64 as it is."""
        if self.job.dtype == "float64":
            return FLOAT64
        return BFLOAT16 if self.job.precision == "bf16" else FLOAT32

    @cached_property
    def start(self) -> State:
        """The state before training."""
        return {name: tensor.detach().clone() for name, tensor in self.job.model.state_dict().items()}

    @cached_property
    def buffers(self) -> frozenset[str]:
        """The entries of the state that no optimiser updates."""
        trained = {place.spec.name for place in self.job.update.layout.places}
        model = self.job.model
        ids = {id(parameter) for name, parameter in model.named_parameters() if name in trained}
        named = dict(model.named_parameters(remove_duplicate=False))
        return frozenset(name for name in model.state_dict() if name not in named or id(named[name]) not in ids)

    def gap(self, reference: State, other: State) -> Gap:
        """How far two states are apart that this training has reached."""
        return gap(
            self.start,
            reference,
            other,
            buffers=self.buffers,
            arithmetic=self.arithmetic,
            steps=self.job.num_steps,
        )


def task_of(workload: Workload, settings: Settings) -> Task:
    """Prepare a workload for a peer.

    Raises:
        UsageError: The settings ask for something that plain torch does not have.
    """
    config = resolve(settings, workload.recipe)
    check_cpu(config, "a comparison with another program")
    if config.sam_radius is not None:
        raise UsageError(
            f"sam_radius={config.sam_radius:g}: plain torch has no sharpness-aware step to compare with; "
            "leave it out, or leave --against out"
        )
    syncing.refuse(config, "--against", "plain torch has no such steps to compare with")
    if config.batch_rule == "adascale":
        raise UsageError(
            "batch_rule='adascale': plain torch has no rate that follows what every step finds to compare with; take "
            "linear, or leave --against out"
        )
    curvature.refuse(
        config, "plain torch has no step like its own to compare with; take another optimizer, or leave --against out"
    )
    config.fixed_batch("plain torch has no batch that follows what every step finds; or leave --against out")
    job = prepare(workload, config, Choices(), has_callbacks=False).job
    return Task(job=job, loss=_with_class_weights(workload, config, job), unweighted_loss=workload.loss)


def _with_class_weights(workload: Workload, config: Config, job: Job) -> Loss:
    if config.class_weights is None:
        return workload.loss
    loss: Any = workload.loss
    labels = job.samples.target.gather(torch.arange(job.samples.num_samples))
    return nn.CrossEntropyLoss(
        weight=balanced_weights(labels).to(job.torch_dtype),
        ignore_index=loss.ignore_index,
        label_smoothing=loss.label_smoothing,
    )


class Group(Protocol):
    """The ranks of a peer, as one of them sees it."""

    rank: int
    world_size: int

    def wrap(self, model: nn.Module, *, shares_buffers: bool, has_unused: bool) -> nn.Module:
        """A module that averages its gradients over the ranks."""

    def gathers(self, wrapped: nn.Module, *, is_last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward: gradients are averaged after the last part of a step only."""

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks."""


class Alone:
    """One process."""

    rank = 0
    world_size = 1

    def wrap(self, model: nn.Module, *, shares_buffers: bool, has_unused: bool) -> nn.Module:
        return model

    def gathers(self, wrapped: nn.Module, *, is_last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        return values


class Trainer(Protocol):
    """A peer's program, with all of its ranks."""

    world_size: int

    def train(self, task: Task, habits: Habits) -> State: ...


class InProcess:
    """Plain torch in the caller's process."""

    world_size = 1

    def train(self, task: Task, habits: Habits) -> State:
        return train(task, habits, Alone())


def train(task: Task, habits: Habits, group: Group) -> State:
    """Train as the habits say, in this process; its threads and generators are given back."""
    with ExitStack() as stack:
        stack.enter_context(numerics.applied(task.job.switches))
        stack.enter_context(preserved())
        if habits.threads is not None:
            torch.set_num_threads(habits.threads)
        torch.default_generator.manual_seed(task.job.seed)
        training = _Training(task, habits, group)
        for step in range(task.job.num_steps):
            training.step(step)
        return training.finish()


class _Training:
    """A training that goes on step by step."""

    def __init__(self, task: Task, habits: Habits, group: Group) -> None:
        job = task.job
        self._task, self._job, self._habits, self._group = task, job, habits, group
        self._own_loss = task.unweighted_loss if habits.loss == "own, unweighted" else task.loss
        self._part = Part(0, 0, 1)
        self.model = copy.deepcopy(job.model).train()
        rounding = task.arithmetic.operands
        self._nudged = _nudge(self.model, rounding, habits.nudge) if habits.nudge else {}
        self._autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=job.precision == "bf16")
        has_unused = group.world_size > 1 and self._has_unused()
        self._randomness = KeyedRandomness(self.model, job.seed) if habits.draws == "keyed" else None
        if habits.statistics == "microbatch" and habits.parts == "share":
            for module in self.model.modules():
                if isinstance(module, _NormBase):
                    _normalise_microbatches(module, self._sizes)
        self._wrapped = group.wrap(self.model, shares_buffers=habits.statistics == "forwarded", has_unused=has_unused)
        named = dict(self.model.named_parameters())
        self._optimizers = [
            build.build(part, [{**g, "params": [named[name] for name in g["params"]]} for g in part.groups])
            for part in job.update.parts
        ]
        self._rates = [[g["lr"] for g in optimizer.param_groups] for optimizer in self._optimizers]

    def finish(self) -> State:
        """What came out."""
        build.show_averages(self._optimizers)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self._nudged:
                    parameter.sub_(self._nudged[name])
        return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def step(self, step: int) -> None:
        """One update."""
        indices, is_short = batch_of(self._job, self._habits, step)
        is_weighted = (self._habits.last_batch if is_short else self._habits.mean) == "weighted"
        found = parts(
            self._habits, len(indices), self._job.batches.microbatch, self._group.rank, self._group.world_size
        )
        buffers = _Buffers(self.model) if self._habits.statistics == "microbatch" else None
        weight = 0.0
        for part in found:
            self._part = part
            with self._group.gathers(self._wrapped, is_last=part is found[-1]):
                value, part_weight = self._forward(step, indices[part.start : part.stop], is_sum=is_weighted)
                factor = 1.0 if is_weighted else 1.0 / len(found)
                if is_weighted and part.is_filler:
                    factor = part_weight = 0.0
                torch.autograd.backward(value if factor == 1.0 else value * factor)
            weight += part_weight
            if buffers is not None:
                buffers.collect(0 if part.is_filler else part.stop - part.start)
        if buffers is not None:
            buffers.apply(self._group)
        if is_weighted:
            self._divide(weight)
        self._update(step)

    def _forward(self, step: int, indices: Tensor, *, is_sum: bool) -> tuple[Tensor, float]:
        """The loss, as a sum or as a mean, and its weight."""
        job = self._job
        if self._randomness is not None:
            self._randomness.begin(step, 0, self._part.number)
        inputs = tuple(column.gather(indices) for column in job.samples.inputs)
        target = job.samples.target.gather(indices)
        with self._autocast:
            output = self._wrapped(*inputs)
            if self._habits.loss == "sums":
                total, weight = self._sums(output, target, len(indices))
                return (total if is_sum else total / (weight or 1.0)), weight
            mean = mean_of(self._own_loss(output, target))
            if not is_sum:
                return mean, 0.0
            with torch.no_grad():
                weight = job.loss(output, target, len(indices))[1]
            return mean * weight, weight

    def _sums(self, output: Any, target: Tensor, num_samples: int) -> tuple[Tensor, float]:
        is_by_sample = isinstance(output, Tensor) and output.dim() > 0 and len(output) == len(target) == num_samples
        if not is_by_sample:
            return self._job.loss(output, target, num_samples)
        pairs = [
            self._job.loss(output[piece.start : piece.stop], target[piece.start : piece.stop], piece.num_samples)
            for piece in cut(0, num_samples, self._job.batches.microbatch)
        ]
        return torch.stack([total for total, _ in pairs]).sum(), sum(weight for _, weight in pairs)

    def _divide(self, weight: float) -> None:
        """Gradients of sums, averaged over the ranks, become the gradient of the mean over the batch."""
        total = float(self._group.sum(torch.tensor(weight, dtype=torch.float64))) or 1.0
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(self._group.world_size / total)

    def _update(self, step: int) -> None:
        clip_norm = getattr(self._job.rule, "clip_norm", None)
        if clip_norm is not None:
            self._clip(clip_norm)
        batches = self._job.batches
        seen, after = batches.samples_before(step), batches.samples_before(step + 1)
        factor = self._job.schedule(0.5 * (seen + after) / batches.samples_before(self._job.num_steps))
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for options, rate in zip(optimizer.param_groups, rates, strict=True):
                options["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()

    def _clip(self, clip_norm: float) -> None:
        if self._habits.clip == "torch":
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip_norm)
            return
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = float(torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt())
        for gradient in gradients:
            gradient.mul_(rounds.clip_scale(norm, clip_norm))

    def _sizes(self) -> list[int]:
        """Samples of the microbatches in what is being forwarded."""
        pieces = cut(self._part.start, self._part.stop, self._job.batches.microbatch)
        return [piece.num_samples for piece in pieces]

    def _has_unused(self) -> bool:
        """DDP must be told where a parameter may get no gradient: look once, on a copy."""
        with preserved():
            probe, indices = copy.deepcopy(self.model), batch_of(self._job, self._habits, 0)[0]
            inputs = tuple(column.gather(indices) for column in self._job.samples.inputs)
            with self._autocast:
                output = probe(*inputs)
                total, _ = self._job.loss(output, self._job.samples.target.gather(indices), len(indices))
            torch.autograd.backward(total)
        return any(parameter.grad is None for parameter in probe.parameters() if parameter.requires_grad)


def _nudge(model: nn.Module, rounding: float, seed: int) -> dict[str, Tensor]:
    """Move every weight by one rounding, up or down by chance; by how much, by name."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            before = parameter.clone()
            signs = (torch.rand(parameter.shape, generator=generator) < 0.5).to(parameter.dtype) * 2 - 1
            parameter.add_(parameter * signs, alpha=rounding)
            moved[name] = parameter - before
    return moved


class _Buffers:
    """Every part of a step starts from the step's buffers; the mean of its changes is applied once.

    Those that are not floating point take the value that a rank's first part gives them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._start = [buffer.clone() for buffer in self._buffers]
        self._first: list[Tensor] = []
        self._changes = [torch.zeros_like(buffer) for buffer in self._buffers]
        self._num_samples = 0

    def collect(self, num_samples: int) -> None:
        self._first = self._first or [buffer.clone() for buffer in self._buffers]
        for buffer, start, change in zip(self._buffers, self._start, self._changes, strict=True):
            if buffer.is_floating_point():
                change.add_(buffer - start, alpha=num_samples)
            buffer.data.copy_(start)  # .data: as torch's own BatchNorm, behind autograd's back
        self._num_samples += num_samples

    def apply(self, group: Group) -> None:
        num_samples = float(group.sum(torch.tensor(float(self._num_samples))))
        for buffer, first, change in zip(self._buffers, self._first, self._changes, strict=True):
            if buffer.is_floating_point():
                buffer.data.add_(group.sum(change) / num_samples)
            else:
                buffer.data.copy_(first)


def _normalise_microbatches(module: nn.Module, sizes: Callable[[], list[int]]) -> None:
    """Let a BatchNorm inside of a larger forward pass see one microbatch at a time."""
    forward = module.forward

    def per_microbatch(inputs: Tensor) -> Tensor:
        counts = sizes()
        repeats, rest = divmod(len(inputs), sum(counts))
        if rest:  # its first dimension is not that of the samples
            whole: Tensor = forward(inputs)
            return whole
        buffers = _Buffers(module)
        outputs = []
        pieces = torch.split(inputs, [count * repeats for count in counts])
        for piece, count in zip(pieces, counts, strict=True):
            outputs.append(forward(piece))
            buffers.collect(count)
        buffers.apply(Alone())
        return torch.cat(outputs)

    module.forward = per_microbatch
