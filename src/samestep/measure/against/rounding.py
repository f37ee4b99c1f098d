"""How far two trainings may be apart when nothing but the rounding of their sums differs.

Both runs do the same arithmetic in another order. With `eps`, the spacing of the dtype's numbers at 1, over K steps:

1. *Sums.* A sum of n terms in another order differs by about ``sqrt(n) * eps``, relative to its terms, for the single
   roundings are as good as independent (Higham and Mary, "A new approach to probabilistic rounding error analysis",
   2019). Layers and batches of our size have sums of up to some 4,096 terms: ``64 * eps`` of a step. Under bfloat16
   autocast sums are taken in float32 and rounded once, in the forward and the backward pass: ``2 * 2**-7``.
2. *Storage.* Every step rounds every weight to a neighbour, however small the step: ``eps * |w|`` at most.
3. *Steps.* The roundings of different steps are as good as independent too: K of them make ``sqrt(K)`` of one.

Together, with the norms of the update u = w_K - w_0 and of the weights w_K::

    |difference| <= sqrt(K) * (sums * |u| + storage * |w|)

(Measured in float32 on networks of 10^4 weights, 1 to 100 steps, with SGD, Adam and RMSprop: 1/40 to 1/500 of it.)

Limits: to first order, for optimisers whose update is smooth in the gradient. One that divides by the gradient's own
size (Adam, RMSprop) turns the sign of an element that is zero but for rounding: of all elements, a share of about
`bound` moves by the whole step, so that the norm of the difference is about ``sqrt(bound)``. (The bias of attention's
keys is such an element: its gradient is zero in exact arithmetic.) And training that is chaotic, or that rounds
coarsely inside (Muon), makes any difference grow. So where the bound is exceeded, two trainings are asked:

- In float64, what comes from rounding shrinks with `eps`, by a factor of 5e8 (2e4 under the square root), and what
  comes from anything else stays.
- In the run's own dtype, the peer starts again with every weight moved by one rounding. No more than twice what
  training makes of that (of three such moves, the largest) may be between the two programs. (Measured with Adam, Muon
  and SGD in float32 and bfloat16, where the bound was exceeded: at most 1.5 times.)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from samestep.data.columns import Column, Dataset, Rows, Samples, Transform, Windows
from samestep.run.workload import Loss, Workload

_NEXT_TO_NOTHING = 1e-150


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What rounding does to one step.

    Args:
        sums: Of the step, relative to the step.
        storage: Of the weights, relative to the weights.
        operands: Of what is multiplied, relative to it.
    """

    sums: float
    storage: float
    operands: float


FLOAT32 = Arithmetic(sums=64 * 2**-23, storage=2**-23, operands=2**-23)
FLOAT64 = Arithmetic(sums=64 * 2**-52, storage=2**-52, operands=2**-52)
BFLOAT16 = Arithmetic(sums=2 * 2**-7, storage=2**-23, operands=2**-7)
"""Under autocast; the weights are kept in float32."""


@dataclass(frozen=True)
class Gap:
    """How far two trainings are apart.

    Args:
        relative: Norm of the difference over the norm of the update.
        bound: What rounding explains of it.
    """

    relative: float
    bound: float

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains it, for smooth optimisers."""
        return self.relative <= self.bound

    @property
    def is_grown_rounding(self) -> bool:
        """Whether rounding explains it for any optimiser: in float64, that is much less than what other causes make."""
        return self.relative <= max(self.bound, math.sqrt(self.bound))


def bound(arithmetic: Arithmetic, *, steps: int, update_norm: float, weights_norm: float) -> float:
    """The largest relative difference that rounding explains: ``sqrt(K) * (sums + storage * |w| / |u|)``.

    Args:
        arithmetic: What rounding does to one step.
        steps: Optimiser steps (K).
        update_norm: |u|: how far training has moved.
        weights_norm: |w|: where it has come to.

    >>> bound(FLOAT32, steps=16, update_norm=1.0, weights_norm=16.0)
    3.814697265625e-05
    """
    return math.sqrt(steps) * (arithmetic.sums + arithmetic.storage * _ratio(weights_norm, update_norm))


def gap(
    start: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    *,
    buffers: frozenset[str],
    arithmetic: Arithmetic,
    steps: int,
) -> Gap:
    """How far two states are apart that training has reached from the same start.

    Parameters and buffers have norms of their own, since their sizes have nothing to do with each other; the worse of
    the two counts.

    Args:
        start: The state before training.
        reference: After training; its update and weights are the measure.
        other: After training.
        buffers: Names of those entries that no optimiser updates.
        arithmetic: See `bound`.
        steps: Optimiser steps.
    """
    gaps = []
    for is_buffer in (False, True):
        names = [name for name in reference if (name in buffers) is is_buffer]
        update = _norm(reference, start, names)
        difference = _norm(reference, other, names)
        weights = math.sqrt(sum(float(reference[name].double().square().sum()) for name in names))
        relative = 0.0 if difference == 0 else _ratio(difference, update)
        gaps.append(Gap(relative, bound(arithmetic, steps=steps, update_norm=update, weights_norm=weights)))
    return max(gaps, key=lambda found: math.inf if math.isnan(found.relative) else found.relative / found.bound)


def _norm(left: Mapping[str, Tensor], right: Mapping[str, Tensor], names: list[str]) -> float:
    return math.sqrt(sum(float((left[name].double() - right[name].double()).square().sum()) for name in names))


def _ratio(numerator: float, denominator: float) -> float:
    """Over a norm that may be 0 where nothing was trained: as if it were next to nothing."""
    return numerator / max(denominator, _NEXT_TO_NOTHING)


@dataclass(frozen=True)
class ToFloat64:
    """A transform: the one that there was, then float64 for what is floating point.

    Args:
        before: May be None.
    """

    before: Transform | None

    def __call__(self, rows: Tensor) -> Tensor:
        rows = rows if self.before is None else self.before(rows)
        return rows.double() if rows.is_floating_point() else rows


@dataclass(frozen=True)
class _Widened:
    """A column of a class of the caller's, in float64."""

    column: Column

    @property
    def num_samples(self) -> int:
        return self.column.num_samples

    def gather(self, indices: Tensor) -> Tensor:
        return ToFloat64(None)(self.column.gather(indices))


@dataclass(frozen=True)
class _WideModel:
    build: Callable[[], nn.Module]

    def __call__(self) -> nn.Module:
        return self.build().double()


@dataclass(frozen=True)
class _WideData:
    build: Callable[[], Dataset]

    def __call__(self) -> Dataset:
        samples = self.build().train
        inputs = tuple(_widen(column) for column in samples.inputs)
        return Dataset(Samples(inputs, _widen(samples.target)))


def in_float64(workload: Workload) -> Workload:
    """The same training in float64: the same initial weights and samples, and no evaluation."""
    return replace(
        workload,
        model=_WideModel(workload.model),
        data=_WideData(workload.data),
        loss=_wide_loss(workload.loss),
        target=None,
    )


def _widen(column: Column) -> Column:
    if isinstance(column, Rows | Windows):
        return replace(column, transform=ToFloat64(column.transform))
    return _Widened(column)


def _wide_loss(loss: Loss) -> Any:
    return copy.deepcopy(loss).double() if isinstance(loss, nn.Module) else loss
