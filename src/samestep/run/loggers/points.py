"""Curves need fewer points than there are steps: each point is a mean over the steps since the last one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from samestep.engine.loop import EvaluationRecord, StepRecord
from samestep.run.loggers.logger import as_utf8


@dataclass(frozen=True, kw_only=True)
class Point:
    """Values at a place of the run.

    Args:
        step: Optimiser steps made until there: 1 after the first step.
        values: By the curve's name.
    """

    step: int
    values: Mapping[str, float]


class Thinned:
    """Makes at most one point per `interval_s` seconds of training, and one per step where steps take longer.

    The clock is the steps' own time, so the points of a steady run are evenly spaced in steps, however the steps
    are reported. Loss and gradient norm are means over the steps of the point.

    Args:
        interval_s: Seconds of training that a point covers at least.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._clear()

    def _clear(self) -> None:
        self._num_steps = self._num_samples = 0
        self._loss = self._gradient_norm = self._duration_s = 0.0

    def add(self, record: StepRecord) -> Point | None:
        """Take a step in; a point where it completes one."""
        self._last_step = record.step
        self._num_steps += 1
        self._num_samples += record.num_samples
        self._loss += record.loss
        self._gradient_norm += record.gradient_norm
        self._duration_s += record.duration_s
        return self.rest() if self._duration_s >= self._interval_s else None

    def rest(self) -> Point | None:
        """A point of the steps that no point has covered yet; None where there are none."""
        if not self._num_steps:
            return None
        values = {
            "train/loss": self._loss / self._num_steps,
            "train/gradient_norm": self._gradient_norm / self._num_steps,
        }
        if self._duration_s > 0:
            values["train/samples_per_s"] = self._num_samples / self._duration_s
        self._clear()
        return Point(step=self._last_step + 1, values=values)


def of_evaluation(record: EvaluationRecord) -> Point:
    """An evaluation as a point: a curve "eval/..." for the loss and for every metric."""
    return Point(step=record.step, values={f"eval/{as_utf8(name)}": value for name, value in record.means.items()})
