"""Pictures are found with their labels, decoded exactly by several processes, and broken ones are named."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import ExifTags, Image

from samestep.data import making
from samestep.data.pack.reader import Pack
from samestep.data.pictures import decode, found
from samestep.data.pictures.decode import Shape
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
    message = r"large\.png has 8 × 12 pixels, and the others 4 × 6; resize all with picture_size 6x4"
    with pytest.raises(DataError, match=message):
        packed(folders)
    assert packed(folders, picture_size="6x4").parts["train"]["pictures"].shape[1:] == (1, 6, 4)
    assert packed(folders, picture_size="12x8").parts["train"]["pictures"].shape[1:] == (1, 12, 8)


TABLE = "id,x,y\n" + "".join(f"{number},{number * 7 % 10},{number % 2}\n" for number in range(40))
NAMES = "picture,label\n" + "".join(f"{number}.png,{number % 2}\n" for number in range(8))


@pytest.mark.parametrize(
    ("held", "is_source"),
    [
        ({"a/1.png": None, "b/2.png": None}, True),
        ({"train.csv": TABLE, "a/1.png": None}, True),
        ({"1.png": None}, True),
        ({"1.png": None, "readme.txt": "about the pictures"}, True),
        ({"train.csv": TABLE}, False),
        ({"train.csv": TABLE, "1.png": None, "logo.jpeg": None}, False),
        ({"train.csv": "x,y\n" + "5,1\n" * 30, "1.png": None}, False),
        ({"train.tsv": TABLE.replace(",", "\t"), "logo.png": None}, False),
        ({"train.parquet": "PAR1", "logo.png": None}, False),
        ({"train.csv.gz": "packed", "logo.png": None}, False),
        ({"train-images-idx3-ubyte": "", "logo.png": None}, False),
        ({"labels.csv": NAMES, **{f"{number}.png": None for number in range(8)}}, True),
        ({"labels.csv": NAMES, **{f"{number}.png": None for number in range(7)}}, True),
        ({"labels.csv": NAMES, "0.png": None}, False),
        ({"labels.csv": NAMES.replace(".png", ""), **{f"{number}.png": None for number in range(8)}}, True),
        ({"labels.csv": NAMES.replace(",", ";"), **{f"{number}.png": None for number in range(8)}}, True),
        ({"test.csv": TABLE, "train.csv": NAMES, **{f"{number}.png": None for number in range(8)}}, True),
        ({"state.json": "{}", "dataset_info.json": "{}", "a/1.png": None}, False),
    ],
)
def test_which_folders_are_sources_of_pictures(tmp_path: Path, held: dict[str, str | None], is_source: bool) -> None:
    for name, text in held.items():
        if text is None:
            save(tmp_path / name, 0)
        else:
            (tmp_path / name).write_text(text)
    assert found.is_source(tmp_path) == is_source


def test_a_stray_picture_beside_tables_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data.csv").write_text(TABLE)
    save(tmp_path / "set" / "1.png", 0)
    pack = packed(tmp_path / "set", target="y", kinds="id=ignore")
    assert (pack.manifest.kind, sum(map(pack.manifest.num_samples, pack.parts))) == ("table", 40)
    save(tmp_path / "set" / "plots" / "1.png", 0)
    with pytest.raises(DataError) as info:
        packed(tmp_path / "set", target="y", kinds="id=ignore")
    table = tmp_path / "set" / "data.csv"
    assert str(info.value).endswith(f"it has id, x, y; to learn from the table alone, give {table}")


def test_what_is_no_table_of_labels_names_no_pictures(tmp_path: Path) -> None:
    save(tmp_path / "1.png", 0)
    (tmp_path / "t.csv").write_text('name,label\n"' + "x" * 200_000)
    assert not found.is_source(tmp_path)
    with pytest.raises(UsageError, match="delimiter=';;' is not one"):
        found.is_source(tmp_path, delimiter=";;")
    with pytest.raises(UsageError, match="delimiter=';;' is not one"):
        found.find(tmp_path, None, delimiter=";;")
    (tmp_path / "t.csv").write_text("name,label\n1.png,a\n", "utf-16")
    assert not found.is_source(tmp_path)
    assert found.is_source(tmp_path, encoding="utf-16")
    assert not found.is_source(tmp_path, encoding="klingon")


QUARTERS = np.kron(np.array([[20, 90], [160, 230]], np.uint8), np.ones((16, 8), np.uint8))
"""32 rows of 16 pixels."""
STORED = {
    1: QUARTERS,
    2: QUARTERS[:, ::-1],
    3: QUARTERS[::-1, ::-1],
    4: QUARTERS[::-1],
    5: QUARTERS.T,
    6: np.rot90(QUARTERS, 1),
    7: QUARTERS[::-1, ::-1].T,
    8: np.rot90(QUARTERS, -1),
}
"""As a camera that is held in some way writes it, by the EXIF number of that way."""


@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_turned_as_their_exif_data_say(tmp_path: Path, orientation: int, ending: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"1.{ending}"
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).convert("RGB").save(path, lossless=True, exif=exif)
    assert decode.look_at(path) == Shape(height=32, width=16, channels=3)
    seen = decode.decode(path, Shape(height=32, width=16, channels=1))
    assert np.abs(seen[..., 0].astype(int) - QUARTERS).max() <= (4 if ending == "jpg" else 1)


def test_damaged_exif_data_turn_nothing(tmp_path: Path) -> None:
    """A directory of 65,535 entries that are not there."""
    Image.fromarray(QUARTERS).save(tmp_path / "1.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert decode.look_at(tmp_path / "1.jpg") == Shape(height=32, width=16, channels=1)
    assert decode.decode(tmp_path / "1.jpg", Shape(height=32, width=16, channels=1)).shape == (32, 16, 1)


def png(kind: int, depth: int, rows: npt.NDArray[Any]) -> bytes:
    """A PNG file of any kind of pixels (the numbers are those of its specification), shape (height, width, ...)."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], depth, kind, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(f">u{depth // 8}").tobytes() for row in rows)
    whole = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + whole


VALUES = np.random.default_rng(5).integers(0, 1 << 16, (6, 4, 4))
ALPHA = np.array([0, 255, 128, 51], np.uint8)[np.arange(24).reshape(6, 4) % 4]


def on_white(values: npt.NDArray[Any], alpha: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Pixels over white, shape (6, 4, channels)."""
    share = alpha[..., None] / 255
    return values * share + 255 * (1 - share)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(png(0, 16, VALUES[..., 0]), VALUES[..., :1] >> 8, id="grey, 16 bits"),
        pytest.param(png(2, 16, VALUES[..., :3]), VALUES[..., :3] >> 8, id="colours, 16 bits"),
        pytest.param(
            png(4, 16, np.dstack([VALUES[..., 0], ALPHA.astype(int) * 257])),
            on_white(VALUES[..., [0, 0, 0]] >> 8, ALPHA),  # which Pillow opens as colours
            id="grey and transparency, 16 bits",
        ),
        pytest.param(
            png(4, 8, np.dstack([VALUES[..., 0] >> 8, ALPHA])),
            on_white(VALUES[..., :1] >> 8, ALPHA),
            id="grey and transparency",
        ),
        pytest.param(
            png(6, 8, np.dstack([VALUES[..., :3] >> 8, ALPHA])),
            on_white(VALUES[..., :3] >> 8, ALPHA),
            id="colours and transparency",
        ),
    ],
)
def test_pixels_of_every_kind(tmp_path: Path, content: bytes, expected: npt.NDArray[Any]) -> None:
    path = tmp_path / "1.png"
    path.write_bytes(content)
    shape = decode.look_at(path)
    assert shape.array == expected.shape
    seen = decode.decode(path, shape).astype(float)
    assert np.abs(seen - expected).max() <= 1
    is_whole = (expected == np.floor(expected)).all()
    assert not is_whole or np.array_equal(seen, expected)


def test_palettes(tmp_path: Path) -> None:
    places = np.arange(24, dtype=np.uint8).reshape(6, 4) % 3
    colors = np.array([[200, 10, 30], [0, 0, 0], [40, 250, 90]], np.uint8)
    picture = Image.fromarray(places)
    picture.putpalette(colors.tobytes())
    picture.save(tmp_path / "whole.png")
    picture.save(tmp_path / "hole.png", transparency=1)
    shape = Shape(height=6, width=4, channels=3)
    assert decode.look_at(tmp_path / "whole.png") == shape
    np.testing.assert_array_equal(decode.decode(tmp_path / "whole.png", shape), colors[places])
    colors[1] = 255
    np.testing.assert_array_equal(decode.decode(tmp_path / "hole.png", shape), colors[places])


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
