"""Files are whole or not there: on a full disk, and where nobody may write."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from samestep.errors import StateError
from samestep.host import files
from samestep.run import checkpoint


def mounted(folder: Path, options: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tiny file system")
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "tiny", "size=64k")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "fixed", "ro,size=64k")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_atomically(path, b"old")
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file(tiny_disk: Path) -> None:
    path = tiny_disk / "file"
    files.write_atomically(path, b"old")
    with pytest.raises(StateError, match=r"the disk is full \(0\.2 MB were needed\).*older files are untouched"):
        files.write_atomically(path, b"x" * 200_000)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tiny_disk.iterdir()] == ["file"]
    files.write_atomically(path, b"new")


def test_a_failed_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    files.write_atomically(path, b"old")

    def fail(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StateError, match=r"cannot be written: Permission denied; name another folder"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StateError, match="cannot be written"):
            files.write_atomically(tmp_path / "file", b"x")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be written: No such file"):
        files.write_atomically(tmp_path / "none" / "file", b"x")


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match="cannot be written"):
        files.write_atomically(tmp_path / "file" / "x", b"x")


def test_a_read_only_disk(read_only_disk: Path) -> None:
    with pytest.raises(StateError, match="cannot be written"):
        files.write_atomically(read_only_disk / "x", b"x")


def test_checkpoints_on_a_read_only_disk(read_only_disk: Path) -> None:
    with pytest.raises(StateError, match="cannot be written"), checkpoint.owned(read_only_disk):
        pass


def test_a_folder_cannot_be_made_inside_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match=r"the folder for checkpoints, .*, cannot be made"):
        files.make_folder(tmp_path / "file" / "x", "checkpoints")


@pytest.mark.parametrize("named", ["", "relative/folder"])
def test_the_usual_folder(named: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The rule of XDG: a path that is not absolute does not count."""
    monkeypatch.setenv("XDG_CACHE_HOME", named)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert files.cache_folder() == tmp_path / ".cache" / "samestep"


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert files.cache_folder() is None
