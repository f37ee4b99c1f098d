"""The wire between ranks: parcels go from each to each at the same time, with a deadline, and are counted."""

from __future__ import annotations

import json
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import torch

from samestep.engine.group.parcels import Parcel, Route


class PeerLost(Exception):
    """An exchange was not completed.

    Args:
        exchange: Which one, in words.
        peer: Whose part is missing, as far as this rank can tell.
        cause: What the network's library says.
        waited_s: Since the exchange began.
    """

    def __init__(self, exchange: str, peer: int, cause: str, waited_s: float) -> None:
        super().__init__(f"{exchange}: rank {peer}: {cause}")
        self.exchange, self.peer, self.cause, self.waited_s = exchange, peer, cause, waited_s


class Wire:
    """Connections to all other ranks.

    Args:
        group: Sends and receives (see `torch_private.gloo`); None for one rank.
        rank: This rank.
        world_size: How many there are.
        deadline_s: Longest time that one exchange may take.

    Attributes:
        sent: Bytes that this rank has sent, by exchange.
    """

    def __init__(self, group: Any, rank: int, world_size: int, deadline_s: float) -> None:
        self._group, self.rank, self.world_size, self._deadline_s = group, rank, world_size, deadline_s
        self.peers = tuple(peer for peer in range(world_size) if peer != rank)
        self.sent: Counter[str] = Counter()

    def swap(self, name: str, route: Route) -> None:
        """Send and receive the parcels of a route.

        Raises:
            PeerLost: A part did not come in time, or a connection broke.
        """
        start = time.monotonic()
        works: list[tuple[int, Any]] = []
        waited_for = self.rank
        try:
            for peer, parcel in route.incoming.items():
                waited_for = peer
                works += [(peer, self._group.recv([m], peer, tag)) for tag, m in enumerate(parcel.messages)]
            for peer, parcel in route.outgoing.items():
                waited_for = peer
                parcel.close()
                works += [(peer, self._group.send([m], peer, tag)) for tag, m in enumerate(parcel.messages)]
                self.sent[name] += parcel.num_bytes
            for waited_for, work in works:  # noqa: B007
                left_s = self._deadline_s - (time.monotonic() - start)
                work.wait(timedelta(seconds=max(left_s, 0.001)))
        except RuntimeError as error:
            raise PeerLost(name, waited_for, str(error), time.monotonic() - start) from None
        for parcel in route.incoming.values():
            parcel.open()

    def close(self) -> None:
        """Break the connections, so that nobody waits for this rank any longer."""
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
