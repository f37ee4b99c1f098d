"""Two ranks that meet."""

from __future__ import annotations

from dataclasses import replace

import pytest

from samestep.engine.group import meeting as meetings
from samestep.engine.group import store as stores
from samestep.engine.group.meeting import Meeting
from tests.engine.group.two import PLACE


@pytest.fixture
def both() -> list[Meeting]:
    """Two ranks at one store."""
    listening = stores.listen(PLACE.host, 0)
    place = replace(PLACE, port=listening.getsockname()[1])
    first = meetings.connect(place, 5.0, listening)
    return [first, meetings.connect(replace(place, rank=1, hosts_store=False), 5.0)]
