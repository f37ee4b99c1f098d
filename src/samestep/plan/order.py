"""The sample order: `order(seed, epoch, position) -> sample index`, with O(1) random access.

A keyed permutation of ``range(num_samples)``. No list of indices is stored: any worker can find the samples of
any microbatch alone, and resuming needs nothing but a counter.

The permutation is an alternating Feistel network over the mixed radix ``a * b >= num_samples`` (Black and Rogaway,
"Ciphers with arbitrary finite domains", CT-RSA 2002), walked until it lands inside the range. ``a`` and ``b`` are as
near to the square root as they can be, so fewer than ``2 * sqrt(num_samples)`` positions ever walk. Where each sample
lands is uniform over the seeds; of the permutations of a handful of samples not every one is equally likely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samestep.errors import UsageError
from samestep.plan import keys

_ROUNDS = 6
_MAX_SAMPLES = 1 << 62

IndexArray = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order in which an epoch visits the samples.

    Args:
        num_samples: How many samples an epoch holds.
        seed: The run's seed.
        is_shuffled: False keeps the order of the data, in every epoch.

    Example:
        >>> order = Order(num_samples=5, seed=1)
        >>> sorted(order.indices(epoch=0, start=0, stop=5).tolist())
        [0, 1, 2, 3, 4]
        >>> order.indices(epoch=0, start=3, stop=4)[0] == order.indices(epoch=0, start=0, stop=5)[3]
        np.True_
    """

    num_samples: int
    seed: int
    is_shuffled: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.num_samples <= _MAX_SAMPLES:
            raise UsageError(f"num_samples={self.num_samples} is outside of 1 .. 2**62; give data with samples in it")

    def indices(self, *, epoch: int, start: int, stop: int) -> IndexArray:
        """The sample indices at positions ``start <= position < stop`` of an epoch.

        Args:
            epoch: Number of the epoch, from 0.
            start: First position, in samples.
            stop: One past the last position, in samples.

        Returns:
            Indices, shape ``(stop - start,)``, int64.
        """
        assert 0 <= start <= stop <= self.num_samples, (start, stop, self.num_samples)
        positions = np.arange(start, stop, dtype=np.uint64)
        if not self.is_shuffled or self.num_samples == 1:
            return positions.astype(np.int64)
        width_a = math.isqrt(self.num_samples - 1) + 1
        width_b = -(-self.num_samples // width_a)
        round_keys = [keys.key(self.seed, epoch, number) & 0xFFFFFFFF for number in range(_ROUNDS)]
        image = _permute(positions, width_a, width_b, round_keys)
        outside = np.flatnonzero(image >= self.num_samples)
        while outside.size:
            image[outside] = _permute(image[outside], width_a, width_b, round_keys)
            outside = outside[image[outside] >= self.num_samples]
        return image.view(np.int64)


def _permute(values: _Words, width_a: int, width_b: int, round_keys: list[int]) -> _Words:
    """One pass of the Feistel network over ``range(width_a * width_b)``."""
    left, right = np.divmod(values, np.uint64(width_b))
    for number, round_key in enumerate(round_keys):
        if number % 2 == 0:
            left = _add_modulo(left, _hash_below(right, round_key, width_a), width_a)
        else:
            right = _add_modulo(right, _hash_below(left, round_key, width_b), width_b)
    result: _Words = left * np.uint64(width_b) + right
    return result


def _hash_below(values: _Words, round_key: int, bound: int) -> _Words:
    """A keyed 32-bit hash (Murmur3's finaliser), scaled to ``range(bound)`` by a multiplication."""
    x = values.astype(np.uint32)
    x ^= np.uint32(round_key)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    scaled: _Words = (x.astype(np.uint64) * np.uint64(bound)) >> np.uint64(32)
    return scaled


def _add_modulo(a: _Words, b: _Words, modulus: int) -> _Words:
    total = a + b
    total -= np.uint64(modulus) * (total >= modulus)
    return total
