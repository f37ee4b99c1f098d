"""Ways to carry a run out on a machine, and which of them to take, once they are measured; pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from samestep.errors import UsageError
from samestep.measure import stats
from samestep.plan.layout import check_world_size
from samestep.run.config import Backprop, Settings

MARGIN = 0.05
"""What a simpler way may be slower than the fastest, as a share, and still be taken; more where times spread more."""


_CLEARLY_SLOWER = 1.5

STAGES = (2, 4)
"""Numbers of stages that are tried."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to carry a run out.

    Args:
        workers: Worker processes.
        backprop: How weight gradients are computed.
        threads: Threads inside one operation.
        changes_bits: Whether that is another number of threads than was asked for: other bits.
        stages: Pieces of the network.

    Example:
        >>> Candidate(workers=2, backprop="ordinary", threads=1).name
        '2 workers'
        >>> Candidate(workers=1, backprop="concurrent", threads=1).name
        '1 worker, concurrent'
        >>> Candidate(workers=1, backprop="ordinary", threads=4, changes_bits=True).name
        '1 worker, 4 threads (other bits)'
    """

    workers: int
    backprop: Backprop
    threads: int
    changes_bits: bool = False
    stages: int = 1

    @property
    def name(self) -> str:
        words = [f"{self.workers} worker{'s' if self.workers > 1 else ''}"]
        if self.backprop == "concurrent":
            words.append("concurrent")
        if self.stages > 1:
            words.append(f"{self.stages} stages")
        if self.threads > 1:
            words.append(f"{self.threads} threads" + (" (other bits)" if self.changes_bits else ""))
        return ", ".join(words)

    def applied_to(self, settings: Settings) -> Settings:
        """The settings of a run that is carried out in this way."""
        stages = self.stages if self.stages > 1 else settings.stages
        found = replace(settings, workers=self.workers, backprop=self.backprop, stages=stages)
        return replace(found, threads_per_worker=self.threads) if self.changes_bits else found


def check_asked(parallel: str | None, *, allow_threads: bool, measure_again: bool) -> None:
    """Refuse what says nothing.

    Raises:
        UsageError: Another word than "auto"; or a wish for "auto" without it.
    """
    if parallel not in (None, "auto"):
        raise UsageError(f"parallel {parallel!r} is not known; take 'auto', or leave it out")
    for name, is_set in (("allow_threads", allow_threads), ("measure_again", measure_again)):
        if is_set and parallel is None:
            raise UsageError(f"{name} goes with parallel='auto', which is not asked for")


def candidates(
    *,
    cores: int,
    num_microbatches: int,
    threads: int,
    workers: int | None = None,
    backprop: Backprop | None = None,
    allows_threads: bool = False,
    may_have_stages: bool = True,
) -> tuple[Candidate, ...]:
    """What is worth measuring, the simplest first: what a person has set stays as it is, what is open is varied.

    Workers: 1, 2, 4, .. and as many as cores and microbatches allow; each with ordinary and, from two cores on,
    concurrent back-propagation. Then replicas of two and of four stages, as many as cores and microbatches allow: so
    there may be more workers than microbatches. More threads inside of one process give other bits, so they need to be
    allowed.

    Args:
        cores: That the run may use.
        num_microbatches: Of a step.
        threads: Inside one operation, as the run has them.
        workers: As they were set; None: open.
        backprop: As it was set; None: open.
        allows_threads: Whether other bits are fine.
        may_have_stages: Whether their number is open.

    Raises:
        UsageError: More workers than microbatches, also with stages; or nothing is left open.

    Example:
        >>> [one.name for one in candidates(cores=2, num_microbatches=8, threads=1)]
        ['1 worker', '1 worker, concurrent', '2 workers', '2 workers, concurrent', '2 workers, 2 stages']
        >>> [one.name for one in candidates(cores=4, num_microbatches=8, threads=1, backprop="ordinary")]
        ['1 worker', '2 workers', '4 workers', '2 workers, 2 stages', '4 workers, 2 stages', '4 workers, 4 stages']
        >>> [one.name for one in candidates(cores=1, num_microbatches=8, threads=1)]
        ['1 worker']
    """
    most = max(1, cores // threads)
    staged = _staged(most, num_microbatches, workers) if may_have_stages and backprop != "concurrent" else []
    if workers is not None:
        if not staged:
            check_world_size(workers, num_microbatches)
        if backprop is not None and not allows_threads:
            raise UsageError(
                f"workers={workers} and backprop={backprop!r} leave nothing for parallel='auto' to choose; leave one "
                "of them open, or leave out parallel"
            )
    counts = _up_to(min(most, num_microbatches)) if workers is None else [workers]
    kinds: list[Backprop] = ["ordinary", "concurrent"] if cores > 1 else ["ordinary"]
    found = [
        Candidate(workers=count, backprop=kind, threads=threads)
        for count in counts
        if count <= num_microbatches
        for kind in ([backprop] if backprop is not None else kinds)
    ]
    found += [
        Candidate(workers=count, backprop="ordinary", threads=threads, stages=num_stages)
        for count, num_stages in staged
    ]
    if allows_threads and workers in (None, 1) and backprop in (None, "ordinary"):
        found += [
            Candidate(workers=1, backprop="ordinary", threads=count, changes_bits=True)
            for count in _up_to(cores)
            if count > threads
        ]
    return tuple(found)


def _staged(most: int, num_microbatches: int, workers: int | None) -> list[tuple[int, int]]:
    """Workers, and stages: replicas are at most as many as microbatches.

    Args:
        most: Workers that there is room for.
        num_microbatches: Of a step.
        workers: As they were set; None: open.

    >>> _staged(4, 1, None), _staged(6, 8, None), _staged(2, 1, 4)
    ([(2, 2), (4, 4)], [(2, 2), (4, 2), (6, 2), (4, 4)], [(4, 4)])
    """
    found = []
    for num_stages in STAGES:
        if workers is None:
            num_replicas = min(most // num_stages, num_microbatches)
            found += [(count * num_stages, num_stages) for count in (_up_to(num_replicas) if num_replicas else [])]
        elif workers > 0 and workers % num_stages == 0 and workers // num_stages <= num_microbatches:
            found.append((workers, num_stages))
    return found


def _up_to(most: int) -> list[int]:
    """Powers of two, and the largest number.

    >>> _up_to(6)
    [1, 2, 4, 6]
    """
    return sorted({*(1 << k for k in range(most.bit_length())), most})


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of a candidate.

    Args:
        candidate: Which.
        step_s: Seconds a step, one value a turn, from the first turn on; one that is clearly slower than another is
            left out of later turns.
        failure: Why it cannot be taken; None: it can.
    """

    candidate: Candidate
    step_s: tuple[float, ...] = ()
    failure: str | None = None

    @property
    def median_s(self) -> float:
        return float(np.median(self.step_s))


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which way to take, and why.

    Args:
        candidate: It.
        measured: What it was chosen from, the simplest first; a single one was not measured.
        reason: One sentence.
    """

    candidate: Candidate
    measured: tuple[Measured, ...]
    reason: str


def decide(measured: Sequence[Measured]) -> Choice:
    """The simplest candidate that is not slower than the fastest by more than the margin for noise.

    Candidates are compared turn by turn; the margin is `MARGIN`, or the median absolute deviation of the ratios
    where that is more.

    Args:
        measured: The simplest first; one at least without a failure.

    Example:
        >>> one, two, _ = candidates(cores=2, num_microbatches=8, threads=1, backprop="ordinary")
        >>> slow = Measured(candidate=one, step_s=(0.03, 0.03))
        >>> print(decide([slow, Measured(candidate=two, step_s=(0.02, 0.02))]).reason)
        2 workers: 20 ms a step, 1.50 × as fast as 1 worker
        >>> decide([slow, Measured(candidate=two, step_s=(0.029, 0.03))]).candidate.name
        '1 worker'
    """
    usable = [one for one in measured if one.failure is None]
    assert usable, "who has measured has seen to it"
    fastest = min(usable, key=lambda one: one.median_s)
    chosen = next(one for one in usable if _is_as_fast(one, fastest))
    return Choice(candidate=chosen.candidate, measured=tuple(measured), reason=_reason(usable, chosen, fastest))


def _is_as_fast(one: Measured, fastest: Measured) -> bool:
    return one is fastest or times_as_long(one, fastest) <= 1 + _margin(one, fastest)


def times_as_long(one: Measured, other: Measured) -> float:
    """The median of one's step times over the other's, turn by turn."""
    return stats.ratio(*_paired(one, other)).value


def is_clearly_slower(one: Measured, others: Sequence[Measured]) -> bool:
    """Whether a candidate need not be measured further: in two turns and more, another one was far faster in each.

    Example:
        >>> one, two, _ = candidates(cores=2, num_microbatches=8, threads=1, backprop="ordinary")
        >>> fast, slow = Measured(candidate=one, step_s=(1.0, 1.0)), Measured(candidate=two, step_s=(1.6, 1.7))
        >>> is_clearly_slower(slow, [fast, slow]), is_clearly_slower(fast, [fast, slow])
        (True, False)
    """
    ratios = [np.divide(*_paired(one, other)) for other in others]
    return len(one.step_s) >= 2 and any(float(each.min()) > _CLEARLY_SLOWER for each in ratios)


def _margin(one: Measured, fastest: Measured) -> float:
    ratios = np.divide(*_paired(one, fastest))
    return max(MARGIN, float(np.median(np.abs(ratios - np.median(ratios)))))


def _paired(one: Measured, other: Measured) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The turns that both have."""
    count = min(len(one.step_s), len(other.step_s))
    return one.step_s[:count], other.step_s[:count]


def _reason(usable: Sequence[Measured], chosen: Measured, fastest: Measured) -> str:
    text = f"{chosen.candidate.name}: {in_ms(chosen.median_s)} ms a step"
    if chosen is not fastest:
        other = f"{fastest.candidate.name} with {in_ms(fastest.median_s)} ms"
        apart = f"turn by turn {times_as_long(chosen, fastest):.2f} ×"
        margin = f"{100 * _margin(chosen, fastest):.0f} %"
        return f"{text}; {other} is not faster beyond the margin for noise ({apart}, margin {margin})"
    others = [one for one in usable if one is not chosen]
    if not others:
        return f"{text}; nothing else could be measured"
    simplest = usable[0]
    if chosen is not simplest:
        return f"{text}, {times_as_long(simplest, chosen):.2f} × as fast as {simplest.candidate.name}"
    second = min(others, key=lambda one: one.median_s)
    slower = f"{second.candidate.name}, takes {times_as_long(second, chosen):.2f} × as long"
    return f"{text}; nothing else is faster: the next, {slower}"


def in_ms(seconds: float) -> str:
    """Milliseconds in a few digits.

    >>> in_ms(0.0012345), in_ms(1.2345)
    ('1.23', '1,234')
    """
    value = seconds * 1e3
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
