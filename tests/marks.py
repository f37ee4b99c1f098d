"""Cases of parametrised tests, and when they run."""

from __future__ import annotations

import os
from typing import Any

import pytest

from samestep.data.sources import DATA_VARIABLE
from samestep.workloads import catalog


def soak(*values: Any) -> Any:
    """A case of the whole matrix, which only `make soak` runs: a telling subset is enough for every change."""
    return pytest.param(*values, marks=pytest.mark.soak)


def built_in() -> list[Any]:
    """The names of all built-in workloads; those whose data have to be fetched are skipped where there are none."""
    reason = f"{DATA_VARIABLE} is not set: name a folder of data sets to run this test"
    needs_data = pytest.mark.skipif(not os.environ.get(DATA_VARIABLE), reason=reason)
    return [pytest.param(name, marks=[] if name.startswith("digits-") else needs_data) for name in catalog.names()]
