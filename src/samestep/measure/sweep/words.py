"""Words that several parts of a sweep share."""

from __future__ import annotations


def count(amount: int, noun: str) -> str:
    """So many of something.

    >>> count(1, "trial"), count(2, "trial")
    ('1 trial', '2 trials')
    """
    return f"{amount} {noun}" + ("" if amount == 1 else "s")
