"""The loop that every rank runs: steps, evaluations, snapshots; and how it ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from samestep.engine.events import Phase
from samestep.engine.job import EVALUATED_STEP, GROWN, HAS_STOPPED, KEPT, LAST_LOSS, Job, live_regions
from samestep.engine.memory import Memory
from samestep.engine.rank import Rank
from samestep.engine.residence import feed_on
from samestep.engine.shares import share
from samestep.engine.step import Stepper
from samestep.optim.doubling import Growth
from samestep.optim.noise import Pair
from samestep.optim.rounds import Sums
from samestep.optim.rules import Factors
from samestep.plan.order import Order


class Control(IntEnum):
    """Words of the control region, and who writes them."""

    GENERATION = 0  # parent: which set of ranks is running; a change calls everybody back
    STOP = 1  # parent: 1 asks for an end after the running step, 2 also abandons it
    REJOIN = 2  # parent: a new worker is ready to take part
    AFTER = 3  # rank 0: what all ranks do after the running step (flags of `After`)
    VERDICT = 4  # parent: answer of the callbacks to evaluation number n: 2 n + (1 if it stops)
    BEST_STEP = 5  # rank 0: step of the best state, 0 while it is being written
    TOKEN = 7  # first rank of a machine: a number by which the others know its memory
    COPY_STEP = 8  # rank 0: 8 + k is step + 1 of snapshot k, 0 while it is being written


class After(IntEnum):
    """What follows a step: any of these together, or 0 for nothing. Plain numbers: every step asks."""

    SNAPSHOT = 1
    STOP = 2
    REJOIN = 4


End = Literal["finished", "stopped", "rejoin"]


class CalledBack(Exception):
    """The parent wants the ranks back: a worker died, or the run is abandoned."""


class StepRecord(NamedTuple):
    """What a step left behind; with local steps what a period did, by the number of its last step.

    A named tuple: one is made, pickled and read again for every step, while a core may have better things to do.

    Args:
        step: Its number.
        loss: The mean over its samples.
        gradient_norm: Of this mean; with local steps, of the mean change of the replicas.
        num_samples: It held.
        duration_s: It took.
        num_rounds: It took, one after the other.
        num_rows: Were read in all of them, by all workers; a row that several rounds read counts in each.
        pair: Of squared norms (see `noise_scale`), where it was looked at for that.
        growth: Where the next step is the first one of a larger batch.
    """

    step: int
    loss: float
    gradient_norm: float
    num_samples: int
    duration_s: float
    num_rounds: int
    num_rows: int
    pair: Pair | None = None
    growth: Growth | None = None


@dataclass(frozen=True)
class EvaluationRecord:
    """What an evaluation after `step` steps found: means over all samples, by name ("loss" and the metrics)."""

    step: int
    means: Mapping[str, float]
    is_best: bool
    duration_s: float


class Listener(Protocol):
    """Who hears of the run; only rank 0 speaks."""

    def steps(self, records: list[StepRecord]) -> None: ...

    def evaluating(self, step: int) -> None: ...

    def evaluated(self, record: EvaluationRecord, number: int) -> None: ...

    def warn_unused(self, names: list[str]) -> None: ...


class Deaf:
    """A listener for a run that nobody hears of."""

    def steps(self, records: list[StepRecord]) -> None:
        pass

    def evaluating(self, step: int) -> None:
        pass

    def evaluated(self, record: EvaluationRecord, number: int) -> None:
        pass

    def warn_unused(self, names: list[str]) -> None:
        pass


@dataclass
class Loop:
    """Runs a job on one rank, from a step on, until it ends or the ranks are called back.

    Args:
        job: What to do.
        rank: Who does it.
        memory: The regions of the run.
        live: The live arrays.
        copies: Every snapshot's arrays; none with one rank in the caller's process.
        listener: Hears of steps and evaluations.
        decided: The judge's numbers so far.
        step: Steps done.
        is_careful: See `Stepper`.
        marked: Called where this rank leads and a snapshot counts from now on.
    """

    job: Job
    rank: Rank
    memory: Mapping[str, Tensor]
    live: Mapping[str, Tensor]
    listener: Listener
    decided: tuple[float, ...]
    step: int
    is_careful: bool = True
    marked: Callable[[], None] = lambda: None
    _records: list[StepRecord] = field(default_factory=list)
    _unmarked: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self._control = self.memory["control"].numpy()
        self.generation = int(self._control[Control.GENERATION])
        self._exchange = self.rank.exchange
        self._exchange.on_meeting(self._mark)
        self.stepper = Stepper(self.job, self.rank, self.memory, self.live, is_careful=self.is_careful)
        self._follow()
        self._num_copies = len(self.memory["copies"])
        # Each copies what it writes anyhow: what it owns, and what has come from other machines through it.
        kept = self.stepper.kept
        self._elements = [(segment.start, segment.stop) for segment in kept]
        self._bytes = share(self.job, kept, is_first=self.rank.leads)
        self._last_snapshot_s = self._last_report_s = time.perf_counter()
        self._evaluations = 0
        if self.job.evaluation is not None:
            samples = self.job.evaluation.samples
            order = Order(num_samples=samples.num_samples, seed=0, is_shuffled=False)
            self._evaluation_feed = feed_on(self.rank.device, samples, order)

    def run(self) -> End:
        """Run until the end.

        Raises:
            CalledBack: The parent wants the ranks back.
            NonFiniteSums: A loss or gradient is not finite.
            SpoiledStateError: It was not, and the state cannot be used any more.
        """
        if self.decided[HAS_STOPPED]:
            return "finished" if self.step >= self.course.num_steps else "stopped"
        end = self._conclude_step(After.SNAPSHOT) if self._owes_evaluation() else None  # a stop had cut it short
        if end is None and self.step >= self.course.num_steps:
            return "finished"
        while end is None:
            self._run_step()
            end = self._conclude_step(int(self._control[Control.AFTER]))
        return end

    def _conclude_step(self, after: int) -> End | None:
        """What follows a step: evaluation, snapshot, the end."""
        is_last = self.step == self.course.num_steps
        is_stopped = bool(after & After.STOP)
        if self._owes_evaluation():
            is_stopped |= self._evaluate()
        if after & After.SNAPSHOT or is_last or is_stopped:
            self._snapshot()
        if not (is_last or is_stopped or after & After.REJOIN):
            return None
        self._exchange.meet()
        self.report()
        if is_last:
            return "finished"
        return "stopped" if is_stopped else "rejoin"

    def _owes_evaluation(self) -> bool:
        evaluation = self.job.evaluation
        if evaluation is None or self.step == 0 or self.decided[EVALUATED_STEP] == self.step:
            return False
        return self.course.is_due(self.step, evaluation.every_steps) or self.step == self.course.num_steps

    def _follow(self) -> None:
        """Find out what the steps hold, and how the rates follow their batch."""
        self.course = self.job.course(self.decided)
        self.stepper.follow(self.course)
        doubling, batch = self.job.doubling, self.course.global_batch
        self._factors = Factors() if doubling is None else doubling.factors(self.job.batches.global_batch, batch)
        self._gain = self.job.gain
        if doubling is not None and self._gain is not None:
            self._gain = replace(self._gain, global_batch=batch)

    def _rates(self) -> Factors:
        """What the rates of the next step are multiplied with, besides the schedule."""
        if self._gain is None:
            return self._factors
        return self._factors._replace(lr=self._factors.lr * self._gain.gain(self.decided[KEPT:GROWN]))

    def _learn(self, step: int, pair: Pair | None) -> Growth | None:
        """Keep what a step has shown; all ranks find the same."""
        if self._gain is None and self.job.doubling is None:
            return None
        kept, grown, growth = self.decided[KEPT:GROWN], self.decided[GROWN:], None
        if self._gain is not None:
            kept = self._gain.after(kept, pair)
        if self.job.doubling is not None:
            grown, growth = self.job.doubling.after(grown, self.course, step, pair)
        self.decided = (*self.decided[:KEPT], *kept, *grown)
        if growth is not None:
            self._follow()
        return growth

    def _run_step(self) -> None:
        start = time.perf_counter()
        sums = self.stepper.run(self.step, self._rates())
        self.decided = (*self.decided[:LAST_LOSS], sums.loss, *self.decided[KEPT:])
        if self.rank.leads:
            self._control[Control.AFTER] = self._decide_after()
        self.rank.enter(Phase.BARRIER_UPDATE, self.step)
        self._exchange.update()
        self.rank.enter(Phase.BETWEEN, self.step)
        sums = self.stepper.confirm(sums)
        step, self.step = self.step, self.course.next_step(self.step)
        num_samples = self.course.num_samples_of(step)
        pair = _pair(step, sums, num_samples)
        last = self.step - 1
        growth = self._learn(step, pair)
        if self.rank.speaks:
            now = time.perf_counter()
            assert sums.gradient_norm is not None
            read = (self.stepper.num_rounds, self.stepper.num_rows)
            told = (last, sums.loss, sums.gradient_norm, num_samples, now - start, *read, pair, growth)
            self._records.append(StepRecord(*told))
            if step == 0:
                self._warn_unused()
            if now - self._last_report_s > 0.1:
                self.report()

    def _decide_after(self) -> int:
        after = 0
        if self._control[Control.STOP]:
            after |= After.STOP
        if self._control[Control.REJOIN]:
            after |= After.SNAPSHOT | After.REJOIN
        rest_s = max(self.job.snapshot_every_s, self._exchange.rest_s)
        if self._num_copies and time.perf_counter() - self._last_snapshot_s > rest_s:
            after |= After.SNAPSHOT
        return after

    def _evaluate(self) -> bool:
        """An evaluation round over the parameters that the optimisers want to be judged by."""
        if not self.job.update.averages:
            return self._evaluation_round()
        self.report()  # who hears of steps may look at the state, which must be the trained one
        with self.stepper.owned.averaged():
            self._exchange.parameters()
            try:
                is_stopped = self._evaluation_round()
            finally:
                self.rank.enter(Phase.BETWEEN, self.step)  # what follows must not be abandoned half-way
            self._exchange.meet()
        self._exchange.parameters()
        return is_stopped

    def _evaluation_round(self) -> bool:
        """Every rank reads the same sums and decides alike."""
        evaluation = self.job.evaluation
        assert evaluation is not None
        start = time.perf_counter()
        self.rank.enter(Phase.EVALUATION, self.step)
        if self.rank.speaks:
            self.listener.evaluating(self.step)
        table = self.memory["evaluated"].numpy()
        for index, row in self.stepper.evaluate(evaluation.microbatches, self._evaluation_feed):
            table[index] = row
        self._exchange.evaluated()
        totals = table.sum(axis=0)
        names = ("loss", *self.job.metric_names)
        means = {name: _mean(float(totals[2 * i]), float(totals[2 * i + 1])) for i, name in enumerate(names)}
        judgement = self.job.judge.judge(self.step, means, self.decided)
        if judgement.is_best:
            self._keep_best()
        self._evaluations += 1
        if self.rank.speaks:
            self.report()
            record = EvaluationRecord(self.step, means, judgement.is_best, time.perf_counter() - start)
            self.listener.evaluated(record, self._evaluations)
        is_stopped = judgement.stops | self._await_verdict()
        decided = judgement.decided
        self.decided = (*decided[:HAS_STOPPED], float(is_stopped), float(self.step), *decided[EVALUATED_STEP + 1 :])
        return is_stopped

    def _await_verdict(self) -> bool:
        """Callbacks decide in the parent, at evaluations only, so that a stop falls on the same step for any W."""
        return self.job.has_callbacks and self._exchange.verdict(self._evaluations, self.check)

    def _keep_best(self) -> None:
        """Every rank copies its share of the model, the leader the buffers too; it counts when all have copied."""
        if self.rank.leads:
            self._control[Control.BEST_STEP] = 0
        self._exchange.meet()
        for start, stop in self._elements:
            self.memory["best/parameters"][start:stop].copy_(self.live["parameters"][start:stop])
        if self.rank.leads:
            for name in ("tracked", "others"):
                self.memory[f"best/{name}"].copy_(self.live[name])
        self._exchange.meet()
        if self.rank.leads:
            self._control[Control.BEST_STEP] = self.step

    def _snapshot(self) -> None:
        """Copy this rank's share of the live state into the older snapshot; it counts after the next barrier."""
        self._last_snapshot_s = time.perf_counter()
        if not self._num_copies:
            return
        self.report()  # a step that a snapshot makes past is not run again, so nobody would tell of it later
        self.rank.enter(Phase.SNAPSHOT, self.step)
        steps = [int(self._control[Control.COPY_STEP + k]) for k in range(self._num_copies)]
        number = steps.index(min(steps))
        if self.rank.leads:  # an older or an invalid one is the smallest either way: all ranks take the same
            self._control[Control.COPY_STEP + number] = 0
        self._exchange.state(self.memory["copied_scalars"][number], self.stepper.owned.write_scalars)
        source, target = self.memory["live"], self.memory["copies"][number]
        for start, stop in self._bytes:
            target[start:stop].copy_(source[start:stop])
        if self.rank.leads:
            self.memory["copied_decided"][number].copy_(torch.tensor(self.decided, dtype=torch.float64))
        self._unmarked = (number, self.step)

    def _mark(self) -> None:
        """All ranks have met: a snapshot that was copied before counts from here on, for all have copied."""
        if self._unmarked is not None:
            number, step = self._unmarked
            self._unmarked = None
            if self.rank.leads:
                self._control[Control.COPY_STEP + number] = step + 1
                self.marked()

    def check(self) -> None:
        """Whether the run goes on; called while waiting.

        Raises:
            CalledBack: It does not.
        """
        if int(self._control[Control.GENERATION]) != self.generation or self._control[Control.STOP] == 2:
            raise CalledBack

    def report(self) -> None:
        """Tell of the steps that nobody has heard of yet."""
        self._last_report_s = time.perf_counter()
        if self._records:
            self.listener.steps(self._records)
            self._records = []

    def _warn_unused(self) -> None:
        places = self.job.update.layout.places
        names = [p.spec.name for p, flag in zip(places, self.live["used"].tolist(), strict=True) if not flag]
        if names:
            self.listener.warn_unused(names)


def _pair(step: int, sums: Sums, num_samples: int) -> Pair | None:
    """What a step tells of the noise scale, where it was looked at."""
    if sums.spread is None or sums.gradient_norm is None:
        return None
    return Pair(
        step=step,
        microbatch_square=sums.spread.mean_square,
        square=sums.gradient_norm**2,
        num_microbatches=sums.spread.num_microbatches,
        num_samples=num_samples,
    )


def _mean(total: float, weight: float) -> float:
    """Not a number where nothing counts (all targets ignored)."""
    return total / weight if weight else math.nan


def live_views(job: Job, zone: Tensor) -> dict[str, Tensor]:
    """The arrays of a zone of state (shape (bytes,), uint8), by name."""
    return dict(Memory(None, zone, len(zone)).tensors(live_regions(job)))
