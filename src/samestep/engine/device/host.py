"""The CPU: everything is where it is, and done when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from samestep.data.columns import Batch
from samestep.engine import memory as memories
from samestep.engine.device.seam import CannotCapture, Kind, Passed
from samestep.plan.regions import Regions


class Host:
    """See `seam.Device`."""

    kind: Kind = "cpu"
    is_host = True
    where = torch.device("cpu")
    generators: Sequence[torch.Generator] = (torch.default_generator,)
    name = "the CPU"

    def settled(self) -> AbstractContextManager[None]:
        return nullcontext()

    def numerics(self) -> dict[str, Any]:
        return {"device": "cpu"}

    def memory(self, regions: Regions) -> Mapping[str, Tensor]:
        return memories.private(regions.num_bytes).tensors(regions)

    def autocast(self, *, enabled: bool) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)

    def staged(self, batch: Batch) -> Batch:
        return batch

    def ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return batches

    def placed(self, batch: Batch) -> Batch:
        return batch

    def capture(self, restart: Callable[[], None], run: Callable[[], Passed]) -> tuple[Passed, Callable[[], None]]:
        raise CannotCapture("a CPU has no graphs")

    def free_bytes(self) -> int:
        return 0

    def peak_bytes(self) -> int | None:
        return None

    def release(self) -> None:
        pass

    def synchronise(self) -> None:
        pass

    def holds(self, values: Tensor) -> bool:
        return False
