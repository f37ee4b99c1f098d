"""Small grey pictures with a class each: scikit-learn's digits, MNIST, Fashion-MNIST."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from samestep.data import idx, sources
from samestep.data.columns import Dataset, Rows, Samples, Scale
from samestep.errors import DataError

NUM_CLASSES = 10

DIGIT_NAMES = tuple("0123456789")

FASHION_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@dataclass(frozen=True)
class Pictures:
    """Pictures and their classes.

    Args:
        images: Grey values, shape (n, height, width), uint8.
        labels: Classes, shape (n,), int64.
        largest: The grey value of white.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    largest: int = 255

    def samples(self, shape: tuple[int, ...]) -> Samples:
        """The pictures as columns: bytes in memory, gathered as float32 in 0..1, shape (n, *shape)."""
        rows = torch.tensor(self.images).reshape(-1, *shape)
        inputs = Rows(values=rows, transform=Scale(factor=1 / self.largest))
        return Samples((inputs,), Rows(values=torch.tensor(self.labels)))


def digits() -> tuple[Pictures, Pictures]:
    """The digits that come with the package: (training, evaluation), 1,618 and 179 pictures of 8 × 8, values 0..16.

    The evaluation part is the last tenth. They are the test part of UCI's "Optical Recognition of Handwritten
    Digits" (Alpaydin and Kaynak, 1998; CC BY 4.0), as in scikit-learn.

    Example:
        >>> training, evaluation = digits()
        >>> training.images.shape, evaluation.images.shape
        ((1618, 8, 8), (179, 8, 8))
    """
    images = idx.read(sources.embedded("digits-images-idx3-ubyte.gz"), num_dims=3)
    labels = idx.read(sources.embedded("digits-labels-idx1-ubyte.gz"), num_dims=1).astype(np.int64)
    cut = len(images) - len(images) // 10
    return Pictures(images[:cut], labels[:cut], 16), Pictures(images[cut:], labels[cut:], 16)


def mnist_like(folder: str) -> tuple[Pictures, Pictures]:
    """(training, evaluation) of MNIST or Fashion-MNIST: 60,000 and 10,000 pictures of 28 × 28, values 0..255.

    Args:
        folder: "mnist" or "fashion-mnist".

    Raises:
        DataError: A file is missing, damaged, or does not fit the others.

    References:
        LeCun, Cortes and Burges, "The MNIST database of handwritten digits", 1998.
        Xiao, Rasul and Vollgraf, "Fashion-MNIST", 2017.
    """
    return _pictures(folder, "train"), _pictures(folder, "t10k")


def dataset(folder: str, *, shape: tuple[int, ...]) -> Dataset:
    """A data set of pictures, ready to train on.

    Args:
        folder: "digits", "mnist" or "fashion-mnist".
        shape: Shape of one input: (1, h, w) for convolutions, (h, w) as a sequence of rows, (h * w,) flat.

    Raises:
        DataError: As for `mnist_like`.

    Example:
        >>> inputs, = dataset("digits", shape=(64,)).train.inputs
        >>> inputs.gather(torch.tensor([0, 1])).shape
        torch.Size([2, 64])
    """
    training, evaluation = digits() if folder == "digits" else mnist_like(folder)
    return Dataset(training.samples(shape), evaluation.samples(shape))


def _pictures(folder: str, part: str) -> Pictures:
    images_path = sources.find(folder, f"{part}-images-idx3-ubyte.gz")
    labels_path = sources.find(folder, f"{part}-labels-idx1-ubyte.gz")
    images = idx.read(images_path, num_dims=3)
    labels = idx.read(labels_path, num_dims=1)
    if len(images) != len(labels):
        raise DataError(f"{images_path} holds {len(images)} pictures and {labels_path} {len(labels)} labels")
    if images.shape[1:] != (28, 28):
        raise DataError(f"{images_path}: pictures of {images.shape[1]} × {images.shape[2]}, expected 28 × 28")
    if labels.max(initial=0) >= NUM_CLASSES:
        raise DataError(f"{labels_path}: a label is {labels.max()}, expected 0 .. {NUM_CLASSES - 1}")
    return Pictures(images, labels.astype(np.int64))
