"""How ranks meet: in torch's store, where each leaves a card; who does not come is named when the time is over.

The store may hold what earlier ranks have left there: torchrun keeps it when it starts ranks again. So rank 0 opens a
meeting under a name drawn anew, and a meeting counts for a rank only where its own card is among those that rank 0 has
gathered.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn

from torch import distributed

from samestep import torch_private
from samestep.engine.group import cards
from samestep.engine.group import store as stores
from samestep.engine.group.board import Board
from samestep.engine.group.cards import Card
from samestep.engine.group.place import Place
from samestep.engine.group.wire import Arrivals, Wire
from samestep.errors import Interrupted, SamestepError, ToldElsewhere, UsageError, WorkerError
from samestep.host.scheduling import waking_politely

_TICK_S = 0.02
_STORE_TIMEOUT_S = 10.0
"""For a single question to the store; never longer than for the others."""
_HEARING_S = 10.0
"""How long a rank that cannot begin waits for the cards of those before it, which may have to speak in its place."""
_SPEAKING_S = 1.0
_CONNECTING_S = 60.0
"""Longest time for connections between ranks that are all there."""
_OPEN = "samestep/open"
_PAST: set[tuple[int, str]] = set()
"""Meetings that ranks of this process have been in: the next run's must not be taken for one that has failed."""


class Meeting:
    """One rank's part in a meeting.

    Args:
        place: Where it stands.
        store: The store; see `connect`.
        deadline_s: How long to wait for the others.

    Attributes:
        board: The store, asked with a limit.
        name: Of this meeting, once it is open.
        is_settled: Whether it has begun or failed; who waits for it, or waits no more, knows all from then on.
        cards: Of all ranks, once they have met.
        check: Called while waiting; raises where it is in vain.
    """

    def __init__(self, place: Place, store: Any, deadline_s: float) -> None:
        self.place, self.deadline_s = place, deadline_s
        self.board = Board(store, min(_STORE_TIMEOUT_S, deadline_s))
        self.name = ""
        self.is_settled = False
        self.cards: list[Card] = []
        self.check: Callable[[], None] = lambda: None
        self._own = Card(
            rank=place.rank,
            nonce=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            first=place.first,
        )

    def begin(self, **said: Any) -> list[Card]:
        """Leave a card, and gather those of all.

        Args:
            said: Fields of `Card`.

        Raises:
            UsageError: Two ranks do not agree; on the first rank.
            WorkerError: A rank did not come in time.
            ToldElsewhere: Another rank says why the run cannot begin.
        """
        self.is_settled = True
        with suppress(OSError):  # the name of a store that is reached otherwise may mean nothing here
            self._own = replace(self._own, address=own_address(self.place.host, self.place.port))
        self._own = replace(self._own, **said)
        try:
            self.cards = self._open() if self.place.rank == 0 else self._join()
            _PAST.add((self.place.rank, self.name))
        except SamestepError:
            raise
        except (distributed.DistStoreError, RuntimeError) as error:
            raise self._lost_store(error) from None
        troubled = cards.first_error(self.cards)
        if troubled is not None:
            if self.place.rank == 0:
                self._stay(_HEARING_S)
            self._leave()
        text = cards.difference(self.cards)
        if text is not None:
            self._say(UsageError(text))
        return self.cards

    def open(self) -> None:
        """Rank 0: name the meeting, so that who cannot come finds it before it begins."""
        self.name = f"samestep/{secrets.token_hex(8)}"
        self.board.set(_OPEN, self.name)

    def fail(self, error: Exception | SystemExit | KeyboardInterrupt) -> NoReturn:
        """This rank cannot begin: the first of all that cannot says why, the others end, too.

        Raises:
            SamestepError: The error with the name of this rank; of another kind of error a WorkerError with its trace.
            ToldElsewhere: Another rank says why.
        """
        self.is_settled = True
        own = _named(self._own.name, error)
        self._own = replace(self._own, error=str(own))
        try:
            may_speak = self._may_speak()
            _PAST.add((self.place.rank, self.name))
        except (distributed.DistStoreError, RuntimeError):
            may_speak = True
        if may_speak:
            raise own
        self._leave()

    def _may_speak(self) -> bool:
        """Whether this rank is the first that cannot begin; a rank that has waited for rank 0 in vain speaks, too."""
        is_told = self.place.rank == 0 and bool(self.name) and self.board.check([f"{self.name}/told"])
        self._hear(_HEARING_S)
        if is_told:
            return False
        first = cards.first_error(self.cards)
        if first is not None:
            return first.rank == self.place.rank
        if self.name:
            self.board.set(f"{self.name}/told", "")
            self.board.set(f"{self.name}/seen/{self.place.rank}", "")  # nobody waits for it
        return True

    def connect(self, arrivals: Arrivals | None = None) -> Wire:
        """Connections to all other ranks.

        Args:
            arrivals: Told of each exchange.

        Raises:
            WorkerError: They cannot be reached.
        """
        place = self.place
        if place.world_size == 1:
            return Wire(None, 0, 1, self.deadline_s, arrivals)
        try:
            self._wait_for_all()
        except SamestepError:
            raise
        except (distributed.DistStoreError, RuntimeError) as error:
            raise self._lost_store(error) from None
        store = torch_private.store_below(self.board.store, f"{self.name}/gloo")
        address = self._address()
        # All are there, so that it need not wait for them; it tries five times.
        timeout_s = max(min(self.deadline_s, _CONNECTING_S) / 5, 1.0)
        try:
            # Gloo's thread takes what comes. Woken on the core of a thread that is sending, it would push that one off
            # and then spin for its lock until the scheduler's next tick: milliseconds in every step.
            with waking_politely():
                group = torch_private.gloo(store, place.rank, place.world_size, address=address, timeout_s=timeout_s)
        except RuntimeError as error:
            raise WorkerError(
                f"{self._own.name} listens on {address} and cannot connect to all other ranks: {_first_line(error)}. "
                "Every rank must be able to open connections to every other one, on any port"
            ) from None
        return Wire(group, place.rank, place.world_size, self.deadline_s, arrivals)

    def _wait_for_all(self) -> None:
        """Until all ranks are about to connect."""
        until = time.monotonic() + self.deadline_s
        self.board.set(self._ready(self.place.rank), "")
        others = [rank for rank in range(self.place.world_size) if rank != self.place.rank]
        while not self.board.check([self._ready(rank) for rank in others]):
            self.check()
            if time.monotonic() > until:
                missing = [card.name for card in self.cards if not self.board.check([self._ready(card.rank)])]
                raise WorkerError(f"{' and '.join(missing)} did not come to connect within {self.deadline_s:g} s")
            time.sleep(_TICK_S)

    def _address(self) -> str:
        """By which the others reach this rank."""
        other = cards.towards(self._own, self.cards)
        return self._own.address if other is None else own_address(other, self.place.port)

    def _ready(self, rank: int) -> str:
        return f"{self.name}/ready/{rank}"

    def _open(self) -> list[Card]:
        if not self.name:
            self.open()
        found = self._gathered(self.deadline_s)
        if cards.first_error(found) is None and len(found) < self.place.world_size:
            raise self._missing(found)
        self.board.set(f"{self.name}/all", cards.as_text(found))
        return found

    def _gathered(self, deadline_s: float) -> list[Card]:
        """Rank 0: the cards that come in time; a rank that cannot begin ends the wait."""
        until = time.monotonic() + deadline_s
        found = {0: self._own}
        while len(found) < self.place.world_size and time.monotonic() < until:
            for rank in range(1, self.place.world_size):
                if rank not in found and self.board.check([self._key(rank)]):
                    found[rank] = cards.from_text(self.board.get(self._key(rank)).decode())[0]
            if cards.first_error([*found.values()]) is not None:
                break
            self.check()
            time.sleep(_TICK_S)
        return [found[rank] for rank in sorted(found)]

    def _join(self) -> list[Card]:
        until = time.monotonic() + self.deadline_s
        while time.monotonic() < until:
            found = self._look()
            if found is not None:
                return found
            time.sleep(_TICK_S)
        raise self._missing([self._own])

    def _look(self) -> list[Card] | None:
        """Other ranks: leave a card in the newest meeting, and see whether it has begun."""
        if not self.board.check([_OPEN]):
            return None
        name = self.board.get(_OPEN).decode()
        if (self.place.rank, name) in _PAST:
            return None
        if name != self.name:
            self.name = name
            self.board.set(self._key(self.place.rank), cards.as_text([self._own]))
        if not self.board.check([f"{name}/all"]):
            return None
        found = cards.from_text(self.board.get(f"{name}/all").decode())
        self.board.set(f"{name}/seen/{self.place.rank}", "")
        is_stale = all(card.nonce != self._own.nonce for card in found) and cards.first_error(found) is None
        return None if is_stale else found

    def _hear(self, limit_s: float) -> None:
        if self.place.rank == 0:
            if not self.name:
                self.open()
            self.board.set(f"{self.name}/all", cards.as_text([self._own]))
            self.cards = [self._own]
            self._stay(limit_s)
            return
        until = time.monotonic() + limit_s
        while time.monotonic() < until and not self.cards:
            self.cards = self._look() or []
            time.sleep(_TICK_S)

    def _say(self, error: SamestepError) -> NoReturn:
        """All ranks know: the first says it, and the others leave it the time to."""
        if self.place.rank == 0:
            self._stay(_HEARING_S)
            raise error
        self._leave()

    def _stay(self, limit_s: float) -> None:
        """The store ends with its host: that one waits until the others have read what is in it."""
        until = time.monotonic() + limit_s
        keys = [f"{self.name}/seen/{rank}" for rank in range(1, self.place.world_size)]
        while time.monotonic() < until and not all(self.board.check([key]) for key in keys):
            time.sleep(_TICK_S)

    def _leave(self) -> NoReturn:
        """Another rank speaks; torchrun ends all as soon as one has ended, so it gets the time to."""
        time.sleep(_SPEAKING_S)
        raise ToldElsewhere(2)

    def _key(self, rank: int) -> str:
        return f"{self.name}/card/{rank}"

    def _missing(self, found: list[Card]) -> WorkerError:
        if self.place.rank:
            return WorkerError(f"{self._own.name} waited {self.deadline_s:g} s for rank 0 to begin the run")
        there = {card.rank for card in found}
        missing = ", ".join(str(rank) for rank in range(self.place.world_size) if rank not in there)
        return WorkerError(
            f"rank {missing} did not come within {self.deadline_s:g} s; here are {', '.join(c.name for c in found)}"
        )

    def _lost_store(self, error: Exception) -> WorkerError:
        where = f"{self.place.host}:{self.place.port}"
        return WorkerError(f"{self._own.name}: the store at {where} is gone ({_first_line(error)})")


def connect(
    place: Place, deadline_s: float, listening: socket.socket | None = None, *, reach_s: float | None = None
) -> Meeting:
    """Reach the store, or be its host.

    Where these ranks have torch's default process group already, its store is there (and the port taken): a part of it.

    Args:
        place: Where this process stands.
        deadline_s: How long to wait for others in the meeting.
        listening: Of the host: the socket, where it has one.
        reach_s: How long to try to reach the store; as long as for others, where it is not given.

    Raises:
        UsageError: The address is not this machine's, the port is taken, or nobody answers there.
    """
    if listening is None and _are_grouped(place):
        return Meeting(place, torch_private.store_below(torch_private.default_store(), "samestep"), deadline_s)
    reach_s = deadline_s if reach_s is None else reach_s
    return Meeting(place, stores.reach(place, reach_s, min(_STORE_TIMEOUT_S, deadline_s), listening), deadline_s)


def _are_grouped(place: Place) -> bool:
    """Whether torch's default process group is of these ranks."""
    if torch_private.default_store() is None:
        return False
    return (distributed.get_rank(), distributed.get_world_size()) == (place.rank, place.world_size)


def own_address(host: str, port: int) -> str:
    """This machine's address on the way to another one, or to where the ranks meet."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # nothing is sent
        return str(probe.getsockname()[0])


def _named(name: str, error: Exception | SystemExit | KeyboardInterrupt) -> SamestepError:
    """What went wrong, and where: our own kinds of errors stay what they are."""
    if isinstance(error, SamestepError):
        error.args = (f"{name}: {error}", *error.args[1:])
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(f"{name}: stopped before the first step", signal.SIGINT)
    text = f"{name} cannot begin: {type(error).__name__}: {_first_line(error)}"
    found = WorkerError(text, "".join(traceback.format_exception(error)))
    found.__cause__ = error
    return found


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
