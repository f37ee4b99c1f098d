"""The board: a store that does not answer costs a limit once, and nobody hangs."""

from __future__ import annotations

import time
from threading import Event
from typing import Any

import pytest

from samestep.engine.group import beacon, meeting
from samestep.engine.group.board import Board
from samestep.engine.group.cards import Card
from samestep.engine.group.meeting import Meeting
from samestep.engine.group.place import Place
from samestep.errors import WorkerError

CARDS = [Card(rank=rank, nonce="", host="h", pid=1) for rank in range(2)]


class CutOff:
    """A store behind a connection on which nothing comes any more."""

    def _never(self, *_: Any) -> Any:
        Event().wait()

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
