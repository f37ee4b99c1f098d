"""A run of a sweep: one real training on one worker, in a process that trains whatever run it is given next.

The process is started by `measure.sweep.pool`; what to do comes from there, over its standard input.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from samestep import torch_private
from samestep.engine import launch
from samestep.engine.losses import CROSS_ENTROPIES
from samestep.errors import Interrupted, NonFiniteError, SamestepError, UsageError
from samestep.measure.sweep import parts, target
from samestep.measure.sweep.halving import Outcome, Run
from samestep.measure.sweep.parts import Parts
from samestep.measure.sweep.space import Point
from samestep.run.config import NumericSettings, Settings
from samestep.run.evaluate import is_reached
from samestep.run.prepare import Choices
from samestep.run.progress import Silent
from samestep.run.record import Record
from samestep.run.train import run as train
from samestep.run.workload import Target, Workload

SEARCHED = (
    *("global_batch", "initial_batch", "max_batch", "epochs", "steps", "optimizer"),
    *("lr", "momentum", "weight_decay", "averaging", "lr_schedule", "lr_warmup", "base_batch", "batch_rule"),
)
"""Settings that a sweep decides itself; with a base batch a rule would change the rates that are searched."""

_READINGS = 20
"""Evaluations of a run, about: the target is read every 5 % of the budget."""

_LOOKS = 64
"""Steps of a run that are looked at for its noise scale, about."""

_LEFT_OUT = 3
"""First steps of a run: they pay for what the later ones find ready."""

_LET_PARENT_END_US_S = 10.0

Cell = tuple[str, int]
"""An optimiser and a global batch."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is trained in all runs of a sweep.

    Args:
        build: Makes the workload.
        settings: What the caller has set beside what is searched.
        goal: The target.
        rows: Training rows that are used; None: all.
    """

    build: Callable[[], Workload]
    settings: NumericSettings
    goal: Target
    rows: int | None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A run with everything that is set for it.

    Args:
        optimizer: Its name.
        batch: The global batch.
        run: Stage, budget, seed, and the number of the settings.
        point: The settings.
    """

    optimizer: str
    batch: int
    run: Run
    point: Point

    @property
    def name(self) -> str:
        """Of its file; it is the only one of a sweep with this name."""
        run = self.run
        return f"{self.optimizer}-{self.batch}-{run.stage}-{run.trial}-{run.steps}-{run.seed}"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run gave.

    Args:
        outcome: What decides what follows.
        evaluations: (step, value of the target's metric), in order.
        num_steps: Steps that were done.
        num_samples: Rows that were read, in all rounds of all steps.
        rounds_per_step: One after the other; the mean over the steps, of which some may take more than others.
        step_s: Median time of a step in seconds, the first three left out; None where there are none.
        wall_s: Seconds of the whole run.
        noise_scale: Over the later half of the run, in samples; None where it cannot be told.
    """

    outcome: Outcome
    evaluations: tuple[tuple[int, float], ...] = ()
    num_steps: int = 0
    num_samples: int = 0
    rounds_per_step: float = 1.0
    step_s: float | None = None
    wall_s: float = 0.0
    noise_scale: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        values = asdict(self)
        return {**values.pop("outcome"), **values, "evaluations": [list(each) for each in self.evaluations]}


def base_of(workload: Workload) -> Workload:
    """The workload without what a sweep decides itself."""
    recipe = {name: value for name, value in workload.recipe.items() if name not in (*SEARCHED, "microbatch")}
    return replace(workload, recipe=recipe)


def prepared(workload: Workload, divided: Parts, subject: Subject, trial: Trial) -> tuple[Workload, Settings]:
    """A run as `samestep train` would be told it.

    Raises:
        UsageError: The target's metric is not known, or label smoothing does not go with the loss.
    """
    run, point = trial.run, trial.point
    data = divided.dataset(is_reported=run.stage == "report")
    made = replace(
        base_of(workload),
        data=lambda: data,
        loss=smoothed(workload.loss, point.label_smoothing),
        metrics=target.metrics_for(subject.goal, workload.metrics, workload.name),
        target=subject.goal,
    )
    settings = replace(
        subject.settings,
        global_batch=trial.batch,
        steps=run.steps,
        optimizer=trial.optimizer,
        lr=point.lr,
        momentum=point.momentum,
        weight_decay=point.weight_decay,
        averaging=point.averaging,
        seed=(subject.settings.seed or 0) + run.seed,
    )
    return made, Settings(
        **vars(settings),
        workers=1,
        evaluate_every=max(1, -(-run.steps // _READINGS)),
        noise_scale=max(1, run.steps // _LOOKS) if settings.sync in (None, "step") else "off",
    )


def smoothed(loss: Any, amount: float) -> Any:
    """A loss with label smoothing.

    Raises:
        UsageError: It is neither `nn.CrossEntropyLoss` nor our own for tokens.

    >>> from torch import nn
    >>> smoothed(nn.CrossEntropyLoss(), 0.1).label_smoothing
    0.1
    """
    if not amount:
        return loss
    if type(loss) not in CROSS_ENTROPIES:
        raise UsageError(f"label smoothing goes with nn.CrossEntropyLoss, and the loss is {_name(loss)}; leave it out")
    return type(loss)(
        weight=loss.weight, ignore_index=loss.ignore_index, reduction=loss.reduction, label_smoothing=amount
    )


def perform(workload: Workload, divided: Parts, subject: Subject, trial: Trial) -> Finished:
    """Train, and say what came out; what goes wrong is said too.

    Raises:
        Interrupted: This process was asked to stop.
    """
    start_s = time.perf_counter()
    try:
        made, settings = prepared(workload, divided, subject, trial)
        record = train(made, settings, choices=Choices(lr_schedule=trial.point.decay), progress=Silent()).record
    except Interrupted:
        raise
    except NonFiniteError as error:
        failure = f"diverged: {error}"
    except SamestepError as error:
        failure = str(error)
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"
    else:
        return summary(record, subject.goal, time.perf_counter() - start_s)
    return Finished(outcome=Outcome(failure=failure), wall_s=time.perf_counter() - start_s)


def summary(record: Record, goal: Target, wall_s: float) -> Finished:
    """What a record of a run means for a sweep. The run stopped at the first evaluation that met the target."""
    last = record.evaluations[-1]
    times = record.steps.as_lists()["duration_s"][_LEFT_OUT:] or record.steps.as_lists()["duration_s"]
    values = [(each.step, each.means[goal.metric]) for each in record.evaluations]
    best = values[0][1]
    for _, value in values:
        best = value if target.is_better(goal, value, best) else best
    return Finished(
        outcome=Outcome(reached_step=last.step if is_reached(goal, last.means) else None, best=best),
        evaluations=tuple(values),
        num_steps=record.num_steps,
        num_samples=record.steps.num_rows,
        rounds_per_step=record.steps.num_rounds / record.num_steps,
        step_s=float(np.median(times)),
        wall_s=wall_s,
        noise_scale=record.pairs.noise_scale().value if record.pairs is not None else None,
    )


def from_dict(values: Mapping[str, Any]) -> Finished:
    """The inverse of `Finished.as_dict`."""
    names = ("num_steps", "num_samples", "rounds_per_step", "step_s", "wall_s")
    return Finished(
        outcome=Outcome(**{name: values[name] for name in ("reached_step", "best", "failure")}),
        evaluations=tuple((step, value) for step, value in values["evaluations"]),
        **{name: values[name] for name in names},
        noise_scale=values.get("noise_scale"),
    )


def as_entry(each: Trial, one: Finished) -> dict[str, Any]:
    """A run as an entry of a record."""
    run = {"optimizer": each.optimizer, "batch": each.batch, **asdict(each.run)}
    return {**run, "settings": asdict(each.point), **one.as_dict()}


def read_entry(values: Mapping[str, Any]) -> tuple[Cell, Run, Finished]:
    """What an entry of a record's runs says."""
    run = Run(**{name: values[name] for name in ("stage", "trial", "steps", "seed")})
    return (values["optimizer"], values["batch"]), run, from_dict(values)


def _name(loss: Any) -> str:
    return str(getattr(loss, "__qualname__", type(loss).__name__))


def main() -> None:
    """A process of the pool: trains what it is told to, until its input ends."""
    channel = launch.parents_channel()
    messages = launch.listen(channel)
    torch_private.without_compiler_import()
    subject: Subject = pickle.loads(messages.get())
    workload = subject.build()
    divided = parts.split(workload.data(), workload.name, subject.rows)
    while True:
        trial: Trial = messages.get()
        try:
            channel.send(perform(workload, divided, subject, trial))
        except Interrupted:
            time.sleep(_LET_PARENT_END_US_S)  # a terminal's Ctrl-C is the parent's to answer: it ends us
            return
