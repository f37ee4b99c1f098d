"""A workload from data alone, from Python: frames, columns and files, the same bits from each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


@pytest.mark.processes
def test_blocks_and_augmentation_give_the_same_bits(tmp_path: Path) -> None:
    """Rows in a pack, read in blocks and changed: by a thread on one worker, and on several."""
    x = np.random.default_rng(0).normal(size=(700, 300)).astype(np.float32)
    columns = {f"x{number}": x[:, number] for number in range(x.shape[1])}
    workload = samestep.from_data({**columns, "y": x[:, 0] > 0}, target="y", folder=tmp_path / "pack")
    settings: dict[str, Any] = {"steps": 25, "global_batch": 60, "microbatch": 10, "augment": "noise=0.1"}
    found = {
        (block, workers): samestep.train(workload, workers=workers, shuffle_block=block, **settings).record
        for block, workers in ((16, 1), (16, 3), (None, 1), (None, 2), (17, 1))
    }
    sums = {key: record.weights_sha256 for key, record in found.items()}
    assert sums[16, 1] == sums[16, 3]
    assert sums[None, 1] == sums[None, 2]
    assert len({sums[16, 1], sums[17, 1], sums[None, 1]}) == 3


@pytest.mark.soak
@pytest.mark.processes
def test_blocks_go_on_in_the_middle_of_an_epoch_with_other_workers(tmp_path: Path) -> None:
    workload = samestep.from_data(table(), target="y", folder=tmp_path / "pack")
    settings: dict[str, Any] = {"shuffle_block": 8, "global_batch": 24, "microbatch": 6, "steps": 1500}
    whole = samestep.train(workload, workers=1, **settings).record.weights_sha256
    folder = tmp_path / "run"
    samestep.train(workload, workers=2, checkpoint=folder, checkpoint_every_s=0.02, **settings)
    sorted(folder.glob("step-*.json"))[-1].unlink()
    resumed = samestep.train(workload, workers=1, checkpoint=folder, resume=True, **settings).record
    assert 0 < resumed.first_step < 1500
    assert resumed.weights_sha256 == whole


def test_what_does_not_go() -> None:
    with pytest.raises(UsageError, match="which column is to be learned"):
        samestep.from_data(table())
    with pytest.raises(UsageError, match="model transformer does not go with table; take mlp"):
        samestep.from_data(table(), target="y", model="transformer")
