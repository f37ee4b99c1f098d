"""Which device: by its kind, and on machines with several by the rank's number there."""

from __future__ import annotations

import os

from samestep.engine.device.host import Host
from samestep.engine.device.seam import Device, Kind
from samestep.engine.device.twin import Twin


def open_device(kind: Kind, number: int | None = None) -> Device:
    """The device of a rank.

    Args:
        kind: Which.
        number: Of those that the machine has; default: what torchrun has written into the environment, or the first.

    Raises:
        UsageError: There is none.
    """
    if kind == "cpu":
        return Host()
    if kind == "twin":
        return Twin()
    from samestep.engine.device import cuda  # noqa: PLC0415 (only where there is one)

    local_rank = os.environ.get("LOCAL_RANK", "")
    return cuda.open_gpu(int(local_rank) if number is None and local_rank.isdecimal() else number or 0)
