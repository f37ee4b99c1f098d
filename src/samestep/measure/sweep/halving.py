"""Successive halving over budgets of steps: which runs come next, which trials are dropped, which one is chosen.

A cell (one optimiser at one batch) climbs a ladder of budgets, each twice the one below. All trials run on the low
rungs; on the last ones the better half goes on. A run's learning-rate schedule spans its budget, so every rung starts
anew. The first trial that reaches the target is run again with fresh seeds; where more than half of them reach it too,
it is chosen. A schedule that ends with its budget lets a run reach the target near the end of it, however long it is;
so those that reached it are tried once more with a budget half-way down to the rung below, before it is said how many
steps are needed. Runs of still other seeds give the numbers that are reported. Where these fall short on the reported
part, more steps are taken: the reported part says how long, never with which settings. Everything here is a function of
what the finished runs found, so a sweep that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
        has_halfway: Whether budgets half-way between rungs are tried, too; records from before say nothing of them.
    """

    budgets: tuple[int, ...]
    kept: tuple[int, ...]
    has_halfway: bool = True

    def of_one(self) -> Ladder:
        """The same budgets for a single trial.

        >>> Ladder(budgets=(8, 16), kept=(4, 2)).of_one().kept
        (1, 1)
        """
        return replace(self, kept=(1,) * len(self.budgets))

    def halfway(self, rung: int) -> int | None:
        """The budget half-way down to the rung below; None where there is none.

        >>> climbed = Ladder(budgets=(8, 16), kept=(4, 2))
        >>> climbed.halfway(0), climbed.halfway(1)
        (None, 12)
        """
        if rung == 0 or not self.has_halfway:
            return None
        below, steps = self.budgets[rung - 1], self.budgets[rung]
        found = (below + steps) // 2
        return found if below < found else None


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
        Ladder(budgets=(10, 20, 40, 80, 160, 320, 640), kept=(16, 16, 16, 16, 8, 4, 2), has_halfway=True)
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
        short = None
        outcomes = _outcomes(alive, steps, found)
        if isinstance(outcomes, Move):
            return outcomes
        alive = ranked(outcomes, target)
        if all(outcome.failure for outcome in outcomes.values()):
            return Move(verdict="failed", trial=alive[0], steps=steps)
        candidates = _reaching(alive, outcomes)
        for chosen in _choices(candidates, climbed.halfway(rung), steps, num_seeds, target, found):
            short = chosen if chosen.verdict == "going on" else _reported(chosen, num_seeds, found)
            if short.verdict != "not reached":
                return short
        if rung + 1 < len(climbed.budgets):
            alive = alive[: climbed.kept[rung + 1]]
    return short or Move(verdict="not reached", trial=alive[0], steps=climbed.budgets[-1])


def _choices(
    candidates: Sequence[int],
    halfway: int | None,
    steps: int,
    num_seeds: int,
    target: Target,
    found: Mapping[Run, Outcome],
) -> Iterator[Move]:
    """The settings that reach the target with a budget half-way up to a rung, where there are such, then the rung's.

    Where the reported part is not reached, no other settings are tried with this budget: it would choose them.
    """
    chosen = _confirmed(candidates, steps, num_seeds, found)
    if chosen is None:
        return
    if chosen.verdict == "reached" and halfway is not None:
        outcomes = _outcomes(candidates, halfway, found)
        if isinstance(outcomes, Move):
            yield outcomes
        elif sooner := _confirmed(_reaching(ranked(outcomes, target), outcomes), halfway, num_seeds, found):
            yield sooner
    yield chosen


def _outcomes(trials: Iterable[int], steps: int, found: Mapping[Run, Outcome]) -> dict[int, Outcome] | Move:
    """What trials have found with a budget, or what has still to be run."""
    runs = {trial: Run(stage="choose", trial=trial, steps=steps, seed=0) for trial in trials}
    if missing := _missing(runs.values(), found):
        return Move(verdict="going on", runs=missing)
    return {trial: found[run] for trial, run in runs.items()}


def _reaching(trials: Sequence[int], outcomes: Mapping[int, Outcome]) -> list[int]:
    """Those worth fresh seeds, in their order."""
    return [trial for trial in trials if outcomes[trial].reached_step is not None][:_MOST_CANDIDATES]


def _confirmed(trials: Sequence[int], steps: int, num_seeds: int, found: Mapping[Run, Outcome]) -> Move | None:
    """The first trial that most fresh seeds reach the target with, too."""
    for trial in trials:
        fresh = [Run(stage="confirm", trial=trial, steps=steps, seed=1 + number) for number in range(num_seeds)]
        if missing := _missing(fresh, found):
            return Move(verdict="going on", runs=missing, trial=trial, steps=steps)
        if _is_reached_by_most(fresh, found):
            return Move(verdict="reached", trial=trial, steps=steps)
    return None


def _reported(chosen: Move, num_seeds: int, found: Mapping[Run, Outcome]) -> Move:
    """What still other seeds show of it on the reported part."""
    assert chosen.trial is not None
    assert chosen.steps is not None
    numbers = range(1 + num_seeds, 1 + 2 * num_seeds)
    last = [Run(stage="report", trial=chosen.trial, steps=chosen.steps, seed=number) for number in numbers]
    if missing := _missing(last, found):
        return replace(chosen, verdict="going on", runs=missing)
    return chosen if _is_reached_by_most(last, found) else replace(chosen, verdict="not reached")


def _is_reached_by_most(runs: Sequence[Run], found: Mapping[Run, Outcome]) -> bool:
    return 2 * sum(found[run].reached_step is not None for run in runs) > len(runs)


def steps_ahead(climbed: Ladder, num_seeds: int, run: Run) -> int:
    """Steps of all runs that may follow one and those beside it, if no trial reaches the target before the last rung.

    >>> climbed = Ladder(budgets=(8, 16), kept=(4, 2))
    >>> steps_ahead(climbed, 3, Run(stage="choose", trial=0, steps=8, seed=0))  # 2 × 16, 3 × 16, (2 + 6) × 12, 3 × 16
    224
    >>> steps_ahead(climbed, 3, Run(stage="confirm", trial=0, steps=12, seed=1))  # 3 × 12, 3 × 16
    84
    """
    rung = next(number for number, steps in enumerate(climbed.budgets) if steps >= run.steps)
    higher = 0
    if run.stage == "choose" and run.steps == climbed.budgets[rung]:
        numbers = zip(climbed.budgets, climbed.kept, strict=True)
        higher, rung = sum(steps * kept for steps, kept in numbers if steps > run.steps), len(climbed.budgets) - 1
    steps, halfway = climbed.budgets[rung], climbed.halfway(rung)
    stages: list[tuple[Stage, int, int]] = [("confirm", steps, num_seeds)]
    if halfway is not None:
        candidates = min(_MOST_CANDIDATES, climbed.kept[rung])
        stages += [("choose", halfway, candidates), ("confirm", halfway, num_seeds), ("report", halfway, num_seeds)]
    stages.append(("report", steps, num_seeds))
    now = [number for number, (stage, at, _) in enumerate(stages) if (stage, at) == (run.stage, run.steps)]
    return higher + sum(at * number for _, at, number in stages[now[0] + 1 if now else 0 :])


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
