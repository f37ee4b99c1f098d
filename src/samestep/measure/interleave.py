"""Exactly one program runs at a time: it is continued for a slot, then stopped, then the next one's turn comes.

The programs of a stage stay alive; in every turn each of them gets one slot, in random order, so a machine whose speed
drifts slows all of them alike. Each process writes its events (see `engine.events`) into a ring in a file; steps that
were interrupted by a stop are left out, and so is the timing warm-up at the beginning of a slot.

A process keeps what it was dealt at its start (where its memory lies, among others), so two equal programs differ for
as long as they live. Who wants that in the interval deals rounds, each of which starts the programs anew.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import FrameType

from samestep.errors import Interrupted
from samestep.host.cores import num_cores
from samestep.measure.guard import Guard
from samestep.measure.running import Program, Running
from samestep.measure.slots import Deal, ProgramError, Slot, combined

_POLL_S = 0.02

Report = Callable[[int, float], None]
"""report(turns or rounds done, seconds left)."""

Failed = Callable[[Program, ProgramError], None]
"""Told of a program that fails, and takes part no longer."""


def deal_turns(
    started: Sequence[Running],
    deal: Deal,
    *,
    done: int = 0,
    keep: Callable[[int, Mapping[str, Slot]], None],
    report: Report,
    failed: Failed | None = None,
) -> None:
    """Deal turns: in each, every program has one slot, in a random order.

    Args:
        started: The programs.
        deal: How.
        done: Turns that were done before.
        keep: Called with (turn, slots by program) after every turn.
        report: Says how far it is.
        failed: See `Failed`; None: the error is raised.
    """
    start = time.monotonic()
    alive = list(started)
    for number in range(done, deal.turns):
        slots: dict[str, Slot] = {}
        for running in random.Random(deal.seed * 1_000_003 + number).sample(alive, len(alive)):
            try:
                slots[running.program.name] = running.slot(deal)
            except ProgramError as error:
                if failed is None:
                    raise
                running.kill()
                alive.remove(running)
                failed(running.program, error)
        keep(number, slots)
        elapsed = time.monotonic() - start
        report(number + 1, elapsed / (number + 1 - done) * (deal.turns - number - 1))


@contextlib.contextmanager
def stage(
    programs: Sequence[Program], deal: Deal, report: Callable[[Running], None], failed: Failed | None = None
) -> Iterator[list[Running]]:
    """Start programs, as many at a time as there are cores; whatever happens, nothing of them is left behind.

    Args:
        programs: What to start.
        deal: For its time limit.
        report: Called with each as soon as it has begun.
        failed: See `Failed`; None: the error is raised.
    """
    started: list[Running] = []
    with interrupted_by_sigterm(), Guard("samestep-measure-") as guard:
        try:
            yield _begin(programs, deal, guard, started, report, failed)
        finally:
            for running in started:
                running.kill()


def _begin(
    programs: Sequence[Program],
    deal: Deal,
    guard: Guard,
    started: list[Running],
    report: Callable[[Running], None],
    failed: Failed | None,
) -> list[Running]:
    """Those that do their first steps, stopped, in the order of the programs; all that was started is in `started`.

    Of several that fail, the error of the first one is raised, whichever was quicker.
    """
    waiting = list(reversed(programs))
    begun: dict[str, Running] = {}
    errors: dict[str, ProgramError] = {}
    beginning: list[Running] = []
    while waiting or beginning:
        while waiting and len(beginning) < num_cores():
            folder = guard.folder / str(len(started))
            with _held_back():  # a process that nobody knows of yet would be left
                beginning.append(Running.start(waiting.pop(), folder, guard, deal.start_timeout_s))
                started.append(beginning[-1])
        for running in tuple(beginning):
            try:
                if not running.has_begun():
                    continue
                running.stop()
                begun[running.program.name] = running
                report(running)
            except ProgramError as error:
                running.kill()
                if failed is None:
                    errors[running.program.name] = error
                    waiting.clear()
                else:
                    failed(running.program, error)
            beginning.remove(running)
        time.sleep(_POLL_S)
    if errors:
        raise next(errors[program.name] for program in programs if program.name in errors)
    return [begun[program.name] for program in programs if program.name in begun]


def deal_rounds(
    programs: Sequence[Program],
    deal: Deal,
    *,
    rounds: int,
    done: int = 0,
    keep: Callable[[int, Mapping[str, Slot]], None],
    report: Report,
    begun: Callable[[int, Running], None] = lambda number, running: None,
) -> None:
    """Deal rounds: each starts the programs anew and has a deal's turns, which count as one slot of every program.

    Args:
        programs: What is measured.
        deal: The turns of a round.
        rounds: How many, those that were done before included.
        done: Rounds that were done before.
        keep: Called with (round, slots by program) after every round.
        report: Says how far it is.
        begun: Called with (round, program) as soon as it has begun there.
    """
    start = time.monotonic()
    for number in range(done, rounds):
        of_round = replace(deal, seed=deal.seed * 1_000_003 + number)
        keep(number, _round(programs, of_round, partial(begun, number)))
        elapsed = time.monotonic() - start
        report(number + 1, elapsed / (number + 1 - done) * (rounds - number - 1))


def _round(programs: Sequence[Program], deal: Deal, begun: Callable[[Running], None]) -> dict[str, Slot]:
    """The turns of new processes, as one slot of each program."""
    slots: dict[str, list[Slot]] = {program.name: [] for program in programs}

    def keep(turn: int, found: Mapping[str, Slot]) -> None:
        for name, slot in found.items():
            slots[name].append(slot)

    with stage(programs, deal, begun) as started:
        deal_turns(started, deal, keep=keep, report=lambda turn, left_s: None)
    return {name: combined(each) for name, each in slots.items()}


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM ends a measurement as Ctrl-C does; only the main thread can hear it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """SIGINT and SIGTERM are heard after the block; only the main thread hears them at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda number, frame: heard.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if heard:
            signal.raise_signal(heard[0])


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(f"stopped by {signal.Signals(number).name}", number)
