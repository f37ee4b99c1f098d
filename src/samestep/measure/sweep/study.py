"""A sweep: what is tried, run side by side, kept run by run, and gone on with after an interruption."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from samestep.errors import Interrupted, UsageError
from samestep.host import files, records
from samestep.host.cores import num_cores
from samestep.measure.interleave import interrupted_by_sigterm
from samestep.measure.scale import Teller
from samestep.measure.sweep import halving, kept, parts, space, target, trial
from samestep.measure.sweep.halving import Ladder, Move, Run
from samestep.measure.sweep.parts import Parts
from samestep.measure.sweep.pool import Pool
from samestep.measure.sweep.space import Point
from samestep.measure.sweep.trial import Cell, Finished, Subject, Trial
from samestep.optim import catalog
from samestep.run.config import NumericSettings, Settings, resolve
from samestep.run.prepare import Choices, prepare
from samestep.run.workload import Workload
from samestep.words import count

RECORD = kept.RECORD
"""Name of the file in the folder."""

_FIRST_STEPS = 8

_STEP_COST_SAMPLES = 100
"""About as long as a step's fixed cost takes: so many samples; for the time left."""

Batch = int | Literal["full"]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What a person asks for.

    Args:
        batches: Global batches; "full" is all training rows.
        optimizers: By name.
        goal: The target, ``val_error<=0.10``.
        trials: Settings of every (optimiser, batch); of an optimiser that is not tuned, one.
        seeds: Fresh seeds of the chosen settings.
        first_steps: Lowest budget of a run, about; None: 8.
        most_steps: Highest; None: as long as the workload's recipe trains, at the smallest batch.
        rows: Training rows that are used; None: all.
        has_label_smoothing: It is searched too.
        has_averaging: Weight averaging is searched too, for optimisers that do not average by themselves.
    """

    batches: tuple[Batch, ...]
    optimizers: tuple[str, ...]
    goal: str
    trials: int = 16
    seeds: int = 5
    first_steps: int | None = None
    most_steps: int | None = None
    rows: int | None = None
    has_label_smoothing: bool = False
    has_averaging: bool = False


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is tried.

    Args:
        workload: Its name.
        optimizers: By name.
        batches: Global batches, ascending.
        target: The goal, in words.
        trials: Settings of every (optimiser, batch).
        seeds: Fresh seeds of the chosen settings.
        budgets: Steps of a run, ascending.
        kept: Trials that are left with each budget.
        num_train: Rows that are learned from.
        num_choosing: Rows that settings are chosen by.
        num_reported: Rows that the numbers are read on.
        has_label_smoothing: It is searched too.
        has_averaging: Weight averaging is searched too, for optimisers that do not average by themselves.
        seed: Of the points; runs have this and the following ones.
        has_halfway: See `Ladder`.
    """

    workload: str
    optimizers: tuple[str, ...]
    batches: tuple[int, ...]
    target: str
    trials: int
    seeds: int
    budgets: tuple[int, ...]
    kept: tuple[int, ...]
    num_train: int
    num_choosing: int
    num_reported: int
    has_label_smoothing: bool
    has_averaging: bool
    seed: int
    has_halfway: bool = True

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every optimiser at every batch."""
        return tuple((optimizer, batch) for optimizer in self.optimizers for batch in self.batches)

    def ladder(self, cell: Cell) -> Ladder:
        """The rungs of a cell; one without tuning climbs them with one trial."""
        climbed = Ladder(budgets=self.budgets, kept=self.kept, has_halfway=self.has_halfway)
        return climbed if space.space_of(cell[0]).is_tuned else climbed.of_one()

    def points(self, cell: Cell) -> tuple[Point, ...]:
        """The settings of a cell's trials, by their numbers."""
        return _points(self, cell)


@lru_cache(maxsize=1024)
def _points(study: Study, cell: Cell) -> tuple[Point, ...]:
    optimizer, batch = cell
    return space.points(
        space.space_of(optimizer),
        study.trials,
        has_label_smoothing=study.has_label_smoothing,
        has_averaging=study.has_averaging and not catalog.entry(optimizer).averages(),
        seed=space.seed_of(study.seed, optimizer, batch),
    )


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A sweep that can be done.

    Args:
        study: What is tried.
        subject: What is trained.
        config: Settings that all runs share.
    """

    study: Study
    subject: Subject
    config: dict[str, Any]


def plan(build: Callable[[], Workload], settings: NumericSettings, wishes: Wishes) -> Planned:
    """Check what is asked for, and settle what is left open.

    Raises:
        UsageError: A batch is larger than the data, nothing would be tried, a name is not known, or settings are given
            that a sweep searches.
    """
    if given := [name for name in trial.SEARCHED if getattr(settings, name) is not None]:
        raise UsageError(f"{', '.join(given)}: a sweep decides such settings itself; leave them out")
    workload = build()
    goal = target.parse_goal(wishes.goal)
    target.metrics_for(goal, workload.metrics, workload.name)
    if wishes.has_label_smoothing and goal.metric == "loss":
        raise UsageError("label smoothing changes the loss that the target reads; name another metric, or leave it out")
    if wishes.seeds < 1:
        raise UsageError(f"seeds={wishes.seeds} is below 1: nothing would be reported; take 5, or at least 1")
    divided = parts.split(workload.data(), workload.name, wishes.rows)
    batches = _batches(wishes.batches, divided.train.num_samples)
    most_steps, first_steps = wishes.most_steps, wishes.first_steps
    if most_steps is None:
        most_steps = _recipe_steps(workload, settings, batches[0], divided.train.num_samples)
    if first_steps is None:
        first_steps = min(_FIRST_STEPS, most_steps)
    climbed = halving.ladder(wishes.trials, first_steps=first_steps, most_steps=most_steps)
    optimizers = tuple(dict.fromkeys(wishes.optimizers))
    if not optimizers:
        raise UsageError("sweep needs at least one optimizer, such as --optimizers sgd,adamw")
    study = Study(
        workload=workload.name,
        optimizers=optimizers,
        batches=batches,
        target=target.goal_text(goal),
        trials=wishes.trials,
        seeds=wishes.seeds,
        budgets=climbed.budgets,
        kept=climbed.kept,
        num_train=divided.train.num_samples,
        num_choosing=divided.choosing.num_samples,
        num_reported=divided.reported.num_samples,
        has_label_smoothing=wishes.has_label_smoothing,
        has_averaging=wishes.has_averaging,
        seed=settings.seed or 0,
    )
    subject = Subject(build=build, settings=settings, goal=goal, rows=wishes.rows)
    return Planned(study=study, subject=subject, config=_rehearsed(workload, divided, subject, study))


def _batches(wanted: Sequence[Batch], num_train: int) -> tuple[int, ...]:
    if not wanted:
        raise UsageError("sweep needs at least one batch, such as --batches 64,256,full")
    found = sorted({num_train if batch == "full" else batch for batch in wanted})
    if found[0] < 1:
        raise UsageError(f"batches={found[0]} is below 1: a step needs at least one sample")
    if found[-1] > num_train:
        raise UsageError(
            f"batches={found[-1]} is larger than the {num_train} samples that are trained on (a sixth of the training "
            f"part is kept for choosing); take at most {num_train}, or full"
        )
    return tuple(found)


def _recipe_steps(workload: Workload, settings: NumericSettings, batch: int, num_train: int) -> int:
    """As many steps as the workload's recipe takes, with the smallest batch."""
    config = resolve(Settings(**vars(settings), workers=1), workload.recipe)
    return config.steps or max(1, round((config.epochs or 0) * num_train / min(batch, config.first_batch)))


def _rehearsed(workload: Workload, divided: Parts, subject: Subject, study: Study) -> dict[str, Any]:
    """What all runs share of the configuration; a mistake in it shows before anything is trained."""
    config: dict[str, Any] = {}
    for cell in study.cells:
        run = Run(stage="choose", trial=0, steps=study.budgets[0], seed=0)
        made, settings = trial.prepared(workload, divided, subject, _trial(study, cell, run))
        resolved = resolve(settings, made.recipe)
        if cell[1] == study.batches[0]:
            prepare(made, resolved, Choices(), has_callbacks=False)
            config = resolve(replace(settings, optimizer=None), made.recipe).as_dict()  # whichever optimisers there are
    own = (
        *trial.SEARCHED,
        *("microbatch", "workers", "until", "evaluate_every", "out", "log", "profile", "checkpoint", "noise_scale"),
    )
    shared = {name: value for name, value in config.items() if name not in (*own, "checkpoint_every_s", "resume")}
    return {**shared, "microbatch": subject.settings.microbatch}


def _trial(study: Study, cell: Cell, run: Run) -> Trial:
    return Trial(optimizer=cell[0], batch=cell[1], run=run, point=study.points(cell)[run.trial])


# ---------------------------------------------------------------- acting


def measure(planned: Planned, folder: Path, teller: Teller, *, jobs: int | None = None) -> dict[str, Any]:
    """Run a sweep, or what an interrupted one has left to do; the record lies in `folder` afterwards.

    Args:
        planned: What `plan` gave.
        folder: For the record, and a file for every run.
        teller: Told how far it is.
        jobs: Runs side by side; None: one per core.

    Raises:
        UsageError: The folder holds another sweep.
        Interrupted: Ctrl-C or SIGTERM; the runs that were done are kept.
    """
    wanted = jobs if jobs is not None else max(1, num_cores() // (planned.config["threads_per_worker"] or 1))
    if wanted < 1:
        raise UsageError(f"jobs={jobs} is below 1: nothing would be trained; leave it out for one per core")
    files.make_folder(folder / kept.RUNS, "the sweep")
    record = kept.begin(folder, {**_asked(planned), "jobs": wanted})
    earlier, cells = kept.runs(folder), {*planned.study.cells}
    found = {key: one for key, one in earlier.items() if key[0] in cells}
    progress = _Progress(planned, folder, teller, wanted, found)
    try:
        with interrupted_by_sigterm():
            progress.run()
    except KeyboardInterrupt as error:
        number = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        num_kept = sum(cell in cells for cell, _ in kept.runs(folder))  # it may have come while a file was written
        raise Interrupted(
            f"stopped by {signal.Signals(number).name}; kept: {count(num_kept, 'run')}; the same "
            "command goes on from there",
            number,
        ) from None
    found = {**earlier, **progress.found}
    study = _done(replace(planned.study, optimizers=tuple(record["study"]["optimizers"])), found)
    record["study"] = records.as_plain(asdict(study))
    record["runs"] = [trial.as_entry(each, one) for each, one in _in_order(study, found)]
    kept.end(folder, record)
    return record


def _asked(planned: Planned) -> dict[str, Any]:
    """What a record says of a sweep, but for its runs."""
    return {
        "config": planned.config,
        "study": records.as_plain(asdict(planned.study)),
        "spaces": {name: space.space_of(name).as_dict() for name in planned.study.optimizers},
    }


def _done(study: Study, found: Mapping[tuple[Cell, Run], Finished]) -> Study:
    """With those optimisers only that have nothing left to do: others may lie in the folder, interrupted."""
    cells = {*study.cells}
    known = moves(study, {key: one.outcome for key, one in found.items() if key[0] in cells})
    unfinished = {cell[0] for cell, move in known.items() if move.verdict == "going on"}
    return replace(study, optimizers=tuple(name for name in study.optimizers if name not in unfinished))


def _in_order(study: Study, found: Mapping[tuple[Cell, Run], Finished]) -> list[tuple[Trial, Finished]]:
    """The runs of a study, cell by cell, by stage, budget, trial and seed."""
    stages: dict[str, int] = {"choose": 0, "confirm": 1, "report": 2}
    cells = {cell: number for number, cell in enumerate(study.cells)}

    def place(key: tuple[Cell, Run]) -> tuple[int, ...]:
        cell, run = key
        return cells[cell], run.steps, stages[run.stage], run.trial, run.seed

    own = sorted((key for key in found if key[0] in cells), key=place)
    return [(_trial(study, *key), found[key]) for key in own]


@dataclass
class _Progress:
    """A sweep under way: what its runs have found, and what comes next."""

    planned: Planned
    folder: Path
    teller: Teller
    size: int
    found: dict[tuple[Cell, Run], Finished]

    def run(self) -> None:
        """Everything that is left to do."""
        study = self.planned.study
        waiting = self._waiting()
        if not waiting:
            return
        self.teller.line(
            f"{study.workload}: {count(len(study.cells), 'cell')} of {count(study.trials, 'trial')} to "
            f"{study.target}, budgets {study.budgets[0]} to {count(study.budgets[-1], 'step')}, "
            f"{count(self.size, 'run')} side by side"
            + (f"; kept before: {count(len(self.found), 'run')}" if self.found else "")
        )
        threads = self.planned.config["threads_per_worker"] or 1
        with Pool(self.planned.subject, self.size, threads) as pool:
            while waiting or pool.running:
                for each in waiting:
                    if pool.has_room:
                        pool.start(each)
                done, what = pool.wait()
                self._keep(done, what)
                running = set(pool.running)
                waiting = [each for each in self._waiting() if each not in running]
                self._tell(done, waiting, running)

    def _moves(self) -> dict[Cell, Move]:
        return moves(self.planned.study, {key: one.outcome for key, one in self.found.items()})

    def _waiting(self) -> list[Trial]:
        """Runs that are known to be needed, cell by cell."""
        study = self.planned.study
        return [_trial(study, cell, run) for cell, move in self._moves().items() for run in move.runs]

    def _keep(self, done: Trial, what: Finished) -> None:
        self.found[(done.optimizer, done.batch), done.run] = what
        records.write(self.folder / kept.RUNS / f"{done.name}.json", "sweep-run", trial.as_entry(done, what))

    def _tell(self, done: Trial, waiting: Sequence[Trial], running: set[Trial]) -> None:
        study = self.planned.study
        known = self._moves()
        rest = sum(map(_cost, (*waiting, *running)))
        rest += sum(_cost_ahead(study, cell, move) for cell, move in known.items())
        cost = sum(_cost_of(cell, run) for cell, run in self.found)
        core_s = sum(one.wall_s for one in self.found.values())
        num_over = sum(move.verdict != "going on" for move in known.values())
        last = f"{done.optimizer} at {done.batch}, {count(done.run.steps, 'step')}"
        self.teller.phase(
            f"{count(len(self.found), 'run')}, last {last}; cells done",
            num_over,
            len(known),
            core_s * rest / cost / self.size,
        )


def moves(study: Study, outcomes: Mapping[tuple[Cell, Run], halving.Outcome]) -> dict[Cell, Move]:
    """Where every cell stands."""
    goal = target.parse_goal(study.target)
    by_cell: dict[Cell, dict[Run, halving.Outcome]] = {cell: {} for cell in study.cells}
    for (cell, run), outcome in outcomes.items():
        by_cell[cell][run] = outcome
    return {cell: halving.next_move(study.ladder(cell), study.seeds, goal, found) for cell, found in by_cell.items()}


def _cost_of(cell: Cell, run: Run) -> float:
    """About how long a run takes, in samples."""
    return run.steps * (cell[1] + _STEP_COST_SAMPLES)


def _cost(each: Trial) -> float:
    return _cost_of((each.optimizer, each.batch), each.run)


def _cost_ahead(study: Study, cell: Cell, move: Move) -> float:
    """What may follow a cell's known runs, if none of its trials reaches the target before the last rung."""
    if move.verdict != "going on":
        return 0.0
    return halving.steps_ahead(study.ladder(cell), study.seeds, move.runs[0]) * (cell[1] + _STEP_COST_SAMPLES)
