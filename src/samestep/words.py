"""Words that many parts say in the same way."""

from __future__ import annotations

_LONGEST = 60
_BEFORE = 20
"""Of a long text that differs somewhere, so many characters are shown, and so many of them before the difference."""


def count(amount: int, noun: str) -> str:
    """So many of something.

    >>> count(1, "worker"), count(2, "worker"), count(4096, "microbatch")
    ('1 worker', '2 workers', '4,096 microbatches')
    """
    return f"{amount:,} {noun}" + ("" if amount == 1 else "es" if noun.endswith("ch") else "s")


def cut_to_difference(one: str, other: str) -> list[str]:
    """Two texts, cut to where they differ.

    >>> cut_to_difference("a" * 90, "a" * 80 + "b")
    ['...aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', '...aaaaaaaaaaaaaaaaaaaab']
    """
    pairs = zip(one, other, strict=False)
    same = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
    start = max(same - _BEFORE, 0)
    return [_cut(text, start) for text in (one, other)]


def _cut(text: str, start: int) -> str:
    if len(text) <= _LONGEST:
        return text
    shown = text[start : start + _LONGEST]
    return ("..." if start else "") + shown + ("..." if start + _LONGEST < len(text) else "")
