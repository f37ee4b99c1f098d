"""A pack appears whole or not at all, is mapped as it is, and damage is noticed."""

from __future__ import annotations

import errno
import json
import os
import pickle
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from samestep.data.pack import manifest, reader, writer
from samestep.data.pack.writer import Writer
from samestep.errors import DataError, StateError, UsageError
from samestep.host import files

X = np.arange(30, dtype=np.float32).reshape(10, 3)


def fill(place: Writer) -> None:
    place.append("train", "x", X[:4])
    place.append("train", "x", X[4:])
    place.append("train", "y", np.arange(10))
    place.finish(kind="arrays", schema={}, statistics={}, source="a test", made_of={"n": 1})


def interrupted(folder: Path, error: Exception) -> None:
    with writer.writing(folder) as place:
        place.append("train", "x", X)
        raise error


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "pack"
    with writer.writing(folder) as place:
        fill(place)
    return folder


def test_what_is_written_is_mapped(pack: Path) -> None:
    assert sorted(path.name for path in pack.iterdir()) == ["manifest.json", "train-x.npy", "train-y.npy"]
    assert [path.name for path in pack.parent.iterdir()] == ["pack"]
    opened = reader.open_pack(pack)
    x = opened.parts["train"]["x"]
    np.testing.assert_array_equal(x.tensor.numpy(), X)
    np.testing.assert_array_equal(np.load(x.path, allow_pickle=False), X)
    assert x.tensor.data_ptr() % 64 == 0
    assert (opened.manifest.num_samples("train"), opened.manifest.num_samples("evaluation")) == (10, 0)
    x.tensor[0, 0] = 7.0  # nobody may, and if somebody does, it stays here
    assert np.load(x.path)[0, 0] == 0.0
    x.advise(2, 5, is_needed=True)
    x.advise(0, 10, is_needed=False)
    np.testing.assert_array_equal(x.tensor.numpy(), X)


def test_a_mapped_column_travels_as_a_name(pack: Path) -> None:
    x = reader.open_pack(pack).parts["train"]["x"]
    assert x.tensor is x.tensor
    sent = pickle.dumps(x)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert again == x
    np.testing.assert_array_equal(again.tensor.numpy(), X)


def test_a_column_without_rows(tmp_path: Path) -> None:
    with writer.writing(tmp_path / "pack") as place:
        place.append("train", "x", X[:0])
        place.finish(kind="arrays", schema={}, statistics={}, source="a test", made_of={})
    assert reader.open_pack(tmp_path / "pack").parts["train"]["x"].tensor.shape == (0, 3)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def scramble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "how"),
    [
        (flip, "its content is not what was written"),
        (cut, "it has 247 bytes and should have 248"),
        (scramble, "its header is not what the manifest says"),
        (Path.unlink, "it cannot be read (No such file or directory)"),
    ],
)
def test_damage_is_noticed(pack: Path, damage: Callable[[Path], None], how: str) -> None:
    damage(pack / "train-x.npy")
    with pytest.raises(DataError) as info:
        reader.open_pack(pack)
    assert str(info.value) == f"{pack / 'train-x.npy'} is damaged: {how}; pack the source again"


@pytest.mark.parametrize(
    ("damage", "how"),
    [(cut, "it has 247 bytes and should have 248"), (Path.unlink, "it cannot be read (No such file or directory)")],
)
def test_what_happens_to_a_file_after_the_pack_was_opened_is_noticed_when_it_is_mapped(
    pack: Path, damage: Callable[[Path], None], how: str
) -> None:
    x = reader.open_pack(pack).parts["train"]["x"]
    damage(x.path)
    for look in (lambda: x.tensor, lambda: x.advise(0, 5, is_needed=True)):
        with pytest.raises(DataError) as info:
            look()
        assert str(info.value) == f"{x.path} is damaged: {how}; pack the source again"


def test_large_packs_are_read_through_when_asked(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(pack / "train-x.npy")
    monkeypatch.setattr(reader, "_CHECKED_BYTES", 10)
    reader.open_pack(pack)
    with pytest.raises(DataError, match="is damaged"):
        reader.open_pack(pack, is_checked=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "manifest.json is damaged"),
        (lambda text: text.replace('"version": 1', '"version": 99'), "is of another version of samestep"),
        (lambda text: text.replace('"kind"', '"sort"'), "manifest.json is damaged"),
        (lambda text: "[]", "manifest.json is damaged"),
    ],
)
def test_a_manifest_that_cannot_be_read(pack: Path, change: Callable[[str], str], message: str) -> None:
    path = pack / manifest.FILENAME
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message):
        reader.open_pack(pack)


def test_what_goes_wrong_leaves_the_old_pack(pack: Path) -> None:
    before = {path.name: path.read_bytes() for path in pack.iterdir()}
    with pytest.raises(ZeroDivisionError):
        interrupted(pack, ZeroDivisionError())
    assert {path.name: path.read_bytes() for path in pack.iterdir()} == before
    assert [path.name for path in pack.parent.iterdir()] == ["pack"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(tmp_path: Path, number: int) -> None:
    with pytest.raises(StateError) as info:
        interrupted(tmp_path / "pack", OSError(number, os.strerror(number)))
    assert str(info.value).startswith(f"{tmp_path / 'pack'}: the disk is full; make room")
    assert list(tmp_path.iterdir()) == []


def test_systems_without_quotas_know_a_full_disk_from_other_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(errno, "EDQUOT")
    is_full = runpy.run_path(files.__file__)["is_full"]
    assert is_full(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_full(OSError("an error without a number"))


@pytest.mark.parametrize(
    ("name", "why"), [("missing.csv", "No such file or directory"), ("folder.csv", "Is a directory")]
)
def test_a_file_of_the_source_that_cannot_be_read_is_named(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError) as info, writer.writing(tmp_path / "pack"):
        (tmp_path / name).read_bytes()
    assert str(info.value) == f"{tmp_path / name} cannot be read: {why}"
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


@pytest.mark.parametrize("source", ["pack.csv", ".pack.csv", "packs/1.csv", "../pack/1.csv"])
def test_a_source_whose_name_is_like_the_packs_is_no_part_of_it(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(DataError, match="cannot be read: No such file"), writer.writing(Path("pack")):
        Path(source).read_bytes()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), OSError("Input/output\nerror")])
def test_an_error_that_names_no_file_blames_nobody(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(StateError) as info:
        interrupted(tmp_path / "pack", error)
    assert str(info.value) == (
        f"{tmp_path / 'pack'} was not packed: Input/output error, in a file of the source or of the pack that is not "
        "named"
    )


def test_a_name_that_leaves_no_room_for_the_unfinished_pack(tmp_path: Path) -> None:
    folder = tmp_path / ("p" * 250)
    with pytest.raises(StateError) as info, writer.writing(folder) as place:
        fill(place)
    assert str(info.value) == f"{folder} cannot be written: File name too long; name another folder"


def test_a_disk_that_cannot_be_written(small_disk: Path) -> None:
    subprocess.run(("mount", "-o", "remount,ro", str(small_disk)), check=True)
    with pytest.raises(StateError) as info, writer.writing(small_disk / "pack") as place:
        fill(place)
    assert str(info.value) == f"{small_disk / 'pack'} cannot be written: Read-only file system; name another folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads and writes everywhere")
def test_what_a_person_may_not_read_or_write(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y\n1,2\n")
    (tmp_path / "t.csv").chmod(0)
    message = r"t\.csv cannot be read: Permission denied"
    with pytest.raises(DataError, match=message), writer.writing(tmp_path / "pack"):
        (tmp_path / "t.csv").read_bytes()
    (tmp_path / "closed").mkdir(mode=0o500)
    message = r"pack cannot be written: Permission denied; name another folder"
    with pytest.raises(StateError, match=message), writer.writing(tmp_path / "closed" / "pack") as place:
        fill(place)


def test_a_newer_pack_takes_the_place(pack: Path) -> None:
    with writer.writing(pack) as place:
        place.append("train", "x", X[:1])
        place.finish(kind="arrays", schema={}, statistics={}, source="a test", made_of={"n": 2})
    assert reader.open_pack(pack).manifest.made_of == {"n": 2}
    assert not (pack / "train-y.npy").exists()
    assert [path.name for path in pack.parent.iterdir()] == ["pack"]


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mother.txt").write_text("dear")
    with pytest.raises(UsageError, match="letters is there already and is no pack"):
        interrupted(tmp_path / "letters", AssertionError())
    assert (tmp_path / "letters" / "mother.txt").read_text() == "dear"


def test_what_a_killed_process_left_is_swept_up(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".pack.4194304.part", tmp_path / f".pack.{os.getppid()}.part"
    dead.mkdir()
    alive.mkdir()
    with writer.writing(tmp_path / "pack") as place:
        fill(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == [alive.name, "pack"]


def test_an_older_pack_comes_back_where_a_new_one_cannot_take_its_place(
    pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (pack / manifest.FILENAME).read_bytes()
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StateError, match="Permission denied"), writer.writing(pack) as place:
        fill(place)
    assert (pack / manifest.FILENAME).read_bytes() == before
    assert [path.name for path in pack.parent.iterdir()] == ["pack"]


def test_an_older_pack_that_a_killed_process_put_aside_comes_back(pack: Path) -> None:
    pack.rename(pack.with_name(".pack.4194304.old"))
    other = pack.with_name(".pack.1.4194304.old")  # of a pack of another name
    other.mkdir()
    writer._sweep(pack)
    assert reader.open_pack(pack).manifest.made_of
    assert sorted(path.name for path in pack.parent.iterdir()) == [other.name, "pack"]


def test_the_manifest_is_plain_json(pack: Path) -> None:
    values = json.loads((pack / manifest.FILENAME).read_text())
    assert values["format"] == "samestep pack"
    assert values["parts"]["train"]["x"]["shape"] == [10, 3]
