"""Augmentation: every sample is changed a little, in another way every epoch, a whole microbatch at a time.

What is drawn for a sample depends on (seed, epoch, sample) alone: not on the microbatch that it is in, nor on who
computes it. So augmented runs have the same bits on any number of workers too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from samestep.errors import UsageError
from samestep.plan import keys

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_AUGMENT = keys.name_key("augment")

Values = npt.NDArray[Any]


class Change(Protocol):
    """A change of the rows of a microbatch."""

    def __call__(self, rows: Values, draws: Draws) -> Values:
        """The changed rows, of the same shape and dtype; `rows` may be written to."""


@dataclass(frozen=True)
class Draws:
    """Random words for some samples.

    Args:
        key: Of the seed, the epoch, and the place of the change among the changes.
        samples: Indices, shape (n,), int64.
    """

    key: int
    samples: npt.NDArray[np.int64]

    def words(self, number: int, width: int = 1) -> keys.Words:
        """Words of 64 random bits, shape (n, width); another `number` gives others."""
        start = np.uint64(keys.key(self.key, number))
        counters: keys.Words = np.repeat(self.samples.astype(np.uint64)[:, None] * np.uint64(width), width, axis=1)
        counters += np.arange(width, dtype=np.uint64)
        counters *= _GOLDEN
        counters += start
        return keys.mixed(counters)

    def below(self, number: int, bound: int) -> npt.NDArray[np.int64]:
        """Whole numbers in 0 .. bound - 1, shape (n,)."""
        high = self.words(number)[:, 0] >> np.uint64(32)
        return ((high * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)

    def normal(self, number: int, width: int) -> npt.NDArray[np.float32]:
        """Normally distributed numbers, shape (n, width) (Box and Muller, 1958)."""
        words = self.words(number, width)
        radius = np.sqrt(-2.0 * np.log(((words >> np.uint64(40)) + 0.5) * 2.0**-24))
        angle = (words & np.uint64(0xFFFFFF)) * (2.0 * np.pi * 2.0**-24)
        found: npt.NDArray[np.float32] = (radius * np.cos(angle)).astype(np.float32)
        return found


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Pictures are moved by up to so many pixels each way, and what moves in is 0 (a crop of the padded picture).

    Args:
        pixels: How far, at most.
    """

    pixels: int

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise UsageError(f"a shift of {self.pixels} pixels moves nothing; take 1 or more")

    def __call__(self, rows: Values, draws: Draws) -> Values:
        far, (height, width) = self.pixels, rows.shape[-2:]
        padded = np.zeros((*rows.shape[:-2], height + 2 * far, width + 2 * far), rows.dtype)
        padded[..., far : far + height, far : far + width] = rows
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(-2, -1))
        down, right = draws.below(0, 2 * far + 1), draws.below(1, 2 * far + 1)
        moved: Values = windows[np.arange(len(rows)), ..., down, right, :, :]
        return moved


@dataclass(frozen=True, kw_only=True)
class Flip:
    """Every second picture, at random, is mirrored left to right."""

    def __call__(self, rows: Values, draws: Draws) -> Values:
        chosen = np.flatnonzero(draws.below(0, 2))
        rows[chosen] = rows[chosen][..., ::-1]
        return rows


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """A square of every picture becomes 0; its centre is anywhere (DeVries and Taylor, 2017).

    Args:
        pixels: Side of the square.
    """

    pixels: int

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise UsageError(f"a cutout of {self.pixels} pixels takes nothing out; take 1 or more")

    def __call__(self, rows: Values, draws: Draws) -> Values:
        height, width = rows.shape[-2:]
        is_high = self._covers(draws.below(0, height), height)
        is_wide = self._covers(draws.below(1, width), width)
        is_kept = ~(is_high[:, :, None] & is_wide[:, None, :])
        rows *= is_kept.reshape(len(rows), *[1] * (rows.ndim - 3), height, width).astype(rows.dtype)
        return rows

    def _covers(self, centre: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.bool_]:
        first = centre[:, None] - self.pixels // 2
        places = np.arange(size)
        covered: npt.NDArray[np.bool_] = (places >= first) & (places < first + self.pixels)
        return covered


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Numbers get normally distributed noise added: for columns of standardised numbers.

    Args:
        deviation: Of the noise.
    """

    deviation: float

    def __call__(self, rows: Values, draws: Draws) -> Values:
        noise = draws.normal(0, int(np.prod(rows.shape[1:]))).reshape(rows.shape)
        rows += self.deviation * noise
        return rows


def apply(changes: Sequence[Change], rows: Values, *, seed: int, epoch: int, samples: npt.NDArray[np.int64]) -> Values:
    """The rows of some samples, changed.

    Args:
        changes: In this order.
        rows: Shape (n, ...); they may be written to.
        seed: Of the run.
        epoch: Number of the epoch.
        samples: Which samples they are, shape (n,).
    """
    for number, change in enumerate(changes):
        rows = change(rows, Draws(keys.key(seed, epoch, number, _AUGMENT), samples))
    return rows


def parse(text: str) -> tuple[Change, ...]:
    """Changes by name, such as ``shift=2,flip,cutout=8,noise=0.1``.

    Raises:
        UsageError: It is something else.

    Example:
        >>> parse("shift=2,flip")
        (Shift(pixels=2), Flip())
    """
    found: list[Change] = []
    for word in text.split(","):
        name, _, amount = word.strip().partition("=")
        try:
            if name == "flip" and not amount:
                found.append(Flip())
            elif name in ("shift", "cutout"):
                found.append((Shift if name == "shift" else Cutout)(pixels=int(amount)))
            elif name == "noise":
                found.append(Noise(deviation=float(amount)))
            else:
                raise ValueError(word)
        except UsageError:
            raise
        except ValueError:
            raise UsageError(
                f"augment {word!r} is not known; take shift=PIXELS, flip, cutout=PIXELS or noise=DEVIATION"
            ) from None
    return tuple(found)
