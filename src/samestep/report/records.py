"""The records of a folder, read and checked: what a page can rely on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from samestep.engine.breakdown import GROUPS
from samestep.errors import UsageError
from samestep.host import records
from samestep.report import text
from samestep.report.fields import WAY_OUT, Fields

COLUMNS = ("step", "loss", "gradient_norm", "num_samples", "duration_s")
_NUMBERS_OR_NULL = (
    "first_step",
    "steps",
    "samples",
    "wall_s",
    "startup_s",
    "samples_per_s",
    "train_loss",
    "peak_memory_bytes",
)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation after `step` steps found, by metric."""

    step: int
    means: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run's record.

    Args:
        name: Its folder, as seen from the report's.
        raw: The whole record.
        workload: The name of what was trained.
        workers: How many.
        config: The resolved configuration.
        environment: Where and when it ran; empty where the record does not tell.
        steps: Columns of equal length (see `COLUMNS`), one row per step of the session.
        seconds: Time in training steps since the session's start, after each step.
        evaluations: In the order of their steps.
        breakdown: Seconds a step by group, one mapping a worker; empty where the record does not tell.
    """

    name: str
    raw: Mapping[str, Any]
    workload: str
    workers: int
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    steps: Mapping[str, Sequence[float]]
    seconds: Sequence[float]
    evaluations: tuple[Evaluation, ...]
    breakdown: tuple[Mapping[str, float], ...] = ()

    def seconds_at(self, step: int) -> float | None:
        """Time in training steps before so many steps were done; None where that was before this session."""
        done = self.steps["step"]
        first = self.raw.get("first_step") or 0
        if step < first or not len(done):
            return None
        index = bisect_left(done, step)
        return self.seconds[index - 1] if index else 0.0


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A program's turn in a round.

    Args:
        round: Its number.
        step_s: Mean seconds a step, over all processes.
        steps_s: Seconds of every step of the first process.
        others_frac: Share of the machine's core time that others took.
        phases: Seconds a step by group, one mapping per process.
    """

    round: int
    step_s: float
    steps_s: Sequence[float]
    others_frac: float
    phases: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program of a study and its slots, by round."""

    name: str
    kind: str
    axis: str
    workers: int
    threads: int
    copies: int
    global_batch: int
    slots: tuple[Slot, ...]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept of several trainings: a study or a sweep.

    Args:
        path: Its file.
        name: Its folder, as seen from the report's.
        raw: The whole record.
        workload: The name of what was trained.
        config: What all of them share of the configuration.
        environment: Where and when it ran.
    """

    path: Path
    name: str
    raw: Mapping[str, Any]
    workload: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study(Kept):
    """A scaling study's record.

    Args:
        axes: "strong", "weak", as far as measured.
        programs: Of all axes.
    """

    axes: tuple[str, ...]
    programs: tuple[Program, ...]

    def on(self, axis: str) -> tuple[Program, ...]:
        """The programs of an axis."""
        return tuple(program for program in self.programs if program.axis == axis)


@dataclass(frozen=True, kw_only=True)
class Sweep(Kept):
    """A sweep's record: steps to a target against the batch.

    Args:
        study: What was tried.
        num_runs: How many runs it holds.
    """

    study: Mapping[str, Any]
    num_runs: int


@dataclass(frozen=True, kw_only=True)
class Found:
    """All records of a folder, each kind by name."""

    runs: tuple[Run, ...]
    studies: tuple[Study, ...]
    sweeps: tuple[Sweep, ...] = ()

    @property
    def all(self) -> tuple[Run | Study | Sweep, ...]:
        return (*self.studies, *self.sweeps, *self.runs)


def find(folder: Path) -> Found:
    """Every record under a folder, its sub-folders included.

    Raises:
        UsageError: There is none, or one cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is no folder; name the one that `samestep train --out`, `scale` or `sweep` wrote to"
        )
    runs = tuple(read_run(path, _name(path, folder)) for path in sorted(folder.rglob("record.json")))
    studies = tuple(read_study(path, _name(path, folder)) for path in sorted(folder.rglob("scale.json")))
    sweeps = tuple(read_sweep(path, _name(path, folder)) for path in sorted(folder.rglob("sweep.json")))
    if not runs and not studies and not sweeps:
        raise UsageError(
            f"{folder} holds no record, and none of its sub-folders does: make one with "
            f"`samestep train WORKLOAD --out {folder}` or `samestep scale WORKLOAD --out {folder}`"
        )
    return Found(runs=runs, studies=studies, sweeps=sweeps)


def read_run(path: Path, name: str) -> Run:
    """Read a run's record.

    Raises:
        UsageError: With the file and the field that is wrong.
    """
    fields = Fields(path=path, values=records.read(path, "run"))
    for field in _NUMBERS_OR_NULL:
        fields.check_optional(field, float)
    for field in ("weights_sha256", "end", "critical_batch", "code_sha256"):
        fields.check_optional(field, str)
    for field in ("notices", "growths"):
        fields.check_optional(field, list)
    table = fields.object("step_table")
    columns = {column: table.numbers(column) for column in COLUMNS}
    if len({len(values) for values in columns.values()}) != 1:
        lengths = ", ".join(f"{column} {len(values)}" for column, values in columns.items())
        raise UsageError(f"{path}: step_table has columns of different lengths ({lengths}); {WAY_OUT}")
    return Run(
        name=name,
        raw=fields.values,
        workload=text.clean(fields.get("workload", str)),
        workers=fields.get("workers", int),
        config=fields.object("config").values,
        environment=_environment(fields) if fields.values.get("environment") else {},
        steps=columns,
        seconds=list(accumulate(columns["duration_s"])),
        evaluations=tuple(
            Evaluation(step=each.get("step", int), means=each.object("means").numbers_by_name())
            for each in fields.objects("evaluations")
        ),
        breakdown=_groups(fields.object("breakdown"), "workers") if fields.values.get("breakdown") else (),
    )


def read_study(path: Path, name: str) -> Study:
    """Read a scaling study's record.

    Raises:
        UsageError: With the file and the field that is wrong.
    """
    fields = Fields(path=path, values=records.read(path, "scale"))
    study, environment = fields.object("study"), _environment(fields)
    fields.object("environment").object("host").get("cores", int)
    slots = fields.object("slots")
    programs = tuple(_program(each, slots) for each in fields.objects("programs"))
    axes = tuple(study.get("axes", list))
    for axis in axes:
        _check_rounds(path, axis, [program for program in programs if program.axis == axis])
    return Study(
        path=path,
        name=name,
        raw=fields.values,
        workload=text.clean(study.get("workload", str)),
        config=fields.object("config").values,
        environment=environment,
        axes=axes,
        programs=programs,
    )


def read_sweep(path: Path, name: str) -> Sweep:
    """Read a sweep's record.

    Raises:
        UsageError: With the file and the field that is wrong.
    """
    fields = Fields(path=path, values=records.read(path, "sweep"))
    study = fields.object("study")
    for field in ("trials", "seeds", "num_train", "num_choosing", "num_reported"):
        study.get(field, int)
    study.get("target", str)
    return Sweep(
        path=path,
        name=name,
        raw=fields.values,
        workload=text.clean(study.get("workload", str)),
        config=fields.object("config").values,
        environment=_environment(fields),
        study=study.values,
        num_runs=len(list(fields.objects("runs"))),
    )


def _environment(fields: Fields) -> Mapping[str, Any]:
    found = fields.object("environment")
    for name in ("host", "peaks", "versions"):
        found.check_optional(name, dict)
    return found.values


def _program(fields: Fields, slots: Fields) -> Program:
    name, axis, kind = (fields.get(field, str) for field in ("name", "axis", "kind"))
    if axis not in ("strong", "weak"):
        raise UsageError(f"{fields.path}: {fields.place}axis is {axis!r}, and it must be strong or weak; {WAY_OUT}")
    if kind not in ("torch", "samestep", "roof"):
        raise UsageError(
            f"{fields.path}: {fields.place}kind is {kind!r}, and it must be torch, samestep or roof; {WAY_OUT}"
        )
    found = [_slot(each) for each in slots.objects(f"{axis}/{name}")]
    return Program(
        name=name,
        kind=kind,
        axis=axis,
        workers=fields.get("workers", int),
        threads=fields.get("threads", int),
        copies=fields.get("copies", int),
        global_batch=fields.get("global_batch", int),
        slots=tuple(found),
    )


def _check_rounds(path: Path, axis: str, programs: Sequence[Program]) -> None:
    """Times are compared round by round: every program of an axis has a slot in the same ones."""
    if not programs:
        raise UsageError(f"{path}: the field study.axes names {axis!r}, and no program is of it; {WAY_OUT}")
    first = programs[0]
    for program in programs:
        rounds, wanted = ([slot.round for slot in each.slots] for each in (program, first))
        if not rounds or rounds != wanted or len(set(rounds)) < len(rounds):
            raise UsageError(
                f"{path}: the field slots.{axis}/{program.name} has the rounds {rounds} and slots.{axis}/{first.name} "
                f"{wanted}, and both must have the same ones, at least one and none twice; {WAY_OUT}"
            )
        numbers = {len(slot.phases) for slot in program.slots}
        if len(numbers) > 1 or 0 in numbers:
            raise UsageError(
                f"{path}: the field slots.{axis}/{program.name} tells the phases of {sorted(numbers)} workers, and it "
                f"must be one number above 0; {WAY_OUT}"
            )


def _slot(fields: Fields) -> Slot:
    return Slot(
        round=fields.get("round", int),
        step_s=fields.number("step_s"),
        steps_s=fields.numbers("steps_s"),
        others_frac=fields.number("others_frac"),
        phases=_groups(fields, "phases"),
    )


def _groups(fields: Fields, name: str) -> tuple[Mapping[str, float], ...]:
    """Seconds a step by group, one mapping a worker."""
    return tuple({group: each.number(group) for group in GROUPS} for each in fields.objects(name))


def _name(path: Path, folder: Path) -> str:
    inside = path.parent.relative_to(folder).as_posix()
    return text.clean(inside if inside != "." else folder.resolve().name or "record")
