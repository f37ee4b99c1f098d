"""Every form of a source gives the bits that its pack gives, and forms that hold the same give the same."""

from __future__ import annotations

import functools
import gzip
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pytest
import tokenizers
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import samestep
from tests.marks import soak

RNG = functools.partial(np.random.default_rng, 0)


def table() -> pl.DataFrame:
    """Numbers, some of them missing, texts and two classes."""
    rng = RNG()
    x, color = rng.normal(size=120), rng.choice(["r", "g", "b"], 120)
    size = pl.Series([None if number % 7 == 0 else number % 11 / 4 for number in range(120)], dtype=pl.Float64)
    return pl.DataFrame({"x": x, "color": color, "size": size, "y": np.where(x > 0, "up", "down")})


def csv_text() -> str:
    return table().write_csv()


def rows() -> npt.NDArray[np.float64]:
    """A table of numbers; the last column is the target."""
    x = RNG().normal(size=(120, 2))
    return np.column_stack([x, x[:, 0] > 0])


def pictures() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Grey pictures, those of class 0 first, as folders have them."""
    labels = np.repeat(np.arange(2, dtype=np.uint8), 30)
    return RNG().integers(0, 256, (60, 8, 6), np.uint8), labels


def series() -> pl.DataFrame:
    rng = RNG()
    return pl.DataFrame({"hour": np.arange(150) % 24, "wind": rng.normal(size=150), "pm": rng.normal(size=150)})


TEXT = "The quick brown fox, naïve as ever, jumps over the lazy dog.\n" * 12


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zipped(folder: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        archive.writestr(name, content)
    return folder / "set.zip"


def tarred(folder: Path, name: str, content: bytes) -> Path:
    with tarfile.open(folder / "set.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return folder / "set.tar.gz"


def saved(path: Path, save: Callable[[Path], Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path)
    return path


def in_a_folder(folder: Path) -> Path:
    for number, part in enumerate((table()[:50], table()[50:])):
        write(folder / "tables" / f"part-{number}.csv", part.write_csv())
    return folder / "tables"


def hugging_face(folder: Path) -> Path:
    saved(folder / "set" / "data-00000.arrow", table().write_ipc_stream)
    write(folder / "set" / "state.json", json.dumps({"_data_files": [{"filename": "data-00000.arrow"}]}))
    write(folder / "set" / "dataset_info.json", "{}")
    return folder / "set"


def folders_of_pictures(folder: Path) -> Path:
    for number, (pixels, label) in enumerate(zip(*pictures(), strict=True)):
        saved(folder / "set" / str(label) / f"{number:02}.png", Image.fromarray(pixels).save)
    return folder / "set"


def pictures_beside_a_table(folder: Path) -> Path:
    images, labels = pictures()
    for number, pixels in enumerate(images):
        saved(folder / "set" / "images" / f"{number:02}.png", Image.fromarray(pixels).save)
    lines = (f"{number:02}.png,{label}\n" for number, label in enumerate(labels))
    write(folder / "set" / "labels.csv", "name,label\n" + "".join(lines))
    return folder / "set"


def idx(folder: Path) -> Path:
    for name, values in zip(("images-idx3", "labels-idx1"), pictures(), strict=True):
        head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
        write(folder / "set" / f"train-{name}-ubyte.gz", gzip.compress(head + values.tobytes()))
    return folder / "set"


def pictures_in_npz(folder: Path) -> Path:
    x, y = pictures()
    np.savez(folder / "set.npz", x=x, y=y)
    return folder / "set.npz"


def pictures_in_parquet(folder: Path) -> Path:
    images, labels = pictures()
    files = [io.BytesIO() for _ in images]
    for file, pixels in zip(files, images, strict=True):
        Image.fromarray(pixels).save(file, "PNG")
    kind = pl.Struct({"bytes": pl.Binary, "path": pl.String})
    cells = pl.Series([{"bytes": file.getvalue(), "path": None} for file in files], dtype=kind)
    return saved(folder / "set.parquet", pl.DataFrame({"image": cells, "label": labels}).write_parquet)


def rows_in_csv(folder: Path) -> Path:
    frame = pl.DataFrame({f"column{place}": column for place, column in enumerate(rows().T)})
    return write(folder / "t.csv", frame.write_csv())


def rows_in_npz(folder: Path) -> Path:
    np.savez(folder / "set.npz", x=rows()[:, :2], column2=rows()[:, 2])
    return folder / "set.npz"


def samples() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    x = RNG().normal(size=(60, 2, 6, 6)).astype(np.float32)
    return x, (x.mean(axis=(1, 2, 3)) > 0).astype(np.int64)


def samples_in_npz(folder: Path) -> Path:
    x, y = samples()
    np.savez(folder / "set.npz", x=x, y=y)
    return folder / "set.npz"


def tokenizer(folder: Path) -> Path:
    learned = tokenizers.Tokenizer(tokenizers.models.BPE())
    learned.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    learned.train_from_iterator([TEXT], trainer)
    return saved(folder / "tokenizer.json", lambda path: learned.save(str(path)))


def text_and_tokenizer(folder: Path) -> Path:
    tokenizer(folder)
    return write(folder / "t.txt", TEXT)


def tokens(folder: Path) -> Path:
    numbers = tokenizers.Tokenizer.from_file(str(tokenizer(folder))).encode(TEXT).ids
    return saved(folder / "t.npy", lambda path: np.save(path, np.array(numbers)))


class Form(NamedTuple):
    """A form of some data.

    Args:
        data: Which data: forms of the same data give the same bits.
        make: Makes the source, a path or something in memory, in a folder.
        needs: Files of the folder that a setting names.
    """

    data: str
    make: Callable[[Path], Any]
    needs: tuple[str, ...] = ()


SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "table": {"target": "y"},
    "rows": {"target": "column2"},
    "pictures": {"width": 8, "depth": 1},
    "series": {"target": "pm", "horizon": 2, "window": 5},
    "characters": {"window": 8, "width": 16, "depth": 1},
    "bytes": {"text": "bytes", "window": 8, "width": 16, "depth": 1},
    "tokens": {"window": 8, "width": 16, "depth": 1},
    "samples": {"width": 8, "depth": 1},
}
TOKENIZER = ("tokenizer",)
FORMS = {
    "CSV": Form("table", lambda folder: write(folder / "t.csv", csv_text())),
    "TSV": Form("table", lambda folder: write(folder / "t.tsv", csv_text().replace(",", "\t"))),
    "CSV, gzip": Form("table", lambda folder: write(folder / "t.csv.gz", gzip.compress(csv_text().encode()))),
    "CSV in a zip": Form("table", lambda folder: zipped(folder, "t.csv", csv_text().encode())),
    "CSV in a tar.gz": Form("table", lambda folder: tarred(folder, "deep/t.csv", csv_text().encode())),
    "member of a zip": Form("table", lambda folder: zipped(folder, "a/t.csv", csv_text().encode()) / "a/t.csv"),
    "folder of CSV": Form("table", in_a_folder),
    "Parquet": Form("table", lambda folder: saved(folder / "t.parquet", table().write_parquet)),
    "Arrow": Form("table", lambda folder: saved(folder / "t.arrow", table().write_ipc)),
    "Feather": Form("table", lambda folder: saved(folder / "t.feather", table().write_ipc)),
    "Hugging Face": Form("table", hugging_face),
    "polars": Form("table", lambda folder: table()),
    "pandas": Form("table", lambda folder: pd.DataFrame(table().to_dict(as_series=False))),
    "columns": Form("table", lambda folder: table().to_dict(as_series=False)),
    ".npy": Form("rows", lambda folder: saved(folder / "t.npy", lambda path: np.save(path, rows()))),
    ".npz": Form("rows", rows_in_npz),
    "array": Form("rows", lambda folder: rows()),
    "tensor": Form("rows", lambda folder: torch.from_numpy(rows())),
    "pair of arrays": Form("rows", lambda folder: (rows()[:, :2], rows()[:, 2])),
    "pair of tensors": Form("rows", lambda folder: tuple(map(torch.from_numpy, np.split(rows(), [2], axis=1)))),
    "CSV of numbers": Form("rows", rows_in_csv),
    "folders of pictures": Form("pictures", folders_of_pictures),
    "pictures, table of labels": Form("pictures", pictures_beside_a_table),
    "pictures in Parquet": Form("pictures", pictures_in_parquet),
    "pictures in .npz": Form("pictures", pictures_in_npz),
    "IDX": Form("pictures", idx),
    "series, CSV": Form("series", lambda folder: write(folder / "t.csv", series().write_csv())),
    "series, Parquet": Form("series", lambda folder: saved(folder / "t.parquet", series().write_parquet)),
    "series, polars": Form("series", lambda folder: series()),
    "text": Form("characters", lambda folder: write(folder / "t.txt", TEXT)),
    "text, gzip": Form("characters", lambda folder: write(folder / "t.txt.gz", gzip.compress(TEXT.encode()))),
    "bytes": Form("bytes", lambda folder: write(folder / "t.bin", TEXT)),
    "text, tokenizer": Form("tokens", text_and_tokenizer, TOKENIZER),
    "tokens": Form("tokens", tokens),
    "data set of torch": Form("samples", lambda folder: TensorDataset(*map(torch.from_numpy, samples()))),
    "arrays of samples in .npz": Form("samples", samples_in_npz),
    "list of pairs": Form("samples", lambda folder: [*zip(*samples(), strict=True)]),
}


def workloads(form: Form, folder: Path) -> tuple[samestep.Workload, samestep.Workload]:
    """Of the source itself, and of its pack."""
    settings = dict(SETTINGS[form.data])
    source = form.make(folder)
    settings |= {name: str(folder / f"{name}.json") for name in form.needs}
    direct = samestep.from_data(source, **settings)
    samestep.from_data(source, folder=folder / "pack", **settings)
    sizes = {name: settings[name] for name in ("width", "depth") if name in settings}
    return direct, samestep.from_data(folder / "pack", **sizes)


def sha(workload: samestep.Workload, workers: int = 1) -> str:
    """Of the weights after two steps."""
    return samestep.train(workload, workers=workers, steps=2, global_batch=16, microbatch=4).record.weights_sha256


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """What the first form of some data gives."""

    @functools.cache
    def found(data: str) -> str:
        form = next(form for form in FORMS.values() if form.data == data)
        return sha(workloads(form, tmp_path_factory.mktemp(data))[0])

    return found


@pytest.mark.processes
@pytest.mark.parametrize("name", FORMS)
def test_a_source_and_its_pack_give_the_same_bits(name: str, tmp_path: Path, first: Callable[[str], str]) -> None:
    form = FORMS[name]
    direct, packed = map(sha, workloads(form, tmp_path))
    assert direct == packed
    assert direct == first(form.data), f"{name} holds what the first form holds"


@pytest.mark.processes
@pytest.mark.parametrize("name", ["CSV", soak("folders of pictures")])
def test_so_do_two_workers(name: str, tmp_path: Path, first: Callable[[str], str]) -> None:
    _, packed = workloads(FORMS[name], tmp_path)
    assert sha(packed, workers=2) == first(FORMS[name].data)


def test_other_data_give_other_bits(tmp_path: Path, first: Callable[[str], str]) -> None:
    """The comparison tells data apart that differ in one value."""
    other = table().with_columns(x=pl.when(pl.int_range(pl.len()) == 5).then(0.25).otherwise(pl.col("x")))
    assert sha(workloads(Form("table", lambda folder: other), tmp_path)[1]) != first("table")
