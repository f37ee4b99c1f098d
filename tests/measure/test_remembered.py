"""What was chosen is found again for the same machine and workload, and nothing else is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from samestep.measure.candidates import Candidate, Choice, Measured, candidates, decide
from samestep.measure.remembered import Memory, key

WAYS = candidates(cores=2, num_microbatches=8, threads=1)
NUMERICS: dict[str, Any] = {"model": "Mlp 1", "global_batch": 64, "seed": 0, "attention": (True, False)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def choice() -> Choice:
    times = [Measured(candidate=way, step_s=(0.2 / way.workers, 0.21 / way.workers)) for way in WAYS[:3]]
    return decide([*times, Measured(candidate=WAYS[3], failure="it broke")])


def memory(ways: tuple[Candidate, ...] = WAYS, **changed: Any) -> Memory:
    return Memory.of(key({**NUMERICS, **changed}, ways))


def test_a_choice_is_found_again() -> None:
    assert memory().read() is None
    assert memory().write(choice()) is None
    found = memory().read()
    assert found is not None
    assert found[0] == choice()
    assert len(found[1]) == len("2026-11-25")


def test_the_seed_does_not_matter_and_the_rest_does(monkeypatch: pytest.MonkeyPatch) -> None:
    memory().write(choice())
    assert memory(seed=1) == memory()
    assert memory(global_batch=32).read() is None
    assert memory(ways=WAYS[:2]).read() is None
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    assert memory().read() is None


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"format": 1, "kind": "parallel"}', b"\xff\x00", b"[]"])
def test_a_damaged_file_counts_as_none(damage: bytes) -> None:
    where = memory()
    where.write(choice())
    assert where.path is not None
    where.path.write_bytes(damage)
    assert where.read() is None
    assert where.write(choice()) is None
    assert where.read() is not None


@pytest.mark.parametrize(
    ("old", "new"), [(b'"workers": 2', b'"workers": 7'), (b'"step_s"', b'"steps"'), (b"0.2,", b'"fast",')]
)
def test_a_file_that_was_edited_counts_as_none(old: bytes, new: bytes) -> None:
    where = memory()
    where.write(choice())
    assert where.path is not None
    content = where.path.read_bytes()
    assert old in content
    where.path.write_bytes(content.replace(old, new, 1))
    assert where.read() is None


def test_a_folder_that_cannot_be_made_is_told(cache: Path) -> None:
    (cache / "samestep").write_text("in the way")
    trouble = memory().write(choice())
    assert trouble is not None
    assert str(cache) in trouble
    assert memory().read() is None


def test_without_a_home_nothing_is_kept() -> None:
    where = Memory(None, {})
    assert where.read() is None
    assert where.write(choice()) == "this user has no cache folder"


def test_nothing_unfinished_is_left(cache: Path) -> None:
    memory().write(choice())
    assert [path.suffix for path in (cache / "samestep" / "parallel").iterdir()] == [".json"]
    assert os.listdir(cache) == ["samestep"]  # noqa: PTH208
