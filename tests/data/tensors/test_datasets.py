"""Map-style data sets of torch: every sample is read once, and what cannot be learned from is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import samestep
from samestep.data import making
from samestep.data.pack.reader import Pack
from samestep.data.settings import DataSettings
from samestep.errors import DataError, UsageError

NUM = 120
X = torch.from_numpy(np.random.default_rng(0).normal(size=(NUM, 2, 8, 8)).astype(np.float32))


class Counting(Dataset[Any]):
    """Counts how often each sample is asked for."""

    def __init__(self, target: Callable[[int], Any] = lambda number: number % 3) -> None:
        self.asked = [0] * NUM
        self.target = target

    def __len__(self) -> int:
        return NUM

    def __getitem__(self, number: int) -> Any:
        self.asked[number] += 1
        return X[number], self.target(number)


def packed(folder: Path, data: Any, **settings: Any) -> Pack:
    return making.of_memory(data, folder / "pack", DataSettings(**settings), lambda *told: None)


def test_samples_are_read_once_and_kept_as_they_are(tmp_path: Path) -> None:
    data = Counting()
    pack = packed(tmp_path, data)
    assert data.asked[1:] == [1] * (NUM - 1)  # the first one says what they are
    places = {values.numpy().tobytes(): number for number, values in enumerate(X)}
    total = 0
    for part in ("train", "evaluation"):
        columns = pack.parts[part]
        numbers = [places[values.numpy().tobytes()] for values in columns["inputs"].tensor]
        assert columns["target"].tensor.tolist() == [number % 3 for number in numbers]
        total += len(numbers)
    assert total == NUM


@pytest.mark.parametrize(("shape", "model"), [((2, 8, 8), "cnn"), ((16, 8), "lstm"), ((128,), "mlp")])
def test_networks_by_shape(shape: tuple[int, ...], model: str) -> None:
    inputs = X.reshape(NUM, *shape)
    target = (inputs.flatten(1).mean(dim=1) > 0).long()
    workload = samestep.from_data(TensorDataset(inputs, target))
    network: Any = workload.model
    assert network.__self__.model == model
    result = samestep.train(workload, workers=1, steps=3)
    assert len(result.record.weights_sha256) == 64


def test_a_value_and_a_data_set_of_its_own_to_evaluate_on() -> None:
    y = X.flatten(1).mean(dim=1)
    data = samestep.from_data(TensorDataset(X[:100], y[:100]), evaluation=TensorDataset(X[100:], y[100:])).data()
    assert data.evaluation is not None
    assert data.evaluation.num_samples == 20
    target = data.train.target.gather(torch.arange(100))
    torch.testing.assert_close(target[:, 0], (y[:100] - y[:100].mean()) / y[:100].std(correction=0))


@pytest.mark.parametrize("of_type", [bool, np.bool_, torch.tensor])
def test_truths_are_classes(tmp_path: Path, of_type: Callable[[bool], Any]) -> None:
    pack = packed(tmp_path, Counting(lambda number: of_type(number % 2 == 0)))
    assert pack.manifest.schema["target"]["values"] == ["0", "1"]


def test_settings_that_do_not_go_with_a_data_set(tmp_path: Path) -> None:
    for settings, message in (
        ({"horizon": 2}, "horizon does not go with a data set of torch"),
        ({"delimiter": ";", "horizon": 2}, "delimiter and horizon do not go with a data set of torch; leave them out"),
        ({"evaluation_frac": 1.5}, "evaluation_frac=1.5 is not in 0 .. 1"),
    ):
        with pytest.raises(UsageError, match=message):
            packed(tmp_path, Counting(), **settings)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda number: 1, "the target target has one class only (1)"),
        (lambda number: 1.5, "the target is 1.5 in every sample"),
        (lambda number: float("nan") if number == 3 else 0.5, "the target of sample 3 is nan; leave the sample out"),
        (lambda number: np.float32("inf"), "the target of sample 0 is inf; leave the sample out or fill it"),
        (lambda number: [1, 2], "the target of sample 0 is a list; it must be a class or a number"),
    ],
)
def test_targets_that_cannot_be_learned(tmp_path: Path, target: Callable[[int], Any], message: str) -> None:
    with pytest.raises(DataError) as info:
        packed(tmp_path, Counting(target))
    assert message in str(info.value)
    assert list(tmp_path.iterdir()) == []


def test_inputs_that_cannot_be_kept(tmp_path: Path) -> None:
    ragged = [(np.zeros(3), 0), (np.zeros(4), 1)]
    with pytest.raises(DataError, match=r"sample 1 has shape \(4,\), and those before \(3,\)"):
        packed(tmp_path, ragged)
    with pytest.raises(DataError, match="sample 1 holds NaN or infinity"):
        packed(tmp_path, [(np.zeros(1), 0), (np.full(1, np.inf), 1)])
    with pytest.raises(DataError, match="the input of sample 0 has dtype <U1"):
        packed(tmp_path, [("a", 0), ("b", 1)])
