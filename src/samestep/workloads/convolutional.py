"""Convolutional networks: a plain one on digits, MNIST and Fashion-MNIST, and a small ResNet with BatchNorm."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from samestep.data import images
from samestep.errors import UsageError
from samestep.run.metrics import accuracy
from samestep.run.workload import Workload

_UNITS_PER_FILTER = 32


def plain_cnn(
    *, sides: tuple[int, int], kernel: int, width: int, depth: int, num_classes: int, channels: int = 1
) -> nn.Sequential:
    """Convolutions with ReLU and 2 × 2 max-pooling, a dense layer with ReLU, the scores.

    The "simple CNN" of Shallue et al., "Measuring the effects of data parallelism on neural network training", 2018,
    is ``sides=(28, 28), kernel=5, width=32, depth=2``: 32 and 64 filters, "same" padding, 1,024 dense units. (ReLU
    comes after the pooling, where it costs a quarter; as both are monotonic, the values are the same.)

    Args:
        sides: Height and width of an image, in pixels.
        kernel: Height and width of a filter, odd.
        width: Filters of the first block; each next block has twice as many, the dense layer 32 times as many.
        depth: Blocks; each halves the image.
        num_classes: Scores to give.
        channels: Of an image: 1 for grey, 3 for colours.

    Raises:
        UsageError: There are more blocks than an image can be halved.
    """
    max_depth = min(sides).bit_length() - 1
    if depth > max_depth:
        raise UsageError(
            f"depth={depth}: {sides[0]} × {sides[1]} pixels halve {max_depth} times; take 1 to {max_depth}"
        )
    net = nn.Sequential()
    for before, after in pairwise([channels, *[width << block for block in range(depth)]]):
        net.extend((nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.MaxPool2d(2), nn.ReLU()))
    features = (width << depth - 1) * (sides[0] >> depth) * (sides[1] >> depth)
    units = _UNITS_PER_FILTER * width
    return net.extend((nn.Flatten(), nn.Linear(features, units), nn.ReLU(), nn.Linear(units, num_classes)))


class ResidualBlock(nn.Module):
    """``relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))``, with a 1 × 1 convolution as shortcut where shapes differ.

    He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016.

    Args:
        before: Channels of the input.
        after: Channels of the output.
        stride: 2 halves the image.
    """

    branch_ends = ("residual.4",)
    """See `optim.parametrisation`."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = (
            nn.Identity()
            if (before, stride) == (after, 1)
            else nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, before, h, w) to (n, after, h / stride, w / stride)."""
        return functional.relu(self.shortcut(x) + self.residual(x))


def resnet(*, width: int, depth: int, dropout: float, num_classes: int) -> nn.Sequential:
    """A small ResNet for 28 × 28 pictures: a strided stem, three stages of residual blocks, mean, dropout, scores.

    The layout of He et al. (2016) for small images, at half their resolution to be cheap on a CPU.

    Args:
        width: Channels of the first stage; the second has twice, the third four times as many.
        depth: Residual blocks of a stage (1 makes a ResNet-8).
        dropout: Share of the features left out before the last layer.
        num_classes: Scores to give.
    """
    net = nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )  # fmt: skip
    channels = width
    for stage in range(3):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            net.append(ResidualBlock(channels, width << stage, stride=stride))
            channels = width << stage
    return net.extend((nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(channels, num_classes)))


def digits_cnn(*, width: int | None = None, depth: int | None = None) -> Workload:
    """3 × 3 convolutions on the embedded digits; `depth` blocks (2, at most 3), `width` filters in the first (16)."""
    return Workload(
        name="digits-cnn",
        model=partial(
            plain_cnn, sides=(8, 8), kernel=3, width=width or 16, depth=depth or 2, num_classes=images.NUM_CLASSES
        ),
        data=partial(images.dataset, "digits", shape=(1, 8, 8)),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        class_names=images.DIGIT_NAMES,
        recipe={
            "global_batch": 64, "epochs": 30, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
            "lr_schedule": "cosine", "lr_warmup": 0.05,
        },
    )  # fmt: skip


def mnist_cnn(*, width: int | None = None, depth: int | None = None) -> Workload:
    """The simple CNN of Shallue et al. (2018) on MNIST; `depth` blocks (2, at most 4), `width` filters first (32)."""
    return _simple_cnn("mnist-cnn", "mnist", images.DIGIT_NAMES, width, depth, epochs=3)


def fashion_cnn(*, width: int | None = None, depth: int | None = None) -> Workload:
    """The same on Fashion-MNIST; `depth` blocks (2, at most 4), `width` filters in the first (32)."""
    return _simple_cnn("fashion-cnn", "fashion-mnist", images.FASHION_NAMES, width, depth, epochs=4)


def fashion_resnet(*, width: int | None = None, depth: int | None = None) -> Workload:
    """A ResNet with BatchNorm and dropout; `depth` blocks in each of 3 stages (1), `width` channels first (16)."""
    return Workload(
        name="fashion-resnet",
        model=partial(resnet, width=width or 16, depth=depth or 1, dropout=0.1, num_classes=images.NUM_CLASSES),
        data=partial(images.dataset, "fashion-mnist", shape=(1, 28, 28)),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        class_names=images.FASHION_NAMES,
        recipe={
            "global_batch": 128, "epochs": 5, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
            "lr_schedule": "cosine", "lr_warmup": 0.1,
        },
    )  # fmt: skip


def _simple_cnn(
    name: str, folder: str, class_names: tuple[str, ...], width: int | None, depth: int | None, *, epochs: int
) -> Workload:
    return Workload(
        name=name,
        model=partial(
            plain_cnn, sides=(28, 28), kernel=5, width=width or 32, depth=depth or 2, num_classes=images.NUM_CLASSES
        ),
        data=partial(images.dataset, folder, shape=(1, 28, 28)),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        class_names=class_names,
        recipe={
            "global_batch": 128, "epochs": epochs, "optimizer": "sgd", "lr": 0.05, "momentum": 0.9,
            "lr_schedule": "cosine", "lr_warmup": 0.05,
        },
    )  # fmt: skip
