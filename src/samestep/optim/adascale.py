"""AdaScale: the learning rate grows with the batch by as much as the batch makes the gradient less noisy.

A step of batch B does the work of r steps of the base batch B0, with

    r = (σ² / B0 + μ²) / (σ² / B + μ²)        1 <= r <= B / B0

where σ² is the variance of one sample's gradient and μ² the squared gradient: r is B / B0 where noise is all there is
(the linear rule), and 1 where there is none. The learning rate is multiplied with r. Both are estimated from the
gradients of the microbatches (see `noise`) of the steps so far, averaged with a memory of about 1,000 B0 / B steps; a
step's own gradients count from the next one on, so that no rank waits. The first step has r = 1.

The paper also ends a run when the r of its steps add up to the steps of the base batch. Here a run is as long as it was
asked to be, its learning-rate schedule goes by samples, and the sum of r is told at its end.

References:
    Johnson, Agrawal, Gu, Guestrin, "AdaScale SGD: A User-Friendly Algorithm for Distributed Training", 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

from samestep.errors import UsageError
from samestep.optim.noise import Pair

NUM_KEPT = 4
"""Numbers that a run keeps: the weight of the averages, σ² and μ² times it, and the sum of r so far."""

_MEMORY = 1000
"""Steps that are averaged at the base batch, about; the paper's θ is 1 - B / B0 / 1000."""

CHECKED = ("batch_rule", "optimizer", "noise_scale", "sam_radius", "microbatch")
"""Settings that `check` looks at, beside the batch."""

Kept = tuple[float, ...]
"""What a run keeps, `NUM_KEPT` numbers; all are 0 before the first step."""


@dataclass(frozen=True, kw_only=True)
class AdaScale:
    """How the gain follows from what the steps so far have shown: a pure function, the same on every rank.

    Args:
        base_batch: Samples of a step for which the learning rate was chosen.
        global_batch: Samples of a step of this run.
        num_training_samples: See `Pair.square_without_noise`.

    Example:
        >>> rule = AdaScale(base_batch=8, global_batch=32, num_training_samples=10**9)
        >>> kept = (0.0,) * NUM_KEPT
        >>> rule.gain(kept)
        1.0
        >>> pair = Pair(step=0, microbatch_square=5.0, square=2.0, num_microbatches=4, num_samples=32)
        >>> round(rule.gain(rule.after(kept, pair)), 6)  # σ² = 32, μ² = 1
        2.5
    """

    base_batch: int
    global_batch: int
    num_training_samples: int

    def gain(self, kept: Kept) -> float:
        """What the next step's learning rate is multiplied with."""
        weight, variance, square, _ = kept
        if weight == 0:
            return 1.0
        variance, square = max(variance / weight, 0.0), max(square / weight, 0.0)
        noise_now = variance / self.global_batch + square
        return (variance / self.base_batch + square) / noise_now if noise_now > 0 else 1.0

    def after(self, kept: Kept, pair: Pair | None) -> Kept:
        """What is kept after a step that was done with ``gain(kept)``.

        Args:
            kept: What was kept before it.
            pair: What the step has shown; one with a single microbatch shows nothing.
        """
        weight, variance, square, done = kept
        done += self.gain(kept)
        if pair is None or not pair.is_usable:
            return weight, variance, square, done
        share = min(self.global_batch / self.base_batch / _MEMORY, 1.0)
        before = 1.0 - share
        return (
            before * weight + share,
            before * variance + share * pair.variance,
            before * square + share * pair.square_without_noise(self.num_training_samples),
            done,
        )

    def sentence(self, kept: Kept, num_steps: int) -> str:
        """What a run came to.

        Example:
            >>> AdaScale(base_batch=8, global_batch=32, num_training_samples=99).sentence((0.0, 0.0, 0.0, 75.2), 30)
            'AdaScale: 30 steps did the work of 75 of the base batch 8; the next gain would be 1'
        """
        work = f"{num_steps:,} steps did the work of {kept[-1]:,.0f} of the base batch {self.base_batch:,}"
        return f"AdaScale: {work}; the next gain would be {self.gain(kept):.3g}"


def check(
    *,
    batch_rule: str,
    optimizer: str,
    noise_scale: int | str,
    sam_radius: float | None,
    microbatch: int,
    global_batch: int,
) -> None:
    """Refuse settings that AdaScale does not go with, where it is asked for.

    Raises:
        UsageError: Which one, and why.
    """
    if batch_rule != "adascale":
        return
    why = None
    if optimizer != "sgd":
        why = f"optimizer={optimizer!r}: its gain is that of SGD; take optimizer='sgd', or another batch_rule"
    elif noise_scale == "off":
        why = "noise_scale='off': its gain comes from there; leave it out"
    elif sam_radius is not None:
        why = f"sam_radius={sam_radius:g}: it looks at one gradient a step; leave it out"
    elif microbatch >= global_batch:
        why = (
            f"microbatch={microbatch} of global_batch={global_batch}: it compares microbatches; take two or more a step"
        )
    if why is not None:
        raise UsageError(f"batch_rule='adascale' does not go with {why}")
