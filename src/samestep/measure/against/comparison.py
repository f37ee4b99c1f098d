"""samestep against plain torch or DistributedDataParallel: does rounding explain the difference, and what else does?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from samestep.errors import Interrupted, SamestepError
from samestep.measure.against import causes
from samestep.measure.against.habits import NUM_RANKS, Habits, Peer, usual
from samestep.measure.against.peer import InProcess, State, Task, Trainer, task_of
from samestep.measure.against.ranks import Ranks
from samestep.measure.against.rounding import Gap, in_float64
from samestep.measure.differences import Difference, compare
from samestep.run.config import Settings
from samestep.run.prepare import Choices
from samestep.run.progress import Progress, Silent
from samestep.run.train import run
from samestep.run.weights import digest
from samestep.run.workload import Workload

_NUM_NUDGES = 3
_GROWN_FACTOR = 2.0
"""See `rounding`."""

NAMES: dict[Peer, str] = {"torch": "torch", "ddp": "DDP"}


@dataclass(frozen=True, kw_only=True)
class Against:
    """What a comparison with a peer found.

    Args:
        peer: Its name.
        steps: Optimiser steps.
        weights_sha256: Digest of what it trained.
        differences: The tensors that differ in a bit, in the model's order.
        relative: Norm of the difference over the norm of samestep's update; of parameters or of buffers, whichever is
            worse.
        bound: Up to where rounding explains it (see `rounding`).
        relative_in_float64: Of the same trainings in float64; None where `bound` was kept, or see `reason`.
        grown: What training makes of one rounding of the initial weights, likewise relative; None where nobody had to
            know.
        reason: Why there is no answer in float64.
        is_explained: Whether rounding explains all of it.
        cause: What differs, each of it checked.
    """

    peer: str
    steps: int
    weights_sha256: str
    differences: tuple[Difference, ...]
    relative: float
    bound: float
    relative_in_float64: float | None
    grown: float | None
    reason: str | None
    is_explained: bool
    cause: tuple[str, ...]


def against(
    peer: Peer,
    build: Callable[[], Workload],
    settings: Settings,
    reference: State,
    progress: Progress,
    *,
    habits: Habits | None = None,
    trainer: Trainer | None = None,
) -> Against:
    """Train with the peer too, and say what differs.

    Args:
        peer: Which one.
        build: Makes the workload anew.
        settings: Of both runs.
        reference: What samestep trained.
        progress: Who shows how it goes.
        habits: How the peer trains; as its users would write it by default.
        trainer: Who trains it; a program of its own by default.

    Raises:
        UsageError: The peer cannot do what the settings ask for.
        WorkerError: A rank of the peer failed.
    """
    task = task_of(build(), settings)
    with _trainer(peer, task, trainer) as chosen:
        found = _Comparison(NAMES[peer], build, settings, progress, chosen, habits or usual(peer))
        return found.run(task, reference)


@contextmanager
def _trainer(peer: Peer, task: Task, given: Trainer | None) -> Iterator[Trainer]:
    if given is not None:
        yield given
    elif peer == "torch":
        yield InProcess()
    else:
        with Ranks(world_size=NUM_RANKS[peer], threads=task.job.switches.intra_op_threads) as ranks:
            yield ranks


@dataclass(frozen=True)
class _Comparison:
    """One comparison: what all of its parts need."""

    peer: str
    build: Callable[[], Workload]
    settings: Settings
    progress: Progress
    trainer: Trainer
    habits: Habits

    def run(self, task: Task, reference: State) -> Against:
        self.progress.line(f"the same {task.job.num_steps} steps with {self.peer}")
        trained = self.trainer.train(task, self.habits)
        gap = task.gap(reference, trained)
        result = Against(
            peer=self.peer,
            steps=task.job.num_steps,
            weights_sha256=digest(trained),
            differences=compare(reference, trained),
            relative=gap.relative,
            bound=gap.bound,
            relative_in_float64=None,
            grown=None,
            reason=None,
            is_explained=gap.is_rounding,
            cause=causes.find_threads(task, self.peer, self.habits),
        )
        return result if gap.is_rounding else self._explain(result, task, trained, reference)

    def _explain(self, result: Against, task: Task, trained: State, reference: State) -> Against:
        """Rounding that has grown, or something else?"""
        self.progress.line(f"{result.relative:.1e} of the update differs: looking for the cause")
        unkeyed = causes.find_cause(self.build(), {})
        if unkeyed:
            return replace(result, cause=unkeyed + result.cause)
        own, wide = (task, trained), None
        try:
            task, trained, reference = self._in_float64()
            wide = task.gap(reference, trained)
            result = replace(result, relative_in_float64=wide.relative)
        except Interrupted:
            raise
        except (SamestepError, RuntimeError, TypeError, ValueError) as error:
            result = replace(result, reason=f"{type(error).__name__}: {' '.join(str(error).split())}")
        if wide is None or wide.is_grown_rounding:
            result = _judge(replace(result, grown=self._grown(*own)))
            if wide is not None or result.is_explained:
                return result

        def is_rounding(gap: Gap) -> bool:
            return gap.relative <= max(gap.bound, _limit(result)) if wide is None else gap.is_grown_rounding

        found = causes.diagnose(self.trainer, task, self.peer, self.habits, trained, reference, is_rounding)
        return replace(result, cause=found + result.cause)

    def _grown(self, task: Task, trained: State) -> float:
        """What training makes of one rounding of the initial weights: the largest of some tries."""
        nudged = (self.trainer.train(task, replace(self.habits, nudge=number)) for number in range(1, _NUM_NUDGES + 1))
        return max(task.gap(trained, state).relative for state in nudged)

    def _in_float64(self) -> tuple[Task, State, State]:
        """The task, what the peer makes of it, and what samestep makes of it."""
        workload = in_float64(self.build())
        state = run(workload, self.settings, choices=Choices(), progress=Silent()).model.state_dict()
        task = task_of(workload, self.settings)
        return task, self.trainer.train(task, self.habits), {name: values.clone() for name, values in state.items()}


def _limit(result: Against) -> float:
    assert result.grown is not None
    return _GROWN_FACTOR * result.grown


def _judge(result: Against) -> Against:
    """Whether rounding, as training has made it grow in the run's own dtype, explains the difference."""
    wide = result.relative_in_float64
    left = f"; in float64 the same two trainings differ by {wide:.1e}" if wide is not None else ""
    grown = f"one rounding of the initial weights grows to {result.grown:.1e} of the update"
    if result.relative <= _limit(result):
        return replace(result, is_explained=True, cause=(f"rounding that has grown: {grown}{left}", *result.cause))
    if wide is None:
        return result
    return replace(result, cause=(f"precision: more than rounding, for {grown}{left}", *result.cause))
