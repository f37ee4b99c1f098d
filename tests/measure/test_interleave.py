"""Programs take turns; what they did in their slots is measured; nothing of them is left, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from samestep.engine import events
from samestep.engine.breakdown import GROUPS, step_times
from samestep.engine.events import EventLog, EventReader, Phase
from samestep.errors import SamestepError, UsageError
from samestep.measure.interleave import deal_rounds, deal_turns, stage
from samestep.measure.running import Program, Running
from samestep.measure.slots import Deal, ProgramError, Slot, combined, measured, within
from samestep.measure.stats import ratio
from tests.cli.command import Command
from tests.marks import soak

HERE = Path(__file__).parent
MOST_S = 5.0
"""Everything that a measurement has started is gone in this time after its end."""

QUICK = Deal(turns=2, slot_s=0.02, slot_steps=2)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    command.check_nothing_left()


def tiny(name: str, *words: str | float, copies: int = 1) -> Program:
    program = (sys.executable, "-I", "-S", str(HERE / "tiny.py"), *map(str, words))
    return Program(name=name, command=program, copies=copies, num_logs=copies)


def deal_all(programs: Sequence[Program], deal: Deal, done: int = 0) -> dict[str, list[Slot]]:
    """Run programs; their slots by name."""
    slots: dict[str, list[Slot]] = {program.name: [] for program in programs}

    def keep(number: int, found: Mapping[str, Slot]) -> None:
        for name, slot in found.items():
            slots[name].append(slot)

    with stage(programs, deal, lambda running: None) as started:
        deal_turns(started, deal, done=done, keep=keep, report=lambda number, left_s: None)
    return slots


# ---------------------------------------------------------------- pure


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"turns": 0}, "turns=0 is below 1"),
        ({"slot_steps": 0}, "slot_steps=0 is below 1"),
        ({"slot_s": 0.0}, "slot_s=0 is not positive"),
        ({"slot_s": float("nan")}, "slot_s=nan is not positive"),
    ],
)
def test_a_deal_checks_itself(wrong: dict[str, float], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        replace(QUICK, **wrong)  # type: ignore[arg-type]


def ring(steps: int, step_s: float = 1.0, first: int = 0, start_s: float = 0.0, cold: int = 0) -> EventReader:
    """Steps of half a second of data and the rest forward, from a made clock; `cold` first ones take twice as long."""
    memory = np.zeros(events.num_bytes(1 << 8), dtype=np.uint8)
    log = EventLog(memory)
    times = iter([start_s + step_s * (k // 2 + min(k // 2, cold)) + 0.5 * (k % 2) for k in range(2 * steps + 1)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(events, "perf_counter", lambda: next(times))
        for step in range(first, first + steps):
            log.enter(Phase.DATA, step)
            log.enter(Phase.FORWARD, step)
        log.enter(Phase.DATA, first + steps)
    return EventReader(memory)


def test_steps_count_that_were_whole_and_over_before_the_stop() -> None:
    times, kept = within(ring(8).since(0), 5.5)
    assert times.steps.tolist() == list(range(8))
    assert times.steps[kept].tolist() == [2, 3, 4], "0, 1: left out; 5 was interrupted by the stop"


def test_steps_before_the_slot_do_not_count() -> None:
    times, kept = within(ring(8).since(6), 100.0)
    assert times.steps[kept].tolist() == [5, 6, 7]


def test_timing_warm_up_does_not_count() -> None:
    times, kept = within(ring(16, cold=5).since(0), 100.0)
    assert times.steps[kept].tolist() == list(range(5, 16))
    times, kept = within(ring(16, cold=1).since(0), 100.0)
    assert times.steps[kept].tolist() == list(range(2, 16))


def test_slots_of_a_round_are_one() -> None:
    slots = [
        measured([within(ring(6, step_s).since(0), 1e9), within(ring(6).since(0), 1e9)], 0.1 * step_s)
        for step_s in (1.0, 3.0)
    ]
    found = combined(slots)
    assert (found.step_s, found.num_steps, found.others_frac) == (1.5, 8, 0.2)
    assert found.steps_s == (1.0,) * 4 + (3.0,) * 4
    assert [phases["compute"] for phases in found.phases] == [1.5, 0.5]
    assert np.mean([sum(phases.values()) for phases in found.phases]) == found.step_s


def test_measured_is_the_mean_over_processes() -> None:
    processes = [within(ring(6, step_s).since(0), 1e9) for step_s in (1.0, 3.0)]
    found = measured(processes, 0.125)
    assert (found.step_s, found.num_steps, found.others_frac) == (2.0, 4, 0.125)
    assert found.steps_s == (1.0,) * 4
    assert [phases["data"] for phases in found.phases] == [0.5, 0.5]
    assert [phases["compute"] for phases in found.phases] == [0.5, 2.5]
    assert np.mean([sum(phases.values()) for phases in found.phases]) == found.step_s


class Heard:
    """Stands for a running program, and writes down whose turn it is."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.program = Program(name=name, command=())
        self._order = order

    def slot(self, deal: Deal) -> Slot:
        self._order.append(self.program.name)
        return measured([within(ring(6).since(0), 1e9)], 0.0)


def test_the_order_within_a_turn_is_random_and_repeatable() -> None:
    def order_of(seed: int) -> list[str]:
        order: list[str] = []
        heard = cast("list[Running]", [Heard(name, order) for name in "abcd"])
        deal = Deal(turns=12, seed=seed)
        deal_turns(heard, deal, keep=lambda number, found: None, report=lambda number, left_s: None)
        return ["".join(order[4 * turn : 4 * turn + 4]) for turn in range(12)]

    first = order_of(0)
    assert all(sorted(turn) == [*"abcd"] for turn in first)
    assert len(set(first)) > 4
    assert {turn[0] for turn in first} == {*"abcd"}
    assert order_of(0) == first
    assert order_of(1) != first


def test_a_slot_without_a_whole_step_is_an_error() -> None:
    with pytest.raises(ProgramError, match="no whole step was made in a slot; a longer slot may help"):
        measured([within(ring(6).since(0), 1e9), within(ring(2).since(0), 1e9)], 0.0)


# ---------------------------------------------------------------- processes


@pytest.mark.processes
def test_one_program_at_a_time() -> None:
    programs = [tiny("a"), tiny("b", copies=2), tiny("c")]
    with stage(programs, QUICK, lambda running: None) as started:
        kept: list[tuple[int, tuple[str, ...]]] = []
        begun_s = time.perf_counter()  # they start beside one another
        deal_turns(
            started,
            QUICK,
            keep=lambda number, slots: kept.append((number, tuple(sorted(slots)))),
            report=lambda number, left_s: None,
        )
        seen = sorted(
            (float(time_s), running.program.name)
            for running in started
            for log in running.logs
            for time_s in log.since(0)["time_s"]
            if time_s > begun_s
        )
    assert kept == [(0, ("a", "b", "c")), (1, ("a", "b", "c"))]
    order = [name for name, _ in groupby(name for _, name in seen)]
    assert len(order) <= 2 * 3, order


@pytest.mark.processes
def test_a_slot_holds_what_was_done_in_it() -> None:
    found = deal_all([tiny("a", "--data-s", 0.004, copies=2)], replace(QUICK, slot_steps=4))
    for slot in found["a"]:
        assert slot.num_steps >= 4
        assert len(slot.phases) == 2
        total = np.mean([sum(phases.values()) for phases in slot.phases])
        assert total == pytest.approx(slot.step_s, rel=0.03)
        assert np.mean(slot.steps_s) == pytest.approx(sum(slot.phases[0].values()), rel=0.03)
        assert all(phases["data"] >= 0.004 and phases["compute"] >= 0.002 for phases in slot.phases)
        assert all(
            phases[group] == 0 for phases in slot.phases for group in set(GROUPS) - {"data", "compute", "machinery"}
        )
        assert 0 <= slot.others_frac <= 1


@pytest.mark.processes
def test_a_snapshot_before_a_step_is_not_taken_for_the_step() -> None:
    """It is written down with the number of the step that follows."""
    found = deal_all([tiny("a", "--snapshot-s", 0.03)], Deal(turns=5, slot_s=0.01, slot_steps=1))
    assert all(slot.num_steps >= 1 for slot in found["a"])


@pytest.mark.processes
def test_a_slot_is_kept_where_stopping_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile the program writes over what its ring held of the slot."""
    stop = Running.stop

    def stop_late(running: Running, timeout_s: float = 10.0) -> None:
        time.sleep(0.5)
        stop(running, timeout_s)

    monkeypatch.setattr(Running, "stop", stop_late)
    found = deal_all([tiny("a", "--step-s", 0.0003)], Deal(turns=2, slot_s=0.02, slot_steps=1))
    assert [len(slot.steps_s) < 200 for slot in found["a"]] == [True, True]


@pytest.mark.processes
def test_turns_done_before_are_not_dealt_again() -> None:
    assert len(deal_all([tiny("a")], replace(QUICK, turns=3), done=2)["a"]) == 1


@pytest.mark.processes
def test_a_slower_program_is_found_slower_and_an_equal_one_is_not() -> None:
    programs = [tiny("a", "--step-s", 0.005), tiny("same", "--step-s", 0.005), tiny("slower", "--step-s", 0.01)]
    found = deal_all(programs, Deal(turns=8, slot_s=0.05, slot_steps=8))
    times = {name: [slot.step_s for slot in slots] for name, slots in found.items()}
    assert ratio(times["slower"], times["a"], confidence=0.9999).low > 1
    same = ratio(times["same"], times["a"], confidence=0.9999)
    assert same.low <= 1 <= same.high


@pytest.mark.processes
def test_every_round_has_new_processes() -> None:
    pids: list[int] = []
    kept: list[tuple[int, dict[str, Slot]]] = []
    deal_rounds(
        [tiny("a"), tiny("b", "--child")],
        replace(QUICK, turns=3),
        rounds=4,
        done=1,
        keep=lambda number, slots: kept.append((number, dict(slots))),
        report=lambda number, left_s: None,
        begun=lambda number, running: pids.append(running.leaders[0].pid),
    )
    assert [number for number, _ in kept] == [1, 2, 3]
    assert len(set(pids)) == 2 * 3
    for _, slots in kept:
        assert list(slots) == ["a", "b"]
        assert all(len(slot.steps_s) == slot.num_steps >= 3 for slot in slots.values())


@pytest.mark.processes
def test_what_a_start_deals_to_a_process_is_in_the_interval() -> None:
    """Two equal programs, each as slow as its start decides: while they live they differ, and that is no difference."""
    times: dict[str, list[float]] = {"a": [], "b": []}

    def keep(number: int, slots: Mapping[str, Slot]) -> None:
        for name, slot in slots.items():
            times[name].append(slot.step_s)

    programs = [tiny(name, "--dealt", 1.0) for name in times]
    deal = Deal(turns=2, slot_s=0.02, slot_steps=4)
    deal_rounds(programs, deal, rounds=8, keep=keep, report=lambda number, left_s: None)
    assert max(times["a"]) > 1.1 * min(times["a"]), "a start decides"
    found = ratio(times["a"], times["b"], confidence=0.9999)
    assert found.low <= 1 <= found.high


@pytest.mark.processes
def test_a_program_that_cannot_start() -> None:
    with pytest.raises(ProgramError, match=r"^bad: ended with exit code 3: no such thing$") as caught:
        deal_all([tiny("good", "--child"), tiny("bad", "--die-at", 0, "--say", "no such thing", copies=2)], QUICK)
    assert caught.value.trace in ("", "no such thing\n" * 2), "both copies may have come to say it"
    assert isinstance(caught.value, SamestepError)


@pytest.mark.processes
def test_a_program_that_dies_on_the_way() -> None:
    with pytest.raises(ProgramError, match=r"^bad: ended with exit code 3: two$") as caught:
        deal_all([tiny("bad", "--die-at", 30, "--say", "one\ntwo", "--child")], replace(QUICK, turns=1000))
    assert caught.value.trace == "one\ntwo\n"


@pytest.mark.processes
def test_where_failures_are_heard_the_others_go_on() -> None:
    """One cannot start, one dies on the way, one goes on to the end."""
    heard: list[str] = []
    rounds: list[set[str]] = []
    programs = [tiny("good"), tiny("bad", "--die-at", 0), tiny("dies", "--die-at", 40, "--child")]
    with stage(programs, QUICK, lambda running: None, lambda program, error: heard.append(program.name)) as started:
        assert [running.program.name for running in started] == ["good", "dies"]
        deal_turns(
            started,
            replace(QUICK, turns=20),
            keep=lambda number, slots: rounds.append(set(slots)),
            report=lambda number, left_s: None,
            failed=lambda program, error: heard.append(program.name),
        )
    assert heard == ["bad", "dies"]
    assert rounds[0] == {"good", "dies"}
    assert rounds[-1] == {"good"}
    assert len(rounds) == 20


@pytest.mark.processes
def test_a_program_that_makes_no_step() -> None:
    with pytest.raises(ProgramError, match=r"^bad: did not do its first 5 steps within 0\.3 s$"):
        deal_all([tiny("bad", "--hang-at", 2, "--child")], replace(QUICK, start_timeout_s=0.3))


@pytest.mark.processes
def test_a_program_that_hangs() -> None:
    deal = replace(QUICK, turns=1000, slot_timeout_s=0.5)
    with pytest.raises(ProgramError, match=r"^bad: did \d of the 5 steps of a slot within 0\.5 s$"):
        deal_all([tiny("bad", "--hang-at", 30, "--child")], deal)


@pytest.mark.processes
def test_a_killed_program_is_told_by_its_signal() -> None:
    def kill(running: Running) -> None:
        running.leaders[0].kill()

    with (
        pytest.raises(ProgramError, match=r"^a: ended by signal 9$"),
        stage([tiny("a")], QUICK, kill) as started,
    ):
        deal_turns(started, QUICK, keep=lambda number, slots: None, report=lambda number, left_s: None)


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_a_program_starts_leaves_nothing(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """It comes when there is a process that nobody has written down yet."""
    launch, processes = Running._launch, list[subprocess.Popen[bytes]]()

    def launch_and_stop(running: Running, copy: int) -> subprocess.Popen[bytes]:
        processes.append(launch(running, copy))
        signal.raise_signal(number)
        return processes[-1]

    monkeypatch.setattr(Running, "_launch", launch_and_stop)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stage([tiny("a"), tiny("b")], QUICK, lambda running: None):
        pass
    assert [process.returncode for process in processes] == [-signal.SIGKILL]
    assert signal.getsignal(number) is before


ADOPTING = """
import ctypes, subprocess, sys, time
set_child_subreaper = 36
assert ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0) == 0
subprocess.run(sys.argv[1:])
print("over", flush=True)
time.sleep(600)
"""
"""Whose descendants become its children: like the first process of a container, in the session of what it runs."""


def start_and_await_rounds(command: Command, *words: str, is_adopted: bool) -> tuple[subprocess.Popen[str], int]:
    """A measurement that is on its third round, and the process id of who measures."""
    program = [sys.executable, str(HERE / "controller.py")]
    if is_adopted:
        program = [sys.executable, "-c", ADOPTING, *program]
    process = command.start(*words, program=program)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    for _ in range(3):
        assert process.stdout.readline(), process.communicate()
    assert len(command.processes()) == 2 * 2 + 2 + is_adopted, "two programs with a child each, a guard, ourselves"
    return process, pid


def await_end(command: Command, process: subprocess.Popen[str], timeout_s: float, *, is_adopted: bool) -> None:
    deadline = time.monotonic() + timeout_s
    while set(command.processes()) - ({process.pid} if is_adopted else set()):
        assert time.monotonic() < deadline, "something is left"
        time.sleep(0.02)


@pytest.mark.processes
@pytest.mark.parametrize("is_adopted", [soak(False), True])  # noqa: FBT003 (a case)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, soak(signal.SIGTERM), soak(signal.SIGHUP)])
def test_nothing_is_left_of_a_measurement_that_ends(command: Command, number: signal.Signals, is_adopted: bool) -> None:
    process, pid = start_and_await_rounds(command, is_adopted=is_adopted)
    os.kill(pid, number)
    await_end(command, process, MOST_S, is_adopted=is_adopted)
    assert list((command.folder / "tmp").iterdir()) == []
    command.end_all()
    command.wait(process, MOST_S)


@pytest.mark.processes
def test_without_the_guard_stopped_processes_are_left(command: Command) -> None:
    """The oracle itself."""
    process, pid = start_and_await_rounds(command, "--careless", is_adopted=True)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(AssertionError, match="something is left"):
        await_end(command, process, 1.0, is_adopted=True)
    command.end_all()
    command.wait(process, MOST_S)


def test_the_tiny_program_writes_what_the_engine_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.measure import tiny as program

    written = program.Ring(tmp_path / "0.events")
    times = iter(np.arange(100.0))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(times)))
    for step in range(3):
        written.enter(program.DATA, step)
        written.enter(program.FORWARD, step)
    found = step_times(events.read_file(tmp_path / "0.events").since(0))
    assert found.steps.tolist() == [0, 1]
    assert found.phases_s[:, [Phase.DATA, Phase.FORWARD]].tolist() == [[1.0, 1.0]] * 2
    assert (program.DATA, program.FORWARD, program.BETWEEN) == (Phase.DATA, Phase.FORWARD, Phase.BETWEEN)
