"""A recurrent network that reads a picture row by row."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from samestep.data import images
from samestep.run.metrics import accuracy
from samestep.run.workload import Workload


class RowReader(nn.Module):
    """An LSTM over the rows of a picture; its last state gives the scores.

    Hochreiter and Schmidhuber, "Long short-term memory", 1997.

    Args:
        row_size: Pixels of a row.
        width: Units of a layer.
        depth: Layers, one on top of the other.
        num_classes: Scores to give.
    """

    def __init__(self, *, row_size: int, width: int, depth: int, num_classes: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(row_size, width, num_layers=depth, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, rows: Tensor) -> Tensor:
        """Scores of shape (n, classes) for pictures of shape (n, rows, row_size)."""
        outputs, _ = self.lstm(rows)
        scores: Tensor = self.head(outputs[:, -1])
        return scores


def fashion_lstm(*, width: int | None = None, depth: int | None = None) -> Workload:
    """Fashion-MNIST as 28 steps of 28 pixels; `width` units (128) in each of `depth` layers (1)."""
    return Workload(
        name="fashion-lstm",
        model=partial(RowReader, row_size=28, width=width or 128, depth=depth or 1, num_classes=images.NUM_CLASSES),
        data=partial(images.dataset, "fashion-mnist", shape=(28, 28)),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        class_names=images.FASHION_NAMES,
        recipe={
            "global_batch": 128, "epochs": 6, "optimizer": "adam", "lr": 3e-3,
            "lr_schedule": "cosine", "lr_warmup": 0.05, "clip_norm": 1.0,
        },
    )  # fmt: skip
