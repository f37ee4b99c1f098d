"""A program's step times, and what is computed of two of them: speed-up, efficiency, share of the roof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from samestep.errors import UsageError
from samestep.measure.stats import Estimate, Relation, Values, median, ratio, relate

Axis = Literal["strong", "weak"]
Kind = Literal["torch", "samestep", "roof"]


@dataclass(frozen=True, kw_only=True)
class Series:
    """A program's step times, one a round; the programs of one study share their rounds.

    Args:
        name: Such as "torch, 2 threads", "samestep, 2 workers", "roof, 2 programs".
        kind: A single process of plain torch; samestep; or independent programs that exchange nothing.
        workers: Workers of samestep, programs of the roof, 1 for torch.
        threads: Threads inside one operation, of each worker.
        global_batch: Samples a step, over all workers (programs).
        step_s: Seconds a step, one value a round.

    Raises:
        UsageError: A count below 1, or step times that are missing or not positive.
    """

    name: str
    kind: Kind
    workers: int
    threads: int
    global_batch: int
    step_s: tuple[float, ...]

    def __post_init__(self) -> None:
        for field in ("workers", "threads", "global_batch"):
            if getattr(self, field) < 1:
                raise UsageError(f'{field}={getattr(self, field)} of "{self.name}" is below 1')
        if not self.step_s or not np.isfinite(self.step_s).all() or min(self.step_s) <= 0:
            raise UsageError(f'step times of "{self.name}" must be numbers above 0, one a round, at least one')

    @property
    def sample_s(self) -> Values:
        """Seconds a sample, over all workers: 1 / throughput; one value a round."""
        return np.asarray(self.step_s, dtype=np.float64) / self.global_batch


@dataclass(frozen=True, kw_only=True)
class Point:
    """What is known of samestep with one number of workers; ratios are taken round by round.

    Args:
        workers: N.
        step_s: Seconds a step.
        samples_per_s: Throughput over all workers.
        speed_up: Against the best single process (see `speed_up`).
        relative: The same against samestep with one worker.
        efficiency: relative / N: `strong_efficiency` or `weak_efficiency`.
        roof: The speed-up that the machine can give at N: the roof against the best single process; None where no roof
            with N programs was measured.
        of_roof: See `of_roof`; None likewise.
        relation: To the best single process, per sample.
    """

    workers: int
    step_s: Estimate
    samples_per_s: Estimate
    speed_up: Estimate
    relative: Estimate
    efficiency: Estimate
    roof: Estimate | None
    of_roof: Estimate | None
    relation: Relation


def speed_up(single: Series, parallel: Series) -> Estimate:
    """Throughput against throughput, (B_N / T_N) / (B_1 / T_1): a plain number, T_1 / T_N at equal global batches.

    Strong scaling: how much sooner the same step is done. Weak: how many more samples/s than the single process with
    the batch of one worker.

    Args:
        single: The reference, usually the best single process.
        parallel: The program with more workers, measured in the same rounds.

    Example:
        >>> one = Series(name="torch", kind="torch", workers=1, threads=1, global_batch=64, step_s=(0.010,) * 6)
        >>> two = Series(name="two", kind="samestep", workers=2, threads=1, global_batch=128, step_s=(0.016,) * 6)
        >>> speed_up(one, two).text(2)
        '1.25 [1.25, 1.25]'
    """
    return ratio(single.sample_s, parallel.sample_s)


def strong_efficiency(one: Series, many: Series) -> Estimate:
    """Strong scaling efficiency, T(1) / (N T(N)) at one global batch: a plain number, 1 is ideal.

    Args:
        one: Samestep with one worker.
        many: With N workers, in the same rounds.

    Raises:
        UsageError: `one` has more workers, or the global batches differ.

    Example:
        >>> one = Series(name="one", kind="samestep", workers=1, threads=1, global_batch=64, step_s=(0.010,) * 6)
        >>> two = Series(name="two", kind="samestep", workers=2, threads=1, global_batch=64, step_s=(0.008,) * 6)
        >>> strong_efficiency(one, two).text()
        '0.625 [0.625, 0.625]'
    """
    _check_reference(one)
    check_batches("strong", one.global_batch, [many])
    return ratio(one.step_s, many.step_s).scaled(1 / many.workers)


def weak_efficiency(one: Series, many: Series) -> Estimate:
    """Weak scaling efficiency, throughput(N) / (N throughput(1)) at one batch per worker: a plain number, 1 is ideal.

    Args:
        one: Samestep with one worker.
        many: With N workers and N times the global batch, in the same rounds.

    Raises:
        UsageError: `one` has more workers, or the batches per worker differ.

    Example:
        >>> one = Series(name="one", kind="samestep", workers=1, threads=1, global_batch=64, step_s=(0.010,) * 6)
        >>> two = Series(name="two", kind="samestep", workers=2, threads=1, global_batch=128, step_s=(0.0125,) * 6)
        >>> weak_efficiency(one, two).text(2)
        '0.80 [0.80, 0.80]'
    """
    _check_reference(one)
    check_batches("weak", one.global_batch, [many])
    return speed_up(one, many).scaled(1 / many.workers)


def of_roof(roof: Series, parallel: Series) -> Estimate:
    """How much of what the machine can give is reached: step time of the roof / step time of samestep, a plain number.

    Args:
        roof: N independent programs, each with 1/N of the batch, nothing exchanged.
        parallel: Samestep with N workers and the same global batch, in the same rounds.

    Raises:
        UsageError: The numbers of workers or the global batches differ.

    Example:
        >>> roof = Series(name="roof", kind="roof", workers=2, threads=1, global_batch=64, step_s=(0.006,) * 6)
        >>> two = Series(name="two", kind="samestep", workers=2, threads=1, global_batch=64, step_s=(0.008,) * 6)
        >>> of_roof(roof, two).text(2)
        '0.75 [0.75, 0.75]'
    """
    if (roof.workers, roof.global_batch) != (parallel.workers, parallel.global_batch):
        raise UsageError(
            f'"{roof.name}" has {roof.workers} programs and {roof.global_batch} samples a step, "{parallel.name}" '
            f"{parallel.workers} and {parallel.global_batch}: a roof is that of the same workers and global batch"
        )
    return ratio(roof.step_s, parallel.step_s)


def check_batches(axis: Axis, global_batch: int, series: Sequence[Series]) -> None:
    """Refuse series whose global batch is not what the axis asks for, given that of one worker.

    >>> two = Series(name="two", kind="samestep", workers=2, threads=1, global_batch=128, step_s=(0.01,))
    >>> check_batches("weak", 64, [two])
    >>> check_batches("strong", 64, [two])
    Traceback (most recent call last):
    samestep.errors.UsageError: "two" takes 128 samples a step with 2 workers; strong scaling asks for the same ...
    """
    rule = "the same global batch" if axis == "strong" else "the same batch per worker"
    for one in series:
        wanted = global_batch * (one.workers if axis == "weak" else 1)
        if one.global_batch != wanted:
            raise UsageError(
                f'"{one.name}" takes {one.global_batch} samples a step with {one.workers} workers; {axis} scaling '
                f"asks for {rule}: {wanted}"
            )


def point(axis: Axis, many: Series, *, single: Series, one: Series, roof: Series | None) -> Point:
    """All that is computed of samestep with one number of workers.

    Args:
        axis: Strong or weak.
        many: Samestep with N workers.
        single: The best single process.
        one: Samestep with one worker.
        roof: N independent programs; None where not measured.

    Example:
        >>> one = Series(name="one", kind="samestep", workers=1, threads=1, global_batch=64, step_s=(0.010,) * 6)
        >>> two = Series(name="two", kind="samestep", workers=2, threads=1, global_batch=64, step_s=(0.008,) * 6)
        >>> found = point("strong", two, single=one, one=one, roof=None)
        >>> found.samples_per_s.text(0), found.speed_up.text(2), found.relation
        ('8000 [8000, 8000]', '1.25 [1.25, 1.25]', 'faster')
    """
    step_s = median(many.step_s)
    return Point(
        workers=many.workers,
        step_s=step_s,
        samples_per_s=_throughput(many.global_batch, step_s),
        speed_up=speed_up(single, many),
        relative=speed_up(one, many),
        efficiency=strong_efficiency(one, many) if axis == "strong" else weak_efficiency(one, many),
        roof=None if roof is None else speed_up(single, roof),
        of_roof=None if roof is None else of_roof(roof, many),
        relation=relate(many.sample_s, single.sample_s),
    )


def _throughput(global_batch: int, step_s: Estimate) -> Estimate:
    """Samples/s: B / T, the bounds change places."""
    fastest = global_batch / step_s.low if step_s.low > 0 else float("inf")
    return Estimate(value=global_batch / step_s.value, low=global_batch / step_s.high, high=fastest)


def _check_reference(one: Series) -> None:
    if one.workers != 1:
        raise UsageError(f'"{one.name}" has {one.workers} workers: efficiency is against one worker')
