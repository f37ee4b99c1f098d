"""What makes a study's numbers weaker than they look, and what to try next, in words; pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_SLOW_FRAC = 0.8
"""One worker below this share of the best single process is worth a hint."""

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def merged(warnings: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """One line for each kind of warning: the programs that it is about, and the worst of its texts.

    Texts are of one kind where they differ in numbers only; the worst has the largest ones.

    Args:
        warnings: What is unstable, by program.

    Example:
        >>> merged({"a": ["5 % wide"], "b": ["9 % wide"], "c": []})
        ('a; b; at worst: 9 % wide',)
        >>> merged({"a": ["too few"], "b": ["too few"]})
        ('all 2 programs: too few',)
    """
    kinds: dict[str, dict[str, str]] = {}
    for program, texts in warnings.items():
        for text in texts:
            kinds.setdefault(_NUMBER.sub("", text), {})[program] = text
    return tuple(_merged(found, len(warnings)) for found in kinds.values())


def _merged(texts: Mapping[str, str], num_programs: int) -> str:
    is_all = 1 < len(texts) == num_programs
    names = f"all {num_programs} programs" if is_all else "; ".join(texts)
    worst = max(texts.values(), key=lambda text: [float(number) for number in _NUMBER.findall(text)])
    return names + ("; at worst: " if len(set(texts.values())) > 1 else ": ") + worst


def larger_microbatch(speed_up: float, *, global_batch: int, microbatch: int, most_workers: int) -> str | None:
    """Where one worker is slow and its step is cut finer than the workers need: a larger microbatch.

    Args:
        speed_up: One worker of samestep against the best single process.
        global_batch: Samples a step.
        microbatch: Samples in one forward and backward.
        most_workers: The most workers measured; each computes at least one microbatch.

    Example:
        >>> print(larger_microbatch(0.39, global_batch=256, microbatch=32, most_workers=2))
        one worker gives 0.39 × the best single process: its 8 microbatches of 32 samples cost more than one batch of \
256; --microbatch 128 (2 microbatches, part of what decides the bits) admits 2 workers and should cost less
        >>> larger_microbatch(0.9, global_batch=256, microbatch=32, most_workers=2) is None
        True
    """
    count = -(-global_batch // microbatch)
    fewer = next((number for number in range(most_workers, count) if global_batch % number == 0), None)
    if speed_up >= _SLOW_FRAC or fewer is None:
        return None
    return (
        f"one worker gives {speed_up:.2f} × the best single process: its {count} microbatches of {microbatch} samples "
        f"cost more than one batch of {global_batch}; --microbatch {global_batch // fewer} ({_count(fewer)}, part of "
        f"what decides the bits) admits {fewer} worker{'s' if fewer > 1 else ''} and should cost less"
    )


def _count(number: int) -> str:
    return f"{number} microbatch" + ("es" if number > 1 else "")
