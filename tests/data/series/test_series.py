"""A time series: samples stay inside of their series, the target lies ahead, the future is kept apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samestep.data import making
from samestep.data.pack.reader import Pack
from samestep.data.series.schema import Schema
from samestep.data.settings import DataSettings
from samestep.errors import DataError, UsageError
from samestep.workloads import from_data, networks

NUM = 100


def write(folder: Path) -> Path:
    """Two series, their rows in turns; a's values are 0 .. 99, b's are 1000 .. 1099, with a gap in each."""
    lines = ["hour,station,wind,pm"]
    for row in range(NUM):
        for number, station in enumerate("ab"):
            value = "NA" if row == 40 else str(1000 * number + row)
            lines.append(f"{row},{station},{'N' if row % 3 else 'S'},{value}")
    (folder / "air.csv").write_text("\n".join(lines))
    return folder / "air.csv"


def packed(source: Path, **settings: Any) -> Pack:
    whole = DataSettings(**{"target": "pm", "horizon": 3, "window": 5, "series": "station", **settings})
    return making.ensure(str(source), source.with_name("packed"), whole, lambda *told: None)[0]


def test_samples_and_their_targets(tmp_path: Path) -> None:
    pack = packed(write(tmp_path), evaluation_frac=0.2)
    network = networks.choose(pack)
    data = from_data.workload(pack, network).data()
    assert data.evaluation is not None
    target = pack.manifest.schema["target"]
    columns = pack.manifest.schema["columns"]
    pm = next(place for place, column in enumerate(columns["numbers"]) if column["name"] == "pm")
    seen: dict[str, set[int]] = {"train": set(), "evaluation": set()}
    for part, samples in (("train", data.train), ("evaluation", data.evaluation)):
        indices = torch.arange(samples.num_samples)
        batch = [column.gather(indices) for column in (*samples.inputs, samples.target)]
        inputs = batch[0][:, :, pm].numpy() * target["deviation"] + target["mean"]
        goals = np.round(batch[1][:, 0].numpy() * target["deviation"] + target["mean"]).astype(int)
        assert batch[0].shape[1:] == (5, Schema.from_dict(pack.manifest.schema).row_size)
        for rows, goal in zip(inputs, goals, strict=True):
            expected = goal - 3 - np.arange(5)[::-1]
            is_known = expected % 1000 != 40
            np.testing.assert_allclose(rows[is_known], expected[is_known], atol=0.01)
            assert (expected // 1000 == goal // 1000).all()
            seen[part].add(int(goal))
    for station in (0, 1000):
        early = {station + row for row in range(7, 80) if row != 40}
        assert {goal for goal in seen["train"] if goal // 1000 * 1000 == station} == early
        late = {station + row for row in range(80, 100)}
        assert {goal for goal in seen["evaluation"] if goal // 1000 * 1000 == station} == late


def test_statistics_come_from_the_past(tmp_path: Path) -> None:
    source = write(tmp_path)
    first = packed(source, evaluation_frac=0.2).manifest.schema
    text = source.read_text().replace(",1099", ",9999")
    source.write_text(text)
    assert packed(source, evaluation_frac=0.2).manifest.schema == first
    assert packed(source, evaluation_frac=0.0).manifest.schema != first


def test_categories_that_only_the_future_holds_are_counted(tmp_path: Path) -> None:
    source = write(tmp_path)
    assert packed(source, evaluation_frac=0.2).manifest.statistics["unseen"] == {}
    source.write_text(source.read_text().replace("95,a,N", "95,a,E").replace("97,b,N", "97,b,W"))
    found = packed(source, evaluation_frac=0.2).manifest.statistics["unseen"]
    assert found == {"wind": {"num_rows": 2, "first": "E"}}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"window": 200}, DataError, "no series has 203 rows in a row"),
        ({"horizon": 0}, UsageError, "horizon=0 is below 1"),
        ({"series": "ship"}, UsageError, "the series 'ship' is not a column"),
        ({"target": "wind"}, DataError, "the target wind holds texts"),
        ({"split_by": "hour"}, UsageError, "split_by does not go with a time series"),
    ],
)
def test_mistakes(tmp_path: Path, settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as info:
        packed(write(tmp_path), **settings)
    assert message in str(info.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [("7.5", "the target wave is 7.5 in every row to train on"), ("", "the target wave holds no number to train on")],
)
def test_targets_that_tell_nothing(tmp_path: Path, value: str, message: str) -> None:
    """Only the last tenth, which is kept for evaluation, holds anything else."""
    rows = [f"{number},{value if number < 90 else number}" for number in range(100)]
    (tmp_path / "flat.csv").write_text("\n".join(["n,wave", *rows]))
    settings = DataSettings(target="wave", horizon=3, window=8, kinds="wave=number")
    with pytest.raises(DataError) as info:
        making.ensure(str(tmp_path / "flat.csv"), tmp_path / "packed", settings, lambda *told: None)
    assert message in str(info.value)
