"""Pictures in the columns of tables, laid down as `datasets` writes them (compared with its own files, version 4)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from samestep.data import making
from samestep.data.pack.reader import Pack
from samestep.data.settings import DataSettings
from samestep.errors import DataError, UsageError

FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 6), number, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def table(numbers: Sequence[int]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "image": [{"bytes": png(number), "path": None} for number in numbers],
            "label": [number % 2 for number in numbers],
        },
        schema={"image": pl.Struct({"bytes": pl.Binary, "path": pl.String}), "label": pl.Int64},
    )


def save_dataset(folder: Path, frame: pl.DataFrame) -> Path:
    folder.mkdir(parents=True)
    half = len(frame) // 2
    for number, part in enumerate((frame[:half], frame[half:])):
        part.write_ipc_stream(folder / f"data-{number:05}-of-00002.arrow")
    files = [{"filename": f"data-{number:05}-of-00002.arrow"} for number in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    return folder


def one(folder: Path) -> Path:
    return save_dataset(folder / "one", table(range(40)))


def splits(folder: Path) -> Path:
    save_dataset(folder / "both" / "train", table(range(40)))
    save_dataset(folder / "both" / "validation", table(range(40, 50)))
    (folder / "both" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    return folder / "both"


def parquet(folder: Path) -> Path:
    (folder / "files").mkdir()
    notes = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    for name, numbers in (("train-00000-of-00001", range(40)), ("test-00000-of-00001", range(40, 50))):
        table(numbers).write_parquet(folder / "files" / f"{name}.parquet", metadata=notes)
    return folder / "files"


def pack(source: Path, **settings: str) -> Pack:
    said = DataSettings(**settings)  # type: ignore[arg-type]
    return making.ensure(str(source), source.with_name("pack"), said, lambda *_: None)[0]


@pytest.mark.processes
@pytest.mark.parametrize("written", [one, splits, parquet])
def test_every_picture_comes_with_its_class(tmp_path: Path, written: Callable[[Path], Path]) -> None:
    found = pack(written(tmp_path))
    assert found.manifest.schema["target"]["values"] == ["cat", "dog"]
    seen: dict[str, list[int]] = {}
    for part, columns in found.parts.items():
        images, labels = columns["pictures"].tensor, columns["target"].tensor
        assert images.shape[1:] == (1, 4, 6)
        numbers = images[:, 0, 0, 0].tolist()
        assert labels.tolist() == [number % 2 for number in numbers]
        seen[part] = sorted(numbers)
    assert sorted(seen["train"] + seen["evaluation"]) == list(range(40 if written is one else 50))
    if written is not one:
        assert seen["evaluation"] == list(range(40, 50))


@pytest.mark.processes
def test_splits_of_a_table_are_its_parts(tmp_path: Path) -> None:
    for name, rows in (("train", range(60)), ("test", range(60, 80))):
        save_dataset(
            tmp_path / "set" / name, pl.DataFrame({"x": [row % 7 / 4 for row in rows], "y": [row % 2 for row in rows]})
        )
    (tmp_path / "set" / "dataset_dict.json").write_text("{}")
    found = pack(tmp_path / "set", target="y")
    assert (found.manifest.num_samples("train"), found.manifest.num_samples("evaluation")) == (60, 20)


def damaged(number: int, **picture: object) -> pl.DataFrame:
    rows = table(range(10)).to_dicts()
    rows[number]["image"] = picture or None
    return pl.DataFrame(rows, schema=table([0]).schema)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("frame", "settings", "message"),
    [
        (damaged(3), {}, r"data-00000-of-00002.arrow: row 3 of the train part has no picture"),
        (damaged(7, bytes=b"nothing"), {}, r"the picture of row 7 of the train part cannot be decoded .*broken_pic"),
        (damaged(0, bytes=b"nothing"), {}, r"the picture of row 0 of the train part cannot be decoded"),
        (damaged(2, path="elsewhere.png"), {}, r"the picture of row 2 of the train part cannot be decoded"),
        (table(range(10)).with_columns(label=None), {}, r"row 0 of the train part has no label"),
    ],
)
def test_what_is_missing_or_broken_is_named(
    tmp_path: Path, frame: pl.DataFrame, settings: dict[str, str], message: str
) -> None:
    source = save_dataset(tmp_path / "set", frame)
    with pytest.raises(DataError, match=message):
        pack(source, **settings)
    assert not (tmp_path / "pack").exists()


def test_several_columns_of_labels_need_a_name(tmp_path: Path) -> None:
    frame = table(range(10)).rename({"label": "fine"}).with_columns(coarse=pl.col("fine") // 2)
    source = save_dataset(tmp_path / "set", frame)
    with pytest.raises(UsageError, match=r"Name it with target; beside them are: fine, coarse"):
        pack(source)
    with pytest.raises(UsageError, match=r"Name it with target; beside them are: fine, coarse"):
        pack(source, target="none")


def test_no_split_to_train_on(tmp_path: Path) -> None:
    save_dataset(tmp_path / "set" / "test", table(range(10)))
    (tmp_path / "set" / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds no split train"):
        pack(tmp_path / "set")
