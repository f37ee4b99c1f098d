"""Arrays in files: IDX folders, .npz and .npy become packs; what is something else is one line."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from samestep.data import arrays, making
from samestep.data.pack.reader import Pack
from samestep.data.settings import DataSettings
from samestep.errors import DataError, UsageError

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 6, 4), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 3, 60).astype(np.uint8)


def packed(source: Path, **settings: Any) -> Pack:
    return making.ensure(str(source), source.with_name("packed"), DataSettings(**settings), lambda *told: None)[0]


def write_idx(path: Path, values: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize(
    "names",
    [
        "{part}-images-idx3-ubyte.gz {part}-labels-idx1-ubyte.gz",
        "{part}-images.idx3-ubyte {part}-labels.idx1-ubyte",
        "{part}-images-idx3-ubyte/{part}-images-idx3-ubyte {part}-labels-idx1-ubyte/{part}-labels-idx1-ubyte",
    ],
)
def test_idx_files_as_they_are_found(tmp_path: Path, names: str) -> None:
    folder = tmp_path / "mnist"
    for part, rows in (("train", slice(0, 50)), ("t10k", slice(50, 60))):
        images, labels = names.format(part=part).split()
        write_idx(folder / images, IMAGES[rows])
        write_idx(folder / labels, LABELS[rows])
    pack = packed(folder)
    np.testing.assert_array_equal(pack.parts["train"]["pictures"].tensor.numpy(), IMAGES[:50, None])
    np.testing.assert_array_equal(pack.parts["evaluation"]["target"].tensor.numpy(), LABELS[50:])
    assert pack.manifest.schema["target"]["values"] == ["0", "1", "2"]


def test_pictures_in_npz_with_and_without_parts(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    np.savez(path, x_train=IMAGES[:50], y_train=LABELS[:50], x_test=IMAGES[50:], y_test=LABELS[50:])
    assert [packed(path).manifest.num_samples(part) for part in ("train", "evaluation")] == [50, 10]
    colors = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 5), np.uint8)
    np.savez(path, x=colors, y=LABELS[:40])
    pack = packed(path, evaluation_frac=0.0)
    np.testing.assert_array_equal(pack.parts["train"]["pictures"].tensor.numpy(), colors)


def test_rows_of_numbers(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(3, 2, (200, 3)).astype(np.float32)
    np.savez(tmp_path / "t.npz", x=x, y=(x[:, 0] > 3).astype(np.int64))
    pack = packed(tmp_path / "t.npz", evaluation_frac=0.0)
    np.testing.assert_allclose(
        pack.parts["train"]["numbers"].tensor.numpy(), (x - x.mean(0)) / x.std(0), rtol=1e-4, atol=1e-5
    )
    np.save(tmp_path / "t.npy", x)
    with pytest.raises(UsageError, match="Name it with target; there are column0, column1, column2"):
        packed(tmp_path / "t.npy")
    assert packed(tmp_path / "t.npy", target="column2").manifest.schema["target"]["task"] == "value"


def test_settings_that_do_not_go_with_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "pictures.npz", x=IMAGES, y=LABELS)
    np.savez(tmp_path / "rows.npz", x=IMAGES[:, 0] / 1.0, y=LABELS)
    np.savez(tmp_path / "parts.npz", x_train=IMAGES[:9], y_train=LABELS[:9], x_test=IMAGES[9:], y_test=LABELS[9:])
    for name, settings, message in (
        ("pictures", {"evaluation": str(tmp_path / "parts.npz")}, "evaluation does not go with pictures in arrays"),
        ("pictures", {"evaluation_frac": -0.1}, "evaluation_frac=-0.1 is not in 0 .. 1"),
        ("rows", {"delimiter": ","}, "delimiter does not go with a table whose columns have types"),
    ):
        with pytest.raises(UsageError, match=message):
            packed(tmp_path / f"{name}.npz", **settings)


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", first=IMAGES, second=LABELS)
    with pytest.raises(UsageError, match=r"a\.npz holds first, second; name the inputs x"):
        packed(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=IMAGES, y=LABELS[:-1])
    with pytest.raises(DataError, match=r"b\.npz: 60 inputs and 59 targets"):
        packed(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", x=np.array([{"a": 1}], object), y=LABELS[:1])
    with pytest.raises(DataError, match="objects are not read"):
        packed(tmp_path / "c.npz")
    (tmp_path / "d.npy").write_bytes(b"\x93NUMPY rubbish")
    with pytest.raises(DataError, match=r"d\.npy cannot be read as arrays"):
        packed(tmp_path / "d.npy", target="x")
    write_idx(tmp_path / "idx" / "train-images-idx3-ubyte", IMAGES)
    with pytest.raises(DataError, match="has no images or labels that belong to it"):
        arrays.read_idx(tmp_path / "idx")
    np.savez(tmp_path / "e.npz", x=np.full((5, 2, 2), "text"), y=LABELS[:5])
    with pytest.raises(DataError, match="are no table of numbers"):
        packed(tmp_path / "e.npz")


def test_arrays_of_samples_are_what_a_data_set_of_them_is(tmp_path: Path) -> None:
    inputs = np.random.default_rng(2).normal(size=(60, 3, 4, 5))
    np.savez(tmp_path / "set.npz", x=inputs, y=LABELS)
    found = packed(tmp_path / "set.npz")
    pairs = list(zip(inputs, LABELS.tolist(), strict=True))
    other = making.of_memory(pairs, tmp_path / "other", DataSettings(), lambda *told: None)
    assert found.manifest.kind == other.manifest.kind == "arrays"
    assert found.manifest.schema == other.manifest.schema
    for name, columns in other.parts.items():
        for column, values in columns.items():
            np.testing.assert_array_equal(found.parts[name][column].tensor, values.tensor)


def in_memory(folder: Path, data: Any, **settings: Any) -> Pack:
    return making.of_memory(data, folder / "memory", DataSettings(**settings), lambda *told: None)


def test_a_tuple_of_two_arrays_is_inputs_and_targets(tmp_path: Path) -> None:
    rows = np.random.default_rng(3).normal(size=(60, 2))
    found = in_memory(tmp_path, (rows, LABELS[:, None]), evaluation=(rows[:20], LABELS[:20]))
    assert found.manifest.kind == "table"
    assert [found.manifest.num_samples(part) for part in ("train", "evaluation")] == [60, 20]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ((np.zeros((4, 2)), np.zeros(3)), "the data: 4 inputs and 3 targets; every sample needs both"),
        (([1, 2, 3], [1, 2]), "a tuple of 2 is no table; give a data frame, .* or a tuple \\(inputs, target\\)"),
    ],
)
def test_what_is_no_pair_of_arrays(tmp_path: Path, data: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        in_memory(tmp_path, data)
