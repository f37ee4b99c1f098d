"""Pictures are found with their labels, decoded exactly by several processes, and broken ones are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from samestep.data import making
from samestep.data.pack.reader import Pack
from samestep.data.pictures import found
from samestep.data.settings import DataSettings
from samestep.errors import DataError, StateError, UsageError

Pixels = npt.NDArray[np.uint8]


def pixels(number: int, shape: tuple[int, ...] = (6, 4)) -> Pixels:
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


def save(path: Path, number: int, shape: tuple[int, ...] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number, shape)).save(path, lossless=True)


def silent(what: str, done: int, total: int) -> None:
    """Tells nobody."""


def packed(folder: Path, **settings: object) -> Pack:
    return making.ensure(str(folder), folder.with_name("pack"), DataSettings(**settings), silent)[0]  # type: ignore[arg-type]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """200 grey pictures of two classes."""
    for number in range(200):
        save(tmp_path / "set" / ("cat" if number % 2 else "dog") / f"{number:03}.png", number)
    return tmp_path / "set"


@pytest.mark.processes
def test_folders_are_classes_and_pixels_are_exact(folders: Path) -> None:
    pack = packed(folders, evaluation_frac=0.2)
    assert pack.manifest.schema["target"]["values"] == ["cat", "dog"]
    total = 0
    for part in ("train", "evaluation"):
        columns = pack.parts[part]
        images, labels = columns["pictures"].tensor.numpy(), columns["target"].tensor.numpy()
        by_content = {pixels(number).tobytes(): number for number in range(200)}
        numbers = [by_content[image.tobytes()] for image in images]
        assert [number % 2 == 0 for number in numbers] == labels.astype(bool).tolist()
        assert images.shape[1:] == (1, 6, 4)
        total += len(images)
    assert total == 200
    assert 20 <= pack.manifest.num_samples("evaluation") <= 60


@pytest.mark.processes
def test_named_parts_stay_what_they_are(tmp_path: Path) -> None:
    for number in range(10):
        part = "train" if number < 7 else "test"
        save(tmp_path / "set" / part / str(number % 2) / f"{number}.webp", number, (6, 4, 3))
    pack = packed(tmp_path / "set")
    assert [pack.manifest.num_samples(part) for part in ("train", "evaluation")] == [7, 3]
    assert pack.manifest.schema["channels"] == 3
    first = pack.parts["train"]["pictures"].tensor[0].numpy()
    assert first.transpose(1, 2, 0).tobytes() in {pixels(number, (6, 4, 3)).tobytes() for number in range(7)}


@pytest.mark.processes
def test_a_table_of_labels(tmp_path: Path) -> None:
    for number in range(8):
        save(tmp_path / "set" / "images" / f"{number}.png", number)
    lines = [f"{number},{'even' if number % 2 == 0 else 'odd'},x" for number in range(8)]
    (tmp_path / "set" / "labels.csv").write_text("\n".join(["id,parity,other", *lines]))
    with pytest.raises(UsageError, match=r"which column holds the labels.*there are parity, other"):
        packed(tmp_path / "set")
    pack = packed(tmp_path / "set", target="parity", evaluation_frac=0.0)
    labels = [["even", "odd"][code] for code in pack.parts["train"]["target"].tensor.tolist()]
    assert labels == ["even", "odd"] * 4
    (tmp_path / "set" / "labels.csv").write_text("id,parity\n0,even\n99,odd\n")
    with pytest.raises(DataError, match="line 3 needs the picture '99', which is not in"):
        found.find(tmp_path / "set", None)


@pytest.mark.processes
def test_broken_pictures_stop_or_are_counted(folders: Path) -> None:
    bad = folders / "cat" / "007.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(DataError) as info:
        packed(folders)
    assert str(info.value).startswith(f"{bad} cannot be decoded (")
    assert str(info.value).endswith("leave such pictures out with broken_pictures skip")
    assert not folders.with_name("pack").exists()
    pack = packed(folders, broken_pictures="skip")
    assert pack.manifest.statistics["num_dropped"] == 1
    assert sum(pack.manifest.num_samples(part) for part in pack.parts) == 199


@pytest.mark.processes
def test_a_broken_first_picture_is_no_other_case(folders: Path) -> None:
    first = folders / "cat" / "001.png"
    first.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"001\.png cannot be decoded .*with broken_pictures skip$"):
        packed(folders)
    assert packed(folders, broken_pictures="skip").manifest.statistics["num_dropped"] == 1
    for path in found.files(folders):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of the 200 pictures can be decoded"):
        packed(folders, broken_pictures="skip")


@pytest.mark.processes
def test_jpeg_is_decoded(tmp_path: Path) -> None:
    for number in range(4):
        path = tmp_path / "set" / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 8), (200, 100, 50)).save(path)
    images = packed(tmp_path / "set", evaluation_frac=0.0).parts["train"]["pictures"].tensor
    assert images.shape == (4, 3, 8, 16)
    assert (images.float().mean(dim=(0, 2, 3)) - torch.tensor([200.0, 100.0, 50.0])).abs().max() < 3


@pytest.mark.processes
def test_a_full_disk_is_one_line_and_leaves_nothing(folders: Path, small_disk: Path) -> None:
    for number in range(4):
        save(folders / "cat" / f"{number:03}.png", number, (600, 400))
    with pytest.raises(StateError, match=r"pack: the disk is full; make room or name another folder"):
        making.ensure(str(folders), small_disk / "pack", DataSettings(picture_size="64x64"), silent)
    assert list(small_disk.iterdir()) == []


def test_pictures_outside_of_classes_are_counted(tmp_path: Path) -> None:
    for path in ("a/0.png", "b/1.png", "2.png", "3.png"):
        save(tmp_path / path, 0)
    assert found.find(tmp_path, None).num_outside == 2


def test_tables_of_labels_of_every_form(tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / f"{number}.png", number)
    table = tmp_path / "labels.csv"
    table.write_text("id;class\n0.png;süß\n1.png;herb\n", "latin-1")
    assert found.find(tmp_path, None, encoding="latin-1").labels == ("süß", "herb")
    with pytest.raises(DataError, match=r"labels\.csv is not utf-8.* such as encoding latin-1"):
        found.find(tmp_path, None)
    with pytest.raises(DataError, match="encoding 'klingon' is not known"):
        found.find(tmp_path, None, encoding="klingon")
    table.write_text("id,class\n0.png,a\n\n1.png,b,c\n")
    with pytest.raises(DataError, match=r"labels\.csv line 4: 3 fields, and the table has 2 columns \(id, class\)"):
        found.find(tmp_path, None)
    table.unlink()
    save(tmp_path / "a" / "2.png", 2)
    with pytest.raises(UsageError, match=r"encoding goes with a table of labels, and .* holds none"):
        found.find(tmp_path, None, encoding="latin-1")


@pytest.mark.processes
def test_pictures_of_other_sizes(folders: Path) -> None:
    save(folders / "dog" / "large.png", 1, (12, 8))
    with pytest.raises(DataError, match=r"large\.png has 8 × 12 pixels, and the others 4 × 6; resize all"):
        packed(folders)
    assert packed(folders, picture_size="12x8").parts["train"]["pictures"].shape[1:] == (1, 12, 8)


def test_what_holds_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pictures"):
        found.find(tmp_path, None)
    save(tmp_path / "a.png", 0)
    with pytest.raises(DataError, match="in no folders named after their classes"):
        found.find(tmp_path, None)
    (tmp_path / "one").mkdir()
    save(tmp_path / "one" / "a.png", 0)
    with pytest.raises(DataError, match="the target label has one class only"):
        packed(tmp_path / "one" / "..")
