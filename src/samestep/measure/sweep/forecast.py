"""How long it would take on more workers, from step times that were measured on one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from samestep.errors import UsageError
from samestep.plan.batch import default_microbatch


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """The time of a step on one worker, t(B) = fixed + B × sample.

    Args:
        fixed_s: What every step costs, whatever it holds: the optimiser, and what surrounds a step.
        sample_s: What every sample costs.
        is_all_divided: Whether workers share what is fixed, too. With rounds of its own an optimiser takes a fixed
            number of rows through the network besides, as many of every microbatch, and shares its inverses out.
    """

    fixed_s: float
    sample_s: float
    is_all_divided: bool = False

    def on(self, workers: int, batch: int, microbatch: int | None = None) -> float:
        """Seconds a step on so many workers: every worker does its microbatches; the fixed part stays, or is shared.

        Nothing is added for what workers exchange or take from each other (caches, memory), so it is a lower bound.

        Args:
            workers: How many; more than there are microbatches do not help.
            batch: The global batch.
            microbatch: Samples in one forward and backward; None: the default.

        Example:
            >>> time = StepTime(fixed_s=0.001, sample_s=0.0001)
            >>> [round(time.on(workers, 256), 4) for workers in (1, 2, 8, 100)]
            [0.0266, 0.0138, 0.0042, 0.0042]
            >>> shared = StepTime(fixed_s=0.001, sample_s=0.0001, is_all_divided=True)
            >>> [round(shared.on(workers, 256), 4) for workers in (1, 2, 8, 100)]
            [0.0266, 0.0133, 0.0033, 0.0033]
        """
        size = min(microbatch or default_microbatch(batch), batch)
        num_microbatches = -(-batch // size)
        longest = min(batch, size * -(-num_microbatches // min(workers, num_microbatches)))
        fixed_s = self.fixed_s * longest / batch if self.is_all_divided else self.fixed_s
        return fixed_s + longest * self.sample_s


def fit_step_time(step_s: Mapping[int, float], *, is_all_divided: bool = False) -> StepTime:
    """Both costs from the measured time of a step at several batches; neither is below 0.

    Least squares of predicted / measured - 1. From one batch alone there is no telling them apart: all is per sample.

    Args:
        step_s: Batch → seconds a step on one worker.
        is_all_divided: As in `StepTime`.

    Raises:
        UsageError: Nothing was measured.

    Example:
        >>> found = fit_step_time({100: 0.011, 1000: 0.101})
        >>> round(found.fixed_s, 6), round(found.sample_s, 6)
        (0.001, 0.0001)
        >>> fit_step_time({100: 0.01}).fixed_s
        0.0
    """
    from scipy.optimize import nnls  # noqa: PLC0415 - it takes longer to import than all of numpy

    if not step_s:
        raise UsageError("no step was timed: a forecast needs at least one batch")
    batches, times = np.array(list(step_s), dtype=np.float64), np.array(list(step_s.values()), dtype=np.float64)
    if len(step_s) == 1:
        return StepTime(fixed_s=0.0, sample_s=float(times[0] / batches[0]), is_all_divided=is_all_divided)
    # columns of like size, for the solver
    (fixed, sample), _ = nnls(np.stack([1e-3 / times, 1e-6 * batches / times], axis=1), np.ones(len(times)))
    return StepTime(fixed_s=1e-3 * float(fixed), sample_s=1e-6 * float(sample), is_all_divided=is_all_divided)
