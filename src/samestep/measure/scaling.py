"""What a scaling number means: speed-ups, efficiencies, the roof, fitted laws, and whether more workers pay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from samestep.errors import UsageError
from samestep.measure import verdict
from samestep.measure.laws import Fit, fit_amdahl, fit_usl, no_fit
from samestep.measure.series import (
    Axis,
    Point,
    Series,
    check_batches,
    point,
)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How samestep scales along one axis, and what that means.

    Args:
        axis: "strong": fixed global batch; "weak": fixed batch per worker.
        best_single: Name of the torch series with the lowest median step time.
        points: By workers.
        fits: Amdahl's law and the Universal Scalability Law, on `relative`.
        pays_up_to: The largest number of workers, above 1, that is faster than the best single process and faster than
            every smaller number measured, both beyond noise (see `stats.relate`); None where parallel training pays
            nowhere.
        verdict: One sentence.
    """

    axis: Axis
    best_single: str
    points: tuple[Point, ...]
    fits: tuple[Fit, ...]
    pays_up_to: int | None
    verdict: str


def analyse(
    axis: Axis, series: Sequence[Series], *, cores: int, losses: Mapping[int, Mapping[str, float]] = {}
) -> Scaling:
    """What the step times of one study say about scaling along an axis.

    Args:
        axis: "strong": every series has the same global batch; "weak": workers × the batch of one worker.
        series: One torch series or more (threads tuned), samestep with one worker and with more, and roofs; their n-th
            values are of the same round.
        cores: That the programs may use; names a cause in the verdict.
        losses: Per number of workers, the share of the step (0 .. 1) by phase group, such as "waiting"; names a cause
            in the verdict.

    Raises:
        UsageError: A needed series is missing or there twice, or rounds or batches do not match.

    Example:
        >>> def timed(kind, workers, step_s):
        ...     times = tuple(step_s * (1 + 0.01 * (round % 3)) for round in range(10))
        ...     return Series(name=f"{kind}, {workers}", kind=kind, workers=workers, threads=1, global_batch=64,
        ...                   step_s=times)
        >>> found = analyse("strong", [timed("torch", 1, 0.010), timed("samestep", 1, 0.011),
        ...                            timed("samestep", 2, 0.006)], cores=2)
        >>> found.verdict
        'parallel training pays here up to 2 workers: 1.67 × the best single process (torch, 1) [1.67, 1.67]'
        >>> [round(point.efficiency.value, 3) for point in found.points]
        [1.0, 0.917]
    """
    _check_shares(losses)
    study = _study(axis, series)
    one = study.ours[1]
    relative = {count: one.sample_s / many.sample_s for count, many in study.ours.items()}
    points = tuple(
        point(axis, many, single=study.single, one=one, roof=study.roofs.get(count))
        for count, many in study.ours.items()
    )
    pays_up_to = verdict.pays_up_to(points, study.ours)
    strong_only = no_fit("Amdahl", "Amdahl's law is about one global batch (strong scaling); here it grows")
    return Scaling(
        axis=axis,
        best_single=study.single.name,
        points=points,
        fits=(fit_amdahl(relative) if axis == "strong" else strong_only, fit_usl(relative)),
        pays_up_to=pays_up_to,
        verdict=verdict.sentence(axis, points, study.ours, single=study.single, cores=cores, losses=losses),
    )


@dataclass(frozen=True, kw_only=True)
class _Study:
    """The series of a study, checked and sorted: the best single process, samestep and roofs by workers."""

    axis: Axis
    single: Series
    ours: Mapping[int, Series]
    roofs: Mapping[int, Series]


def _study(axis: Axis, series: Sequence[Series]) -> _Study:
    torch = [one for one in series if one.kind == "torch"]
    if not torch:
        raise UsageError("no series of plain torch: a speed-up is against the best single process, so measure one")
    ours = _by_workers(one for one in series if one.kind == "samestep")
    if 1 not in ours:
        raise UsageError(
            f"samestep was measured with {', '.join(map(str, ours)) or 'no'} workers: scaling is against one worker, "
            "so measure 1 too"
        )
    if len({len(one.step_s) for one in series}) > 1:
        found = ", ".join(f'"{one.name}" {len(one.step_s)}' for one in series)
        raise UsageError(f"other numbers of rounds ({found}): series are compared round by round")
    check_batches(axis, ours[1].global_batch, series)
    single = min(torch, key=lambda one: float(np.median(one.step_s)))
    return _Study(axis=axis, single=single, ours=ours, roofs=_by_workers(one for one in series if one.kind == "roof"))


def _by_workers(series: Iterable[Series]) -> dict[int, Series]:
    found: dict[int, Series] = {}
    for one in sorted(series, key=lambda each: each.workers):
        if one.workers in found:
            raise UsageError(f'"{found[one.workers].name}" and "{one.name}" both have {one.workers} workers: give one')
        found[one.workers] = one
    return found


def _check_shares(losses: Mapping[int, Mapping[str, float]]) -> None:
    for workers, shares in losses.items():
        for group, share in shares.items():
            if not 0 <= share <= 1:
                raise UsageError(f'"{group}" takes {share:g} of the step with {workers} workers: a share is 0 .. 1')
