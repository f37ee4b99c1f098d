"""Successive halving over budgets of steps: which runs come next, which trials are dropped, which one is chosen.

A cell (one optimiser at one batch) climbs a ladder of budgets, each twice the one below. All trials run on the low
rungs; on the last ones the better half goes on. A run's learning-rate schedule spans its budget, so every rung starts
anew. The first trial that reaches the target is run again with fresh seeds; where more than half of them reach it too,
it is chosen, and runs of still other seeds give the numbers that are reported. Where these fall short on the reported
part, the next rung is climbed: the reported part says how long, never with which settings. Everything here is a
function of what the finished runs found, so a sweep that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from samestep.errors import UsageError
from samestep.measure.sweep.target import is_better
from samestep.run.workload import Target

Stage = Literal["choose", "confirm", "report"]
Verdict = Literal["going on", "reached", "not reached", "failed"]

_MOST_CANDIDATES = 3
"""Trials of a rung that are run again with fresh seeds, the fastest first."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Budgets and how many trials run with each.

    Args:
        budgets: Steps, ascending.
        kept: Trials on each rung.
    """

    budgets: tuple[int, ...]
    kept: tuple[int, ...]

    def of_one(self) -> Ladder:
        """The same budgets for a single trial.

        >>> Ladder(budgets=(8, 16), kept=(4, 2)).of_one().kept
        (1, 1)
        """
        return Ladder(budgets=self.budgets, kept=(1,) * len(self.budgets))


def ladder(num_trials: int, *, first_steps: int, most_steps: int) -> Ladder:
    """The ladder from `most_steps` down to about `first_steps`: all trials on the first rung, two or more on the last.

    No rung drops more than half of the trials.

    Args:
        num_trials: Of a cell.
        first_steps: Lowest budget, about: the lowest of most_steps / 2^k that is not below it.
        most_steps: Highest budget.

    Raises:
        UsageError: No trial, no step, or a first budget above the last.

    Example:
        >>> ladder(16, first_steps=8, most_steps=640)
        Ladder(budgets=(10, 20, 40, 80, 160, 320, 640), kept=(16, 16, 16, 16, 8, 4, 2))
        >>> ladder(16, first_steps=8, most_steps=16).kept
        (16, 8)
    """
    if num_trials < 1:
        raise UsageError(f"trials={num_trials} is below 1: nothing would be tried; take 16, or at least 1")
    if first_steps < 1 or most_steps < first_steps:
        raise UsageError(
            f"budgets from first_steps={first_steps} to most_steps={most_steps}: both must be at least 1, and the "
            "first not above the last"
        )
    budgets = [most_steps]
    while budgets[-1] // 2 >= first_steps:
        budgets.append(budgets[-1] // 2)
    highest = len(budgets) - 1
    left = [math.ceil(num_trials / 2**climbed) for climbed in range(highest, -1, -1)]
    kept = [min(num_trials, max(2 << below, number)) for below, number in enumerate(left)]
    return Ladder(budgets=tuple(reversed(budgets)), kept=tuple(reversed(kept)))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of a cell.

    Args:
        stage: "choose" and "confirm" are read on the choosing part, "report" on the reported one.
        trial: Number of the settings.
        steps: The budget.
        seed: Of initialisation, order and dropout, as a number from 0: it is added to the sweep's.
    """

    stage: Stage
    trial: int
    steps: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run found.

    Args:
        reached_step: Steps at the first evaluation that met the target; None: none did.
        best: The value of the target's metric that is nearest to the goal; None where there is none.
        failure: Why it did not get to its end.
    """

    reached_step: int | None = None
    best: float | None = None
    failure: str | None = None


@dataclass(frozen=True, kw_only=True)
class Move:
    """Where a cell stands.

    Args:
        verdict: "going on" as long as runs are missing.
        runs: What has to be run before it can be decided what follows.
        trial: The chosen settings, once there are such; otherwise the best so far.
        steps: The budget that they were chosen with.
    """

    verdict: Verdict
    runs: tuple[Run, ...] = ()
    trial: int | None = None
    steps: int | None = None


def next_move(climbed: Ladder, num_seeds: int, target: Target, found: Mapping[Run, Outcome]) -> Move:
    """What a cell does next.

    Args:
        climbed: Its ladder.
        num_seeds: Fresh seeds that a candidate is confirmed with, and reported with.
        target: The goal.
        found: What the runs so far have found.

    Example:
        >>> rungs = ladder(2, first_steps=8, most_steps=8)
        >>> goal = Target(metric="error", value=0.1, mode="min")
        >>> [run.trial for run in next_move(rungs, 1, goal, {}).runs]
        [0, 1]
    """
    alive: Sequence[int] = range(climbed.kept[0])
    short: Move | None = None
    for rung, steps in enumerate(climbed.budgets):
        runs = {trial: Run(stage="choose", trial=trial, steps=steps, seed=0) for trial in alive}
        if missing := _missing(runs.values(), found):
            return Move(verdict="going on", runs=missing)
        outcomes = {trial: found[run] for trial, run in runs.items()}
        alive = ranked(outcomes, target)
        if all(outcome.failure for outcome in outcomes.values()):
            return Move(verdict="failed", trial=alive[0], steps=steps)
        candidates = [trial for trial in alive if outcomes[trial].reached_step is not None][:_MOST_CANDIDATES]
        moves = (_with_fresh_seeds(trial, steps, num_seeds, found) for trial in candidates)
        short = next((move for move in moves if move is not None), None)
        if short is not None and short.verdict != "not reached":
            return short
        if rung + 1 < len(climbed.budgets):
            alive = alive[: climbed.kept[rung + 1]]
    return short or Move(verdict="not reached", trial=alive[0], steps=climbed.budgets[-1])


def _with_fresh_seeds(trial: int, steps: int, num_seeds: int, found: Mapping[Run, Outcome]) -> Move | None:
    """What fresh seeds show of a candidate, then still other ones on the reported part; None where the first do not.

    Where the reported part is not reached, no other settings are tried with this budget: it would choose them.
    """
    fresh = [Run(stage="confirm", trial=trial, steps=steps, seed=1 + number) for number in range(num_seeds)]
    last = [Run(stage="report", trial=trial, steps=steps, seed=1 + num_seeds + number) for number in range(num_seeds)]
    if missing := _missing(fresh, found):
        return Move(verdict="going on", runs=missing, trial=trial, steps=steps)
    if not _is_reached_by_most(fresh, found):
        return None
    if missing := _missing(last, found):
        return Move(verdict="going on", runs=missing, trial=trial, steps=steps)
    is_reached = _is_reached_by_most(last, found)
    return Move(verdict="reached" if is_reached else "not reached", trial=trial, steps=steps)


def _is_reached_by_most(runs: Sequence[Run], found: Mapping[Run, Outcome]) -> bool:
    return 2 * sum(found[run].reached_step is not None for run in runs) > len(runs)


def ranked(outcomes: Mapping[int, Outcome], target: Target) -> list[int]:
    """Trials, the best first: those that reached the target in the fewest steps, then those that came nearest to it.

    Those that failed come last; equals in the order of their numbers.

    Example:
        >>> goal = Target(metric="error", value=0.1, mode="min")
        >>> ranked({0: Outcome(best=0.3), 1: Outcome(failure="diverged"), 2: Outcome(reached_step=9, best=0.1)}, goal)
        [2, 0, 1]
    """
    sign = 1.0 if target.mode == "min" else -1.0

    def place(trial: int) -> tuple[bool, bool, int, float, int]:
        outcome = outcomes[trial]
        best = outcome.best
        distance = math.inf if best is None or math.isnan(best) else sign * best
        is_short = outcome.reached_step is None
        return outcome.failure is not None, is_short, outcome.reached_step or 0, distance, trial

    return sorted(outcomes, key=place)


def best_of(outcomes: Sequence[Outcome], target: Target) -> float | None:
    """The value nearest to the goal that any run has reached; None where there is none.

    >>> best_of([Outcome(best=0.3), Outcome(), Outcome(best=0.2)], Target(metric="error", value=0.1, mode="min"))
    0.2
    """
    best: float | None = None
    for outcome in outcomes:
        if outcome.best is not None and (best is None or is_better(target, outcome.best, best)):
            best = outcome.best
    return best


def _missing(runs: Iterable[Run], found: Mapping[Run, Outcome]) -> tuple[Run, ...]:
    return tuple(run for run in runs if run not in found)
