"""Packs are locked in a cache of the tests' own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left in the person's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
