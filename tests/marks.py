"""Cases of a parametrised test that only `make soak` runs: a telling subset is enough for every change."""

from __future__ import annotations

from typing import Any

import pytest


def soak(*values: Any) -> Any:
    """A case of the whole matrix."""
    return pytest.param(*values, marks=pytest.mark.soak)
