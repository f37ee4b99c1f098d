"""The command in an environment of its own, and the command's function inside of the test's process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from samestep.cli.main import main
from tests.cli.command import Command, Finished, in_shared_memory


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    """Programs of a test; it fails where one of them leaves something behind."""
    command = Command(tmp_path)
    yield command
    command.check_nothing_left()


@pytest.fixture
def call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Finished]]:
    """The command line without a process of its own, which saves the seconds of importing torch."""
    monkeypatch.setattr(sys, "path", list(sys.path))  # a workload's file adds its folder
    monkeypatch.chdir(tmp_path)
    before, children = in_shared_memory(), psutil.Process().children(recursive=True)

    def call(*words: str | Path) -> Finished:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Finished(code, *capsys.readouterr())

    yield call
    assert psutil.Process().children(recursive=True) == children
    assert in_shared_memory() <= before
