"""What a rank does with one microbatch: load it, run it forward, back-propagate, or evaluate it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from samestep import torch_private
from samestep.data.columns import Batch, Column, Rows, Stretches, Windows
from samestep.data.feed import Feed, aligned
from samestep.data.pack.mapped import Mapped
from samestep.engine import losses
from samestep.engine.backprop.concurrent import Concurrent, Ordinary
from samestep.engine.device.host import Host
from samestep.engine.device.seam import Device, Number, head
from samestep.engine.events import Enter, Phase
from samestep.engine.finite import Culprit
from samestep.engine.flat import FlatModel
from samestep.engine.graphs import Graphs, Sums
from samestep.engine.job import Job
from samestep.engine.loading import Loading
from samestep.engine.losses import as_sums
from samestep.engine.randomness import KeyedRandomness
from samestep.errors import DataError, UsageError
from samestep.plan.batch import Microbatch

Targets = Callable[[int], Mapping[int, Tensor]]
"""Where gradients of a piece's next microbatch may go, by the identity of their parameter; others, into new memory."""

_ABOUT_TARGETS = ("dtype", "scalar type", "out of bounds", "Class values must be")
"""Words of torch's where a loss complains of targets that it cannot take."""


@dataclass(frozen=True)
class Done:
    """A microbatch whose gradients lie in the model.

    Args:
        microbatch: Which.
        piece: The part of the model that they belong to, counted over what this rank computes.
        sums: The sum of its losses, and their weight; None where another rank, or piece, knows them.
    """

    microbatch: Microbatch
    piece: int
    sums: tuple[Number, Number] | None


class Passes:
    """Forward and backward passes of a job's microbatches.

    Args:
        job: Whose.
        model: The job's model over flat memory.
        loading: Where microbatches come from.
        backprop: How gradients are computed.
        enter: Told what is done next.
        device: What the model is on.
    """

    evaluates_in_stages = False
    """Whether a replica evaluates a microbatch together, or every rank by itself."""

    culprit: Culprit | None = None
    """Where something non-finite of this round came from, if that is already known."""

    def __init__(
        self,
        job: Job,
        model: FlatModel,
        loading: Loading,
        backprop: Ordinary | Concurrent,
        enter: Enter,
        device: Device | None = None,
    ) -> None:
        self._job, self._model, self._loading, self._enter = job, model, loading, enter
        self._backprop = backprop
        self._device = device = device or Host()
        has_hooks = not job.is_seeded_once
        self._randomness = KeyedRandomness(job.model, job.seed, device.generators, has_hooks=has_hooks)
        self._loss = losses.without_ignored(losses.placed(job.loss, device.where), map(_values, _targets_of(job)))
        self._compiled = compiled(job, self._loss)
        # Where phases are timed, each is waited for; a graph has none.
        is_captured = job.has_graphs and job.trace is None and not device.is_host
        self.graphs = Graphs(device, model, self._plain) if is_captured else None
        self._is_seeded_early = loading.may_draw
        self._is_seeded_late = job.is_seeded_once or not loading.may_draw
        self._has_checked = False
        self._roots: dict[tuple[torch.dtype, torch.Size, int], Tensor] = {}
        self._autocast = autocast_of(job, device)
        self._is_training: bool | None = None
        self._step = self._number = 0
        self._microbatches: Sequence[Microbatch] = ()
        self._batches: Iterator[Batch] = iter(())

    def close(self) -> None:
        """Take the hooks off the model."""
        self._randomness.close()

    def settle(self) -> None:
        """The step is taken: write what is kept of it beside parameters, buffers and the optimiser's state."""

    def begin(self, step: int, number: int, microbatches: Sequence[Microbatch], batches: Iterator[Batch]) -> None:
        """A round begins.

        Args:
            step: Of the run.
            number: Of the round in the step.
            microbatches: What this rank computes of it, in order.
            batches: The same, loaded one after the other.
        """
        self._set_mode(is_training=True)
        self._step, self._number, self._microbatches, self._batches = step, number, microbatches, batches

    def train(self, targets: Targets) -> Iterator[Done]:
        """Compute the gradients of the round's microbatches.

        Yields:
            A microbatch whose gradients lie in the model, until the next one is asked for.
        """
        for microbatch in self._microbatches:
            self._backprop.begin(targets(0))
            yield Done(microbatch, 0, self._forward_backward(microbatch, self._batches))

    def evaluate(self, step: int, microbatches: Sequence[Microbatch], feed: Feed) -> Iterator[tuple[int, list[float]]]:
        """Evaluate microbatches.

        Yields:
            A microbatch's index; its loss sum and weight, then sum and weight of each metric.
        """
        self._set_mode(is_training=False)
        for microbatch in microbatches:
            self._model.begin_microbatch()
            self._randomness.begin(step, -1, microbatch.index)
            batch = feed.load(0, microbatch.start, microbatch.stop)
            batch = batch if feed.is_resident else self._device.placed(batch)
            with torch.no_grad(), self._autocast():
                row = self._row(self._forward(batch, step), batch)
            self._model.collect_replaced()
            yield microbatch.index, row

    def _set_mode(self, *, is_training: bool) -> None:
        if self._is_training is not is_training:
            self._job.model.train(is_training)
            self._is_training = is_training

    def _row(self, output: Any, batch: Batch) -> list[float]:
        loss, weight = self.loss(output, batch)
        row = [float(loss), float(weight)]
        for metric in self._job.metrics.values():
            row.extend(as_sums(metric(output, batch.target), batch.num_samples))
        return row

    def answer(self, microbatch: Microbatch, batch: Batch, parameters: Mapping[str, Tensor]) -> Any:
        """What the model answers with other parameters, drawing what it drew in the step's first round.

        Buffers are as after the step before; what changes of them is forgotten.
        """
        self._randomness.begin(self._step, 0, microbatch.index)
        self._model.begin_microbatch()
        with self._autocast(), Explained(batch.num_samples, self._step):
            found = torch.func.functional_call(self._job.model, dict(parameters), inputs_of(self._job, batch))
        self._model.collect_replaced()
        return found

    def loss(self, output: Any, batch: Batch) -> tuple[Tensor, Any]:
        """Sum of the losses of an answer, and their weight."""
        if not self._has_checked:
            self._check_classes(output)
        try:
            return self._loss(output, batch.target, batch.num_samples)
        except (IndexError, RuntimeError) as error:
            if self._job.class_check is not None:
                self._job.class_check(output, batch.target)
            if any(word in str(error) for word in _ABOUT_TARGETS):
                raise DataError(
                    f"the loss does not take these targets ({_described(batch.target)}): {error}"
                ) from error
            raise

    def _check_classes(self, output: Any) -> None:
        """Look at all targets before the first loss, and not at a wrong one in the middle of an epoch.

        A GPU could not even say which class the model has no answer for. Classes of a pack were counted when it was
        made, and reading all of it here would take long.
        """
        self._has_checked = True
        if self._job.class_check is None:
            return
        for column in _targets_of(self._job):
            if not isinstance(column, Rows | Windows | Stretches):
                continue
            if not (isinstance(column.values, Mapped) and self._device.is_host):
                self._job.class_check(output, column.tensor)

    def _forward_backward(self, microbatch: Microbatch, batches: Iterator[Batch]) -> tuple[Number, Number]:
        step, number = self._step, self._number
        self._enter(Phase.DATA, step)
        if self._is_seeded_early:
            self._randomness.begin(step, number, microbatch.index)
        batch = next(batches)
        self._enter(Phase.FORWARD, step)
        if self._is_seeded_late:
            self._randomness.begin(step, number, microbatch.index)
        self._model.begin_microbatch()
        sums = self._attempt(batch, step, microbatch)
        if sums is None:
            raise UsageError(self._what_fits(batch, step, microbatch))
        if not self._backprop.finish():
            self._model.drop_gradients()
            return self._forward_backward(microbatch, self._loading.again(step, microbatch))
        return sums

    def _attempt(self, batch: Batch, step: int, microbatch: Microbatch, *, is_trial: bool = False) -> Sums | None:
        """The pass of a microbatch; None: the memory of the device is not enough."""
        try:
            if self.graphs is not None and not is_trial:
                num_samples = self._loading.num_samples_of(step)
                found = self.graphs.run(batch, step, num_samples, partial(self._restart, microbatch))
                if found is not None:
                    return found
            return self._plain(batch, step)
        except torch.OutOfMemoryError:
            return None  # what the pass holds is given back on the way out of here
        except RuntimeError as error:
            if "deterministic" in str(error) and "use_deterministic_algorithms" in str(error):
                operation = str(error).partition(" does not have a deterministic")[0]
                raise UsageError(
                    f"the model uses {operation}, which has no deterministic kernel on {self._device.name}, so a run "
                    "could not be repeated; take another operation, or device='cpu'"
                ) from None
            if self._job.precision == "bf16" and "could not create a primitive" in str(error):
                raise UsageError(
                    "precision='bf16': this CPU has no kernel in bfloat16 for a layer of the model (torch has none for "
                    "an LSTM without AVX-512 or AMX); take precision='fp32'"
                ) from error
            raise

    def _restart(self, microbatch: Microbatch) -> None:
        """What a pass changes and draws from, as it was before."""
        self._randomness.begin(self._step, self._number, microbatch.index)
        self._model.begin_microbatch()

    def _what_fits(self, batch: Batch, step: int, microbatch: Microbatch) -> str:
        """After running out of memory: which microbatch would fit, found by trying halves."""
        size, text = batch.num_samples, "not even one sample at a time does"
        while size > 1:
            size //= 2
            self._model.drop_gradients()
            self._device.release()
            self._restart(microbatch)
            if self._attempt(head(batch, size), step, microbatch, is_trial=True) is not None:
                text = f"microbatch={size} does (tried); the global batch can stay as it is"
                break
        self._model.drop_gradients()
        return f"microbatch={batch.num_samples} does not fit the memory of {self._device.name}: {text}"

    def _plain(self, batch: Batch, step: int) -> Sums:
        """A plain pass: gradients lie in the model afterwards."""
        with self._autocast():
            if self._compiled is not None:
                with Explained(batch.num_samples, step):
                    total, weight = self._compiled(inputs_of(self._job, batch), batch.target, batch.num_samples)
            else:
                with self._backprop.watch:
                    output = self._forward(batch, step)
                total, weight = self.loss(output, batch)
        self._enter(Phase.BACKWARD, step)
        torch_private.backward([total], [self._root(total, step)])
        return total.detach(), weight.detach() if isinstance(weight, Tensor) else weight

    def _root(self, total: Tensor, step: int) -> Tensor:
        """What the backward pass starts from: 1 / samples of the step, so that most sums need no division."""
        num_samples = self._loading.num_samples_of(step)
        key = (total.dtype, total.shape, num_samples)
        if key not in self._roots:
            if total.numel() != 1:
                raise UsageError(f"the loss's sum has shape {tuple(total.shape)}, and it must be one number: sum it")
            self._roots[key] = torch.full_like(total, 1.0 / num_samples, requires_grad=False)
        return self._roots[key]

    def _forward(self, batch: Batch, step: int) -> Any:
        with Explained(batch.num_samples, step):
            return self._job.model(*inputs_of(self._job, batch))


class Explained:
    """Say in our words what a forward pass of some samples complains of."""

    def __init__(self, num_samples: int, step: int) -> None:
        self._num_samples, self._step = num_samples, step

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        is_alone = self._num_samples == 1 and isinstance(error, ValueError)
        if is_alone and "more than 1 value per channel" in str(error):
            raise UsageError(
                f"a microbatch of step {self._step} holds one sample, and BatchNorm needs two to normalise; take "
                "last_batch='drop', or a microbatch that does not leave a single sample over"
            ) from None


def _described(target: Tensor) -> str:
    """The dtype of targets, and their range where they may be classes."""
    if target.is_floating_point() or target.numel() == 0:
        return str(target.dtype)
    return f"{target.dtype}, {int(target.min())} to {int(target.max())}"


def _targets_of(job: Job) -> list[Column]:
    """The columns of targets that passes are given."""
    sets = [job.samples, *([job.evaluation.samples] if job.evaluation else [])]
    return [samples.target for samples in sets]


def _values(column: Column) -> Tensor | None:
    """All targets of a column, where they are what a batch is given."""
    if isinstance(column, Rows) and column.transform is None and not column.changes:
        return column.tensor
    return None


def inputs_of(job: Job, batch: Batch) -> tuple[Tensor, ...]:
    """What a job's network takes of a batch."""
    if not job.is_channels_last:
        return batch.inputs
    return tuple(aligned(x.contiguous(memory_format=torch.channels_last)) if x.dim() == 4 else x for x in batch.inputs)


def compiled(job: Job, loss: losses.SummedLoss) -> Callable[..., tuple[Tensor, Any]] | None:
    """The forward pass and the loss by torch's compiler: (inputs, target, samples) -> sum and weight."""
    if job.compiler is None:
        return None
    model = job.model

    def forward(inputs: tuple[Tensor, ...], target: Tensor, num_samples: int) -> tuple[Tensor, Any]:
        return loss(model(*inputs), target, num_samples)

    return torch.compile(forward, backend=job.compiler, dynamic=False)


def autocast_of(job: Job, device: Device) -> Callable[[], AbstractContextManager[None]]:
    """What a job's forward passes run in."""
    return partial(_bf16, device) if job.precision == "bf16" else nullcontext


@contextmanager
def _bf16(device: Device) -> Iterator[None]:
    """Autocast whose casts of the weights end with it.

    torch keeps them until the outermost autocast ends: inside of one, every step would use the first step's weights.
    """
    with device.autocast(enabled=True):
        yield
    torch.clear_autocast_cache()
