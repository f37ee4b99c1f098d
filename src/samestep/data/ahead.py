"""Reading ahead: the system is told which rows of mapped columns are needed next, and which no longer.

The system reads them while the network computes, so no thread of ours waits for a disk; and what lies behind is let go,
so the resident memory stays within a few groups of blocks however large the data are.
"""

from __future__ import annotations

from collections.abc import Sequence

from samestep.data.columns import Rows, Stretches, Windows
from samestep.data.pack.mapped import Mapped
from samestep.plan.order import Order


class ReadAhead:
    """Follows an epoch, one group of blocks ahead.

    Args:
        columns: What is read; of those whose values are mapped the system is told.
        order: The order in which it is.
    """

    def __init__(self, columns: Sequence[Rows | Windows | Stretches], order: Order) -> None:
        self._columns, self._order = columns, order
        self._epoch, self._start, self._stop = -1, 0, 0
        self._spans: list[tuple[int, int]] = []

    def at(self, epoch: int, position: int) -> None:
        """The samples at a position are about to be read."""
        if epoch == self._epoch and self._start <= position < self._stop:
            return
        behind = self._spans
        stop, spans = self._order.spans(epoch, position)
        if behind != spans:
            self._tell(behind, is_needed=False)
        if epoch != self._epoch or position != self._stop:
            self._tell(spans, is_needed=True)  # it was not told one group before
        self._epoch, self._start, self._stop, self._spans = epoch, position, stop, spans
        if stop < self._order.num_samples:
            self._tell(self._order.spans(epoch, stop)[1], is_needed=True)

    def _tell(self, spans: Sequence[tuple[int, int]], *, is_needed: bool) -> None:
        for column in self._columns:
            if isinstance(column.values, Mapped):
                for span in spans:
                    column.values.advise(*column.rows(*span), is_needed=is_needed)
