"""A run in MLflow; needs the package mlflow (or mlflow-skinny)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

from samestep.engine.loop import EvaluationRecord, StepRecord
from samestep.run.loggers.logger import as_utf8, required
from samestep.run.loggers.points import Point, Thinned, of_evaluation
from samestep.run.loggers.sender import Sender

_INTERVAL_S = 1.0
_TIMEOUT_S = 30.0
_MOST_METRICS = 500
"""In one request; MLflow allows 1,000 and a megabyte."""

_MOST_PARAMETERS = 100
_WAY_OUT = "pip install samestep[mlflow]"


class MlflowLog:
    """A run in MLflow with the configuration as parameters and about a point a second; steps are optimiser steps made.

    A resumed session is a run of its own, with the parameter first_step. Where the server is, is MLflow's business
    (MLFLOW_TRACKING_URI). Metric names are MLflow's too: what it refuses in them becomes "_".

    Args:
        experiment: Its name; made if need be. None: MLFLOW_EXPERIMENT_NAME, or MLflow's own "Default".
        timeout_s: How long the end of the run may wait for the server.
    """

    def __init__(self, experiment: str | None, *, timeout_s: float = _TIMEOUT_S) -> None:
        self.name = f"mlflow:{experiment}" if experiment else "mlflow"
        self._experiment = experiment
        self._timeout_s = timeout_s
        self._mlflow = required("mlflow", _WAY_OUT)
        self._entities = required("mlflow.entities", _WAY_OUT)
        self._thinned = Thinned(_INTERVAL_S)
        self._has_failed = False
        self._sender: Sender | None = None

    def start(self, run: Mapping[str, Any]) -> None:
        """Create the run on the server."""
        self._client = self._mlflow.MlflowClient()
        created = self._client.create_run(self._experiment_id(), run_name=run["name"])
        self._run_id = created.info.run_id
        self._sender = Sender(self._send, self._finish)
        values = {"first_step": run["first_step"], **run["config"]}
        texts = {name: as_utf8(str(value)) for name, value in values.items() if value is not None}
        parameters = [self._entities.Param(name, text) for name, text in texts.items()]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            batch = parameters[first : first + _MOST_PARAMETERS]
            self._client.log_batch(self._run_id, params=batch, synchronous=True)

    def _experiment_id(self) -> str:
        name = self._experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def step(self, record: StepRecord) -> None:
        """A point, now and then."""
        self._put(self._thinned.add(record))

    def flush(self) -> None:
        """Nothing: the sender is always sending."""

    def evaluated(self, record: EvaluationRecord) -> None:
        """Points of their own curves."""
        self._put(self._thinned.rest())
        self._put(of_evaluation(record))

    def close(self, error: BaseException | None = None) -> None:
        """Send the rest, and tell how the run ended."""
        if self._sender is None:
            return
        sender, self._sender = self._sender, None
        self._has_failed = error is not None
        try:
            sender.put(*self._metrics(self._thinned.rest()))
        finally:
            sender.close(self._timeout_s)

    def _put(self, point: Point | None) -> None:
        assert self._sender is not None
        self._sender.put(*self._metrics(point))

    def _metrics(self, point: Point | None) -> list[Any]:
        if point is None:
            return []
        names, now_ms = plain_names(point.values), int(time.time() * 1000)
        metric = self._entities.Metric
        return [metric(names[name], value, now_ms, point.step) for name, value in point.values.items()]

    def _send(self, metrics: list[Any]) -> None:
        for first in range(0, len(metrics), _MOST_METRICS):
            batch = metrics[first : first + _MOST_METRICS]
            self._client.log_batch(self._run_id, metrics=batch, synchronous=True)

    def _finish(self, error: Exception | None) -> None:
        is_whole = error is None and not self._has_failed
        self._client.set_terminated(self._run_id, status="FINISHED" if is_whole else "FAILED")


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """For each curve "part/name" a name that MLflow takes, no two alike.

    >>> plain_names(["eval/loss", "eval/top 5 %", "eval/a?", "eval/a!", "eval/.."])["eval/a!"]
    'eval/a__2'
    """
    plain: dict[str, str] = {}
    for name in names:
        part, _, rest = name.partition("/")
        rest = re.sub(r"[^\w .-]", "_", as_utf8(rest))
        if not rest.strip("."):
            rest = rest.replace(".", "_") or "_"
        chosen, number = f"{part}/{rest}", 1
        while chosen in plain.values():
            number += 1
            chosen = f"{part}/{rest}_{number}"
        plain[name] = chosen
    return plain
