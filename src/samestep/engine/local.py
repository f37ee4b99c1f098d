"""Local steps: to the step's code a period is a step, a replica a microbatch, and what it has changed a gradient.

Within a period a replica is a run of its own on one rank without others, in private memory: it begins with the
parameters and buffers that all share, and with what it has kept of its optimiser. What it keeps is written back when
the period is taken, so that until then nothing has happened that counts.

Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from samestep.data.columns import Batch
from samestep.data.feed import Feed
from samestep.engine import eight_bits
from samestep.engine import memory as memories
from samestep.engine.backprop.concurrent import Ordinary
from samestep.engine.events import Phase
from samestep.engine.exchange import Barriers
from samestep.engine.finite import Culprit, NonFiniteSums
from samestep.engine.flat import FlatModel
from samestep.engine.helpers import num_helpers
from samestep.engine.job import KEPT_BY_REPLICAS, Job, run_regions
from samestep.engine.loading import Loading
from samestep.engine.loop import Control, live_views
from samestep.engine.passes import Done, Passes, Targets
from samestep.engine.rank import Rank
from samestep.engine.step import Stepper
from samestep.optim.views import view_of
from samestep.plan import keys
from samestep.plan.batch import Microbatch
from samestep.plan.layout import BLOCK, Segment
from samestep.plan.local import PeriodPlan
from samestep.plan.pipeline import Team

_REPLICA_KEY = keys.name_key("replica")
_SCALARS = f"{KEPT_BY_REPLICAS}scalars"


class LocalPasses(Passes):
    """Whole periods of a rank's replicas, one after the other.

    Args:
        job: With local steps.
        model: The job's model over the shared flat memory.
        loading: Of the job; only an evaluation asks it.
        rank: Who computes.
        memory: The regions of the run.
        live: The live arrays.
        segments: What the rank owns of the flat vector.
    """

    def __init__(
        self,
        job: Job,
        model: FlatModel,
        loading: Loading,
        rank: Rank,
        memory: Mapping[str, Tensor],
        live: Mapping[str, Tensor],
        segments: Sequence[Segment],
    ) -> None:
        assert job.local is not None
        assert isinstance(job.batches, PeriodPlan)
        self._job, self._model, self._loading, self._enter = job, model, loading, rank.enter
        self._local, self._periods = job.local, job.batches
        self._memory, self._live = memory, live
        self._num_busy, self.graphs = rank.world_size, None
        largest = replica_job(job, self._local.num_replicas - 1)  # no other one has more of a step
        regions = run_regions(largest, 1, num_copies=0)
        self._inside = memories.private(regions.num_bytes).tensors(regions)
        self._working = live_views(largest, self._inside["live"])
        exchange = Barriers(lambda: None, self._inside["control"], Control.VERDICT)
        helpers = num_helpers(job, rank.world_size) if rank.num_helpers is None else rank.num_helpers
        self._alone = Rank(0, Team(1, 1), exchange, self._enter_inside, num_helpers=helpers)
        self._change = torch.zeros_like(live["parameters"])
        self._step = 0
        self._replicas: Sequence[Microbatch] = ()
        self._pending: dict[int, dict[str, Tensor]] = {}
        self._segments = segments if self._local.is_quantised else ()
        self._before: list[Tensor] = []

    def close(self) -> None:
        """Every replica's run has been closed where it ended."""

    def begin(self, step: int, number: int, microbatches: Sequence[Microbatch], batches: Iterator[Batch]) -> None:
        assert number == 0, "the rule of a meeting has one round"
        self._step, self._replicas = step, microbatches
        self._pending, self.culprit = {}, None
        self._before = [self._live["parameters"][each.start : each.stop].clone() for each in self._segments]

    def train(self, targets: Targets) -> Iterator[Done]:
        for part in self._replicas:
            total = self._train(part.index)
            self._show(part.index, is_whole=math.isfinite(total))
            yield Done(part, 0, (total, float(part.num_samples)))

    def settle(self) -> None:
        """The period is taken: what its replicas keep counts from now on; this rank's update is made one of 8 bits."""
        for replica, kept in self._pending.items():
            for name, values in kept.items():
                self._live[name][replica].copy_(values)
        self._pending = {}
        for segment, before in zip(self._segments, self._before, strict=True):
            values = self._live["parameters"][segment.start : segment.stop]
            codes = self._memory["update_codes"][segment.start : segment.stop]
            scales = self._memory["update_scales"][segment.start // BLOCK : segment.stop // BLOCK]
            eight_bits.encode(values - before, codes, scales, 1.0)
            torch.add(before, eight_bits.decode(codes, scales), out=values)

    def evaluate(self, step: int, microbatches: Sequence[Microbatch], feed: Feed) -> Iterator[tuple[int, list[float]]]:
        """Evaluate what all share.

        Yields:
            A microbatch's index; its loss sum and weight, then sum and weight of each metric.
        """
        model = FlatModel(
            self._job.model,
            self._job.update.layout,
            self._job.buffers,
            parameters=self._live["parameters"],
            step_tracked=self._live["tracked"],
            step_others=self._live["others"],
        )
        passes = Passes(self._job, model, self._loading, Ordinary(), self._enter)
        try:
            yield from passes.evaluate(step, microbatches, feed)
        finally:
            passes.close()

    def _train(self, replica: int) -> float:
        """Train one replica for a period: the sum of its losses, each as often as its step has samples."""
        job, stop = replica_job(self._job, replica), self._periods.next_step(self._step)
        self._lay_in(replica)
        loading = Loading(job, 1, 0, self._num_busy, stop=stop)
        stepper = Stepper(job, self._alone, self._inside, self._working, is_careful=True, loading=loading)
        scalars = self._live[_SCALARS][replica].clone()
        total = 0.0
        try:
            if self._step:
                stepper.owned.restore(scalars)
            for step in range(self._step, stop):
                num_samples = job.batches.num_samples_of(step)
                if num_samples:  # the last step of an epoch may have fewer samples than there are replicas
                    total += stepper.run(step).loss * num_samples
            stepper.owned.write_scalars(scalars)
        except NonFiniteSums as error:
            self._blame(replica, error)
            return math.nan
        finally:
            stepper.close()
        kept = {name: self._working[name.removeprefix(KEPT_BY_REPLICAS)].clone() for name in self._kept_names()}
        self._pending[replica] = {**kept, _SCALARS: scalars}
        return total

    def _lay_in(self, replica: int) -> None:
        """What a replica begins a period with."""
        for name in ("parameters", "tracked", "others"):
            self._working[name].copy_(self._live[name])
        for name in self._kept_names():
            self._working[name.removeprefix(KEPT_BY_REPLICAS)].copy_(self._live[name][replica])

    def _show(self, replica: int, *, is_whole: bool) -> None:
        """Leave in the model a replica's part of the mean change, where a gradient would be, and its buffers."""
        change, factor = self._change, 1.0 / self._local.num_replicas
        torch.sub(self._live["parameters"], self._working["parameters"], out=change)
        if self._local.is_quantised:
            codes, scales = self._memory["codes"][replica], self._memory["code_scales"][replica]
            eight_bits.encode(change, codes, scales, factor)
            change.copy_(eight_bits.decode(codes, scales))
        else:
            change.mul_(factor)
        places = zip(self._job.update.layout.places, self._working["used"].tolist(), strict=True)
        self._model.set_gradients([view_of(place, change) if flag and is_whole else None for place, flag in places])
        self._model.show_buffers(self._working["tracked"], self._working["others"])

    def _blame(self, replica: int, error: NonFiniteSums) -> None:
        """Of this rank's replicas the one that was not finite first is told of; every one is run, for any W alike."""
        found = error.culprit or Culprit(error.step, -1, "the sum of gradients")
        if self.culprit is None or found.step < self.culprit.step:
            self.culprit = replace(found, replica=replica)

    def _kept_names(self) -> list[str]:
        return [name for name in self._live if name.startswith(KEPT_BY_REPLICAS) and name != _SCALARS]

    def _enter_inside(self, phase: Phase, step: int) -> None:
        """A rank's steps are periods, whichever step a replica is at."""
        self._enter(phase, self._step)


def replica_job(job: Job, replica: int) -> Job:
    """A replica's own run: its part of the steps, and masks that no other one draws.

    Args:
        job: With local steps.
        replica: Which.
    """
    local = job.local
    assert local is not None
    assert isinstance(job.batches, PeriodPlan)
    return replace(
        job,
        local=None,
        update=local.update,
        rule=local.rule,
        schedule=local.schedule,
        batches=job.batches.of_replica(replica),
        seed=keys.key(job.seed, _REPLICA_KEY, replica),
    )
