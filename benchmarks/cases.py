"""The nets and their data: what all programs of a case train."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

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
        if self.net not in _SHAPES and _shaped(self.net) is None:
            raise ValueError(f"net {self.net!r} is not known; known: {', '.join(_SHAPES)}")
        if self.global_batch < 2 or self.global_batch > NUM_SAMPLES:
            raise ValueError(f"global_batch={self.global_batch} is not within 2 .. {NUM_SAMPLES}")

    @property
    def name(self) -> str:
        return f"{self.net}-{self.global_batch}"


def _shaped(net: str) -> tuple[str, int, int] | None:
    """Family, depth and width of a net such as ``mlp_8x512``."""
    found = re.fullmatch(rf"({'|'.join(NETS)})_(\d+)x(\d+)", net)
    return None if found is None else (found[1], int(found[2]), int(found[3]))


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

    def __init__(self, depth: int = 1, width: int = 64) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, width, depth, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, rows: Tensor) -> Tensor:
        output, _ = self.lstm(rows)
        answer: Tensor = self.head(output[:, -1])
        return answer


class RowTransformer(nn.Module):
    """An encoder over an image's rows as tokens: d = 64, 2 layers, 4 heads, 128 wide, no dropout."""

    def __init__(self, depth: int = 2, width: int = 64) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.embed = nn.Linear(28, width)
        self.position = nn.Parameter(torch.zeros(28, width))
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, rows: Tensor) -> Tensor:
        answer: Tensor = self.head(self.encoder(self.embed(rows) + self.position).mean(dim=1))
        return answer


def build_model(net: str) -> nn.Module:
    """A fresh net."""
    if (shape := _shaped(net)) is not None:
        return _build_shaped(*shape)
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


def _build_shaped(family: str, depth: int, width: int) -> nn.Module:
    """A net of a family with so many hidden layers (blocks) of that width (channels)."""
    match family:
        case "mlp":
            widths = [784, *[width] * depth]
            hidden = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
            return nn.Sequential(*hidden, nn.Linear(width, 10))
        case "cnn":
            channels = [1, *[width] * depth]
            blocks = [layer for pair in pairwise(channels) for layer in (nn.Conv2d(*pair, 3, padding=1), nn.ReLU())]
            return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * width, 10))
        case "lstm":
            return RowLstm(depth, width)
        case _:
            return RowTransformer(depth, width)


def build_data(net: str) -> tuple[Tensor, Tensor]:
    """Random samples (float32) and random classes (int64), the same in every process."""
    generator = torch.Generator().manual_seed(0)
    family = net if (shape := _shaped(net)) is None else shape[0]
    inputs = torch.randn(NUM_SAMPLES, *_SHAPES[family], generator=generator)
    return inputs, torch.randint(_NUM_CLASSES.get(family, 10), (NUM_SAMPLES,), generator=generator)
