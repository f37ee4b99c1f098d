"""Two ranks at one store, as threads of one process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from samestep.engine.group.meeting import Meeting
from samestep.engine.group.place import Place
from samestep.engine.group.wire import Wire

PLACE = Place(rank=0, world_size=2, local_rank=0, local_size=2, host="127.0.0.1", port=0, hosts_store=True)


def together(*functions: Callable[[], Any]) -> list[Any]:
    """What each returns, or raises."""

    def caught(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(caught, functions))


def connected(both: list[Meeting]) -> list[Wire]:
    together(*(m.begin for m in both))
    found = together(*(m.connect for m in both))
    assert all(isinstance(wire, Wire) for wire in found), found
    return found
