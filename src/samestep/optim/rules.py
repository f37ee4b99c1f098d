"""What happens to learning rate, weight decay, momentum and warm-up when the global batch changes.

With k the new batch over the batch that the rates were chosen for, the *base batch*:

| | linear | square root | none |
|---|---|---|---|
| learning rate | × k | × √k | as it was |
| weight decay, where a step shrinks weights by rate × decay | as it was | × √k | as it was |
| momentum and other averages | as they were | as they were | as they were |
| `lr_warmup`, a share of the run and so of its samples | as it was | as it was | as it was |

An epoch has 1/k as many steps, so a weight decay of ``wd · k / (factor of the rate)`` shrinks the weights in an epoch
as much as before (Wang and Aitchison 2024). Limits: both rules are derived for batches below the critical batch; beyond
it no rate makes up for the steps that are missing (Shallue et al. 2018). The full square-root rule of Malladi et al.
also moves Adam's averages, ``1 - beta`` × k, which for beta1 = 0.9 leaves 0 .. 1 at k = 10: we leave them alone.

A further rule, whose rate follows what every step finds, is in `adascale`.

References:
    Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.
    Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017.
    Malladi et al., "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", 2022.
    Wang and Aitchison, "How to set AdamW's weight decay as you scale model and dataset size", 2024.
    Shallue et al., "Measuring the Effects of Data Parallelism on Neural Network Training", 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from samestep.errors import UsageError
from samestep.optim.catalog import Entry, RuleName

_LARGEST_LINEAR = 8192
"""Goyal et al. 2017, figure 1: ImageNet's error stays up to this batch, and rises beyond."""

_WORDS: dict[str, str] = {"linear": "linear", "sqrt": "square-root"}


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What an optimiser is given.

    Args:
        lr: Learning rate; None leaves the class its own.
        weight_decay: Weight decay; None leaves the class its own.
    """

    lr: float | None
    weight_decay: float | None


class Factors(NamedTuple):
    """What the rates of an optimiser are multiplied with in a step.

    Args:
        lr: Learning rate.
        weight_decay: Weight decay.
    """

    lr: float = 1.0
    weight_decay: float = 1.0


@dataclass(frozen=True, kw_only=True)
class BatchChange:
    """From the batch that the rates were chosen for to the batch of the run.

    Args:
        base_batch: Samples of a step for which learning rate and weight decay were chosen.
        global_batch: Samples of a step of this run.
        rule: How the learning rate follows.

    Example:
        >>> change = BatchChange(base_batch=256, global_batch=4096, rule="sqrt")
        >>> change.lr_factor, change.decay_factor(decays_by_rate=True)
        (4.0, 4.0)
    """

    base_batch: int
    global_batch: int
    rule: RuleName | Literal["adascale"]

    def __post_init__(self) -> None:
        if self.base_batch < 1:
            raise UsageError(f"base_batch={self.base_batch} is below 1; take the batch that lr was chosen for")

    @property
    def lr_factor(self) -> float:
        """What the learning rate is multiplied with, from the beginning on; what AdaScale adds, every step finds."""
        ratio = self.global_batch / self.base_batch
        return {"linear": ratio, "sqrt": math.sqrt(ratio)}.get(self.rule, 1.0)

    def decay_factor(self, *, decays_by_rate: bool) -> float:
        """What the weight decay is multiplied with.

        Args:
            decays_by_rate: Whether a step shrinks the weights by learning rate × weight decay.
        """
        if self.rule in ("none", "adascale") or not decays_by_rate:
            return 1.0
        return self.global_batch / self.base_batch / self.lr_factor

    def rates(self, entry: Entry, lr: float | None, weight_decay: float | None) -> Rates:
        """The rates of this run, from those that were chosen for the base batch."""
        factors = self.factors(decays_by_rate=entry.decays_by_rate)
        if factors.lr != 1.0:
            lr = entry.lr(lr) * factors.lr
        decay = entry.weight_decay(weight_decay)
        if factors.weight_decay != 1.0 and decay is not None:
            weight_decay = decay * factors.weight_decay
        return Rates(lr=lr, weight_decay=weight_decay)

    def factors(self, *, decays_by_rate: bool) -> Factors:
        """Both."""
        return Factors(lr=self.lr_factor, weight_decay=self.decay_factor(decays_by_rate=decays_by_rate))

    def lines(self, entry: Entry, weight_decay: float | None, lr_warmup: float) -> list[str]:
        """What was done, in words; then what may be wrong with it."""
        change = f"global_batch {self.base_batch:,} → {self.global_batch:,}"
        if self.rule == "none":
            return [f"{change}: learning rate and weight decay as they were, by the rule none"]
        if self.rule == "adascale":
            ratio = self.global_batch / self.base_batch
            gain = f"learning rate × 1 to {ratio:.4g}, as every step finds by AdaScale"
            return [f"{change}: {gain}; weight decay, momentum and lr_warmup as they were"]
        text = f"{change}: learning rate × {self.lr_factor:.4g} by the {_WORDS[self.rule]} rule"
        kept = "momentum and lr_warmup as they were"
        factor = self.decay_factor(decays_by_rate=entry.decays_by_rate)
        weight_decay = entry.weight_decay(weight_decay)
        if weight_decay and factor != 1.0:
            text += f", weight decay × {factor:.4g}"
        elif weight_decay:
            kept = f"weight decay, {kept}"
        lines = [f"{text}; {kept}"]
        if self.lr_factor > 1 and not lr_warmup:
            lines.append("a larger learning rate usually needs a rise at the start, and lr_warmup is 0: 0.05 is common")
        if self.rule == "linear" and self.global_batch > max(_LARGEST_LINEAR, self.base_batch):
            lines.append(
                f"the linear rule was seen to hold up to a batch of {_LARGEST_LINEAR:,} (Goyal et al. 2017, ImageNet), "
                "not beyond"
            )
        return lines


def follows(rule: RuleName | Literal["adascale"], factors: Factors, global_batch: int) -> str:
    """What a rule does to the rates of a run whose batch grows to `global_batch`, in words.

    >>> follows("sqrt", Factors(lr=2**0.5, weight_decay=2**0.5), 64)
    'learning rate × 1.41, weight decay × 1.41 by the square-root rule'
    >>> follows("linear", Factors(lr=2.0), 16_384)
    'learning rate × 2 by the linear rule, which was seen to hold up to 8,192'
    >>> follows("none", Factors(), 64)
    'learning rate as it was, by the rule none'
    """
    if rule == "adascale":
        return "learning rate as every step finds by AdaScale"
    if rule == "none":
        return "learning rate as it was, by the rule none"
    decay = f", weight decay × {factors.weight_decay:.3g}" if factors.weight_decay != 1 else ""
    limit = ""
    if rule == "linear" and global_batch > _LARGEST_LINEAR:
        limit = f", which was seen to hold up to {_LARGEST_LINEAR:,}"
    return f"learning rate × {factors.lr:.3g}{decay} by the {_WORDS[rule]} rule{limit}"
