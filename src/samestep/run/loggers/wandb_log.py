"""A run in Weights & Biases; needs the package wandb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samestep.engine.loop import EvaluationRecord, StepRecord
from samestep.run.loggers.logger import required
from samestep.run.loggers.points import Point, Thinned, of_evaluation

_INTERVAL_S = 1.0
_WAY_OUT = "pip install samestep[wandb]"


class WandbLog:
    """A run in Weights & Biases with the configuration and about a point a second; steps are optimiser steps made.

    A resumed session is a run of its own, with first_step in its configuration. Keys, folder and offline mode are
    wandb's business (WANDB_API_KEY, WANDB_DIR, WANDB_MODE); it sends from a process of its own.

    Args:
        project: Its name. None: WANDB_PROJECT, or wandb's own choice.
    """

    def __init__(self, project: str | None) -> None:
        self.name = f"wandb:{project}" if project else "wandb"
        self._project = project
        self._wandb = required("wandb", _WAY_OUT)
        self._thinned = Thinned(_INTERVAL_S)
        self._run: Any = None

    def start(self, run: Mapping[str, Any]) -> None:
        """Begin a run, beside one that the caller's own code may have open."""
        config = {**run["config"], "first_step": run["first_step"]}
        self._run = self._wandb.init(project=self._project, name=run["name"], config=config, reinit="create_new")

    def step(self, record: StepRecord) -> None:
        """A point, now and then."""
        self._log(self._thinned.add(record))

    def flush(self) -> None:
        """Nothing: wandb sends by itself."""

    def evaluated(self, record: EvaluationRecord) -> None:
        """Points of their own curves."""
        self._log(self._thinned.rest())
        self._log(of_evaluation(record))

    def close(self, error: BaseException | None = None) -> None:
        """Send the rest, and tell how the run ended."""
        if self._run is None:
            return
        try:
            self._log(self._thinned.rest())
        finally:
            run, self._run = self._run, None
            run.finish(exit_code=0 if error is None else 1)

    def _log(self, point: Point | None) -> None:
        if point is not None:
            self._run.log(dict(point.values), step=point.step)
