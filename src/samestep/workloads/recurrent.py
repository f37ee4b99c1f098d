"""A recurrent network that reads a picture row by row."""

from __future__ import annotations

from functools import partial

import torch
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


class Change(nn.Module):
    """What a net says of a series is added to the last known value: that nothing changes is where it begins.

    Args:
        net: Gives one number for a stretch of rows.
        column: Of the rows: the value whose later value is to be known, scaled as the answer is; 0 where it is missing.
        mark: The column that says where it is missing (1); None: nowhere.
    """

    def __init__(self, net: nn.Module, column: int, mark: int | None = None) -> None:
        super().__init__()
        self.net, self.column, self.mark = net, column, mark

    def forward(self, rows: Tensor) -> Tensor:
        """Values of shape (n, 1) for stretches of shape (n, rows, row_size); to 0 where no value is known."""
        last = rows[:, -1, self.column : self.column + 1]
        if self.mark is not None:
            places = torch.arange(rows.shape[1], device=rows.device)
            newest = torch.where(rows[:, :, self.mark] == 0, places, 0).amax(dim=1, keepdim=True)
            last = rows[:, :, self.column].gather(1, newest)
        values: Tensor = last + self.net(rows)
        return values


class RowsOfPixels(nn.Module):
    """Pictures as sequences of rows: (n, channels, height, width) to (n, height, channels × width)."""

    def forward(self, pictures: Tensor) -> Tensor:
        """A view where there is one channel."""
        return pictures.transpose(1, 2).flatten(start_dim=2)


class SymbolReader(nn.Module):
    """An LSTM that reads symbols and gives the scores of each next one.

    Args:
        num_symbols: Different symbols.
        width: Units of a layer, and size of a symbol's vector.
        depth: Layers, one on top of the other.
    """

    def __init__(self, *, num_symbols: int, width: int, depth: int) -> None:
        super().__init__()
        self.symbols = nn.Embedding(num_symbols, width)
        self.lstm = nn.LSTM(width, width, num_layers=depth, batch_first=True)
        self.head = nn.Linear(width, num_symbols)

    def forward(self, codes: Tensor) -> Tensor:
        """Scores of shape (n, t, num_symbols) for codes of shape (n, t)."""
        outputs, _ = self.lstm(self.symbols(codes))
        scores: Tensor = self.head(outputs)
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
