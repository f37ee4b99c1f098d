"""Tables that know their types give the rows that a text file would give."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from samestep.data import making
from samestep.data.settings import DataSettings
from samestep.data.table import frames, streams
from samestep.errors import DataError
from tests.marks import soak

FRAME = pl.DataFrame(
    {
        "n": pl.Series([1, 2, None, 4], dtype=pl.Int16),
        "x": [0.5, float("nan"), 2.5, 3.5],
        "is_old": [True, False, None, True],
        "when": [date(1970, 1, 2), None, date(1970, 1, 4), date(1970, 1, 5)],
        "color": pl.Series(["r", "g", None, "r"], dtype=pl.Categorical),
        "many": [[1], [2], [3], [4]],
    }
)


def rows(frame: frames.Frame) -> dict[str, list[Any]]:
    wanted = [name for name in frame.names if frame.kinds[name] != "ignore"]
    return pl.concat(list(frame.chunks(wanted))).to_dict(as_series=False)


EXPECTED = {
    "n": [1.0, 2.0, None, 4.0], "x": [0.5, None, 2.5, 3.5], "is_old": [1.0, 0.0, None, 1.0],
    "when": [1.0, None, 3.0, 4.0], "color": ["r", "g", None, "r"],
}  # fmt: skip


def test_types_are_kinds() -> None:
    frame = frames.of_memory(FRAME, {})
    assert frame.kinds == {
        "n": "number", "x": "number", "is_old": "number", "when": "time", "color": "category", "many": "ignore",
    }  # fmt: skip
    assert rows(frame) == EXPECTED
    assert rows(frames.of_memory(FRAME, {"n": "category"}))["n"] == ["1", "2", None, "4"]


def parquet(folder: Path) -> frames.Frame:
    FRAME.write_parquet(folder / "t.parquet")
    return frames.of_files([folder / "t.parquet"], {})


def arrow_file(folder: Path) -> frames.Frame:
    FRAME.write_ipc(folder / "t.arrow")
    return frames.of_files([folder / "t.arrow"], {})


def hugging_face(folder: Path) -> frames.Frame:
    for number, part in enumerate((FRAME[:1], FRAME[1:])):
        part.write_ipc_stream(folder / f"data-{number}.arrow")
    files = [{"filename": f"data-{number}.arrow"} for number in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    return frames.of_hugging_face(folder, {})


@pytest.mark.parametrize("written", [parquet, arrow_file, hugging_face])
def test_files_hold_the_same(tmp_path: Path, written: Callable[[Path], frames.Frame]) -> None:
    frame = written(tmp_path)
    assert rows(frame) == EXPECTED
    assert frame.num_rows_about == 4


_GROWTH = """
import sys, threading, time
from pathlib import Path
import numpy as np, polars as pl
from samestep.data.table import frames

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) << 10

def watch():
    while not is_over.wait(0.002):
        peaks.append(anonymous())

path = Path(sys.argv[1])
if path.suffix == ".npy":
    array = np.load(path, mmap_mode="r")
    frame = frames.of_arrays({f"c{place}": array[:, place] for place in range(array.shape[1])}, {})
else:
    frame = frames.of_files([path], {})
peaks, is_over = [anonymous()], threading.Event()
watcher = threading.Thread(target=watch)
watcher.start()
num_rows, total = 0, 0.0
for chunk in frame.chunks(frame.names):
    num_rows, total = num_rows + len(chunk), total + chunk["c0"].sum()
is_over.set()
watcher.join()
print(num_rows, total, max(peaks) - peaks[0])
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("ending", ["npy", soak("arrow")])
def test_files_are_not_wholly_in_memory(tmp_path: Path, ending: str) -> None:
    num_rows, width, path = 250_000, 160, tmp_path / f"t.{ending}"
    if ending == "npy":
        np.save(path, np.ones((num_rows, width)))
    else:
        batch = pl.DataFrame({f"c{place}": np.ones(num_rows // 100) for place in range(width)})
        part = io.BytesIO()
        batch.write_ipc_stream(part)
        (schema, *_, rows) = [message.content for message in streams.messages(io.BytesIO(part.getvalue()))]
        path.write_bytes(schema + rows * 100)
    size = path.stat().st_size
    assert size > 300_000_000
    words = [sys.executable, "-c", _GROWTH, str(path)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert [float(word) for word in said[:2]] == [num_rows, num_rows]
    assert int(said[2]) < size * 0.5, said


@pytest.mark.parametrize("num_kept", [3, 100, -9, -200])
def test_a_stream_that_is_cut_short_is_one_line(tmp_path: Path, num_kept: int) -> None:
    path = tmp_path / "t.arrow"
    FRAME.write_ipc_stream(path)
    path.write_bytes(path.read_bytes()[:num_kept])
    with pytest.raises(DataError, match=r"t\.arrow is damaged or cut short|t\.arrow is no Arrow stream"):
        frames.of_files([path], {})


def test_arrays_tensors_and_columns() -> None:
    array = np.array([[1, 2], [3, 4]], np.float32)
    for data in (array, torch.from_numpy(array), array.tolist(), {"column0": [1, 3], "column1": array[:, 1]}):
        assert rows(frames.of_memory(data, {})) == {"column0": [1.0, 3.0], "column1": [2.0, 4.0]}


def test_objects_that_are_missing() -> None:
    columns = {"n": np.array([1, None], object), "color": np.array(["r", np.nan], object)}
    assert rows(frames.of_memory(columns, {})) == {"n": [1.0, None], "color": ["r", None]}


def test_a_frame_of_pandas() -> None:
    days = pd.to_datetime(["1970-01-02", "NaT"])
    frame = pd.DataFrame(
        {
            "n": [1.5, np.nan],
            "whole": pd.array([1, None], dtype="Int64"),
            "is_old": pd.array([True, None], dtype="boolean"),
            "color": ["r", None],
            "size": pd.Categorical(["s", None]),
            "mixed": pd.Series([1, "a"], dtype=object),
            "when": days,
            "there": days.tz_localize("UTC"),
        }
    )
    assert rows(frames.of_memory(frame, {})) == {
        "n": [1.5, None], "whole": [1.0, None], "is_old": [1.0, None], "color": ["r", None], "size": ["s", None],
        "mixed": ["1", "a"], "when": [1.0, None], "there": [1.0, None],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((2, 2, 2)), "an array of shape (2, 2, 2) and dtype float64 is no table"),
        (np.array([["a"]]), "an array of shape (1, 1) and dtype <U1 is no table"),
        ({"a": [1, 2], "b": [1]}, "the columns have different lengths: a 2, b 1"),
    ],
)
def test_what_is_no_table(data: Any, message: str) -> None:
    with pytest.raises(DataError) as info:
        frames.of_memory(data, {})
    assert message in str(info.value)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
def test_damaged_files_are_one_line(tmp_path: Path, name: str) -> None:
    (parquet if name == "t.parquet" else arrow_file)(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError) as info:
        rows(frames.of_files([path], {}))
    assert "\n" not in str(info.value)


def test_the_same_pack_from_text_and_from_parquet(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    table = pl.DataFrame({"x": x, "color": rng.choice(["r", "g", "b"], 300), "y": (x > 0).astype(int)})
    table.write_csv(tmp_path / "t.csv")
    table.write_parquet(tmp_path / "t.parquet")
    found = []
    for name in ("t.csv", "t.parquet"):
        pack, _ = making.ensure(
            str(tmp_path / name), tmp_path / f"{name}.pack", DataSettings(target="y"), lambda *told: None
        )
        found.append({part: {n: c.sha256 for n, c in columns.items()} for part, columns in pack.parts.items()})
    assert found[0] == found[1]
