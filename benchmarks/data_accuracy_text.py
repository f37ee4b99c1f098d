"""A reader of characters in plain torch, as its tutorials write it: what samestep's text networks are compared with."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


class CharRnn(nn.Module):
    """Two layers of an LSTM with dropout, Adam, gradients clipped (Karpathy's char-rnn, 2015, and its heirs).

    Args:
        num_symbols: Different symbols.
        epochs: How often the text is read.
    """

    def __init__(self, *, num_symbols: int, epochs: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(num_symbols, 128)
        self.lstm = nn.LSTM(128, 128, num_layers=2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(128, num_symbols)
        self.epochs = epochs

    def forward(self, codes: Tensor) -> Tensor:
        scores: Tensor = self.head(self.lstm(self.embedding(codes))[0])
        return scores

    def fit(self, windows: npt.NDArray[Any], targets: npt.NDArray[Any]) -> Self:
        """Learn windows of codes, shape (n, length), and the codes that follow each, shape (n * length,)."""
        inputs = torch.from_numpy(windows).long()
        goals = torch.from_numpy(targets).view(inputs.shape)
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        self.train()
        for _ in range(self.epochs):
            for rows in torch.split(torch.randperm(len(inputs)), 64):
                loss = nn.functional.cross_entropy(self(inputs[rows]).flatten(0, 1), goals[rows].flatten())
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(self.parameters(), 5.0)
                optimizer.step()
        return self

    def predict(self, windows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The likeliest code after every one of some windows, shape (n * length,)."""
        self.eval()
        with torch.no_grad():
            parts = [self(rows).argmax(dim=-1) for rows in torch.split(torch.from_numpy(windows).long(), 256)]
        return np.asarray(torch.cat(parts).flatten().numpy())
