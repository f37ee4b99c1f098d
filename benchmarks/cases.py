"""The nets and their data: what all programs of a case train."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

NUM_SAMPLES = 8192
LEARNING_RATE, MOMENTUM = 0.01, 0.9
GLOBAL_BATCHES = (64, 256, 1024)
NETS = ("mlp", "cnn", "lstm", "transformer")

_SHAPES = {
    "mlp": (784,),
    "cnn": (1, 28, 28),
    "lstm": (28, 28),
    "transformer": (28, 28),
    "narrow": (784,),
    "wide": (784,),
    "deep": (512,),
    "tiny": (8,),
}
_NUM_CLASSES = {"tiny": 2, "deep": 512}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A net and a global batch."""

    net: str
    global_batch: int

    def __post_init__(self) -> None:
        if self.net not in _SHAPES:
            raise ValueError(f"net {self.net!r} is not known; known: {', '.join(_SHAPES)}")
        if self.global_batch < 2 or self.global_batch > NUM_SAMPLES:
            raise ValueError(f"global_batch={self.global_batch} is not within 2 .. {NUM_SAMPLES}")

    @property
    def name(self) -> str:
        return f"{self.net}-{self.global_batch}"


def parse(name: str) -> Case:
    """The case of a name such as ``mlp-64``."""
    net, _, batch = name.partition("-")
    if not batch.isdecimal():
        raise ValueError(f"case {name!r} is not of the form net-batch, such as mlp-64")
    return Case(net=net, global_batch=int(batch))


def all_names() -> list[str]:
    return [f"{net}-{batch}" for net in NETS for batch in GLOBAL_BATCHES]


class RowLstm(nn.Module):
    """Reads an image row by row: 28 steps of 28 values -> 64 -> 10."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, 64, batch_first=True)
        self.head = nn.Linear(64, 10)

    def forward(self, rows: Tensor) -> Tensor:
        output, _ = self.lstm(rows)
        answer: Tensor = self.head(output[:, -1])
        return answer


class RowTransformer(nn.Module):
    """An encoder over an image's rows as tokens: d = 64, 2 layers, 4 heads, 128 wide, no dropout."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.embed = nn.Linear(28, 64)
        self.position = nn.Parameter(torch.zeros(28, 64))
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.head(self.encoder(self.embed(rows) + self.position).mean(dim=1))
        return answer


def build_model(net: str) -> nn.Module:
    """A fresh net."""
    match net:
        case "mlp":
            return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
        case "cnn":
            return nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(16, 32, 3, padding=1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(32 * 7 * 7, 10),
            )
        case "lstm":
            return RowLstm()
        case "transformer":
            return RowTransformer()
        case "narrow":
            return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
        case "wide":
            hidden = [layer for _ in range(3) for layer in (nn.Linear(1024, 1024), nn.ReLU())]
            return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), *hidden, nn.Linear(1024, 10))
        case "deep":  # halves that cost the same
            return nn.Sequential(*(layer for _ in range(16) for layer in (nn.Linear(512, 512), nn.ReLU())))
        case "tiny":
            return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    raise ValueError(f"net {net!r} is not known")


def build_data(net: str) -> tuple[Tensor, Tensor]:
    """Random samples (float32) and random classes (int64), the same in every process."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(NUM_SAMPLES, *_SHAPES[net], generator=generator)
    return inputs, torch.randint(_NUM_CLASSES.get(net, 10), (NUM_SAMPLES,), generator=generator)
