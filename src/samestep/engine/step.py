"""The step, acted out by one rank: rounds of contributions, the tree sum, the decision, the update."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samestep.data.feed import Feed
from samestep.engine import part
from samestep.engine.backprop.concurrent import backprop_for
from samestep.engine.combine import RoundPlan
from samestep.engine.curvature import Curvature
from samestep.engine.early import early_for
from samestep.engine.events import Phase
from samestep.engine.finite import LOSS_TENSOR, Culprit, NonFiniteSums, SpoiledStateError
from samestep.engine.flat import FlatModel
from samestep.engine.helpers import hands_for, runner
from samestep.engine.job import SAMPLES, WEIGHT, Job
from samestep.engine.late import LateSums
from samestep.engine.loading import Loading
from samestep.engine.part import Part
from samestep.engine.passes import Done, Passes
from samestep.engine.pieces import Piece
from samestep.engine.rank import Rank
from samestep.optim import noise, owners
from samestep.optim.rounds import Meeting, RoundRequest, Steps, Sums, TableRequest
from samestep.optim.rules import Factors
from samestep.plan import allotment, rounds
from samestep.plan.batch import Microbatch
from samestep.plan.course import Course
from samestep.plan.layout import BLOCK, Range


class Stepper:
    """Runs the steps of a job on one rank.

    Args:
        job: What to do.
        rank: Who does it.
        memory: The regions of `job.run_regions`, as tensors.
        live: The live arrays, as tensors.
        is_careful: Whether every rank waits for the sums of all slices before it updates. Otherwise a step whose rule
            does not need them updates at once, and `confirm` finds out afterwards.
        loading: Where its microbatches come from; default: from the job's own steps, up to the last.

    Attributes:
        num_rounds: Of the last step that was run; of a period of local steps, of all its steps.
        num_rows: Read in these rounds, by all ranks.
    """

    def __init__(
        self,
        job: Job,
        rank: Rank,
        memory: Mapping[str, Tensor],
        live: Mapping[str, Tensor],
        *,
        is_careful: bool,
        loading: Loading | None = None,
    ) -> None:
        self._job = job
        self._rank = rank
        self._is_careful = is_careful
        self._live = live
        self._replica = rank.team.replica(rank.index)
        self._model = FlatModel(
            job.model,
            job.update.layout,
            job.buffers,
            parameters=live["parameters"],
            step_tracked=live["tracked"],
            step_others=live["others"],
        )
        self._hands = hands_for(job, rank.world_size, rank.num_helpers)
        buckets, num_hands = rank.exchange.buckets, self._hands.num_hands
        hands = allotment.owned(job.update.layout, rank.team, job.stages, num_hands=num_hands, buckets=buckets)
        num_owned = sum(segment.stop - segment.start for hand in hands[rank.index] for segment in hand)
        self._run = runner(self._hands, num_owned)
        self.owned = owners.owned_by(job.update, hands[rank.index], live, self._run)
        self._segments = self.owned.segments
        self.kept = [segment for owner in rank.stands_for for hand in hands[owner] for segment in hand]
        self.parameters: list[Tensor] = list(self.owned.parameters)
        self.gradients = self.owned.gradients
        self._loading = loading or Loading(job, rank.team.num_replicas, self._replica, rank.world_size, rank.device)
        self._shares = [range(len(self._segments))[hand::num_hands] for hand in range(num_hands)]
        self._passes, parts = self._make_passes(memory)
        self._table = memory["table"].numpy()
        self._sums = LateSums(self._table, is_late=not rank.device.is_host)
        self._squares = memory["squares"].numpy()
        self._used_table = memory["used_table"]
        self._norms = memory["norms"]
        self._own_blocks = [
            (gradient.view(-1, BLOCK), memory["norms"][segment.start // BLOCK : segment.stop // BLOCK])
            for gradient, segment in zip(self.owned.padded_gradients, self._segments, strict=True)
        ]
        self._contributions = memory["contributions"]
        self._changes_at = self._contributions.shape[-1] - job.buffers.num_tracked
        self._pieces = [self._make_piece(each) for each in parts]
        self._early = early_for(self._hands, self._model, job.update.layout, self._pieces, rank.exchange)
        self._private = {number: memory for piece in self._pieces for number, memory in piece.private.items()}
        self._owns_tracked = rank.index == rank.world_size - 1 and job.buffers.num_tracked > 0
        self._curvature = self._make_curvature(memory)
        self._plans: dict[int, RoundPlan] = {}
        self._pending_changes: Tensor | None = None
        self._pending_others: list[tuple[Range, Tensor]] = []
        self._is_looked_at = False
        self._factors = Factors()
        self._step = 0
        self.num_rounds = self.num_rows = 0
        self._leave_unused_alone()

    def _make_piece(self, part: Part) -> Piece:
        shared, layout = self._contributions[self._replica], self._job.update.layout
        buckets, parameters = self._rank.exchange.buckets, self._model.parameters
        return Piece(part, layout, self.owned, shared, parameters, self._changes_at, buckets)

    def _make_curvature(self, memory: Mapping[str, Tensor]) -> Curvature | None:
        job, rank = self._job, self._rank
        if job.curvature is None:
            return None
        segments = list(zip(self._segments, self.owned.padded_gradients, strict=True))
        about, place = (self._passes, self._loading, self._model), (rank.world_size, rank.index)
        return Curvature(job, job.curvature, *about, memory, self._live, *place, segments)

    def device_facts(self) -> dict[str, Any] | None:
        """How the device was used; None on the CPU."""
        device, graphs = self._rank.device, self._passes.graphs
        if device.is_host:
            return None
        return {
            "name": device.name,
            "data": "on the device" if self._loading.is_resident else "sent ahead, batch by batch",
            "graphs": graphs.num_graphs if graphs is not None else 0,
            "not_captured": graphs.refusal if graphs is not None else "not asked for, or phases are timed",
            "peak_bytes": device.peak_bytes(),
        }

    def close(self) -> None:
        """Take the hooks off the model, stop what is loaded ahead, and end the helpers."""
        self._early.close()
        self._passes.close()
        self._loading.close()
        self._hands.close()

    def follow(self, course: Course) -> None:
        """Go on along this course."""
        self._loading.follow(course)

    def run(self, step: int, factors: Factors = Factors()) -> Sums:  # noqa: B008 (it is a tuple)
        """Run one step up to and including this rank's update; a barrier and `confirm` must follow.

        Args:
            step: Its number.
            factors: What the rates are multiplied with, besides the schedule.

        Returns:
            The first round's sums; the gradient's norm is None where nobody has waited for it yet.

        Raises:
            NonFiniteSums: On all ranks, with the parameters as they were before the step.
        """
        self._step, self.num_rounds, self.num_rows = step, 0, 0
        lr = self._job.schedule(self._loading.course.progress(step)) * factors.lr
        self._factors = Factors(lr=lr, weight_decay=factors.weight_decay)
        program = self._job.rule.step(self)
        try:
            first = self._run_rounds(step, program)
        finally:
            program.close()  # the rule puts back what it changed, however the step ends
        self._apply_buffers()
        self._passes.settle()
        return first

    def confirm(self, sums: Sums) -> Sums:
        """The sums with the gradient's norm, once all ranks have updated.

        Raises:
            SpoiledStateError: On all ranks: something was not finite, and the parameters are spoiled.
        """
        if sums.gradient_norm is not None:
            return sums
        norm = self._gradient_norm()
        if not math.isfinite(norm):
            raise SpoiledStateError
        return Sums(sums.loss, norm, sums.spread, sums.table)

    @property
    def curvature(self) -> Curvature:
        """What a rule with several directions works with."""
        assert self._curvature is not None
        return self._curvature

    def _run_rounds(self, step: int, program: Steps) -> Sums:
        request = next(program)
        assert isinstance(request, RoundRequest)
        sums = first = self._round(step, 0, request)
        for number in count(1):
            self._rank.enter(Phase.UPDATE, step)
            try:
                request = program.send(sums)
            except StopIteration:
                break
            self._rank.enter(Phase.BARRIER_UPDATE, step)
            self._rank.exchange.parameters()
            if isinstance(request, RoundRequest):
                sums = self._round(step, number, request)
            elif isinstance(request, TableRequest):
                small = self.curvature.small_round(step, request)
                table = small.run(self._own(small.microbatches), step, self._rank.enter, self._rank.exchange.meet)
                sums = first._replace(table=table)
                self._count(1, sum(each.num_samples for each in small.microbatches))
            else:
                assert isinstance(request, Meeting)
        return first

    def _count(self, num_rounds: int, num_rows: int) -> None:
        self.num_rounds += num_rounds
        self.num_rows += num_rows

    def _count_round(self, step: int, request: RoundRequest) -> None:
        """A round over the step's microbatches; where replicas train by themselves, the rounds of all their steps."""
        inside, num_samples = self._job.local, self._loading.num_samples_of(step)
        if inside is None:
            self._count(1, num_samples)
        else:
            num_steps = self._loading.course.next_step(step) - step
            self._count(inside.rule.num_rounds * num_steps, inside.rule.num_rounds * num_samples)
        if request.has_factors:
            self._count(1, self.curvature.num_factor_rows)

    def update(self, scale: float = 1.0) -> None:
        if scale != 1.0:
            for gradient in self.gradients:
                gradient.mul_(scale)
        self.owned.step(self._factors)

    def evaluate(self, microbatches: tuple[Microbatch, ...], feed: Feed) -> Iterator[tuple[int, list[float]]]:
        """This rank's share of an evaluation.

        Yields:
            A microbatch's index; its loss sum and weight, then sum and weight of each metric.
        """
        index, size = self._rank.index, self._rank.world_size
        if self._passes.evaluates_in_stages:
            index, size = self._replica, self._rank.team.num_replicas
        return self._passes.evaluate(self._step, rounds.own(microbatches, size, index), feed)

    def _find_culprit(self, step: int, number: int, microbatches: tuple[Microbatch, ...]) -> Culprit | None:
        """Replay this rank's microbatches of a round one by one and look at each."""
        if self._job.local is not None:
            return self._passes.culprit
        found: list[Culprit] = []
        for microbatch in self._own(microbatches):
            if found and self._rank.neighbours is None:
                break  # other stages go on, and need this one
            self._passes.begin(step, number, [microbatch], self._loading.again(step, microbatch))
            for done in self._passes.train(lambda piece: {}):
                found += self._culprits(step, done)
                self._model.drop_gradients()
        return min(found, key=lambda culprit: (culprit.microbatch, culprit.place), default=None)

    def _culprits(self, step: int, done: Done) -> Iterator[Culprit]:
        index = done.microbatch.index
        if done.sums is not None and not math.isfinite(done.sums[0]):
            yield Culprit(step, index, LOSS_TENSOR)
        gradients = self._model.gradients()
        for number in self._pieces[done.piece].part.parameters:
            gradient = gradients[number]
            if gradient is not None and not bool(torch.isfinite(gradient).all()):
                name = self._job.update.layout.places[number].spec.name
                yield Culprit(step, index, f"the gradient of {name}", number)

    def _own(self, microbatches: tuple[Microbatch, ...]) -> tuple[Microbatch, ...]:
        return rounds.own(microbatches, self._rank.team.num_replicas, self._replica)

    def _make_passes(self, memory: Mapping[str, Tensor]) -> tuple[Passes, Sequence[Part]]:
        job, rank = self._job, self._rank
        whole = part.whole(job.update.layout, job.buffers)
        if job.local is not None:
            from samestep.engine import local  # noqa: PLC0415 (it makes steppers, too)

            found = local.LocalPasses(job, self._model, self._loading, rank, memory, self._live, self._segments)
            return found, [whole]
        if rank.neighbours is None:
            backprop = backprop_for(self._model.parameters, self._hands)
            return Passes(job, self._model, self._loading, backprop, rank.enter, rank.device), [whole]
        from samestep.engine.stages import staged  # noqa: PLC0415 (torch.fx, where there are stages)

        passes = staged.passes_for(job, self._model, self._loading, rank.enter, rank.place, rank.neighbours)
        return passes, passes.parts

    def _plan(self, num_microbatches: int) -> RoundPlan:
        plan = self._plans.get(num_microbatches)
        if plan is None:
            num_replicas, machines = self._rank.team.num_replicas, self._rank.machines
            share = rounds.share(num_microbatches, num_replicas, self._replica, machines)
            plan = self._plans[num_microbatches] = RoundPlan(
                share,
                self._segments,
                self._contributions,
                self._replica,
                self._private,
                self._changes_at,
            )
        return plan

    def _round(self, step: int, number: int, request: RoundRequest) -> Sums:
        """Contributions, their sum over what this rank owns, and what all ranks learn from it."""
        microbatches = self._loading.microbatches(step)
        plan = self._plan(len(microbatches))
        self._passes.begin(step, number, self._loading.own(step), self._loading.batches(step, number))
        is_possible = number == 0 and len(microbatches) > 1
        self._is_looked_at = is_possible and noise.is_looked_at(step, self._job.noise_every)
        for piece in self._pieces:
            piece.begin(plan.local)
        self._rank.exchange.begin(step, number, len(microbatches), is_looked_at=self._is_looked_at)
        for done in self._passes.train(self._targets):
            self._contribute(step, number, done, self._pieces[done.piece])
        self._sums.settle()
        if request.has_factors:
            self.curvature.collect(step, plan.local, microbatches)
        self._count_round(step, request)
        self._rank.enter(Phase.BARRIER_CONTRIBUTIONS, step)
        self._rank.exchange.contributions(len(microbatches))
        self._rank.enter(Phase.COMBINE, step)
        total, weight, num_samples = np.add.reduce(self._table[: len(microbatches)]).tolist()
        if step == 0 and number == 0:
            self._find_unused(len(microbatches))
        self._combine(plan, num_samples / (weight or 1.0))
        if request.keeps_buffers and self._owns_tracked:
            self._pending_changes = plan.combine_changes() / num_samples
        norm = None
        if self._is_careful or request.decides_on_norm:
            self._rank.enter(Phase.BARRIER_COMBINATION, step)
            self._rank.exchange.norms()
            self._rank.enter(Phase.DECIDE, step)
            norm = self._gradient_norm()
        loss = total / (weight or 1.0)
        if not (math.isfinite(loss) and (norm is None or math.isfinite(norm))):
            culprit = self._find_culprit(step, number, microbatches)
            self._rank.exchange.meet()  # the rule puts back what it has changed, which others may still replay with
            raise NonFiniteSums(step, culprit)
        return Sums(loss, norm, self._spread(len(microbatches)) if self._is_looked_at else None)

    def _combine(self, plan: RoundPlan, factor: float) -> None:
        """The sums of the owned segments, and the norms of their blocks; every hand takes some segments."""
        self._run([partial(self._combine_some, plan, share, factor) for share in self._shares])

    def _combine_some(self, plan: RoundPlan, numbers: Iterable[int], factor: float) -> None:
        for number in numbers:
            plan.combine(number, self.owned.padded_gradients[number], factor)
            blocks, norms = self._own_blocks[number]
            torch.linalg.vector_norm(blocks, dim=1, out=norms)

    def _gradient_norm(self) -> float:
        norms = self._norms.numpy(force=True)
        squares = np.square(norms, dtype=np.float64)  # summed by NumPy: BLAS would depend on its threads
        return math.sqrt(float(np.add.reduce(squares)))

    def _spread(self, num_microbatches: int) -> noise.Spread:
        table = self._table[:num_microbatches]
        squares = self._squares[:num_microbatches].sum(axis=1)
        return noise.spread(squares, table[:, WEIGHT], float(table[:, SAMPLES].sum()))

    def _targets(self, number: int) -> Mapping[int, Tensor]:
        """A microbatch of a piece is to be computed: where its gradients may go."""
        self._early.begin_microbatch()
        return self._pieces[number].targets

    def _contribute(self, step: int, number: int, done: Done, piece: Piece) -> None:
        """Take up the gradients, and all else, that a microbatch has left in the model."""
        self._rank.enter(Phase.PUBLISH, step)
        microbatch, part = done.microbatch, piece.part
        slot, is_added = piece.slot, piece.next.is_added
        assert piece.next.microbatch == microbatch.index
        if step == 0 and number == 0:
            chosen = list(part.parameters)
            self._used_table[microbatch.index, chosen] = self._model.used_parameters()[chosen]
        if self._is_looked_at:
            self._model.write_squares(self._squares[microbatch.index], part.parameters)
        self._early.end_microbatch()
        piece.take(self._model.gradients())  # may add to what lies there
        self._model.drop_gradients()
        self._model.take_buffer_changes(slot.changes, microbatch.num_samples, part.tracked, is_added=is_added)
        if microbatch.index == 0 and number == 0:
            self._pending_others += zip(part.others, self._model.take_others(part.others), strict=True)
        if done.sums is not None:
            self._sums.put(microbatch, done.sums)
        piece.done()

    def _apply_buffers(self) -> None:
        if self._pending_changes is not None:
            self._live["tracked"].add_(self._pending_changes)
            self._pending_changes = None
        for (start, stop), values in self._pending_others:
            self._live["others"][start:stop].copy_(values)
        self._pending_others = []

    def _find_unused(self, num_microbatches: int) -> None:
        """After the first round: parameters that no microbatch used are left alone from now on."""
        used = self._used_table[:num_microbatches].amax(dim=0)
        if self._rank.leads:
            self._live["used"].copy_(used)
        self._leave_alone(used)

    def _leave_unused_alone(self) -> None:
        self._leave_alone(self._live["used"])

    def _leave_alone(self, used: Tensor) -> None:
        places = self._job.update.layout.places
        names = frozenset(place.spec.name for place, flag in zip(places, used.tolist(), strict=True) if not flag)
        if names:
            self.owned.leave_alone(names)
