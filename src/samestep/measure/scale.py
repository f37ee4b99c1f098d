"""A scaling study: which programs, how they are measured, what is kept, and what it means."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from samestep.engine.breakdown import GROUPS
from samestep.errors import Interrupted, UsageError
from samestep.host import files, peaks, provenance, records
from samestep.host.cores import num_cores
from samestep.measure import hints, interleave, programs, scaling, stats
from samestep.measure.programs import Task
from samestep.measure.running import Running
from samestep.measure.scaling import Scaling
from samestep.measure.series import Axis, Series
from samestep.measure.slots import Deal, Slot
from samestep.plan.layout import check_world_size
from samestep.run import curvature, syncing
from samestep.run.config import Config, NumericSettings, Settings, resolve
from samestep.run.ways import check_cpu
from samestep.run.workload import Workload

RECORD, PARTIAL = "scale.json", "scale.part.json"

NUM_TURNS = 3
"""Slots of every program in a round, which begins with new processes."""

_START_S, _STOP_S, _PEAKS_S = 2.0, 0.1, 3.0
"""About how long a program takes to start beside others, a slot beyond its length, and the machine's peaks."""

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is measured.

    Args:
        workload: Its name.
        workers: Numbers of workers, ascending, with 1.
        axes: "strong", and "weak" where it is asked for.
        rounds: Each begins with new processes, and gives one value of every program.
        slot_s: Shortest slot in seconds.
        seed: Of the order of the slots.
        turns: Slots of every program in a round.
        code_sha256: Of the user's own code that the workload is made of; None where there is none.
    """

    workload: str
    workers: tuple[int, ...]
    axes: tuple[Axis, ...]
    rounds: int
    slot_s: float
    seed: int
    turns: int = NUM_TURNS
    code_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a study found.

    Args:
        record: Everything, raw values included.
        scalings: What it means, by axis.
        breakdowns: Seconds a step by group, one mapping a worker, by axis and program; means over rounds.
        losses: Share of the step by group, by axis and samestep's number of workers; means over these.
        warnings: What is unstable, and what to run next.
        hints: What would make parallel training pay more.
    """

    record: Record
    scalings: Mapping[Axis, Scaling]
    breakdowns: Mapping[Axis, Mapping[str, tuple[Mapping[str, float], ...]]]
    losses: Mapping[Axis, Mapping[int, Mapping[str, float]]]
    warnings: tuple[str, ...]
    hints: tuple[str, ...]


class Teller(Protocol):
    """Says how far a study is."""

    def line(self, text: str) -> None: ...

    def phase(self, text: str, done: int, total: int, left_s: float | None) -> None: ...


def plan_study(
    workload: Workload, settings: NumericSettings, workers: Sequence[int], *, is_weak: bool, rounds: int, slot_s: float
) -> tuple[Study, Config]:
    """Check what is asked for.

    Raises:
        UsageError: No number of workers; one that is below 1 or above the microbatches of a step; along the weak axis,
            one whose step has more samples than an epoch.
    """
    config = resolve(Settings(**vars(settings), workers=1), workload.recipe)
    check_cpu(config, "a scaling study")
    syncing.refuse(config, "scale", "plain torch, beside which it measures, has no such steps")
    curvature.refuse(config, "plain torch, beside which scale measures, has nothing like its step; take another one")
    if rounds < 1:
        raise UsageError(f"repeats={rounds} is below 1: nothing would be measured")
    if not workers:
        raise UsageError("scale needs at least one number of workers, such as --workers 1,2")
    wanted = tuple(sorted({1, *workers}))
    batch = config.fixed_batch("steps of one size are measured")
    for number in wanted:
        check_world_size(number, -(-batch // config.microbatch))
    if is_weak:
        _check_weak(wanted[-1], batch, workload.data().train.num_samples)
    axes: tuple[Axis, ...] = ("strong", "weak") if is_weak else ("strong",)
    Deal(turns=NUM_TURNS, slot_s=slot_s)
    code = provenance.code_sha256([workload.model, workload.data, workload.loss])
    study = Study(
        workload=workload.name,
        workers=wanted,
        axes=axes,
        rounds=rounds,
        slot_s=slot_s,
        seed=config.seed,
        code_sha256=code,
    )
    return study, config


def _check_weak(workers: int, global_batch: int, num_samples: int) -> None:
    if workers * global_batch > num_samples:
        raise UsageError(
            f"weak scaling to {workers} workers takes steps of {workers * global_batch} samples, and an epoch has "
            f"{num_samples}; take fewer workers, or global_batch={num_samples // workers} or less"
        )


def tasks(study: Study, config: Config, *, cores: int) -> dict[Axis, tuple[Task, ...]]:
    """The programs of a study, by axis; a name that both axes have is one program, measured once.

    Plain torch with 1 to as many threads as cores; samestep and the roof with every number of workers. Along the weak
    axis the batch of one worker stays what it is, and so does the microbatch.
    """
    batch, micro = config.first_batch, config.microbatch
    threads = sorted({1, *(2**k for k in range(cores.bit_length()) if 2**k <= cores), cores})
    singles = [
        Task(name=f"torch, {_counted(number, 'thread')}", kind="torch", workers=1, threads=number, global_batch=batch,
             microbatch=batch)
        for number in threads
    ]  # fmt: skip
    found: dict[Axis, tuple[Task, ...]] = {}
    for axis in study.axes:
        parallel = []
        for number in study.workers:
            size = batch * number if axis == "weak" else batch
            suffix = "" if size == batch else f" of {batch} samples"
            ours = f"samestep, {_counted(number, 'worker')}{suffix}"
            roof = f"roof, {_counted(number, 'program')}{suffix}"
            parallel.append(
                Task(name=ours, kind="samestep", workers=number, threads=config.threads_per_worker, global_batch=size,
                     microbatch=micro)
            )  # fmt: skip
            if number > 1 and size % number == 0:
                parallel.append(
                    Task(name=roof, kind="roof", workers=number, threads=1, global_batch=size,
                         microbatch=size // number)
                )  # fmt: skip
        found[axis] = (*singles, *parallel)
    return found


def estimate_s(study: Study, num_programs: int) -> float:
    """About how long the measuring will take, in seconds."""
    return _PEAKS_S + study.rounds * num_programs * (_START_S + study.turns * (study.slot_s + _STOP_S))


def measure(
    build: Callable[[], Workload],
    settings: NumericSettings,
    study: Study,
    config: Config,
    folder: Path,
    teller: Teller,
) -> Record:
    """Measure a study, or what an interrupted one has left to do; the record lies in `folder` afterwards.

    Raises:
        UsageError: The folder holds another study.
        ProgramError: A program failed.
        Interrupted: Ctrl-C or SIGTERM; the rounds that were done are kept.
    """
    files.make_folder(folder, "the study")
    by_axis = tasks(study, config, cores=num_cores())
    record = _begin(study, config, by_axis, folder, teller)
    if _num_rounds(record) < study.rounds:
        unique = {task.name: task for axis in by_axis.values() for task in axis}
        try:
            _measure_rounds(unique, build, settings, study, record, folder, teller)
        except KeyboardInterrupt as error:
            number = error.signum if isinstance(error, Interrupted) else signal.SIGINT
            kept = f"{_num_rounds(record)} of {study.rounds} rounds are kept, the same command goes on from there"
            raise Interrupted(f"stopped by {signal.Signals(number).name}; {kept}", number) from None
    records.write(folder / RECORD, "scale", record)
    (folder / PARTIAL).unlink(missing_ok=True)
    return record


def _measure_rounds(
    unique: Mapping[str, Task],
    build: Callable[[], Workload],
    settings: NumericSettings,
    study: Study,
    record: Record,
    folder: Path,
    teller: Teller,
) -> None:
    done = _num_rounds(record)
    deal = Deal(turns=study.turns, slot_s=study.slot_s, seed=study.seed)
    places_of = {name: [key for key in record["slots"] if key.partition("/")[2] == name] for name in unique}
    teller.line(
        f"{study.workload}: {len(unique)} programs, {_counted(study.rounds - done, 'round')}: about "
        f"{estimate_s(replace(study, rounds=study.rounds - done), len(unique)) / 60:.1f} min"
    )
    if record["environment"]["peaks"] is None:
        teller.line("measuring what the machine can copy and multiply ...")
        record["environment"]["peaks"] = asdict(peaks.measure())
    begun_s, first_steps = time.monotonic(), list[float]()

    def tell_begun(number: int, running: Running) -> None:
        if number != done:
            return
        first_steps.append(running.first_step_s())
        teller.phase(f"started {running.program.name}", len(first_steps), len(unique), None)
        if len(first_steps) < len(unique):
            return
        slots_s = sum(max(deal.slot_s, 1.5 * deal.slot_steps * step_s) + _STOP_S for step_s in first_steps)
        round_s = time.monotonic() - begun_s + study.turns * slots_s
        teller.line(f"rounds of about {round_s:.0f} s: about {round_s * (study.rounds - done) / 60:.1f} min in all")

    def keep(number: int, slots: Mapping[str, Slot]) -> None:
        for name, slot in slots.items():
            for key in places_of[name]:
                record["slots"][key].append({"round": number, **_plain(slot)})
        records.write(folder / PARTIAL, "scale", record)

    def report(number: int, left_s: float) -> None:
        teller.phase(f"round {number}", number, study.rounds, left_s)

    made = [programs.program(task, build, settings) for task in unique.values()]
    interleave.deal_rounds(made, deal, rounds=study.rounds, done=done, keep=keep, report=report, begun=tell_begun)


def analyse(record: Record) -> Findings:
    """What a record means."""
    cores = record["environment"]["host"]["cores"]
    scalings: dict[Axis, Scaling] = {}
    breakdowns: dict[Axis, dict[str, tuple[dict[str, float], ...]]] = {}
    losses: dict[Axis, dict[int, dict[str, float]]] = {}
    warnings: dict[str, tuple[str, ...]] = {}
    tips: list[str | None] = []
    for axis in record["study"]["axes"]:
        own = [program for program in record["programs"] if program["axis"] == axis]
        series = []
        for program in own:
            slots = record["slots"][f"{axis}/{program['name']}"]
            times = tuple(slot["step_s"] for slot in slots)
            series.append(
                Series(name=program["name"], kind=program["kind"], workers=program["workers"],
                       threads=program["threads"], global_batch=program["global_batch"], step_s=times)
            )  # fmt: skip
            others = [slot["others_frac"] for slot in slots]
            found = stats.stability(times, others_frac=others).warnings
            warnings[program["name"]] = (*warnings.get(program["name"], ()), *found)
        breakdowns[axis] = {
            program["name"]: mean_phases(record["slots"][f"{axis}/{program['name']}"]) for program in own
        }
        losses[axis] = {
            program["workers"]: shares(breakdowns[axis][program["name"]])
            for program in own
            if program["kind"] == "samestep"
        }
        scalings[axis] = scaling.analyse(axis, series, cores=cores, losses=losses[axis])
        tips.append(_hint(scalings[axis], own))
    return Findings(
        record=record,
        scalings=scalings,
        breakdowns=breakdowns,
        losses=losses,
        warnings=hints.merged(warnings),
        hints=tuple(dict.fromkeys(tip for tip in tips if tip is not None)),
    )


def _hint(found: Scaling, own: Sequence[Mapping[str, Any]]) -> str | None:
    """Whether a larger microbatch would help one worker; both axes have that one."""
    ours = {program["workers"]: program for program in own if program["kind"] == "samestep"}
    if ours[1].get("microbatch") is None:
        return None
    return hints.larger_microbatch(
        found.points[0].speed_up.value,
        global_batch=ours[1]["global_batch"],
        microbatch=ours[1]["microbatch"],
        most_workers=max(ours),
    )


def _num_rounds(record: Record) -> int:
    """Rounds that every program has done."""
    return min((len(slots) for slots in record["slots"].values()), default=0)


def mean_phases(slots: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], ...]:
    """Seconds a step by group, the mean over slots: one mapping a worker.

    >>> slots = [{"phases": [{group: seconds for group in GROUPS}]} for seconds in (1.0, 3.0)]
    >>> mean_phases(slots)[0]["data"]
    2.0
    """
    table = np.array([[[worker[group] for group in GROUPS] for worker in slot["phases"]] for slot in slots])
    return tuple(dict(zip(GROUPS, worker, strict=True)) for worker in table.mean(axis=0).tolist())


def shares(workers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Share of the step by group: the mean over workers.

    >>> shares([{group: 1.0 for group in GROUPS}, {group: 3.0 for group in GROUPS}])["data"]
    0.2
    """
    means = {group: sum(worker[group] for worker in workers) for group in GROUPS}
    return {group: seconds / sum(means.values()) for group, seconds in means.items()}


def _begin(
    study: Study, config: Config, by_axis: Mapping[Axis, Sequence[Task]], folder: Path, teller: Teller
) -> Record:
    """A record without slots, or the one that an interrupted study with the same settings left behind."""
    fresh: Record = {
        "environment": records.environment(),
        "config": config.as_dict(),
        "study": records.as_plain(asdict(study)),
        "programs": [
            {**asdict(task), "axis": axis, "copies": task.workers if task.kind == "roof" else 1}
            for axis, each in by_axis.items()
            for task in each
        ],
        "slots": {f"{axis}/{task.name}": [] for axis, each in by_axis.items() for task in each},
    }
    for path in (folder / PARTIAL, folder / RECORD):
        if not path.exists():
            continue
        found = records.read(path, "scale")
        if isinstance(found.get("study"), dict):  # more rounds of the same study are welcome
            found["study"]["rounds"] = study.rounds
        for name in ("study", "config", "programs"):
            difference = records.difference(records.as_plain(found.get(name)), records.as_plain(fresh[name]), name)
            if difference:
                raise UsageError(
                    f"{folder} holds another study: {difference}; name another folder, or remove {path.name} in it"
                )
        records.check_mixable([found, fresh], names=[str(path), "this run"])
        done = _num_rounds(found)
        teller.line(f"{path.name}: {done} of {study.rounds} rounds were measured before")
        fresh["study"]["rounds"] = found["study"]["rounds"] = max(study.rounds, done)
        for slots in found["slots"].values():
            del slots[done:]
        return {key: found[key] for key in fresh}
    return fresh


def _plain(slot: Slot) -> dict[str, Any]:
    values = asdict(slot)
    return {**values, "steps_s": list(slot.steps_s), "phases": [dict(worker) for worker in slot.phases]}


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
