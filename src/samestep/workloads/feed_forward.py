"""Feed-forward networks for pictures: digits and Fashion-MNIST."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from torch import nn

from samestep.data import images
from samestep.run.metrics import accuracy
from samestep.run.workload import Workload


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
