"""Feed-forward networks: digits, Fashion-MNIST, and a table of mixed columns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from samestep.data import adult, images
from samestep.data.columns import Dataset, Rows, Samples
from samestep.errors import DataError
from samestep.run.metrics import accuracy
from samestep.run.workload import Workload

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
    """

    offsets: Tensor

    def __init__(
        self, *, num_numeric: int, cardinalities: Sequence[int], width: int, depth: int, num_classes: int
    ) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.tensor([0, *cardinalities[:-1]]).cumsum(0))
        self.embedding = nn.Embedding(sum(cardinalities), _EMBEDDING_SIZE)
        inputs = num_numeric + _EMBEDDING_SIZE * len(cardinalities)
        self.layers = layers(inputs, width=width, depth=depth, num_classes=num_classes)

    def forward(self, *columns: Tensor) -> Tensor:
        """Scores of shape (n, classes) for numbers (n, num_numeric), where there are any, and codes (n, categories)."""
        embedded = self.embedding(columns[-1] + self.offsets).flatten(start_dim=1)
        scores: Tensor = self.layers(torch.cat((*columns[:-1], embedded), dim=1))
        return scores


def layers(num_inputs: int, *, width: int, depth: int, num_classes: int, dropout: float = 0.0) -> nn.Sequential:
    """Hidden layers with ReLU, then the scores.

    Args:
        num_inputs: Numbers of a sample.
        width: Units of a hidden layer.
        depth: Hidden layers.
        num_classes: Scores to give.
        dropout: Share of every hidden layer's units left out in training; 0 adds no layer for it.

    Example:
        >>> [tuple(parameter.shape) for parameter in layers(4, width=8, depth=1, num_classes=2).parameters()]
        [(8, 4), (8,), (2, 8), (2,)]
    """
    net = nn.Sequential()
    for before, after in pairwise([num_inputs, *[width] * depth]):
        net.extend((nn.Linear(before, after), nn.ReLU()))
        if dropout:
            net.append(nn.Dropout(dropout))
    return net.append(nn.Linear(width, num_classes))


def digits_mlp(*, width: int | None = None, depth: int | None = None) -> Workload:
    """64-256-256-10, ReLU, dropout 0.2 on the embedded digits; `width` units (256) in `depth` hidden layers (2)."""
    return Workload(
        name="digits-mlp",
        model=partial(layers, 64, width=width or 256, depth=depth or 2, num_classes=images.NUM_CLASSES, dropout=0.2),
        data=partial(images.dataset, "digits", shape=(64,)),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        class_names=images.DIGIT_NAMES,
        recipe={
            "global_batch": 64, "epochs": 30, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9,
            "lr_schedule": "cosine", "lr_warmup": 0.05,
        },
    )  # fmt: skip


def fashion_mlp(*, width: int | None = None, depth: int | None = None) -> Workload:
    """784-256-256-10 with ReLU on Fashion-MNIST; `width` units (256) in each of `depth` hidden layers (2)."""
    return Workload(
        name="fashion-mlp",
        model=partial(layers, 784, width=width or 256, depth=depth or 2, num_classes=images.NUM_CLASSES),
        data=partial(images.dataset, "fashion-mnist", shape=(784,)),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        class_names=images.FASHION_NAMES,
        recipe={
            "global_batch": 256, "epochs": 10, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9,
            "lr_schedule": "cosine", "lr_warmup": 0.05,
        },
    )  # fmt: skip


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
