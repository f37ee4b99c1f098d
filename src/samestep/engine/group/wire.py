"""The wire between ranks: parcels go from each to each at the same time, with a deadline, and are counted."""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import Any

import torch

from samestep.engine.group.parcels import Parcel, Route

EARLY = "early "


class PeerLost(Exception):
    """An exchange was not completed.

    Args:
        exchange: Which one, in words.
        peers: Whose parts are missing, as far as this rank can tell.
        cause: What the network's library says.
        waited_s: Since the exchange began.
    """

    def __init__(self, exchange: str, peers: tuple[int, ...], cause: str, waited_s: float) -> None:
        super().__init__(f"{exchange}: rank {', '.join(map(str, peers))}: {cause}")
        self.exchange, self.peers, self.cause, self.waited_s = exchange, peers, cause, waited_s


@dataclass
class Arrivals:
    """How far a rank has come: all come to the same exchanges in the same order, so that their counts can be compared.

    Attributes:
        count: Exchanges that it has come to.
        waits_in: The one in which it waits for others; "" where it works.

    Example:
        >>> arrivals = Arrivals()
        >>> arrivals.come("norms")
        >>> arrivals
        Arrivals(count=1, waits_in='norms')
        >>> arrivals.go()
        >>> arrivals
        Arrivals(count=1, waits_in='')
    """

    count: int = 0
    waits_in: str = ""

    def come(self, name: str) -> None:
        """Here begins the wait in an exchange."""
        self.count += 1
        self.waits_in = name

    def go(self) -> None:
        """It is over; not called where the exchange fails, so that a rank's last word is where it failed."""
        self.waits_in = ""


class Wire:
    """Connections to all other ranks.

    Args:
        group: Sends and receives (see `torch_private.gloo`); None for one rank.
        rank: This rank.
        world_size: How many there are.
        deadline_s: Longest time that one exchange may take.
        arrivals: Told of each exchange.

    Attributes:
        sent: Bytes that this rank has sent, by exchange; `EARLY` and its name: parts of it that went before the rest.
    """

    def __init__(
        self, group: Any, rank: int, world_size: int, deadline_s: float, arrivals: Arrivals | None = None
    ) -> None:
        self._group, self.rank, self.world_size, self.deadline_s = group, rank, world_size, deadline_s
        self.arrivals = arrivals or Arrivals()
        self.peers = tuple(peer for peer in range(world_size) if peer != rank)
        self.sent: Counter[str] = Counter()
        self._open: list[Transfer] = []

    def swap(self, name: str, route: Route) -> None:
        """Send and receive the parcels of a route; a rank without any calls it, too, so that it counts as come.

        Raises:
            PeerLost: A part did not come in time, or a connection broke.
        """
        self.begin(name, [route]).finish()

    def begin(self, name: str, parts: Sequence[Route]) -> Transfer:
        """Be ready to receive the parcels of some routes, which every rank sends one by one, in any order.

        Who is ready before the others send saves them a question. Exchanges of other names may come in between.

        Raises:
            PeerLost: A connection broke.
        """
        transfer = Transfer(self, self._group, name, parts)
        self._open.append(transfer)
        return transfer

    def ended(self, transfer: Transfer) -> None:
        """An exchange is over."""
        self._open.remove(transfer)

    def close(self) -> None:
        """Break the connections, so that nobody waits for this rank any longer: they last as long as what uses them."""
        while self._open:
            self._open.pop().drop()
        self._group = None

    def gather(self, name: str, value: Any) -> list[Any]:
        """What every rank has to say, as plain values; by rank."""
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.world_size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        self.swap(name, self._to_and_from_all(sizes.split(1)))  # type: ignore[no-untyped-call]
        parts = [torch.empty(size, dtype=torch.uint8) for size in sizes.tolist()]
        parts[self.rank] = data
        self.swap(name, self._to_and_from_all(parts))
        return [json.loads(part.numpy().tobytes()) for part in parts]

    def _to_and_from_all(self, parts: Any) -> Route:
        return Route(
            {peer: Parcel([parts[self.rank]]) for peer in self.peers},
            {peer: Parcel([parts[peer]]) for peer in self.peers},
        )


class Transfer:
    """An exchange in parts.

    Args:
        wire: Whose.
        group: Sends and receives.
        name: Of the exchange.
        parts: Parcels to and from others.
    """

    def __init__(self, wire: Wire, group: Any, name: str, parts: Sequence[Route]) -> None:
        self._wire, self._group, self._name, self._parts = wire, group, name, parts
        first = (zlib.crc32(name.encode()) & 0x7FFF) << 16
        self._unsent = dict(enumerate(_tagged([part.outgoing for part in parts], first)))
        self._works: list[tuple[int, Any]] = []
        self._start_s = time.monotonic()
        for peer, parcel, tag in chain.from_iterable(_tagged([part.incoming for part in parts], first)):
            with self._from(peer):
                for number, message in enumerate(parcel.messages, tag):
                    self._works.append((peer, self._group.recv([message], peer, number)))

    def send(self, number: int) -> None:
        """Send a part; what it is made of must not change any more until the exchange is finished.

        Raises:
            PeerLost: A connection broke.
        """
        self._wire.sent[EARLY + self._name] += self._send(number)

    def finish(self) -> None:
        """Send what is left, and wait until all parts have gone and come.

        Raises:
            PeerLost: A part did not come in time, or a connection broke.
        """
        self._start_s = time.monotonic()
        self._wire.arrivals.come(self._name)
        self._wire.sent[self._name] += sum(self._send(number) for number in list(self._unsent))
        for peer, work in self._works:
            left_s = self._wire.deadline_s - (time.monotonic() - self._start_s)
            with self._from(peer):
                work.wait(timedelta(seconds=max(left_s, 0.001)))
        for route in self._parts:
            for parcel in route.incoming.values():
                parcel.open()
        self._wire.ended(self)
        self.drop()
        self._wire.arrivals.go()

    def drop(self) -> None:
        """Let go of the connections; nothing can be sent any more."""
        self._works.clear()
        self._group = None

    def _send(self, number: int) -> int:
        num_bytes = 0
        for peer, parcel, first in self._unsent.pop(number):
            with self._from(peer):
                parcel.close()
                for tag, message in enumerate(parcel.messages, first):
                    self._works.append((peer, self._group.send([message], peer, tag)))
            num_bytes += parcel.num_bytes
        return num_bytes

    @contextmanager
    def _from(self, peer: int) -> Iterator[None]:
        """What goes wrong here is this rank's part of it."""
        try:
            yield
        except RuntimeError as error:
            raise PeerLost(self._name, (peer,), str(error), time.monotonic() - self._start_s) from None


def _tagged(parts: Sequence[Mapping[int, Parcel]], first: int) -> list[list[tuple[int, Parcel, int]]]:
    """By part: peers, their parcels, and the tag of each parcel's first message; those of a peer count from `first`."""
    counts: Counter[int] = Counter()
    found = []
    for parcels in parts:
        found.append([(peer, parcel, first + counts[peer]) for peer, parcel in parcels.items()])
        counts.update({peer: len(parcel.messages) for peer, parcel in parcels.items()})
    return found
