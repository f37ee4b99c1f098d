"""The board: a store that does not answer costs a limit once, and nobody hangs."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from threading import Event, Thread
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from samestep.engine.group import beacon, meeting
from samestep.engine.group.board import Board
from samestep.engine.group.cards import Card
from samestep.engine.group.meeting import Meeting
from samestep.engine.group.place import Place
from samestep.errors import WorkerError

CARDS = [Card(rank=rank, nonce="", host="h", pid=1) for rank in range(2)]


IS_OVER = Event()


@pytest.fixture(autouse=True)
def nobody_waits_any_longer() -> Iterator[None]:
    """The threads that asked in vain end with the test."""
    IS_OVER.clear()
    yield
    IS_OVER.set()


class CutOff:
    """A store behind a connection on which nothing comes any more."""

    def _never(self, *_: Any) -> Any:
        IS_OVER.wait()

    set = get = check = add = _never


class Gone:
    """A store whose connection is closed."""

    def check(self, keys: list[str]) -> bool:
        raise RuntimeError("Connection reset by peer")


def test_who_gets_no_answer_gives_up_and_asks_no_more() -> None:
    board = Board(CutOff(), limit_s=0.2)
    with pytest.raises(RuntimeError, match=r"the store did not answer within 0\.2 s"):
        board.set("key", "value")
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="the store does not answer"):
        board.check(["key"])
    assert time.monotonic() - start < 0.1


def test_what_the_store_raises_is_raised() -> None:
    with pytest.raises(RuntimeError, match="Connection reset by peer"):
        Board(Gone(), limit_s=5.0).check(["key"])


def test_signs_are_none_where_the_store_is_cut_off() -> None:
    assert beacon.look(Board(CutOff(), limit_s=0.2), "name", CARDS) is None


@pytest.mark.parametrize("rank", [0, 1])
def test_a_meeting_does_not_begin_and_one_line_says_so(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_STORE_TIMEOUT_S", 0.2)
    place = Place(rank=rank, world_size=2, local_rank=0, local_size=1, host="a", port=1, hosts_store=False)
    with pytest.raises(WorkerError, match=r"the store at a:1 is gone \(the store did not answer"):
        Meeting(place, CutOff(), deadline_s=30.0).begin()


ASKING = """
import sys
from datetime import timedelta
from torch.distributed import TCPStore
from samestep.engine.group.board import Board

store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, timeout=timedelta(seconds=20), wait_for_workers=False)
board = Board(store, limit_s=10.0)
board.set("key", "value")
assert board.get("key") == b"value"
print("connected", flush=True)
sys.stdin.readline()
try:
    Board(store, limit_s=0.3).check(["key"])
except RuntimeError as error:
    sys.exit(str(error))
"""


class Cable:
    """Between a store and who asks it; nothing arrives any more once it is cut, and no end is closed."""

    def __init__(self, port: int) -> None:
        self.is_cut = Event()
        self._port, self._ends = port, list[socket.socket]()
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        Thread(target=self._join, daemon=True).start()

    def close(self) -> None:
        for end in (self._door, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _join(self) -> None:
        with suppress(OSError):
            while True:
                asking, _ = self._door.accept()
                store = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [asking, store]
                for source, target in ((asking, store), (store, asking)):
                    Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                if not self.is_cut.is_set():
                    target.sendall(data)


@pytest.mark.processes
def test_a_process_ends_while_its_question_still_hangs() -> None:
    """Neither the thread that was left behind nor the store's own end holds it."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    cable = Cable(store.port)
    words = [sys.executable, "-c", ASKING, str(cable.port)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "connected\n"
            cable.is_cut.set()
            _, err = process.communicate("\n", timeout=15)
        finally:
            process.kill()
            cable.close()
    assert (process.returncode, err) == (1, "the store did not answer within 0.3 s\n")
