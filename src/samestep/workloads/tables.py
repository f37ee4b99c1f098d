"""Feed-forward networks for tables of mixed columns; Adult."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from samestep.data import adult
from samestep.data.columns import Dataset, Rows, Samples
from samestep.errors import DataError
from samestep.run.metrics import accuracy
from samestep.run.workload import Workload
from samestep.workloads.feed_forward import layers

_EMBEDDING_SIZE = 8


class TableNet(nn.Module):
    """A network for numeric and categorical columns: each category has an embedding; all of them share one table.

    Guo and Berkhahn, "Entity embeddings of categorical variables", 2016.

    Args:
        num_numeric: Numeric columns.
        cardinalities: Codes per categorical column.
        width: Units of a hidden layer.
        depth: Hidden layers.
        num_classes: Scores to give.
        in_waves: Places of the numeric columns that are given as waves, too (see `Waves`).
        dropout: Share of every hidden layer's units left out in training.
    """

    offsets: Tensor
    places: Tensor

    def __init__(
        self,
        *,
        num_numeric: int,
        cardinalities: Sequence[int],
        width: int,
        depth: int,
        num_classes: int,
        in_waves: Sequence[int] = (),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        num_inputs = num_numeric
        if cardinalities:
            self.register_buffer("offsets", torch.tensor([0, *cardinalities[:-1]]).cumsum(0))
            self.embedding = nn.Embedding(sum(cardinalities), _EMBEDDING_SIZE)
            num_inputs += _EMBEDDING_SIZE * len(cardinalities)
        if in_waves:
            self.register_buffer("places", torch.tensor(in_waves))
            self.waves = Waves(len(in_waves))
            num_inputs += self.waves.num_outputs
        self.layers = layers(num_inputs, width=width, depth=depth, num_classes=num_classes, dropout=dropout)
        self._has_categories, self._has_waves = bool(cardinalities), bool(in_waves)

    def forward(self, *columns: Tensor) -> Tensor:
        """Scores of shape (n, classes) for numbers (n, num_numeric), where there are any, and codes (n, categories)."""
        parts = list(columns)
        if self._has_categories:
            parts[-1] = self.embedding(columns[-1] + self.offsets).flatten(start_dim=1)
        if self._has_waves:
            parts.append(self.waves(columns[0][:, self.places]))
        scores: Tensor = self.layers(torch.cat(parts, dim=1))
        return scores


class Waves(nn.Module):
    """Standardised numbers as sines and cosines of learned frequencies, from which each column learns its own features.

    A network of plain numbers learns sudden changes along a column slowly. Gorishniy, Rubachev and Babenko, "On
    embeddings for numerical features in tabular deep learning", 2022 (their PLR).

    Args:
        num_columns: Numbers of a sample.
        num_frequencies: Of each column.
        deviation: Standard deviation of the frequencies, in periods per standard deviation of the column, at the start.
        size: Features of each column.
    """

    def __init__(self, num_columns: int, *, num_frequencies: int = 24, deviation: float = 1.0, size: int = 8) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(num_columns, num_frequencies) * deviation)
        bound = (2 * num_frequencies) ** -0.5
        self.weight = nn.Parameter(torch.empty(num_columns, 2 * num_frequencies, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_columns, 1, size).uniform_(-bound, bound))
        self.num_outputs = num_columns * size

    def forward(self, numbers: Tensor) -> Tensor:
        """Features of shape (n, num_outputs) for numbers (n, num_columns)."""
        angles = 2 * math.pi * numbers.T.unsqueeze(2) * self.frequencies.unsqueeze(1)
        waves = torch.cat((angles.cos(), angles.sin()), dim=2)
        features = torch.relu(torch.baddbmm(self.bias, waves, self.weight))
        return features.transpose(0, 1).flatten(start_dim=1)


def adult_mlp(*, width: int | None = None, depth: int | None = None) -> Workload:
    """Adult's 6 numbers and 8 embedded categories; `width` units (128) in each of `depth` hidden layers (2)."""
    return Workload(
        name="adult-mlp",
        model=partial(
            TableNet,
            num_numeric=len(adult.ADULT_NUMERIC),
            cardinalities=tuple(adult.ADULT_CARDINALITIES.values()),
            width=width or 128,
            depth=depth or 2,
            num_classes=len(adult.ADULT_CLASSES),
        ),
        data=_adult,
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        class_names=adult.ADULT_CLASSES,
        recipe={
            "global_batch": 256, "epochs": 5, "optimizer": "adamw", "lr": 2e-3, "weight_decay": 1e-2,
            "lr_schedule": "cosine", "lr_warmup": 0.05,
        },
    )  # fmt: skip


def _adult() -> Dataset:
    data = adult.adult()
    limits = adult.ADULT_CARDINALITIES.items()
    for (name, limit), count in zip(limits, data.cardinalities, strict=True):
        if count > limit:
            raise DataError(f"adult: {count - 1} different values of {name} in training, at most {limit - 1} expected")
    return Dataset(_table_samples(data.train), _table_samples(data.evaluation))


def _table_samples(table: adult.Table) -> Samples:
    numeric, categorical, labels = map(torch.from_numpy, (table.numeric, table.categorical, table.labels))
    return Samples((Rows(values=numeric), Rows(values=categorical)), Rows(values=labels))
