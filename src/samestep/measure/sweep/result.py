"""What a sweep's record means: steps, samples, serial depth and time to the target, and where they bend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samestep.errors import UsageError
from samestep.measure import stats
from samestep.measure.stats import Estimate
from samestep.measure.sweep import critical, forecast, halving, target
from samestep.measure.sweep.critical import Fit
from samestep.measure.sweep.forecast import StepTime
from samestep.measure.sweep.halving import Ladder, Run, Verdict
from samestep.measure.sweep.space import Decay, Point
from samestep.measure.sweep.trial import Cell, Finished, read_entry
from samestep.optim import catalog
from samestep.run.workload import Target
from samestep.words import count

FEWEST_SEEDS = 3
"""Fewer have no interval: Student's of two values reaches from nothing to many times the budget."""

WORKERS = (1, 2, 4, 8)
"""For these many workers a time is predicted."""


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """What was found for an optimiser at a batch: medians over fresh seeds of the chosen settings.

    Args:
        optimizer: Its name.
        batch: The global batch.
        verdict: "reached"; "not reached": by no settings, or by half of the fresh seeds or fewer; "failed": every trial
            did; "going on": the record is of a sweep that is not over.
        point: The chosen settings, otherwise the best ones.
        budget: Steps of the runs that they were chosen by.
        values: Steps to the target, one a fresh seed; infinite where it never reached it; empty where none was run.
        steps, samples, depth, time_s: To the target, with their 95 % intervals; None where it was not reached. Samples
            are all rows that gradients were computed from; depth is rounds of forward and backward that wait for each
            other; seconds are on one worker.
        step_s: Median time of a step on one worker, while other runs went on beside it.
        best: The value of the target's metric that is nearest to the goal: on the reported part where fresh seeds were
            run, otherwise on the choosing part.
        noise_scale: Of the runs that are reported, their median; None where none of them told one.
        num_trials: Settings that were tried.
        num_failed: Runs that failed.
        failure: What the first of them said.
        edge: "lowest" or "highest", where the chosen learning rate is that of all that were tried; "" elsewhere.
    """

    optimizer: str
    batch: int
    verdict: Verdict
    point: Point
    budget: int
    values: tuple[float, ...]
    steps: Estimate | None
    samples: Estimate | None
    depth: Estimate | None
    time_s: Estimate | None
    step_s: float | None
    best: float | None
    noise_scale: float | None
    num_trials: int
    num_failed: int
    failure: str | None
    edge: str

    @property
    def num_reached(self) -> int:
        """Fresh seeds that reached the target."""
        return sum(math.isfinite(value) for value in self.values)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The batch that would be the fastest on so many workers, and the seconds to the target."""

    workers: int
    batch: int
    time_s: float


@dataclass(frozen=True, kw_only=True)
class Curve:
    """An optimiser over all batches.

    Args:
        optimizer: Its name.
        cells: By batch, ascending.
        perfect_until: The largest batch up to which scaling is perfect; None where the target was never reached.
        fit: The critical batch.
        noise_scale: What it is predicted to be by the gradients' noise: the median over the batches that reached the
            target, in samples; None where it was told at none.
        step_time: On one worker; None where no step was timed.
        predictions: One for each number of workers; empty where the target was never reached.
    """

    optimizer: str
    cells: tuple[CellResult, ...]
    perfect_until: int | None
    fit: Fit
    noise_scale: float | None
    step_time: StepTime | None
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a sweep found.

    Args:
        record: Everything, raw values included.
        curves: One an optimiser.
        sentences: What it comes to, an optimiser each.
        shortcomings: Where the target was not reached, or runs failed: one line each.
    """

    record: Mapping[str, Any]
    curves: tuple[Curve, ...]
    sentences: tuple[str, ...]
    shortcomings: tuple[str, ...]


def analyse(record: Mapping[str, Any]) -> Findings:
    """What a record means.

    Raises:
        UsageError: A field is missing, or not what it should be.
    """
    try:
        study, goal = record["study"], target.parse_goal(record["study"]["target"])
        has_halfway = bool(study.get("has_halfway", False))
        climbed = Ladder(budgets=tuple(study["budgets"]), kept=tuple(study["kept"]), has_halfway=has_halfway)
        by_cell: dict[Cell, dict[Run, Finished]] = {
            (optimizer, batch): {} for optimizer in study["optimizers"] for batch in study["batches"]
        }
        points: dict[tuple[Cell, int], Point] = {}
        for entry in record["runs"]:
            cell, run, finished = read_entry(entry)
            by_cell[cell][run] = finished
            points[cell, run.trial] = _point(entry["settings"])
        cells = [
            _cell(
                cell,
                climbed if _is_tuned(record, cell) else climbed.of_one(),
                study["seeds"],
                goal,
                found,
                {k[1]: p for k, p in points.items() if k[0] == cell},
            )
            for cell, found in by_cell.items()
        ]
        curves = tuple(
            _curve(name, [one for one in cells if one.optimizer == name], record["config"].get("microbatch"))
            for name in study["optimizers"]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"the record of a sweep lacks something, or holds something else: {error!r}") from None
    return Findings(
        record=record,
        curves=curves,
        sentences=tuple(_sentence(curve) for curve in curves),
        shortcomings=tuple(text for one in cells for text in _shortcomings(one, goal)),
    )


def _is_tuned(record: Mapping[str, Any], cell: Cell) -> bool:
    return bool(record["spaces"].get(cell[0], {}).get("is_tuned", True))


def _point(settings: Mapping[str, Any]) -> Point:
    return Point(**{**settings, "decay": Decay(**settings["decay"])})


def _cell(
    cell: Cell,
    climbed: Ladder,
    num_seeds: int,
    goal: Target,
    found: Mapping[Run, Finished],
    points: Mapping[int, Point],
) -> CellResult:
    move = halving.next_move(climbed, num_seeds, goal, {run: one.outcome for run, one in found.items()})
    wanted = ("report", move.trial, move.steps)
    fresh = [one for run, one in found.items() if (run.stage, run.trial, run.steps) == wanted]
    steps = [_or_never(one.outcome.reached_step) for one in fresh]
    is_reached = move.verdict == "reached"
    read = fresh or [one for run, one in found.items() if run.stage == "choose"]
    times = [one.step_s for one in found.values() if one.step_s is not None]
    failures = [one.outcome.failure for one in found.values() if one.outcome.failure is not None]

    def to_target(factors: Sequence[float]) -> Estimate | None:
        if not is_reached:
            return None
        values = [n * factor for n, factor in zip(steps, factors, strict=True)]
        return _median(values, min(factors), (move.steps or 0) * max(factors))

    return CellResult(
        optimizer=cell[0],
        batch=cell[1],
        verdict=move.verdict,
        point=points[0 if move.trial is None else move.trial],
        budget=move.steps or climbed.budgets[0],
        values=tuple(steps),
        steps=to_target([1.0] * len(fresh)),
        samples=to_target([one.num_samples / max(one.num_steps, 1) for one in fresh]),
        depth=to_target([float(one.rounds_per_step) for one in fresh]),
        time_s=to_target([one.step_s or 0.0 for one in fresh]),
        step_s=float(np.median(times)) if times else None,
        best=halving.best_of([one.outcome for one in read], goal),
        noise_scale=_middle([one.noise_scale for one in fresh]),
        num_trials=climbed.kept[0],
        num_failed=len(failures),
        failure=failures[0] if failures else None,
        edge=_edge(points[move.trial].lr, [point.lr for point in points.values()]) if move.trial is not None else "",
    )


def _middle(values: Sequence[float | None]) -> float | None:
    """The median of those that are known.

    >>> _middle([1.0, None, 4.0, 2.0]), _middle([None])
    (2.0, None)
    """
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _edge(chosen: float, tried: Sequence[float]) -> str:
    """Where a better learning rate may lie outside of those that were tried.

    >>> _edge(0.1, [0.01, 0.1, 0.03]), _edge(0.03, [0.01, 0.1, 0.03]), _edge(0.1, [0.1])
    ('highest', '', '')
    """
    if len(tried) < 3 or min(tried) < chosen < max(tried):
        return ""
    return "highest" if chosen == max(tried) else "lowest"


def _or_never(step: int | None) -> float:
    return math.inf if step is None else float(step)


def _median(values: Sequence[float], least: float, most: float) -> Estimate:
    """The median over seeds, and its interval where there are enough of them.

    Where one of them never reached the target, the interval has no upper bound; otherwise none was above the budget.

    Args:
        values: One a seed.
        least: Of one step.
        most: Of as many steps as the budget has.

    Example:
        >>> _median([3.0, 4.0], 1.0, 8.0).is_known
        False
        >>> _median([1.0, 3.0, 7.0], 1.0, 8.0).text(0)
        '3 [1, 8]'
    """
    if len(values) < FEWEST_SEEDS:
        return Estimate(value=float(np.median(values)), low=0.0, high=math.inf)
    if not all(map(math.isfinite, values)):
        return Estimate(value=float(np.median(values)), low=min(values), high=math.inf)
    found = stats.median(values)
    return replace(found, low=max(found.low, least), high=min(found.high, most))


def _curve(optimizer: str, cells: Sequence[CellResult], microbatch: int | None) -> Curve:
    reached = {one.batch: one.steps.value for one in cells if one.steps is not None}
    times = {one.batch: one.step_s for one in cells if one.step_s}
    step_time = forecast.fit_step_time(times, is_all_divided=_has_rounds(optimizer)) if times else None
    return Curve(
        optimizer=optimizer,
        cells=tuple(cells),
        perfect_until=critical.perfect_until(reached),
        fit=critical.fit({one.batch: one.values for one in cells if one.steps is not None}),
        noise_scale=_middle([one.noise_scale for one in cells if one.steps is not None]),
        step_time=step_time,
        predictions=_predictions(reached, step_time, microbatch) if step_time else (),
    )


def _has_rounds(optimizer: str) -> bool:
    """Whether it finds its step in rounds of its own; of one that is not known here it is not known either."""
    return optimizer in catalog.names() and catalog.entry(optimizer).has_rounds


def _predictions(reached: Mapping[int, float], step_time: StepTime, microbatch: int | None) -> tuple[Prediction, ...]:
    found = []
    for workers in WORKERS if reached else ():
        times = {batch: steps * step_time.on(workers, batch, microbatch) for batch, steps in reached.items()}
        fastest = min(times, key=lambda batch: times[batch])
        found.append(Prediction(workers=workers, batch=fastest, time_s=times[fastest]))
    return tuple(found)


def _sentence(curve: Curve) -> str:
    """What an optimiser's curve comes to, in words."""
    name, reached = curve.optimizer, [one for one in curve.cells if one.steps is not None]
    if not reached:
        return f"{name}: the target was reached at no batch"
    fewest = min(reached, key=lambda one: (one.steps.value if one.steps else math.inf, one.batch))
    assert fewest.steps is not None
    said = [f"fewest steps {fewest.steps.value:g} at {fewest.batch}"]
    if len(reached) > 1:
        said.append(f"perfect scaling up to {curve.perfect_until}")
    if curve.fit.critical_batch is not None:
        said.append(f"critical batch {curve.fit.critical_batch.text(0)}")
    else:
        said.append(f"critical batch not known ({curve.fit.reason})")
    if curve.noise_scale is not None:
        said.append(f"predicted by the noise scale {curve.noise_scale:,.0f}")
    return f"{name}: {', '.join(said)}"


def _shortcomings(one: CellResult, goal: Target) -> list[str]:
    where, best = f"{one.optimizer} at {one.batch}", "none" if one.best is None else f"{one.best:.4g}"
    said = []
    if one.verdict == "failed":
        return [f"{where}: every trial failed, the first with: {one.failure}"]
    if one.verdict == "not reached":
        of_seeds = f" by {one.num_reached} of {len(one.values)} fresh seeds only" if one.values else ""
        how = f"reached{of_seeds}" if one.values else "never reached"
        said.append(
            f"{where}: {target.goal_text(goal)} was {how} in {count(one.budget, 'step')}; the best was {best} "
            f"({count(one.num_trials, 'trial')})"
        )
    if one.edge and one.verdict == "reached":
        said.append(
            f"{where}: the chosen learning rate {one.point.lr:.3g} is the {one.edge} of all that were tried; a better "
            "one may lie beyond"
        )
    if one.num_failed:
        said.append(f"{where}: {count(one.num_failed, 'run')} failed, the first with: {one.failure}")
    return said
