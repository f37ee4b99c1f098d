"""Sums of microbatches, written into the table as soon as they are known: at once, or when a device has all."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samestep.engine.device.seam import Number
from samestep.plan.batch import Microbatch


class LateSums:
    """Fills the table of sums (columns: loss, weight, samples).

    Args:
        table: Shape (microbatches, 3).
        is_late: Whether to read a number is to wait for the device, so that all are read together.
    """

    def __init__(self, table: NDArray[np.float64], *, is_late: bool) -> None:
        self._table, self._is_late = table, is_late
        self._waiting: list[tuple[int, int, Tensor]] = []

    def put(self, microbatch: Microbatch, sums: tuple[Number, Number]) -> None:
        """What a microbatch gave: the sum of its losses, and their weight."""
        if not self._is_late:
            loss, weight = sums
            self._table[microbatch.index] = float(loss), float(weight), microbatch.num_samples
            return
        row = self._table[microbatch.index]
        row[2] = microbatch.num_samples
        for column, value in enumerate(sums):
            if isinstance(value, Tensor):
                self._waiting.append((microbatch.index, column, value.detach().reshape(())))
            else:
                row[column] = float(value)

    def settle(self) -> None:
        """Have all of them in the table."""
        if self._waiting:
            values = torch.stack([value.double() for _, _, value in self._waiting]).tolist()
            for (index, column, _), value in zip(self._waiting, values, strict=True):
                self._table[index, column] = value
            self._waiting.clear()
