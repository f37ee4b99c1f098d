"""A workload from data alone, from Python: frames, columns and files, the same bits from each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import samestep
from samestep.errors import UsageError


def table(num: int = 200) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    x = rng.normal(size=num)
    return pl.DataFrame({"x": x, "color": rng.choice(["r", "g"], num), "y": np.where(x > 0, "up", "down")})


def sha(workload: samestep.Workload) -> str:
    return samestep.train(workload, workers=1, steps=20).record.weights_sha256


def test_frames_columns_and_files_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    frame = table()
    frame.write_csv(tmp_path / "t.csv")
    expected = sha(samestep.from_data(frame, target="y"))
    assert sha(samestep.from_data(frame.to_dict(as_series=False), target="y")) == expected
    assert sha(samestep.from_data(tmp_path / "t.csv", target="y")) == expected
    assert sha(samestep.from_data(frame, target="y", folder=tmp_path / "pack")) == expected
    assert sha(samestep.from_data(tmp_path / "pack")) == expected
    assert sha(samestep.from_data(frame, target="y", width=8)) != expected
    assert samestep.from_data(frame, target="y").class_names == ("down", "up")


def test_a_frame_of_its_own_to_evaluate_on() -> None:
    frame = table()
    data = samestep.from_data(frame[:150], target="y", evaluation=frame[150:]).data()
    assert data.evaluation is not None
    assert (data.train.num_samples, data.evaluation.num_samples) == (150, 50)


def test_what_does_not_go() -> None:
    with pytest.raises(UsageError, match="which column is to be learned"):
        samestep.from_data(table())
    with pytest.raises(UsageError, match="model transformer does not go with table; take mlp"):
        samestep.from_data(table(), target="y", model="transformer")
