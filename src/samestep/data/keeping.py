"""Which samples are kept for evaluation, where they are one array each: decided by what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from samestep.errors import UsageError


def check_frac(evaluation_frac: float) -> None:
    """Refuse a share that is none.

    Raises:
        UsageError: It is not in 0 .. 1, or nothing would be left to train on.
    """
    if not 0 <= evaluation_frac < 1:
        raise UsageError(f"evaluation_frac={evaluation_frac:g} is not in 0 .. 1; 0 keeps nothing apart")


def rule(what: str, *, frac: float, seed: int, by: str = "what they hold") -> str:
    """In words: which samples are kept, where a keyed hash decides.

    >>> rule("rows", frac=0.1, seed=0, by="name")
    '0.1 of the rows, by a keyed hash of name, split_seed 0'
    """
    return f"{frac:.3g} of the {what}, by a keyed hash of {by}, split_seed {seed}"


def rule_of_time(what: str, evaluation_frac: float) -> str:
    """In words: that the last ones are kept."""
    return f"the last {evaluation_frac:.3g} of {what}"


def by_content(samples: Iterable[npt.NDArray[Any]], *, frac: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which samples are kept, shape (n,): a keyed hash of their bytes decides, so equal ones go the same way.

    Args:
        samples: An array each.
        frac: The share of different samples that is kept, about.
        seed: Another seed keeps others.
    """
    limit, key = frac * 2.0**64, f"samestep {seed}".encode()
    digests = (hashlib.blake2b(sample.tobytes(), digest_size=8, key=key).digest() for sample in samples)
    return np.array([int.from_bytes(digest, "little") < limit for digest in digests], np.bool_)
