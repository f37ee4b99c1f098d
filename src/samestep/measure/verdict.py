"""Whether parallel training pays, and if not, why: one sentence that quotes the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samestep.measure.series import Axis, Point, Series
from samestep.measure.stats import Estimate, ratio, relate, rounds_to_tell

_NO_MORE = 1.05
"""A roof up to here is no gain worth speaking of."""
_SURELY_NO_MORE = 1.25
"""Where the upper end of its interval lies above, it may be a gain all the same."""
_LOSS_FRAC = 0.15
"""From this share of the step on, a loss is named as the cause."""
_GROWN_FRAC = 0.05
"""So much more of the step than with fewer workers, where it is compared with those."""
_SHORT_S = 0.010
_LOSSES: Mapping[str, tuple[str, ...]] = {
    "waiting and combining take": ("waiting", "combine + update"),
    "reading data takes": ("data",),
    "samestep's own machinery takes": ("machinery",),
}


def pays_up_to(points: Sequence[Point], ours: Mapping[int, Series]) -> int | None:
    """The largest number of workers, above 1, that is faster than the best single process and every smaller number.

    Faster beyond noise, per sample (see `stats.relate`); None where there is none.

    Args:
        points: What was computed of samestep, by workers.
        ours: Samestep's series by workers.

    Example:
        >>> from samestep.measure.series import point
        >>> def timed(workers, step_s):
        ...     times = (step_s,) * 6
        ...     return Series(name="", kind="samestep", workers=workers, threads=1, global_batch=64, step_s=times)
        >>> ours = {1: timed(1, 0.010), 2: timed(2, 0.006), 4: timed(4, 0.006)}
        >>> points = [point("strong", many, single=ours[1], one=ours[1], roof=None) for many in ours.values()]
        >>> pays_up_to(points, ours)
        2
    """
    paying = [
        found.workers
        for found in points
        if found.workers > 1 and found.relation == "faster" and _held_back_by(found.workers, ours) is None
    ]
    return max(paying, default=None)


def sentence(
    axis: Axis,
    points: Sequence[Point],
    ours: Mapping[int, Series],
    *,
    single: Series,
    cores: int,
    losses: Mapping[int, Mapping[str, float]],
) -> str:
    """The verdict.

    A cause is named only where the numbers show it, the first of: more workers than cores; the machine gives no more
    (the roof is at most 1.05 × what it is compared with); a phase group other than computing takes 15 % of the step.

    Args:
        axis: Strong or weak.
        points: What was computed of samestep, by workers.
        ours: Samestep's series by workers.
        single: The best single process.
        cores: That the programs may use.
        losses: Per number of workers, the share of the step by phase group; empty where not measured.

    Example:
        >>> single = Series(name="torch", kind="torch", workers=1, threads=1, global_batch=1, step_s=(1.0,))
        >>> sentence("strong", [], {}, single=single, cores=2, losses={})
        'whether parallel training pays here is not known: only one worker was measured; add more, as in --workers 1,2'
    """
    several = [point for point in points if point.workers > 1]
    if not several:
        return (
            "whether parallel training pays here is not known: only one worker was measured; "
            "add more, as in --workers 1,2"
        )
    paying, best = pays_up_to(points, ours), max(several, key=lambda point: point.speed_up.value)
    reference = f"the {'samples/s of the ' if axis == 'weak' else ''}best single process ({single.name})"
    if paying is not None:
        pays, most = next(point for point in several if point.workers == paying), several[-1]
        text = f"parallel training pays here up to {paying} workers: {_times(pays, reference)}"
        return text if most is pays else text + _beyond(most, pays, ours, _cause(most, pays, cores, losses))
    fewer = _held_back_by(best.workers, ours)
    if best.relation == "faster" and fewer is not None:
        base = next(point for point in points if point.workers == fewer)
        return _not_over_fewer(best, base, ours, reference, _cause(best, base, cores, losses))
    return _not_over_single(best, len(single.step_s), reference, _cause(best, None, cores, losses))


def _beyond(most: Point, pays: Point, ours: Mapping[int, Series], cause: str | None) -> str:
    """What is said of the most workers, where fewer are best."""
    is_slower = relate(ours[most.workers].sample_s, ours[pays.workers].sample_s) == "slower"
    what = "it is slower" if is_slower else "it is not faster beyond noise"
    return f"; with {most.workers} {what}, {_times(most)}" + ("" if cause is None else f", because {cause}")


def _not_over_fewer(best: Point, base: Point, ours: Mapping[int, Series], reference: str, cause: str | None) -> str:
    """Faster than the best single process, but not faster than samestep with fewer workers."""
    mine, theirs = ours[best.workers].sample_s, ours[base.workers].sample_s
    given = f"{best.workers} workers give {_times(best, reference)}"
    fewer = f"than {base.workers} worker{'s' if base.workers > 1 else ''} ({_times(base)})"
    if relate(mine, theirs) == "not shown different":
        more = _more(rounds_to_tell(ratio(mine, theirs), len(mine)))
        return f"parallel training is not shown to pay here: {given}, but are not shown faster {fewer}; {more}"
    return _does_not_pay(f"{given}, but are no faster {fewer}", cause)


def _not_over_single(best: Point, num_rounds: int, reference: str, cause: str | None) -> str:
    """Not faster than the best single process."""
    if best.relation == "not shown different":
        return (
            f"parallel training is not shown to pay here: {best.workers} workers are not shown different from "
            f"{reference}, {_times(best)}; {_more(rounds_to_tell(best.speed_up, num_rounds))}"
        )
    is_equal = ", equal within 2 %" if best.relation == "equal" else ""
    return _does_not_pay(f"{best.workers} workers give {_times(best, reference)}{is_equal}", cause)


def _does_not_pay(text: str, cause: str | None) -> str:
    if cause is None:
        return f"parallel training does not pay here: {text}; no cause shows in what was measured"
    return f"parallel training does not pay here, because {cause}: {text}"


def _cause(point: Point, base: Point | None, cores: int, losses: Mapping[int, Mapping[str, float]]) -> str | None:
    """Why a point is not faster than another one (None: than the best single process); None where nothing shows it."""
    if point.workers > cores:
        return f"there are more workers than cores ({point.workers} workers on {cores} core{'s' if cores > 1 else ''})"
    reached = 1.0 if base is None else None if base.roof is None else base.roof.value
    if point.roof is not None and reached is not None and _is_no_more(point.roof, reached):
        against = "" if base is None else f", {base.workers} reach {reached:.2f} ×"
        return (
            f"the machine itself gives no more ({point.workers} independent programs that exchange nothing reach "
            f"{point.roof.value:.2f} × {point.roof.interval(2)}{against})"
        )
    return _loss(point, base, losses)


def _is_no_more(roof: Estimate, reached: float) -> bool:
    """Whether the machine gives no more than was reached; an interval that leaves it open names no cause."""
    return roof.value <= _NO_MORE * reached and roof.high <= _SURELY_NO_MORE * reached


def _loss(point: Point, base: Point | None, losses: Mapping[int, Mapping[str, float]]) -> str | None:
    """What takes the most of the step beside computing (more than at `base`), where that is much."""
    before = {} if base is None else _taken(losses.get(base.workers, {}))
    taken = {what: share for what, share in _taken(losses.get(point.workers, {})).items() if share >= _LOSS_FRAC}
    grown = {what: share - before.get(what, 0.0) for what, share in taken.items()}
    what = max(grown, key=lambda each: grown[each], default=None)
    if what is None or grown[what] < _GROWN_FRAC:
        return None
    step_ms, percent = 1000 * point.step_s.value, 100 * taken[what]
    is_all = point.speed_up.value >= (1.0 if base is None else base.speed_up.value) * (1 - taken[what])
    part = "" if is_all else ", which explains a part"
    if point.step_s.value < _SHORT_S:
        return f"the step is short ({step_ms:.2f} ms) and {what} {percent:.0f} % of it{part}"
    return f"{what} {percent:.0f} % of the step ({step_ms:.1f} ms){part}"


def _taken(shares: Mapping[str, float]) -> dict[str, float]:
    return {what: sum(shares.get(group, 0.0) for group in groups) for what, groups in _LOSSES.items()}


def _held_back_by(workers: int, ours: Mapping[int, Series]) -> int | None:
    """The first smaller number of workers that this one is not faster than, beyond noise."""
    mine = ours[workers].sample_s
    smaller = (count for count in sorted(ours) if count < workers)
    return next((count for count in smaller if relate(mine, ours[count].sample_s) != "faster"), None)


def _times(point: Point, reference: str = "") -> str:
    of = f"{reference} " if reference else ""
    return f"{point.speed_up.value:.2f} × {of}{point.speed_up.interval(2)}"


def _more(rounds: int) -> str:
    return f"more rounds would tell: --repeats {rounds}"
