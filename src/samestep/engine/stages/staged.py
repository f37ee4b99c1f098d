"""The passes of a stage: its actions in the order of the schedule, and what it exchanges with its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from samestep import torch_private
from samestep.data.columns import Batch
from samestep.engine.backprop.concurrent import Ordinary
from samestep.engine.events import Enter, Phase
from samestep.engine.flat import Buffers, FlatModel
from samestep.engine.job import Job
from samestep.engine.loading import Loading
from samestep.engine.part import Part
from samestep.engine.passes import Passes, inputs_of
from samestep.engine.stages.graph import traced
from samestep.engine.stages.links import Neighbours
from samestep.engine.stages.stage import Stage, stage_of
from samestep.plan import pipeline
from samestep.plan.batch import Microbatch


@dataclass(frozen=True)
class _Flight:
    """A microbatch between its forward and its backward pass.

    Args:
        received: What came from the stage before.
        sent: What went to the stage behind.
        buffers: What the module worked with.
        total: The sum of losses, in the last stage.
        weight: The losses' weight.
    """

    received: Sequence[Tensor]
    sent: Sequence[Tensor]
    buffers: Buffers
    total: Tensor | None
    weight: float


class StagedPasses(Passes):
    """Passes of microbatches through one stage.

    Args:
        job: Whose.
        model: The job's model over flat memory.
        loading: Where microbatches come from.
        enter: Told what is done next.
        stage: This rank's.
        place: Number of the stage, and of how many.
        neighbours: Who is before and behind.
    """

    def __init__(
        self,
        job: Job,
        model: FlatModel,
        loading: Loading,
        enter: Enter,
        stage: Stage,
        place: tuple[int, int],
        neighbours: Neighbours,
    ) -> None:
        super().__init__(job, model, loading, Ordinary(), enter)
        self._stage, self._place, self._neighbours = stage, place, neighbours
        assert job.stages is not None
        self._reads_data = stage.reads_data
        self._num_drawn = job.stages.num_drawn[stage.start]
        self._microbatches: Sequence[Microbatch] = ()
        self._actions: Iterator[pipeline.Action] = iter(())
        self._flights: dict[int, _Flight] = {}

    @property
    def part(self) -> Part:
        """What of the model this rank computes."""
        return self._stage.part

    def begin(self, step: int, number: int, microbatches: Sequence[Microbatch], batches: Iterator[Batch]) -> None:
        super().begin(step, number, microbatches, batches)
        assert self._job.stages is not None
        stage, num_stages = self._place
        self._microbatches = microbatches
        self._actions = iter(
            pipeline.actions(
                self._job.stages.schedule, num_stages=num_stages, stage=stage, num_microbatches=len(microbatches)
            )
        )
        self._flights.clear()

    def train(self, microbatch: Microbatch, targets: Mapping[int, Tensor]) -> tuple[float, float] | None:
        """Act until the microbatch has come back."""
        for action in self._actions:
            current = self._microbatches[action.number]
            if action.is_forward:
                self._flights[action.number] = self._forward_one(current)
            else:
                assert current is microbatch
                return self._backward_one(self._flights.pop(action.number))
        raise AssertionError("a schedule ends with the last backward pass")

    def _forward_one(self, microbatch: Microbatch) -> _Flight:
        stage, step = self._stage, self._step
        self._enter(Phase.DATA, step)
        self._randomness.begin(step, self._number, microbatch.index)
        batch = next(self._batches) if self._reads_data else None
        received = self._receive_values()
        self._enter(Phase.FORWARD, step)
        self._randomness.begin(step, self._number, microbatch.index)
        self._randomness.skip(self._num_drawn)
        buffers = self._model.fresh_buffers()
        values: dict[Any, Any] = dict(zip(stage.incoming, received, strict=True))
        if batch is not None:
            values.update(zip(stage.graph.inputs, inputs_of(self._job, batch), strict=False))
        total, weight = None, 0.0
        with self._autocast():
            with self._explained(microbatch.num_samples, step):
                stage.graph.run(values, stage.start, stage.stop)
            if stage.is_last:
                assert batch is not None
                total, weight = self._loss(stage.graph.output(values), batch)
        self._model.collect_replaced()
        sent = [values[node] for node in stage.outgoing]
        if self._neighbours.to_behind is not None:
            self._enter(Phase.STAGES, step)
            self._neighbours.to_behind.send(sent)
        return _Flight(received, sent, buffers, total, weight)

    def _backward_one(self, flight: _Flight) -> tuple[float, float] | None:
        self._model.use_buffers(flight.buffers)
        if flight.total is not None:
            self._enter(Phase.BACKWARD, self._step)
            torch_private.backward([flight.total], [self._root(flight.total, self._step)])
        else:
            self._enter(Phase.STAGES, self._step)
            self._continue_backward(flight)
        if self._neighbours.to_before is not None:
            self._enter(Phase.STAGES, self._step)
            shared = [parameter.grad for parameter in self._stage.shared_before]
            self._neighbours.to_before.send([*(each.grad for each in flight.received), *shared])
        return None if flight.total is None else (flight.total.item(), flight.weight)

    def _receive_values(self) -> list[Tensor]:
        if self._neighbours.from_before is None:
            return []
        self._enter(Phase.STAGES, self._step)
        received = self._neighbours.from_before.receive(len(self._stage.incoming))
        return [each for each in received if each is not None]

    def _continue_backward(self, flight: _Flight) -> None:
        """Go on from the gradients that the stage behind gives."""
        link, shared = self._neighbours.from_behind, self._stage.shared_behind
        assert link is not None
        gradients = link.receive(len(flight.sent) + len(shared))
        self._enter(Phase.BACKWARD, self._step)
        # a shared weight's gradient begins with what later uses give: so autograd would add them
        for parameter, gradient in zip(shared, gradients[len(flight.sent) :], strict=True):
            parameter.grad = gradient
        pairs = [(value, gradient) for value, gradient in zip(flight.sent, gradients, strict=False)]
        roots = [(value, gradient) for value, gradient in pairs if gradient is not None and value.requires_grad]
        if roots:
            torch_private.backward([value for value, _ in roots], [gradient for _, gradient in roots])


def passes_for(
    job: Job, model: FlatModel, loading: Loading, enter: Enter, place: tuple[int, int], neighbours: Neighbours
) -> StagedPasses:
    """The passes of stage number ``place[0]`` of ``place[1]``."""
    assert job.stages is not None
    number, num_stages = place
    stage = stage_of(traced(job.model), job.stages.cuts[num_stages], number, job.update.layout, job.buffers)
    return StagedPasses(job, model, loading, enter, stage, place, neighbours)
