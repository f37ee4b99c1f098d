"""Where the time of a step goes, from the events of its ranks; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samestep.engine.events import Events, Phase

GROUPS: Mapping[str, tuple[Phase, ...]] = {
    "data": (Phase.DATA,),
    "compute": (Phase.FORWARD, Phase.BACKWARD),
    "waiting": (Phase.BARRIER_CONTRIBUTIONS, Phase.BARRIER_COMBINATION, Phase.BARRIER_UPDATE, Phase.STAGES),
    "combine + update": (Phase.PUBLISH, Phase.COMBINE, Phase.UPDATE),
    "machinery": (Phase.START, Phase.DECIDE, Phase.BETWEEN, Phase.SNAPSHOT),
}
"""Every phase of a step is in one group. An evaluation is no part of a step."""

MEANINGS: Mapping[str, str] = {
    "data": "samples into tensors",
    "compute": "forward and backward",
    "waiting": "for other workers and stages",
    "combine + update": "moving and adding gradients, the optimiser",
    "machinery": "starting a rank, deciding from the sums what all ranks do next, writing down what a step has shown, "
    "snapshots",
}
"""What a group holds, in words."""

_FIRST = 3
"""First steps pay for what later ones find ready."""


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """The steps of one rank that its events hold from beginning to end.

    Args:
        steps: Their numbers, ascending.
        starts_s: When each began, on the clock of the events.
        phases_s: Seconds by phase, shape (steps, phases); a step lasts until the next one begins.
    """

    steps: NDArray[np.int64]
    starts_s: NDArray[np.float64]
    phases_s: NDArray[np.float64]

    @property
    def durations_s(self) -> NDArray[np.float64]:
        """Seconds of each step, evaluations left out."""
        total: NDArray[np.float64] = self.phases_s.sum(axis=1) - self.phases_s[:, Phase.EVALUATION]
        return total


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Seconds a step by group, for every worker.

    Args:
        step_s: Mean step time over the steps looked at and all workers.
        num_steps: Steps looked at, the fewest of a worker.
        workers: By group (see `GROUPS`), one mapping a worker.
    """

    step_s: float
    num_steps: int
    workers: tuple[Mapping[str, float], ...]


def step_times(events: Events) -> StepTimes:
    """Cut a rank's events into steps; the last one, of which nobody knows whether it is over, is left out.

    A step begins with its first microbatch and ends where the next one begins, so the phases add up to the step.
    """
    begins = _begins(events)
    durations = np.diff(events["time_s"], append=events["time_s"][-1:])
    number = np.searchsorted(begins, np.arange(len(events)), side="right") - 1
    num_steps = max(len(begins) - 1, 0)
    is_inside = (number >= 0) & (number < num_steps)
    table = np.zeros((num_steps, len(Phase)))
    np.add.at(table, (number[is_inside], events["phase"][is_inside]), durations[is_inside])
    return StepTimes(
        steps=events["step"][begins[:num_steps]], starts_s=events["time_s"][begins[:num_steps]], phases_s=table
    )


def breakdown(ranks: Sequence[Events]) -> Breakdown | None:
    """Where a run's steps spent their time; None where the events hold no whole step.

    The first steps of a run are left out.
    """
    taken = []
    for events in ranks:
        times = step_times(events)
        kept = times.steps >= _FIRST
        if not kept.any():
            return None
        taken.append((times.phases_s[kept].mean(axis=0), float(times.durations_s[kept].mean()), int(kept.sum())))
    if not taken:
        return None
    return Breakdown(
        step_s=float(np.mean([step_s for _, step_s, _ in taken])),
        num_steps=min(count for _, _, count in taken),
        workers=tuple(grouped(phases) for phases, _, _ in taken),
    )


def grouped(phases_s: NDArray[np.float64]) -> dict[str, float]:
    """Seconds by group, from seconds by phase.

    >>> import numpy as np
    >>> grouped(np.ones(len(Phase)))["compute"]
    2.0
    """
    return {group: float(sum(phases_s[phase] for phase in phases)) for group, phases in GROUPS.items()}


def _begins(events: Events) -> NDArray[np.int64]:
    """Where in the events each step begins: the first time that its data are gathered.

    After a death a step may be there again; only the last, unbroken ascent is taken.
    """
    at = np.flatnonzero(events["phase"] == Phase.DATA)
    steps = events["step"][at]
    falls = np.flatnonzero(np.diff(steps) < 0)
    first = falls[-1] + 1 if len(falls) else 0
    at, steps = at[first:], steps[first:]
    is_new = np.ones(len(at), dtype=bool)
    is_new[1:] = np.diff(steps) > 0
    return at[is_new]
