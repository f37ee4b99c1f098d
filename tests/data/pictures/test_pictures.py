"""Pictures are found with their labels, decoded exactly by several processes, and broken ones are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from samestep.data import making
from samestep.data.pack.reader import Pack
from samestep.data.pictures import found
from samestep.data.settings import DataSettings
from samestep.errors import DataError, UsageError

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
