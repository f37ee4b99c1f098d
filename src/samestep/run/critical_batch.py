"""What a run tells of the batch up to which larger ones pay: the raw pairs, the noise scale, and sentences."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from samestep.optim.noise import FEWEST_STEPS, MOST_STEPS, NoiseScale, Pair, noise_scale

_KINDS = {"step": "q", "microbatch_square": "d", "square": "d", "num_microbatches": "q", "num_samples": "q"}


@dataclass(kw_only=True)
class Pairs:
    """The pairs of a session, in compact columns: a long run has many.

    Args:
        every: One step of so many was looked at; None: none was.
        num_training_samples: Of the data set.
        num_microbatches: Of a whole step.
    """

    every: int | None
    num_training_samples: int
    num_microbatches: int
    _columns: dict[str, array[Any]] = field(
        default_factory=lambda: {name: array(kind) for name, kind in _KINDS.items()}
    )

    def append(self, pair: Pair) -> None:
        for name, column in self._columns.items():
            column.append(getattr(pair, name))

    def __len__(self) -> int:
        return len(self._columns["step"])

    def __iter__(self) -> Iterator[Pair]:
        return (self._at(index) for index in range(len(self)))

    def noise_scale(self) -> NoiseScale:
        """The noise scale over the later half of what was looked at by now (see `optim.noise.noise_scale`)."""
        if self.every is None:
            return NoiseScale(value=None, reason="noise_scale is off")
        if self.num_microbatches == 1:
            return NoiseScale(value=None, reason="one microbatch a step")
        start = len(self) - min(max(len(self) // 2, FEWEST_STEPS), MOST_STEPS)
        window = [self._at(index) for index in range(max(start, 0), len(self))]
        found = noise_scale(window, num_training_samples=self.num_training_samples)
        if found.num_steps < FEWEST_STEPS and self.every > 1:
            return replace(found, reason=f"{found.reason}; noise_scale=1 looks at every step")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain values: what the pairs come to, and the pairs."""
        columns = {name: column.tolist() for name, column in self._columns.items()}
        return {"every": self.every, **as_dict(self.noise_scale()), "pairs": columns}

    def _at(self, index: int) -> Pair:
        return Pair(**{name: column[index] for name, column in self._columns.items()})


def as_dict(found: NoiseScale) -> dict[str, Any]:
    """A noise scale as plain values; an end that is not known is None."""
    return {**asdict(found), "high": found.high if math.isfinite(found.high) else None}


def short(found: NoiseScale) -> str | None:
    """The critical batch as the noise scale estimates it, in a few words; None where it cannot be told.

    >>> short(NoiseScale(value=1912.3, low=1403.0, high=2588.0)), short(NoiseScale(value=None, reason="..."))
    ('critical batch about 1,900 [1,400, 2,600]', None)
    """
    if found.value is None:
        return None
    return f"critical batch about {rounded(found.value)} [{rounded(found.low)}, {rounded(found.high)}]"


def sentence(found: NoiseScale, *, global_batch: int, num_training_samples: int) -> str:
    """The same, and what it says of the global batch: larger ones pay up to the critical batch, on more workers.

    Args:
        found: The noise scale.
        global_batch: Samples a step, as it was run.
        num_training_samples: No batch is larger.

    Example:
        >>> told = NoiseScale(value=1912.3, low=1403.0, high=2588.0)
        >>> sentence(told, global_batch=480, num_training_samples=60_000)
        'critical batch about 1,900 [1,400, 2,600]: 4 times as many workers would still pay'
        >>> sentence(NoiseScale(value=None, reason="one microbatch a step"), global_batch=8, num_training_samples=99)
        'critical batch not told: one microbatch a step'
    """
    batch = min(global_batch, num_training_samples)
    if found.value is None:
        bounds = [f"above {rounded(found.low)}"] if found.low > 0 else []
        bounds += [f"below {rounded(max(found.high, 1.0))}"] if math.isfinite(found.high) else []
        return f"critical batch {' and '.join(bounds) or 'not told'}: {found.reason}"
    if batch == num_training_samples:
        advice = f"a step holds all {batch:,} training samples already"
    elif found.low > batch:
        is_bounded = math.isfinite(found.high)
        most = min(found.value if is_bounded else found.low, num_training_samples)
        advice = f"{'' if is_bounded else 'at least '}{_times(most / batch)} as many workers would still pay"
    elif found.high < batch:
        advice = f"more samples a step than {batch:,} save hardly any steps"
    elif not math.isfinite(found.high):
        advice = f"whether more samples a step than {batch:,} would pay cannot be told"
    else:
        advice = f"{batch:,} samples a step are about as many as pay"
    return f"{short(found)}: {advice}"


def rounded(value: float) -> str:
    """With two digits that tell something; "?" for an end that is not known.

    >>> [rounded(value) for value in (0.0, 0.123, 7.26, 1912.3, math.inf)]
    ['0', '0.12', '7.3', '1,900', '?']
    """
    if not math.isfinite(value):
        return "?"
    if value == 0:
        return "0"
    digits = 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def _times(factor: float) -> str:
    """
    >>> _times(3.98), _times(1.26)
    ('4 times', '1.3 times')
    """
    return f"{factor:.0f} times" if factor >= 3 else f"{factor:.1f} times"
