"""Keyed 64-bit hashing: all randomness is a pure function of integers.

The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014), chained over the words of the key.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(state: int, word: int) -> int:
    """Absorb one integer into a 64-bit state.

    >>> mix(0, 1) == mix(0, 1), mix(0, 1) == mix(0, 2)
    (True, False)
    """
    z = ((state ^ (word & _MASK)) + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def key(*words: int) -> int:
    """A 64-bit key of a tuple of integers; the order of the words matters.

    >>> key(1, 2) != key(2, 1)
    True
    """
    state = len(words)
    for word in words:
        state = mix(state, word)
    return state


def name_key(name: str) -> int:
    """A 64-bit key of a name, the same in every process (unlike `hash`)."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def mixed(words: Words) -> Words:
    """The finaliser for many words at once: every bit of a word moves every bit of what it becomes.

    >>> int(mixed(np.array([1], np.uint64))[0]) == int(mixed(np.array([1, 2], np.uint64))[0])
    True
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
