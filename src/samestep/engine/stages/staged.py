"""The passes of a stage: its actions in the order of the schedule, and what its chunks exchange with others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from samestep import torch_private
from samestep.data.columns import Batch
from samestep.data.feed import Feed
from samestep.engine.backprop.concurrent import Ordinary
from samestep.engine.backprop.halves import Halves, Rest
from samestep.engine.events import Enter, Phase
from samestep.engine.flat import Buffers, FlatModel
from samestep.engine.job import Job
from samestep.engine.loading import Loading
from samestep.engine.part import Part
from samestep.engine.passes import Done, Explained, Passes, Targets, inputs_of
from samestep.engine.stages.chunk import Chunk, chunk_of
from samestep.engine.stages.graph import traced
from samestep.engine.stages.links import Neighbours
from samestep.plan import schedules
from samestep.plan.batch import Microbatch
from samestep.plan.pipeline import Drawn
from samestep.plan.schedules import Action, Pass


@dataclass
class _Flight:
    """A microbatch between its forward and the end of its backward pass.

    Args:
        microbatch: Which.
        batch: Its samples, where the chunk reads any.
        received: What came from the chunk before.
        sent: What went to the chunk behind.
        buffers: What the module worked with.
        total: The sum of losses, in the last chunk.
        weight: The losses' weight.
        returned: What came back from the chunk behind.
        gradients: Of the parameters, from the first half of the backward pass.
        rest: The other half.
    """

    microbatch: Microbatch
    batch: Batch | None
    received: Sequence[Tensor]
    sent: Sequence[Tensor]
    buffers: Buffers
    total: Tensor | None
    weight: float
    returned: Sequence[Tensor | None] = ()
    gradients: Sequence[Tensor | None] = ()
    rest: Rest = ()

    @property
    def sums(self) -> tuple[float, float] | None:
        """The sum of losses, and their weight, where they are known."""
        return None if self.total is None else (self.total.item(), self.weight)


@dataclass(frozen=True)
class Held:
    """A chunk that this rank holds.

    Args:
        chunk: It, as it is trained.
        evaluated: It, as it is evaluated.
        neighbours: Who is before and behind.
        drawn: Where random numbers stand before it.
        halves: How its backward passes are cut in halves; None: they are not.
    """

    chunk: Chunk
    evaluated: Chunk | None
    neighbours: Neighbours
    drawn: Drawn
    halves: Halves | None
    flights: dict[int, _Flight] = field(default_factory=dict)


class StagedPasses(Passes):
    """Passes of microbatches through the chunks of one stage.

    Args:
        job: Whose.
        model: The job's model over flat memory.
        loading: Where microbatches come from.
        enter: Told what is done next.
        place: Number of this rank's stage, and of how many.
        held: Its chunks.
    """

    def __init__(
        self, job: Job, model: FlatModel, loading: Loading, enter: Enter, place: tuple[int, int], held: Sequence[Held]
    ) -> None:
        super().__init__(job, model, loading, Ordinary(), enter)
        assert job.stages is not None
        self._stages, self._place = job.stages, place
        self._numbers = self._stages.chunks_of(*place)
        self._held = dict(zip(self._numbers, held, strict=True))
        self._readers = [number for number, each in self._held.items() if each.chunk.reads_data]
        self._loaded: dict[int, Batch] = {}
        self.evaluates_in_stages = all(each.evaluated is not None for each in held)
        first = held[0]
        for chunk in (first.chunk, first.evaluated):  # all chunks are of the same two graphs
            if chunk is not None:
                chunk.graph.draw_from(self._randomness)

    @property
    def parts(self) -> list[Part]:
        """What of the model this rank computes, chunk by chunk."""
        return [each.chunk.part for each in self._held.values()]

    def train(self, targets: Targets) -> Iterator[Done]:
        self._loaded.clear()
        for held in self._held.values():
            held.flights.clear()
        for action in self._actions():
            held = self._held[action.chunk]
            match action.kind:
                case Pass.FORWARD:
                    held.flights[action.number] = self._forward_one(held, action)
                case Pass.INPUT:
                    self._input_gradients(held, held.flights[action.number])
                case Pass.BACKWARD:
                    self._backward_one(held, held.flights[action.number])
                case Pass.WEIGHT:
                    self._weight_gradients(held, held.flights[action.number])
            if action.kind.completes:
                flight = held.flights.pop(action.number)
                yield Done(flight.microbatch, self._numbers.index(action.chunk), flight.sums)

    def evaluate(self, step: int, microbatches: Sequence[Microbatch], feed: Feed) -> Iterator[tuple[int, list[float]]]:
        if not self.evaluates_in_stages:
            yield from super().evaluate(step, microbatches, feed)
            return
        self._set_mode(is_training=False)
        for microbatch in microbatches:
            self._model.begin_microbatch()
            batch = feed.load(0, microbatch.start, microbatch.stop) if self._readers else None
            for held in self._held.values():
                with torch.no_grad():
                    row = self._evaluate_one(held, step, microbatch, batch)
                if row is not None:
                    yield microbatch.index, row
            self._model.collect_replaced()

    def _actions(self) -> Sequence[Action]:
        stage, num_stages = self._place
        return schedules.actions(
            self._stages.schedule,
            num_stages=num_stages,
            num_chunks=self._stages.num_chunks,
            stage=stage,
            num_microbatches=len(self._microbatches),
        )

    def _forward_one(self, held: Held, action: Action) -> _Flight:
        microbatch = self._microbatches[action.number]
        self._enter(Phase.DATA, self._step)
        self._randomness.begin(self._step, self._number, microbatch.index)
        batch = self._batch(action)
        received = self._receive_values(held, held.chunk)
        self._enter(Phase.FORWARD, self._step)
        buffers = self._model.fresh_buffers()
        flight = _Flight(microbatch, batch, received, (), buffers, None, 0.0)
        self._compute(held, flight, is_halved=held.halves is not None)
        if held.neighbours.to_behind is not None:
            self._enter(Phase.STAGES, self._step)
            held.neighbours.to_behind.send(flight.sent)
        return flight

    def _compute(self, held: Held, flight: _Flight, *, is_halved: bool) -> None:
        """The forward pass of a flight, from what it has received and the step's buffers."""
        chunk, step, microbatch = held.chunk, self._step, flight.microbatch
        self._randomness.begin(step, self._number, microbatch.index)
        self._randomness.skip(held.drawn)
        with self._autocast():
            with Explained(microbatch.num_samples, step):
                values = self._run(
                    chunk, flight.received, flight.batch, held.halves.watch if is_halved and held.halves else None
                )
            if chunk.is_last:
                assert flight.batch is not None
                flight.total, flight.weight = self.loss(chunk.graph.output(values), flight.batch)
        self._model.collect_replaced()
        flight.sent = [values[node] for node in chunk.outgoing]

    def _run(self, chunk: Chunk, received: Sequence[Tensor], batch: Batch | None, watch: Any) -> dict[Any, Any]:
        values: dict[Any, Any] = dict(zip(chunk.incoming, received, strict=True))
        if batch is not None:
            values.update(zip(chunk.graph.inputs, inputs_of(self._job, batch), strict=False))
        with watch or nullcontext():
            chunk.graph.run(values, chunk.start, chunk.stop, keeps_all=False)
        return values

    def _batch(self, action: Action) -> Batch | None:
        """A microbatch's samples, for a chunk that reads any; the first that does loads them, the last drops them."""
        if action.chunk not in self._readers:
            return None
        if action.chunk == self._readers[0]:
            self._loaded[action.number] = next(self._batches)
        is_last = action.chunk == self._readers[-1]
        return self._loaded.pop(action.number) if is_last else self._loaded[action.number]

    def _backward_one(self, held: Held, flight: _Flight) -> None:
        self._model.use_buffers(flight.buffers)
        if flight.total is None:
            self._receive_gradients(held, flight)
        self._enter(Phase.BACKWARD, self._step)
        self._back_propagate(held, flight)
        if held.neighbours.to_before is not None:
            self._enter(Phase.STAGES, self._step)
            shared = [parameter.grad for parameter in held.chunk.shared_before]
            held.neighbours.to_before.send([*(each.grad for each in flight.received), *shared])

    def _input_gradients(self, held: Held, flight: _Flight) -> None:
        assert held.halves is not None
        self._backward_one(held, flight)
        flight.rest = held.halves.rest()
        flight.gradients = self._model.gradients()
        self._model.drop_gradients()

    def _weight_gradients(self, held: Held, flight: _Flight) -> None:
        assert held.halves is not None
        self._enter(Phase.BACKWARD, self._step)
        self._model.use_buffers(flight.buffers)
        self._model.set_gradients(flight.gradients)
        if not held.halves.finish(flight.rest):
            self._repeat(held, flight)

    def _repeat(self, held: Held, flight: _Flight) -> None:
        """Compute all gradients again in the ordinary way; those of weights shared with other chunks are there."""
        self._model.drop_gradients()
        flight.buffers = self._model.fresh_buffers()
        self._compute(held, flight, is_halved=False)
        self._back_propagate(held, flight)
        shared = {id(each) for each in (*held.chunk.shared_before, *held.chunk.shared_behind)}
        for parameter, gradient in zip(self._model.parameters, flight.gradients, strict=True):
            if id(parameter) in shared:
                parameter.grad = gradient

    def _receive_values(self, held: Held, chunk: Chunk) -> list[Tensor]:
        if held.neighbours.from_before is None:
            return []
        self._enter(Phase.STAGES, self._step)
        received = held.neighbours.from_before.receive(len(chunk.incoming))
        return [each for each in received if each is not None]

    def _receive_gradients(self, held: Held, flight: _Flight) -> None:
        link, shared = held.neighbours.from_behind, held.chunk.shared_behind
        assert link is not None
        self._enter(Phase.STAGES, self._step)
        gradients = link.receive(len(flight.sent) + len(shared))
        flight.returned = gradients[: len(flight.sent)]
        # a shared weight's gradient begins with what later uses give: so autograd would add them
        for parameter, gradient in zip(shared, gradients[len(flight.sent) :], strict=True):
            parameter.grad = gradient

    def _back_propagate(self, held: Held, flight: _Flight) -> None:
        """From the loss, or from the gradients that the chunk behind gives."""
        if flight.total is not None:
            torch_private.backward([flight.total], [self._root(flight.total, self._step)])
            return
        pairs = zip(flight.sent, flight.returned, strict=True)
        roots = [(value, gradient) for value, gradient in pairs if gradient is not None and value.requires_grad]
        if roots:
            torch_private.backward([value for value, _ in roots], [gradient for _, gradient in roots])

    def _evaluate_one(self, held: Held, step: int, microbatch: Microbatch, batch: Batch | None) -> list[float] | None:
        chunk = held.evaluated
        assert chunk is not None
        received = self._receive_values(held, chunk)
        self._enter(Phase.EVALUATION, step)
        self._randomness.begin(step, -1, microbatch.index)
        self._randomness.skip(held.drawn)
        with self._autocast():
            values = self._run(chunk, received, batch, None)
            row = None
            if chunk.is_last:
                assert batch is not None
                row = self._row(chunk.graph.output(values), batch)
        if held.neighbours.to_behind is not None:
            held.neighbours.to_behind.send([values[node] for node in chunk.outgoing])
        return row


def passes_for(
    job: Job, model: FlatModel, loading: Loading, enter: Enter, place: tuple[int, int], neighbours: Sequence[Neighbours]
) -> StagedPasses:
    """The passes of stage number ``place[0]`` of ``place[1]``.

    Args:
        job: Whose.
        model: The job's model over flat memory.
        loading: Where microbatches come from.
        enter: Told what is done next.
        place: Number of the stage, and of how many.
        neighbours: Of each of its chunks.
    """
    stages = job.stages
    assert stages is not None
    edges = stages.cuts[place[1]]
    num_inputs = len(job.samples.inputs)
    graph = traced(job.model, num_inputs)
    evaluated = traced(job.model, num_inputs, is_training=False) if stages.evaluates else None
    found = []
    for number, each in zip(stages.chunks_of(*place), neighbours, strict=True):
        layout, buffers = job.update.layout, job.buffers
        chunk = chunk_of(graph, edges, number, layout, buffers)
        twin = None if evaluated is None else chunk_of(evaluated, edges, number, layout, buffers)
        halves = Halves(_own(model, chunk)) if stages.schedule == "zbv" else None
        found.append(Held(chunk, twin, each, stages.drawn[chunk.start], halves))
    return StagedPasses(job, model, loading, enter, place, found)


def _own(model: FlatModel, chunk: Chunk) -> list[Any]:
    """The parameters that no other chunk uses: other gradients are sent on before the weights' turn."""
    shared = {id(each) for each in (*chunk.shared_before, *chunk.shared_behind)}
    return [model.parameters[n] for n in chunk.part.parameters if id(model.parameters[n]) not in shared]
