"""The two networks in torch. Shared, so they count as nobody's lines."""

# mypy: ignore-errors

from torch import nn

CNN_WIDTH = 8


def build(case):
    """784-256-256-10, or samestep's fashion-cnn at `CNN_WIDTH`: 5 × 5 filters, pooling, ReLU, twice; a dense layer."""
    if case == "mlp":
        return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    w = CNN_WIDTH
    return nn.Sequential(
        nn.Conv2d(1, w, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(w, 2 * w, 5, padding=2),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * w * 49, 32 * w),
        nn.ReLU(),
        nn.Linear(32 * w, 10),
    )
