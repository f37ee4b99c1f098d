"""A GPU's twin on the CPU: it runs the code that a GPU needs, for tests and for who changes that code.

Batches are copied, graphs are recorded and played back by computing again, and what would make a GPU wait inside of a
graph is refused, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from samestep.data.columns import Batch
from samestep.engine.device.host import Host
from samestep.engine.device.seam import CannotCapture, Kind, Passed, laid_out, mapped, one_ahead
from samestep.plan.regions import Regions

_WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
"""Operations whose result the host has to know."""


class Twin(Host):
    """See `seam.Device`.

    Args:
        free_bytes: Memory that it says is left; default: the machine's.
    """

    kind: Kind = "twin"
    is_host = False
    name = "a GPU's twin on the CPU"

    def __init__(self, free_bytes: int | None = None) -> None:
        self._free_bytes = free_bytes
        self._room: Tensor | None = None

    def numerics(self) -> dict[str, Any]:
        return {"device": "twin"}

    def memory(self, regions: Regions) -> Mapping[str, Tensor]:
        found, self._room = laid_out(regions, self.where)
        return found

    def ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return one_ahead(batches, self.placed, lambda batch: batch)

    def placed(self, batch: Batch) -> Batch:
        return mapped(batch, lambda values: values.clone(memory_format=torch.preserve_format))

    def capture(self, restart: Callable[[], None], run: Callable[[], Passed]) -> tuple[Passed, Callable[[], None]]:
        restart()
        with _NoWaiting():  # type: ignore[no-untyped-call]
            found = run()

        def replay() -> None:
            again = run()
            _write(found.total, again.total)
            _write(found.weight, again.weight)
            for target, source in zip(found.gradients, again.gradients, strict=True):
                _write(target, source)

        return found, replay

    def free_bytes(self) -> int:
        return int(psutil.virtual_memory().available) if self._free_bytes is None else self._free_bytes

    def holds(self, values: Tensor) -> bool:
        room = self._room
        return room is not None and values.untyped_storage().data_ptr() == room.untyped_storage().data_ptr()


class _NoWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what a graph cannot hold."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().partition(".")[0] in _WAITS:
            raise CannotCapture(f"it waits for a result ({func.name()})")
        return func(*args, **(kwargs or {}))


def _write(target: Any, source: Any) -> None:
    if isinstance(target, Tensor):
        target.copy_(source.detach())
