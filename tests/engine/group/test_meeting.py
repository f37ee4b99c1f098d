"""Ranks that meet in a store, as threads of one process."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from samestep import torch_private
from samestep.engine.group import meeting as meetings
from samestep.engine.group import store as stores
from samestep.engine.group.meeting import Meeting
from samestep.engine.group.parcels import Parcel, Route
from samestep.engine.group.place import Place
from samestep.engine.group.wire import PeerLost, Wire
from samestep.errors import Interrupted, ToldElsewhere, UsageError, WorkerError
from tests.engine.group.two import PLACE, connected, together


def test_all_get_the_cards_of_all(both: list[Meeting]) -> None:
    found = together(*(lambda m=m: m.begin(step=m.place.rank, facts={"seed": "0"}) for m in both))
    assert found[0] == found[1]
    assert [(card.rank, card.step) for card in found[0]] == [(0, 0), (1, 1)]


def test_the_first_says_what_differs(both: list[Meeting]) -> None:
    found = together(*(lambda m=m: m.begin(facts={"seed": str(m.place.rank)}) for m in both))
    assert isinstance(found[0], UsageError)
    assert isinstance(found[1], ToldElsewhere)


@pytest.mark.parametrize("troubled", [0, 1])
def test_who_cannot_begin_says_why_and_the_other_ends(both: list[Meeting], troubled: int) -> None:
    calls: list[Callable[[], Any]] = [meeting.begin for meeting in both]
    calls[troubled] = lambda: both[troubled].fail(UsageError("no data"))
    found = together(*calls)
    assert str(found[troubled]).startswith(f"rank {troubled} (")
    assert str(found[troubled]).endswith("): no data")
    assert isinstance(found[1 - troubled], ToldElsewhere)
    assert found[1 - troubled].code == 2


def test_who_is_stopped_before_it_begins_says_so_and_the_other_ends(both: list[Meeting]) -> None:
    found = together(both[0].begin, lambda: both[1].fail(KeyboardInterrupt()))
    assert isinstance(found[0], ToldElsewhere)
    assert isinstance(found[1], Interrupted)
    assert str(found[1]).endswith("): stopped before the first step")


def test_where_both_cannot_begin_one_says_why(both: list[Meeting]) -> None:
    found = together(*(lambda m=m: m.fail(UsageError("no data")) for m in both))
    assert sorted(type(each).__name__ for each in found) == ["ToldElsewhere", "UsageError"]


def test_who_does_not_come_is_named(both: list[Meeting]) -> None:
    both[0].deadline_s = 0.2
    with pytest.raises(WorkerError, match=r"rank 1 did not come within 0\.2 s; here are rank 0"):
        both[0].begin()


def test_a_meeting_of_ranks_that_are_gone_does_not_count(both: list[Meeting]) -> None:
    """torchrun's store keeps what earlier ranks have left in it."""
    together(*(m.begin for m in both))
    again = [Meeting(m.place, m.board.store, 5.0) for m in both]
    old = both[0].name
    late, early = together(again[1].begin, again[0].begin)
    assert again[0].name == again[1].name != old
    assert {card.nonce for card in late} == {card.nonce for card in early} != {card.nonce for card in both[0].cards}


@pytest.mark.parametrize("fails", [False, True])
def test_a_rank_that_cannot_begin_does_not_wait_for_a_slow_one_and_only_one_speaks(
    both: list[Meeting], monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Rank 0 is still busy: rank 1 says why, and whatever rank 0 comes to later, it ends without a word."""
    monkeypatch.setattr(meetings, "_HEARING_S", 0.3)
    monkeypatch.setattr(meetings, "_SPEAKING_S", 0.0)
    both[0].open()
    with pytest.raises(WorkerError, match=r"^rank 1 \(.*, process \d+\) cannot begin: KeyError: 'mine'$") as caught:
        both[1].fail(KeyError("mine"))
    assert "KeyError: 'mine'" in caught.value.trace
    both[1].board.store.wait([f"{both[0].name}/seen/1"], timedelta(seconds=10))  # what is set arrives a moment later
    start = time.monotonic()
    with pytest.raises(ToldElsewhere):
        both[0].fail(UsageError("another reason")) if fails else both[0].begin()
    assert time.monotonic() - start < 3.0


def test_a_failed_meeting_of_this_process_is_over(both: list[Meeting]) -> None:
    together(*(lambda m=m: m.fail(UsageError("no data")) for m in both))
    again = [Meeting(m.place, m.board.store, 5.0) for m in both]

    def late() -> Any:
        time.sleep(0.3)
        return again[0].begin()

    found = together(late, again[1].begin)
    assert [[card.rank for card in each] for each in found] == [[0, 1], [0, 1]]


def test_parcels_are_swapped_and_counted(both: list[Meeting]) -> None:
    wires = connected(both)
    mine = [torch.full((30_000,), float(rank)) for rank in range(2)]
    got = [torch.zeros(30_000) for _ in range(2)]

    def swap(wire: Wire) -> None:
        other = 1 - wire.rank
        wire.swap("test", Route({other: Parcel([mine[wire.rank]])}, {other: Parcel([got[wire.rank]])}))

    assert together(*(lambda w=w: swap(w) for w in wires)) == [None, None]
    assert [float(values.mean()) for values in got] == [1.0, 0.0]
    assert wires[0].sent["test"] == 120_000
    said = together(*(lambda w=w: w.gather("words", ["x" * w.rank, None]) for w in wires))
    assert said == [[["", None], ["x", None]]] * 2


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no such policy")
def test_the_thread_that_takes_what_comes_pushes_nobody_off_a_core(both: list[Meeting]) -> None:
    before = set(_threads())
    wires = connected(both)
    policies = [os.sched_getscheduler(thread) for thread in set(_threads()) - before]
    assert policies.count(os.SCHED_BATCH) >= len(wires) == 2
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_an_exchange_in_parts_that_another_one_comes_between(both: list[Meeting]) -> None:
    """Parts go in any order, one of them early; what is exchanged meanwhile is not taken for any of them."""
    wires = connected(both)
    mine = [[torch.full((70_000,), 10.0 * rank + part) for part in range(3)] for rank in range(2)]
    got = [[torch.zeros(70_000) for _ in range(3)] for _ in range(2)]

    def exchange(wire: Wire) -> Any:
        other = 1 - wire.rank
        parts = [
            Route({other: Parcel([sent])}, {other: Parcel([received])})
            for sent, received in zip(mine[wire.rank], got[wire.rank], strict=True)
        ]
        transfer = wire.begin("test", parts)
        transfer.send(2 if wire.rank else 1)
        said = wire.gather("words", wire.rank)
        transfer.finish()
        return said

    assert together(*(lambda w=w: exchange(w) for w in wires)) == [[0, 1]] * 2
    assert [[float(values.mean()) for values in each] for each in got] == [[10.0, 11.0, 12.0], [0.0, 1.0, 2.0]]
    assert (wires[0].sent["early test"], wires[0].sent["test"]) == (280_000, 560_000)


def test_who_does_not_answer_in_time_is_named(both: list[Meeting]) -> None:
    wires = connected(both)
    wire = Wire(wires[0]._group, 0, 2, deadline_s=0.3)
    with pytest.raises(PeerLost) as caught:
        wire.swap("test", Route({}, {1: Parcel([torch.zeros(8)])}))
    assert (caught.value.peers, caught.value.exchange) == ((1,), "test")
    assert (wire.arrivals.count, wire.arrivals.waits_in) == (1, "test")
    assert 0.2 < caught.value.waited_s < 3.0


@pytest.mark.parametrize("is_ready", [False, True])
def test_who_waits_for_a_rank_that_closes_its_connections_finds_it_out(both: list[Meeting], is_ready: bool) -> None:
    """Also where that one is ready to receive, which keeps its end of the connection."""
    first, second = connected(both)
    parts = [Route({}, {1: Parcel([torch.zeros(8)])})]
    kept = first.begin("test", parts) if is_ready else None

    def close() -> None:
        time.sleep(0.2)
        first.close()

    waiting, _ = together(lambda: second.swap("test", Route({}, {0: Parcel([torch.zeros(8)])})), close)
    assert isinstance(waiting, PeerLost)
    assert waiting.waited_s < 0.5 * second.deadline_s
    assert (kept is None) != is_ready


def test_a_rank_whose_name_means_the_loopback_listens_where_the_others_reach_it(
    both: list[Meeting], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 is elsewhere: rank 0 has the store, and its own name is an address that nobody else can use."""
    found: list[str] = []

    def gloo(store: Any, rank: int, world_size: int, *, address: str, timeout_s: float) -> None:
        found.append(f"{rank} {address} {timeout_s:g}")

    seen = {"127.0.0.1": "127.0.0.1", "192.0.2.2": "192.0.2.1"}
    monkeypatch.setattr(meetings, "own_address", lambda host, port: seen[host])
    monkeypatch.setattr(torch_private, "gloo", gloo)
    together(both[0].begin, lambda: both[1].begin(address="192.0.2.2"))
    assert all(isinstance(wire, Wire) for wire in together(*(m.connect for m in both)))
    assert sorted(found) == ["0 192.0.2.1 1", "1 192.0.2.2 1"]


def test_who_does_not_come_to_connect_is_named(both: list[Meeting]) -> None:
    together(*(m.begin for m in both))
    both[0].deadline_s = 0.2
    with pytest.raises(WorkerError, match=r"^rank 1 \(\S+, process \d+\) did not come to connect within 0\.2 s$"):
        both[0].connect()


def test_a_port_that_is_taken_and_an_address_of_others() -> None:
    with stores.listen("127.0.0.1", 0) as taken, pytest.raises(UsageError, match=r"cannot listen on 127\.0\.0\.1:"):
        stores.listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UsageError, match=r"rank 0 cannot listen on 203\.0\.113\.1:"):
        stores.listen("203.0.113.1", 0)


def test_where_nobody_answers_the_limit_is_that_of_reaching() -> None:
    with stores.listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    place = Place(rank=1, world_size=2, local_rank=0, local_size=1, host="127.0.0.1", port=port, hosts_store=False)
    with pytest.raises(UsageError, match=rf"rank 1: nobody answers at 127\.0\.0\.1:{port} within 0\.3 s \("):
        meetings.connect(place, deadline_s=600.0, reach_s=0.3)


def answering(words: bytes | None) -> Callable[[socket.socket], None]:
    """Another program on the port: it says something and hangs up, or says nothing."""
    kept: list[socket.socket] = []

    def serve(door: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = door.accept()
                kept.append(connection)
                if words is not None:
                    connection.sendall(words)
                    connection.close()
        for each in kept:
            each.close()

    return serve


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (None, r"nobody answers at 127\.0\.0\.1:\d+ within 0\.4 s \(timed out\)"),
        (b"SSH-2.0-OpenSSH\r\n", r"another program answers at 127\.0\.0\.1:\d+;"),
    ],
)
def test_another_program_at_the_address_is_told_in_time_and_in_one_line(
    words: bytes | None, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    door = socket.create_server(("127.0.0.1", 0))
    server = Thread(target=answering(words), args=(door,), daemon=True)
    server.start()
    place = replace(PLACE, rank=1, port=door.getsockname()[1], hosts_store=False)
    start = time.monotonic()
    try:
        with pytest.raises(UsageError, match=f"rank 1: {text}"):
            meetings.connect(place, deadline_s=600.0, reach_s=0.4)
    finally:
        door.shutdown(socket.SHUT_RDWR)
        door.close()
        server.join()
    assert time.monotonic() - start < 5.0
    assert capfd.readouterr().err == ""


def test_the_next_run_of_a_process_meets_in_the_same_store_while_it_is_there() -> None:
    with stores.listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    places = [replace(PLACE, rank=rank, port=port, hosts_store=rank == 0) for rank in range(2)]
    first, second = ([meetings.connect(place, 5.0) for place in places] for _ in range(2))
    assert [m.board.store for m in first] == [m.board.store for m in second]
    for meetings_ in (first, second):
        found = together(*(m.begin for m in meetings_))
        assert found[0] == found[1]


def test_a_part_of_a_store_has_keys_of_its_own(both: list[Meeting]) -> None:
    torch_private.store_below(both[0].board.store, "a").set("key", "1")
    both[1].board.store.wait(["a/key"], timedelta(seconds=10))  # nobody confirms what is set: it arrives a moment later
    assert not both[1].board.check(["key"])


def _threads() -> list[int]:
    """Of this process; what they are called depends on torch's version."""
    return [int(task.name) for task in Path("/proc/self/task").iterdir()]
