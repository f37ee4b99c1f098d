"""Where the data of a run lie: on its device where they fit, and otherwise on the host, from where batches are sent."""

from __future__ import annotations

from samestep.data import columns
from samestep.data.columns import Samples
from samestep.data.feed import Feed
from samestep.engine.device.seam import Device
from samestep.plan.order import Order

SHARE = 0.4
"""Of the memory that the device has left, this much may be taken up by data."""


def feed_on(device: Device, samples: Samples, order: Order) -> Feed:
    """A feed whose batches are gathered on the device, where all of the data fit and can be gathered there."""
    if device.is_host:
        return Feed(samples, order)
    size = columns.movable_bytes(samples)
    if size is None or size > SHARE * device.free_bytes():
        return Feed(samples, order)
    return Feed(columns.moved(samples, device.where), order, device.where)
