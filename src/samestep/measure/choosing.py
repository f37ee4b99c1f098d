"""`parallel="auto"`: measure the ways to carry a run out, for a few steps each, and take the best one.

The ways take turns (see `interleave`); whichever is taken, the bits of the result are the same, except where threads
were allowed to change them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from samestep.engine.group.place import from_environment
from samestep.errors import UsageError
from samestep.host.cores import num_cores
from samestep.measure import interleave, programs
from samestep.measure.candidates import Candidate, Choice, Measured, candidates, decide, is_clearly_slower
from samestep.measure.programs import Task
from samestep.measure.remembered import Memory, key
from samestep.measure.running import Program, Running
from samestep.measure.scale import Teller
from samestep.measure.slots import Deal, ProgramError, Slot
from samestep.run import curvature, sizes, syncing
from samestep.run.config import Config, NumericSettings, Settings, resolve
from samestep.run.prepare import Choices, prepare
from samestep.run.ways import check_cpu
from samestep.run.workload import Workload

_FEWEST_TURNS, _MOST_TURNS = 3, 7
_TURNS_S = 8.0
"""After the fewest turns, no new one begins when so many seconds have been measured."""

_LONG_STEP_S = 0.1
"""Of longer steps, a slot measures one; of shorter ones three."""

_OTHERS_FRAC = 0.1
"""Share of the processors' time that other processes may take where a choice is remembered."""

_DEAL = Deal(turns=_MOST_TURNS, slot_s=0.25, slot_steps=3, start_timeout_s=120.0, slot_timeout_s=60.0)
_LONG = replace(_DEAL, slot_steps=1)


def choose(
    build: Callable[[], Workload],
    settings: Settings,
    teller: Teller,
    *,
    choices: Choices = Choices(),  # noqa: B008 (it is frozen)
    allows_threads: bool = False,
    measures_again: bool = False,
) -> Choice:
    """How to carry a run out on this machine: as remembered, or measured now and then remembered.

    Args:
        build: Makes the workload.
        settings: Of the run; the workers, back-propagation and stages that they name stay as they are.
        teller: Says how far it is, and what came out.
        choices: What can be given from Python only.
        allows_threads: Whether more threads inside of one process, which give other bits, may be taken.
        measures_again: Whether what is remembered is passed over.

    Raises:
        UsageError: Nothing is left to choose, or something cannot be done as asked.
        ProgramError: No way could be measured; the simplest one's error.
    """
    if allows_threads and settings.threads_per_worker is not None:
        raise UsageError(
            f"threads_per_worker={settings.threads_per_worker} is set, and allow_threads lets parallel='auto' set it; "
            "give one of them"
        )
    if settings.engine == "group" or from_environment(os.environ) is not None:
        raise UsageError(
            "parallel='auto' chooses for one machine, and the group engine's ranks may be on several; leave out one of "
            "them"
        )
    for name, is_set in (("stages", settings.stages not in (None, 1)), ("cut", settings.cut is not None)):
        if is_set:
            raise UsageError(
                f"{name}={getattr(settings, name)!r} is set, and parallel='auto' tries stages itself; leave out one of "
                "them"
            )
    workload, settings = sizes.settled(build(), settings)
    config = resolve(settings, workload.recipe)
    check_cpu(config, "parallel='auto'")
    syncing.refuse(config, "parallel='auto'", "it measures steps in which all workers meet")
    prepared = prepare(workload, config, choices, has_callbacks=False)
    config = prepared.config
    offered = candidates(
        cores=num_cores(),
        num_microbatches=prepared.job.batches.num_microbatches,
        threads=config.threads_per_worker,
        workers=None if settings.workers in (None, "auto") else config.workers,
        backprop=settings.backprop,
        allows_threads=allows_threads,
        may_have_stages=settings.stages is None,
    )
    ways = _possible(offered, settings, workload, choices)
    if len(ways) == 1:
        reason = f"{ways[0].name}: there is no other way on {num_cores()} core{'s' if num_cores() > 1 else ''}"
        teller.line(f"parallel: {reason}")
        return Choice(candidate=ways[0], measured=(Measured(candidate=ways[0]),), reason=reason)
    memory = Memory.of(key(prepared.numerics(), ways, (config.schedule, config.chunks)))
    known = None if measures_again else memory.read()
    if known is not None:
        choice, day = known
        teller.line(f"parallel: as measured on {day} ({memory.path}; --measure-again measures anew)")
    else:
        table = _measure(ways, build, settings, config, choices, teller)
        choice = decide(table.measured())
        if (trouble := table.accident() or memory.write(choice)) is not None:
            teller.line(f"parallel: this choice is not remembered: {trouble}")
    return choice


def _possible(
    ways: Sequence[Candidate], settings: Settings, workload: Workload, choices: Choices
) -> tuple[Candidate, ...]:
    """Those that a run would not refuse for its settings.

    Raises:
        UsageError: It would refuse each of them.
    """
    found, refused = list[Candidate](), list[UsageError]()
    for way in ways:
        try:
            config = resolve(way.applied_to(settings), workload.recipe)
            if choices.optimizer is None and config.optimizer == "kfac":
                curvature.check(config)
            found.append(way)
        except UsageError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return tuple(found)


def _measure(
    ways: Sequence[Candidate],
    build: Callable[[], Workload],
    settings: Settings,
    config: Config,
    choices: Choices,
    teller: Teller,
) -> _Table:
    """Measure what each way takes a step, or why it cannot be taken.

    Raises:
        ProgramError: None can be taken.
    """
    numeric = NumericSettings(**{name: getattr(settings, name) for name in NumericSettings.__dataclass_fields__})
    made = [programs.program(_task(way, config), build, numeric, choices) for way in ways]
    teller.line(f"parallel: measuring {len(ways)} ways to train {build().name} here")
    table = _Table(ways, teller)
    with interleave.stage(made, _DEAL, table.started, table.failed) as started:
        _deal_turns(started, table)
    if len(table.failures) == len(ways):
        raise table.failures[ways[0].name]
    return table


class _Table:
    """What has been measured so far.

    Args:
        ways: What is measured.
        teller: Says how far it is.
    """

    def __init__(self, ways: Sequence[Candidate], teller: Teller) -> None:
        self._ways, self._teller = ways, teller
        self._times: dict[str, list[float]] = {way.name: [] for way in ways}
        self._others: list[float] = []
        self._num_started = 0
        self.failures: dict[str, ProgramError] = {}

    def started(self, running: Running) -> None:
        self._num_started += 1
        self._teller.phase(f"started {running.program.name}", self._num_started, len(self._ways), None)

    def failed(self, program: Program, error: ProgramError) -> None:
        """It is out, and the others go on."""
        self.failures[program.name] = error
        self._teller.line(f"parallel: {error}")

    def keep(self, number: int, slots: Mapping[str, Slot]) -> None:
        for name, slot in slots.items():
            self._times[name].append(slot.step_s)
            self._others.append(slot.others_frac)

    def report(self, number: int, left_s: float) -> None:
        self._teller.phase("measured", number, _MOST_TURNS, None)

    def accident(self) -> str | None:
        """Why another measurement may choose otherwise, so that this one is not to be remembered; None: it is."""
        for way in self._ways:
            failure = self.failures.get(way.name)
            if failure is not None and not failure.is_usage:
                return f"{failure}; the next run measures again"
        share = sum(self._others) / max(1, len(self._others))
        if share > _OTHERS_FRAC:
            return (
                f"other processes took {100 * share:.0f} % of the processors' time meanwhile, and on an idle machine "
                "another may be better; the next run measures again"
            )
        return None

    def measured(self) -> list[Measured]:
        """All ways, in their order."""
        return [self._of(way) for way in self._ways]

    def rest(self, running: Sequence[Running]) -> list[Running]:
        """Those whose next turn would tell something."""
        alive = [one for one in self.measured() if one.step_s]
        names = [one.candidate.name for one in alive if not is_clearly_slower(one, alive)]
        return [one for one in running if one.program.name in names]

    def _of(self, way: Candidate) -> Measured:
        if way.name in self.failures:
            return Measured(candidate=way, failure=str(self.failures[way.name]))
        return Measured(candidate=way, step_s=tuple(self._times[way.name]))


def _deal_turns(started: Sequence[Running], table: _Table) -> None:
    """Turns until there are enough, or time is up."""
    start = time.monotonic()
    deal = _DEAL if max((one.first_step_s() for one in started), default=0) < _LONG_STEP_S else _LONG
    left = list(started)
    for number in range(_MOST_TURNS):
        if not left or (number >= _FEWEST_TURNS and time.monotonic() - start > _TURNS_S):
            break
        one_more = replace(deal, turns=number + 1)
        interleave.deal_turns(left, one_more, done=number, keep=table.keep, report=table.report, failed=table.failed)
        left = table.rest(left)


def _task(way: Candidate, config: Config) -> Task:
    return Task(
        name=way.name,
        kind="samestep",
        workers=way.workers,
        threads=way.threads,
        global_batch=config.first_batch,
        microbatch=config.microbatch,
        backprop=way.backprop,
        stages=way.stages,
        schedule=config.schedule,
        chunks=config.chunks,
    )
