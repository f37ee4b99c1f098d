"""Curvature, acted out by one rank: factors, directions, products of the Gauss-Newton matrix, trial losses."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from samestep.data.columns import Batch
from samestep.engine import factors, part
from samestep.engine.combine import RoundPlan
from samestep.engine.events import Enter, Phase
from samestep.engine.finite import Culprit, NonFiniteSums
from samestep.engine.flat import BufferPlan, FlatModel
from samestep.engine.job import Job
from samestep.engine.loading import Loading
from samestep.engine.losses import sampled_targets
from samestep.engine.passes import Passes
from samestep.engine.slots import make_slots
from samestep.errors import UsageError
from samestep.optim.kfac import precondition
from samestep.optim.kfac.precondition import Inverse
from samestep.optim.kfac.rule import DAMPINGS, NUM_DIRECTIONS
from samestep.optim.kfac.units import (
    DECIDED,
    FACTORS,
    PREVIOUS,
    CurvaturePlan,
    Unit,
    factor_places,
    refreshed_at,
    rows_of_each,
    shares,
)
from samestep.optim.rounds import TableRequest
from samestep.optim.views import flat_of, view_of
from samestep.plan import keys, layout, rounds, tree
from samestep.plan.batch import Microbatch
from samestep.plan.layout import Place, Segment

RUNNING_MEAN = 0.6
"""What is kept of the factors so far when new ones of as many samples as usual come."""

_WAY_OUT = "Inputs of very different size do this: scale them; or take another optimizer"

_DRAWS = keys.name_key("kfac")

Values = NDArray[np.float64]


@dataclass(frozen=True)
class SmallRound:
    """A round in which a microbatch gives a few numbers.

    Args:
        microbatches: Of which samples.
        rows: The table, shape (microbatches, num_columns + 1); the last column is the weight.
        compute: A microbatch's numbers and its weight.
    """

    microbatches: tuple[Microbatch, ...]
    rows: Values
    compute: Callable[[Microbatch], tuple[Values, float]]

    def run(self, own: Sequence[Microbatch], step: int, enter: Enter, meet: Callable[[], None]) -> Values:
        """Write a rank's own rows; the means, once all ranks have met."""
        for microbatch in own:
            enter(Phase.FORWARD, step)
            self.fill(microbatch)
        enter(Phase.BARRIER_CONTRIBUTIONS, step)
        meet()
        enter(Phase.DECIDE, step)
        return self.means()

    def fill(self, microbatch: Microbatch) -> None:
        """Write a microbatch's row."""
        values, weight = self.compute(microbatch)
        self.rows[microbatch.index, :-1] = values
        self.rows[microbatch.index, -1] = weight

    def means(self) -> Values:
        """The sums of all rows, once all are written, over the sum of the weights."""
        totals = self.rows.sum(axis=0)
        means: Values = totals[:-1] / (float(totals[-1]) or 1.0)
        return means


class Curvature:
    """A rank's part in the curvature of a job.

    Args:
        job: Whose.
        plan: Its units and factors.
        passes: How the network answers.
        loading: Where samples come from.
        model: The job's model over flat memory.
        memory: The run's regions.
        live: The live arrays.
        world_size: Number of ranks.
        rank: Which one.
        segments: What the rank owns of the flat vector, and the memory of its gradient.

    Attributes:
        num_factor_rows: Samples that all ranks have last taken factors from.
    """

    def __init__(
        self,
        job: Job,
        plan: CurvaturePlan,
        passes: Passes,
        loading: Loading,
        model: FlatModel,
        memory: Mapping[str, Tensor],
        live: Mapping[str, Tensor],
        world_size: int,
        rank: int,
        segments: Sequence[tuple[Segment, Tensor]],
    ) -> None:
        self._segments = segments
        self._job, self._plan, self._passes, self._loading, self._model = job, plan, passes, loading, model
        self._rank, self._world_size = rank, world_size
        self._parameters, self._live = live["parameters"], live
        self._shared, self._table = memory["factors"], memory["small_table"].numpy()
        self._directions = memory["directions"]
        self._has_failed = memory["has_failed"]
        self._culprit: Culprit | None = None
        self._places = {place.spec.name: place for place in job.update.layout.places}
        self._factor_places = factor_places(plan.units, plan.factors)
        self._jobs = shares(plan.units, len(DAMPINGS), world_size)[rank]
        self._owned = layout.owners(plan.factors, world_size)[rank]
        self._sums = [torch.zeros(each.stop - each.start, dtype=job.torch_dtype) for each in self._owned]
        whole = part.whole(plan.factors, BufferPlan((), (), (), 0, 0))
        self._slots = make_slots(plan.factors, self._owned, self._sums, self._shared[rank], whole)
        self._plans: dict[int, RoundPlan] = {}
        self._num_microbatches = 0
        self.num_factor_rows = 0
        self._batches: dict[int, Batch] = {}
        self._inverses: dict[tuple[int, int], Inverse] = {}
        self._inverted_at = -1
        self._before: list[tuple[Tensor, Tensor]] = []
        self._is_recurrent = any(isinstance(module, nn.RNNBase) for module in job.model.modules())

    # Factors.

    @property
    def needs_factors(self) -> bool:
        """Whether this step's samples give factors: a function of the number of steps, as kept in the state."""
        return refreshed_at(self._num_steps) == self._num_steps

    @property
    def _num_steps(self) -> int:
        return int(self._live[DECIDED][0])

    def collect(self, step: int, local: tree.LocalSum, microbatches: tuple[Microbatch, ...]) -> None:
        """Add up the factors of this rank's microbatches, as their gradients have been."""
        heads = _heads(microbatches, self._plan.factor_rows)
        self._num_microbatches = len(microbatches)
        self.num_factor_rows = sum(head.num_samples for head in heads)
        for instruction in local.instructions:
            if isinstance(instruction, tree.Add):
                self._slots[instruction.target].add(self._slots[instruction.source])
                continue
            head = heads[instruction.microbatch]
            found = self._factors(step, head, next(self._loading.again(step, head)))
            self._slots[instruction.slot].take(found, is_added=instruction.is_added)

    def publish(self) -> None:
        """Show all ranks the owned gradients, and take the round's factors, if any, into the running means."""
        for segment, gradient in self._segments:
            self._directions[0, segment.start : segment.stop].copy_(gradient)
        if not self.needs_factors:
            return
        plan, is_first = self._round_plan(), self._num_steps == 0
        usual = min(self._plan.factor_rows, self._job.batches.global_batch, self._job.batches.num_samples)
        taken = (1.0 - RUNNING_MEAN) * min(1.0, self.num_factor_rows / usual)  # of an epoch's short last batch, less
        for number, segment in enumerate(self._owned):
            plan.combine(number, self._sums[number], 1.0 / self.num_factor_rows)
            running = self._live[FACTORS][segment.start : segment.stop]
            self._before.append((running, running.clone()))
            if is_first:
                running.copy_(self._sums[number])
            else:
                running.mul_(1.0 - taken).add_(self._sums[number].mul(taken))

    def precondition(self) -> None:
        """Write this rank's share of the directions; what has no inverse is told to all ranks (see `small_round`)."""
        self._culprit = None
        gradient = self._directions[0]
        newest = refreshed_at(self._num_steps)
        if newest != self._inverted_at:  # new factors, or another state was put back
            self._inverses.clear()
            self._inverted_at = newest
        for number, damping in self._jobs:
            unit = self._plan.units[number]
            places = self._places_of(unit)
            target = self._directions[1 + damping]
            parts = [view_of(place, gradient) for place in places]
            try:
                inverse = self._inverse(number, damping)
            except precondition.FactorError as error:
                self._culprit = Culprit(
                    0, -1, error.what, number * len(DAMPINGS) + damping, fault=error.fault, way_out=_WAY_OUT
                )
                break  # jobs are in order: the first one over all ranks is found for any number of them
            for place, found in zip(places, _preconditioned(unit, parts, inverse), strict=True):
                target[place.start : place.stop].copy_(flat_of(place, found.reshape(place.spec.shape)))
        self._has_failed[self._rank] = self._culprit is not None

    def _inverse(self, number: int, damping: int) -> Inverse:
        """A unit's, of its factors' running means; it is as old as they are."""
        key = (number, damping)
        if key not in self._inverses:
            unit, running = self._plan.units[number], self._live[FACTORS]
            given = [view_of(place, running) for place in self._factor_places[number]]
            if unit.kind == "matrix":
                given = list(precondition.balanced(*given))
            self._inverses[key] = precondition.inverse(given, DAMPINGS[damping], unit.weight)
        return self._inverses[key]

    def slopes(self) -> Values:
        """g·v of every direction, with the gradient of the step's own samples."""
        return np.array([float(torch.dot(self._directions[0], each)) for each in self._all()], np.float64)

    def choose(self, coefficients: Values) -> None:
        """Put minus the step into the owned gradients, and keep the step as a direction of the next."""
        directions = self._all()
        for segment, gradient in self._segments:
            step = _combined(coefficients, [each[segment.start : segment.stop] for each in directions])
            torch.neg(step, out=gradient)
            self._live[PREVIOUS][segment.start : segment.stop].copy_(step)
        if self._rank == 0:
            self._live[DECIDED][0] += 1
        self._before.clear()

    def put_back(self) -> None:
        """The step is not taken: the running means are as before it."""
        if self._before:
            self._inverted_at = -1
        for running, values in self._before:
            running.copy_(values)
        self._before.clear()

    # Small rounds.

    def small_round(self, step: int, request: TableRequest) -> SmallRound:
        """The round that is asked for, over the samples of a step that steps are tried on.

        Raises:
            NonFiniteSums: On all ranks: one of them had a factor without an inverse; no parameter has changed.
        """
        if bool(self._has_failed.any()):
            raise NonFiniteSums(step, None if self._culprit is None else replace(self._culprit, step=step))
        source = self._plan.trial_source(self._job.batches, step)
        microbatches = _heads(self._job.batches.microbatches(source), self._plan.trial_rows)
        rows = self._table[: len(microbatches), : request.num_columns + 1]
        if request.kind == "products":
            self._batches.clear()
            return SmallRound(microbatches, rows, lambda each: self._products(source, each))
        assert request.coefficients is not None
        trials = self._trials(request.coefficients)
        return SmallRound(microbatches, rows, lambda each: self._losses(source, each, trials))

    def _products(self, source: int, microbatch: Microbatch) -> tuple[Values, float]:
        """v_i·G v_j for the pairs i <= j; then the slopes along every v_i on these samples."""
        batch = self._batches[microbatch.index] = next(self._loading.again(source, microbatch))
        output, tangents = self._forward_products(microbatch, batch)
        output = output.detach().requires_grad_()
        loss, weight = self._passes.loss(output, batch)
        (slope,) = torch.autograd.grad(loss, output, create_graph=True)
        entries = []
        for number, tangent in enumerate(tangents):
            (curved,) = torch.autograd.grad(slope, output, tangent, retain_graph=True)
            entries += [float((curved * other).sum(dtype=torch.float64)) for other in tangents[number:]]
        entries += [float((slope.detach() * tangent).sum(dtype=torch.float64)) for tangent in tangents]
        return np.array(entries), weight

    def _losses(self, source: int, microbatch: Microbatch, trials: Sequence[Tensor]) -> tuple[Values, float]:
        batch = self._batches[microbatch.index]
        values, weight = [], 0.0
        with torch.no_grad():
            for trial in trials:
                loss, weight = self._passes.loss(self._passes.answer(microbatch, batch, self._named(trial)), batch)
                values.append(float(loss))
        return np.array(values), weight

    def _trials(self, coefficients: Values) -> list[Tensor]:
        directions = self._all()
        return [self._parameters + _combined(row, directions) for row in coefficients]

    def _forward_products(self, microbatch: Microbatch, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The answer, and its derivative along every direction."""
        named, tangents = self._named(self._parameters), []
        output: Tensor | None = None
        for direction in self._all():
            moved = self._named(direction)
            with torch.no_grad(), _forward_mode(is_recurrent=self._is_recurrent), forward_ad.dual_level():
                duals = {name: _dual(value, moved[name]) for name, value in named.items()}
                output, tangent = _parts(self._passes.answer(microbatch, batch, duals))
                tangents.append(tangent)
        assert output is not None
        return output, tangents

    def _factors(self, step: int, head: Microbatch, batch: Batch) -> list[Tensor]:
        """A microbatch's factors, with targets that the network has drawn itself."""
        leaves = {name: value.detach().requires_grad_() for name, value in self._named(self._parameters).items()}
        generator = torch.Generator().manual_seed(keys.key(_DRAWS, self._job.seed, step, head.index))
        with factors.watched(self._job.model, self._plan.units) as seen:
            output = self._passes.answer(head, batch, leaves)
        target = sampled_targets(self._job.loss, output, batch.target, generator)
        loss, weight = self._job.loss(output, target, batch.num_samples)
        return factors.collect(self._plan.units, seen, leaves, loss, batch.num_samples, weight)

    def _all(self) -> list[Tensor]:
        found = [*self._directions[1:], self._live[PREVIOUS]]
        assert len(found) == NUM_DIRECTIONS
        return found

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        return {name: view_of(place, flat) for name, place in self._places.items()}

    def _places_of(self, unit: Unit) -> list[Place]:
        return [self._places[name] for name in (unit.weight, unit.bias) if name is not None]

    def _round_plan(self) -> RoundPlan:
        count = self._num_microbatches
        if count not in self._plans:
            share = rounds.share(count, self._world_size, self._rank)
            private = {n: [slot.own[n] for slot in self._slots] for n in range(len(self._owned))}
            self._plans[count] = RoundPlan(
                share, self._owned, self._shared, self._rank, private, self._plan.factors.num_elements
            )
        return self._plans[count]


def _heads(microbatches: tuple[Microbatch, ...], num_rows: int) -> tuple[Microbatch, ...]:
    """The first samples of each microbatch, so many in sum."""
    rows = rows_of_each(num_rows, len(microbatches))
    return tuple(replace(each, stop=min(each.stop, each.start + rows)) for each in microbatches)


@contextmanager
def _forward_mode(*, is_recurrent: bool) -> Iterator[None]:
    """oneDNN's recurrent layers and fused attention have no forward mode; torch's own layers, and attention, have."""
    before = bool(torch.backends.mkldnn.enabled)
    if is_recurrent:
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except NotImplementedError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            "optimizer kfac differentiates the network forwards, too, and a part of it has no such derivative "
            f"({reason}); take another optimizer, or write the part's jvp"
        ) from error
    finally:
        if is_recurrent:
            torch.backends.mkldnn.enabled = before  # type: ignore[assignment]


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):  # torch's own: its first call scripts some decompositions
            warnings.simplefilter("ignore", kind)
        # Of a view torch would make a derivative as large as all the memory that is behind it.
        found: Tensor = forward_ad.make_dual(value.clone(), tangent)  # type: ignore[no-untyped-call]
    return found


def _parts(answer: Tensor) -> tuple[Tensor, Tensor]:
    """An answer and its derivative."""
    output, tangent = forward_ad.unpack_dual(answer)  # type: ignore[no-untyped-call]
    return output, torch.zeros_like(output) if tangent is None else tangent


def _combined(coefficients: Values, directions: Sequence[Tensor]) -> Tensor:
    """Σ c_i v_i, in order."""
    found = torch.zeros_like(directions[0])
    for coefficient, direction in zip(coefficients.tolist(), directions, strict=True):
        if coefficient:
            found.add_(direction.mul(coefficient))
    return found


def _preconditioned(unit: Unit, parts: list[Tensor], inverse: Inverse) -> list[Tensor]:
    """A unit's part of a direction, one tensor a parameter."""
    if unit.kind == "diagonal":
        return [inverse(parts[0].reshape(-1))]
    matrix = parts[0].reshape(unit.num_outputs, -1)
    if unit.bias is not None:
        matrix = torch.cat([matrix, parts[1][:, None]], dim=1)
    found = inverse(matrix)
    return [found] if unit.bias is None else [found[:, :-1], found[:, -1]]
