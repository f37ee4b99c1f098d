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
from functools import lru_cache

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
        block: Samples that lie, and are read, together; None: every sample goes anywhere. Otherwise blocks are visited
            in a permuted order, and the samples of 16 blocks at a time are permuted: for data larger than memory.

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
    block: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_samples <= _MAX_SAMPLES:
            raise UsageError(f"num_samples={self.num_samples} is outside of 1 .. 2**62; give data with samples in it")
        if self.block is not None and self.block < 1:
            raise UsageError(f"a block of {self.block} samples holds none; take 1 or more, or leave it out")

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
            return positions.view(np.int64)
        if self.block is None or self.num_samples <= self.block:
            return _permuted(positions, self.num_samples, (self.seed, epoch)).view(np.int64)
        return self._block_by_block(positions, epoch, self.block).view(np.int64)

    def spans(self, epoch: int, position: int) -> tuple[int, list[tuple[int, int]]]:
        """Which rows are read around a position, so that they can be fetched before they are needed.

        Args:
            epoch: Number of the epoch.
            position: Some position of it.

        Returns:
            The position after those that read the same rows, and the rows' ranges (start, stop). Without blocks: all.
        """
        if self.block is None or not self.is_shuffled or self.num_samples <= self.block:
            return self.num_samples, [(0, self.num_samples)]
        num_blocks, short = divmod(self.num_samples, self.block)
        group, first = _BLOCKS_MIXED * self.block, self._short_at(epoch)
        if first <= position < first + short:
            return first + short, [(num_blocks * self.block, self.num_samples)]
        skipped = short if position >= first else 0
        begin = (position - skipped) // group * group
        end = min(begin + group, num_blocks * self.block)
        blocks = _blocks(begin // self.block, end // self.block, num_blocks, (self.seed, epoch, _BLOCK)).tolist()
        return end + skipped, [(number * self.block, (number + 1) * self.block) for number in blocks]

    def _short_at(self, epoch: int) -> int:
        """The position of the first sample of the short last block: between two groups, or at an end."""
        assert self.block is not None
        num_blocks = self.num_samples // self.block
        place = keys.key(self.seed, epoch, _SHORT_BLOCK) % (-(-num_blocks // _BLOCKS_MIXED) + 1)
        return min(place * _BLOCKS_MIXED * self.block, num_blocks * self.block)

    def _block_by_block(self, positions: _Words, epoch: int, block: int) -> _Words:
        """Blocks in a permuted order, the samples of a group of them mixed; the short last block stands somewhere."""
        num_blocks, short = divmod(self.num_samples, block)
        first = self._short_at(epoch)
        is_short = (positions >= first) & (positions < first + short)
        found = np.empty_like(positions)
        mixed = _permuted(positions[is_short] - np.uint64(first), short, (self.seed, epoch, _SHORT_BLOCK, 1))
        found[is_short] = mixed + np.uint64(num_blocks * block)
        others = positions[~is_short]
        others -= np.uint64(short) * (others >= first)
        found[~is_short] = self._whole_blocks(others, epoch, block, num_blocks)
        return found

    def _whole_blocks(self, positions: _Words, epoch: int, block: int, num_blocks: int) -> _Words:
        group = _BLOCKS_MIXED * block
        found = np.empty_like(positions)
        for number in range(int(positions[0]) // group, int(positions[-1]) // group + 1) if len(positions) else ():
            begin, end = number * group, min((number + 1) * group, num_blocks * block)
            here = slice(*np.searchsorted(positions, [begin, end]))
            mixed = _permuted(positions[here] - np.uint64(begin), end - begin, (self.seed, epoch, _GROUP, number))
            blocks = _blocks(begin // block, end // block, num_blocks, (self.seed, epoch, _BLOCK))
            moved = (blocks - np.arange(len(blocks), dtype=np.uint64)) * np.uint64(block)  # may wrap, and wraps back
            found[here] = mixed + moved[mixed // np.uint64(block)]
        return found


_BLOCKS_MIXED = 16
_BLOCK, _GROUP, _SHORT_BLOCK = 1, 2, 3
"""What a key is for, where there is more than one permutation in an epoch."""


@lru_cache(maxsize=4)
def _blocks(start: int, stop: int, num_blocks: int, key: tuple[int, ...]) -> _Words:
    """Which blocks stand at some places; asked for again and again while their group is read."""
    return _permuted(np.arange(start, stop, dtype=np.uint64), num_blocks, key)


def _permuted(positions: _Words, size: int, key: tuple[int, ...]) -> _Words:
    """What a keyed permutation of ``range(size)`` makes of some positions."""
    if size <= 1:
        return positions
    width_a = math.isqrt(size - 1) + 1
    width_b = -(-size // width_a)
    round_keys = [keys.key(*key, number) & 0xFFFFFFFF for number in range(_ROUNDS)]
    image = _permute(positions, width_a, width_b, round_keys)
    outside = np.flatnonzero(image >= size)
    while outside.size:
        image[outside] = _permute(image[outside], width_a, width_b, round_keys)
        outside = outside[image[outside] >= size]
    return image


def _permute(values: _Words, width_a: int, width_b: int, round_keys: list[int]) -> _Words:
    """One pass of the Feistel network over ``range(width_a * width_b)``."""
    left = values // np.uint64(width_b)
    right = values - left * np.uint64(width_b)  # quicker than NumPy's remainder
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
    scaled: _Words = x.astype(np.uint64)
    scaled *= np.uint64(bound)
    scaled >>= np.uint64(32)
    return scaled


def _add_modulo(a: _Words, b: _Words, modulus: int) -> _Words:
    total = a + b
    less = total - np.uint64(modulus)  # wraps around to something large where the sum is below
    found: _Words = np.minimum(total, less, out=less)
    return found
