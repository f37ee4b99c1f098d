"""The ranks' store, reached: rank 0 is its host, or torchrun's agent; who cannot reach it in time says why in one line.

Torch's own client hangs where another program answers, and prints frames of C++ where nobody does. So a plain
connection asks first, for as long as there is time, and the client comes only where a store answers.
"""

from __future__ import annotations

import os
import socket
import time
from datetime import timedelta
from functools import partial
from typing import Any

from torch import distributed

from samestep import torch_private
from samestep.engine.group.board import Board
from samestep.engine.group.place import Place
from samestep.errors import UsageError
from samestep.host.limited import within

_ATTEMPT_S = 5.0
"""Longest wait for one answer: the machine may come up meanwhile, and the kernel asks ever more rarely."""
_PAUSE_S = 0.1
_OTHER = "another program answers at {}"

_KEPT: dict[tuple[str, int, bool], Any] = {}
"""Stores at addresses that were named to this process: its next run meets in the same one, for the port is taken."""


def reach(place: Place, limit_s: float, answer_s: float, listening: socket.socket | None = None) -> Any:
    """The store of the ranks; its host listens on the address that was named and on no other.

    Args:
        place: Where this process stands.
        limit_s: How long to try.
        answer_s: Longest wait for the answer to a single question, later.
        listening: Of the host: the socket, where it has one.

    Raises:
        UsageError: The address is not this machine's, the port is taken, or no store answers there.
    """
    key = (place.host, place.port, place.hosts_store)
    kept = _KEPT.get(key) if listening is None else None
    if kept is not None and _answers(kept, answer_s):
        return kept
    until = time.monotonic() + limit_s
    if place.hosts_store:
        handle = (listening or listen(place.host, place.port)).detach()
    else:
        handle = None
        _await_store(place, limit_s)
    left_s = max(until - time.monotonic(), 1.0)

    def client() -> Any:
        return distributed.TCPStore(  # type: ignore[attr-defined]
            place.host,
            place.port,
            is_master=place.hosts_store,
            timeout=timedelta(seconds=left_s),
            wait_for_workers=False,
            master_listen_fd=handle,
            multi_tenant=place.hosts_store and listening is None,  # torch's default group may come to the same port
        )

    try:
        store = within(client, left_s)
    except (distributed.DistError, RuntimeError, TimeoutError) as error:
        raise _unreached(place, limit_s, str(error).splitlines()[0] if str(error) else "timed out") from None
    store.set_timeout(timedelta(seconds=answer_s))
    if listening is None:
        _KEPT[key] = store
    return store


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on one address.

    Raises:
        UsageError: It cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        # create_server's own words repeat the address
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise UsageError(
            f"rank 0 cannot listen on {host}:{port} ({reason}); name an address of this machine and a free port"
        ) from None


def _answers(store: Any, answer_s: float) -> bool:
    """Whether a store that was reached before is still there."""
    try:
        Board(store, answer_s).check(["samestep"])
    except RuntimeError:
        return False
    return True


def _await_store(place: Place, limit_s: float) -> None:
    """Until a store answers; looking a name up may take long, too, so that a thread of its own does each attempt."""
    until = time.monotonic() + limit_s
    cause = "timed out"
    while (left_s := until - time.monotonic()) > 0:
        attempt_s = min(left_s, _ATTEMPT_S)
        try:
            if within(partial(_is_store, place, attempt_s), attempt_s):
                return
            cause = _OTHER
        except TimeoutError:
            cause = "timed out"
        except OSError as error:
            cause = error.strerror or str(error)
        time.sleep(min(_PAUSE_S, max(until - time.monotonic(), 0.0)))
    raise _unreached(place, limit_s, cause)


def _is_store(place: Place, limit_s: float) -> bool:
    with socket.create_connection((place.host, place.port), timeout=limit_s) as connection:
        return torch_private.is_store(connection)


def _unreached(place: Place, limit_s: float, cause: str) -> UsageError:
    where = f"{place.host}:{place.port}"
    head = _OTHER.format(where) if cause == _OTHER else f"nobody answers at {where} within {limit_s:g} s ({cause})"
    return UsageError(f"rank {place.rank}: {head}; is this the address of the machine with rank 0, and the port open?")
