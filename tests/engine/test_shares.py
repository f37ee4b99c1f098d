"""Shares: every byte of a state is copied by one rank, and what is updated by who updates it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from samestep.engine.job import live_regions
from samestep.engine.shares import share
from samestep.optim.state import group_range
from samestep.plan import layout
from tests import helpers
from tests.helpers import Everything


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "settings", [{"optimizer": "adamw"}, {"optimizer": "muon"}, {"optimizer": "adafactor"}, {"optimizer": "sgd"}]
)
def test_every_byte_is_one_ranks(world_size: int, settings: dict[str, Any]) -> None:
    job = helpers.prepared(helpers.workload(Everything), global_batch=24, microbatch=3, momentum=None, **settings).job
    owners = layout.owners(job.update.layout, world_size)
    shares = [share(job, segments, is_first=rank == 0) for rank, segments in enumerate(owners)]
    edges = sorted(each for ranges in shares for each in ranges)
    regions = live_regions(job)
    assert edges[0][0] == 0
    assert edges[-1][1] == regions.num_bytes
    assert all(before[1] == behind[0] for before, behind in pairwise(edges))


def test_who_updates_a_slice_copies_its_state() -> None:
    job = helpers.prepared(
        helpers.workload(Everything),
        global_batch=24,
        microbatch=3,
        momentum=None,
        optimizer="adamw",
        weight_decay=0.0,  # one group
    ).job
    segments = layout.owners(job.update.layout, 3)[1]
    (segment,) = segments
    first, _ = group_range(job.update.layout, segment.group)
    assert first == 0
    regions = live_regions(job).by_name
    names = ["parameters", *(array.name for array in job.update.arrays)]
    assert len(names) == 3
    wanted = [(regions[name].start + 4 * segment.start, regions[name].start + 4 * segment.stop) for name in names]
    assert share(job, segments, is_first=False) == wanted
