"""The command in an environment of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import Command


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """Programs of a test; it fails where one of them leaves something behind."""
    command = Command(tmp_path)
    yield command
    command.check_nothing_left()
