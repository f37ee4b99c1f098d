"""The ring of events: order, overwriting, reading while it is written."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import torch

from samestep.engine import events
from samestep.engine.events import EventLog, EventReader, Phase, Trace


def ring(capacity: int) -> tuple[EventLog, EventReader]:
    buffer = bytearray(events.num_bytes(capacity))
    return EventLog(buffer), EventReader(np.frombuffer(buffer, dtype=np.uint8))


def test_events_come_back_in_order() -> None:
    log, reader = ring(8)
    assert reader.last() is None
    assert len(reader.since(0)) == 0
    for step, phase in enumerate((Phase.START, Phase.FORWARD, Phase.BARRIER_UPDATE)):
        log.enter(phase, step)
    found = reader.since(0)
    assert found["phase"].tolist() == [Phase.START, Phase.FORWARD, Phase.BARRIER_UPDATE]
    assert found["step"].tolist() == [0, 1, 2]
    assert bool((np.diff(found["time_s"]) >= 0).all())
    assert reader.last() == (Phase.BARRIER_UPDATE, 2)


def test_the_oldest_events_are_overwritten() -> None:
    log, reader = ring(4)
    for step in range(10):
        log.enter(Phase.FORWARD, step)
    assert reader.count == 10
    found = reader.since(0)["step"].tolist()
    assert found == [7, 8, 9], "the oldest one of a full ring may be about to be overwritten"
    assert reader.since(9)["step"].tolist() == [9]


def test_steps_of_long_runs_fit() -> None:
    log, reader = ring(2)
    log.enter(Phase.SNAPSHOT, 1 << 40)
    assert reader.last() == (Phase.SNAPSHOT, 1 << 40)


def test_a_log_goes_on_where_another_ended() -> None:
    buffer = bytearray(events.num_bytes(8))
    EventLog(buffer).enter(Phase.FORWARD, 1)
    EventLog(buffer).enter(Phase.BACKWARD, 1)
    assert EventReader(np.frombuffer(buffer, dtype=np.uint8)).count == 2


def test_a_ring_in_a_file_is_taken_up_by_the_next_writer(tmp_path: Path) -> None:
    trace = Trace(tmp_path, 4, prefix="a-")
    rings = torch.zeros(0)
    assert events.open_reader(trace, rings, 1) is None
    events.open_log(trace, rings, 1).enter(Phase.UPDATE, 5)
    events.open_log(trace, rings, 1).enter(Phase.BETWEEN, 5)
    reader = events.open_reader(trace, rings, 1)
    assert reader is not None
    assert reader.since(0)["phase"].tolist() == [Phase.UPDATE, Phase.BETWEEN]
    assert events.read_file(tmp_path / "a-1.events").last() == (Phase.BETWEEN, 5)


def test_without_a_trace_a_rank_has_a_row_of_the_runs_memory() -> None:
    rings = torch.zeros(2, events.num_bytes(4), dtype=torch.uint8)
    events.open_log(None, rings, 1).enter(Phase.UPDATE, 5)
    first, second = (events.open_reader(None, rings, rank) for rank in range(2))
    assert first is not None
    assert second is not None
    assert (first.last(), second.last()) == (None, (Phase.UPDATE, 5))


def test_no_torn_event_is_read() -> None:
    log, reader = ring(64)
    is_over = threading.Event()

    def write() -> None:
        step = 0
        while not is_over.is_set():
            log.enter(Phase(step % len(Phase)), step)
            step += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(2000):
            found = reader.since(0)
            assert found["phase"].tolist() == [step % len(Phase) for step in found["step"].tolist()]
            assert bool((np.diff(found["step"]) == 1).all())
    finally:
        is_over.set()
        thread.join()


def test_every_phase_has_a_text_and_fits() -> None:
    assert len({phase.text for phase in Phase}) == len(Phase) <= 16
