"""What a sweep searches: settings of each optimiser by name, and quasi-random points in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from samestep.errors import UsageError
from samestep.optim import catalog
from samestep.plan import keys

Range = tuple[float, float]
"""Lowest and highest; both above 0."""

_DECAYS_UNTIL: Range = (0.5, 1.0)
_DECAYS_TO: Range = (1e-3, 1.0)
_MOST_SMOOTHING = 0.2
_USUAL_SMOOTHING = 0.1
"""Where it is open to all and nothing is tuned (Szegedy et al., Rethinking the Inception Architecture, 2015)."""

_AVERAGED: Range = (0.02, 0.5)


@dataclass(frozen=True, kw_only=True)
class Space:
    """Between which bounds the settings of an optimiser are searched, each on a logarithmic axis.

    Args:
        lr: Learning rate.
        weight_decay: Weight decay; None where the optimiser takes none.
        one_minus_momentum: 1 - momentum; None where the optimiser takes no setting `momentum`.
        is_tuned: Whether anything is searched; otherwise there is one trial, with the optimiser's own settings.
    """

    lr: Range
    weight_decay: Range | None
    one_minus_momentum: Range | None = None
    is_tuned: bool = True

    def as_dict(self) -> dict[str, list[float] | bool | None]:
        """As plain values."""
        momentum = self.one_minus_momentum
        return {
            "lr": list(self.lr),
            "weight_decay": None if self.weight_decay is None else list(self.weight_decay),
            "one_minus_momentum": None if momentum is None else list(momentum),
            **({} if self.is_tuned else {"is_tuned": False}),
        }


_COUPLED: Range = (1e-6, 1e-2)
_DECOUPLED: Range = (1e-4, 1.0)
_ADAM = Space(lr=(1e-4, 1e-1), weight_decay=_COUPLED)
_SGD = Space(lr=(1e-3, 1e1), weight_decay=_COUPLED, one_minus_momentum=(1e-3, 1.0))
_GENERAL = Space(lr=(1e-5, 1.0), weight_decay=_COUPLED)

_SPACES: Mapping[str, Space] = {
    "adadelta": Space(lr=(1e-2, 1e2), weight_decay=_COUPLED),
    "adafactor": Space(lr=(1e-4, 1e-1), weight_decay=_DECOUPLED),
    "adagrad": Space(lr=(1e-3, 1.0), weight_decay=_COUPLED),
    "adam": _ADAM,
    "adamax": _ADAM,
    "adamw": Space(lr=(1e-4, 1e-1), weight_decay=_DECOUPLED),
    "asgd": Space(lr=(1e-3, 1e1), weight_decay=_COUPLED),
    "kfac": Space(lr=(1.0, 1.0), weight_decay=None, is_tuned=False),  # that it needs no tuning is what it promises
    "lamb": Space(lr=(1e-4, 1.0), weight_decay=_DECOUPLED),
    "lars": Space(lr=(1e-3, 3e1), weight_decay=_COUPLED, one_minus_momentum=(1e-3, 1.0)),
    "muon": Space(lr=(1e-3, 3e-1), weight_decay=_DECOUPLED, one_minus_momentum=(1e-2, 1.0)),
    "nadam": _ADAM,
    "nesterov": _SGD,
    "radam": _ADAM,
    "rmsprop": Space(lr=(1e-5, 1e-1), weight_decay=_COUPLED, one_minus_momentum=(1e-2, 1.0)),
    "rprop": Space(lr=(1e-5, 1.0), weight_decay=None),
    "schedulefreesgd": Space(lr=(1e-2, 1e2), weight_decay=_COUPLED),
    "sgd": _SGD,
    "shampoo": Space(lr=(1e-4, 1.0), weight_decay=_COUPLED),
    "soap": Space(lr=(1e-4, 1e-1), weight_decay=_DECOUPLED),
}


def space_of(optimizer: str) -> Space:
    """The space of an optimiser; one without a space of its own gets wide bounds for learning rate and weight decay.

    A decay that the learning rate scales, apart from the gradient, is as strong as another only where it is larger.

    >>> space_of("sgd").one_minus_momentum
    (0.001, 1.0)
    >>> space_of("something new").lr
    (1e-05, 1.0)
    >>> space_of("lion").weight_decay
    (0.0001, 1.0)
    """
    if optimizer not in _SPACES and optimizer in catalog.names() and catalog.entry(optimizer).decays_by_rate:
        return replace(_GENERAL, weight_decay=_DECOUPLED)
    return _SPACES.get(optimizer, _GENERAL)


@dataclass(frozen=True, kw_only=True)
class Decay:
    """A learning-rate schedule: linear from 1 down to `to` over the first part of the run, constant after it.

    The schedule of Shallue et al. (2018), whose length and end are searched like everything else.

    Args:
        until: Share of the run at which the fall ends, 0 .. 1.
        to: The factor that it ends with; 1 is no decay.

    Example:
        >>> decay = Decay(until=0.5, to=0.2)
        >>> [round(decay(progress), 3) for progress in (0.0, 0.25, 0.5, 1.0)]
        [1.0, 0.6, 0.2, 0.2]
    """

    until: float
    to: float

    def __call__(self, progress: float) -> float:
        return 1.0 - (1.0 - self.to) * min(progress / self.until, 1.0)


@dataclass(frozen=True, kw_only=True)
class Point:
    """The settings of a trial.

    Args:
        lr: Learning rate.
        weight_decay: Weight decay of weights; None: the optimiser has no such setting.
        momentum: None: the optimiser has no such setting.
        label_smoothing: 0 where it is not searched.
        decay: The learning-rate schedule.
        averaging: Share of the steps that weights are averaged over; None where it is not searched.
    """

    lr: float
    weight_decay: float | None
    momentum: float | None
    label_smoothing: float
    decay: Decay
    averaging: float | None = None

    def text(self) -> str:
        """As a person reads it.

        >>> point = Point(lr=0.1, weight_decay=1e-4, momentum=0.9, label_smoothing=0.0, decay=Decay(until=1.0, to=0.01))
        >>> point.text()
        'lr 0.1, momentum 0.9, weight decay 0.0001, decay to 0.01 by 100 % of the run'
        """
        momentum = "" if self.momentum is None else f", momentum {self.momentum:.4g}"
        smoothing = f", label smoothing {self.label_smoothing:.2g}" if self.label_smoothing else ""
        averaging = "" if self.averaging is None else f", averaged over {100 * self.averaging:.2g} % of the steps"
        shrinking = "" if self.weight_decay is None else f", weight decay {self.weight_decay:.2g}"
        decay = f", decay to {self.decay.to:.2g} by {100 * self.decay.until:.0f} % of the run"
        return f"lr {self.lr:.3g}{momentum}{shrinking}{smoothing}{averaging}{decay}"


def points(
    space: Space, num_trials: int, *, has_label_smoothing: bool, has_averaging: bool = False, seed: int
) -> tuple[Point, ...]:
    """Quasi-random points: the first ones of a scrambled Sobol sequence, the same for the same seed.

    Learning rate, weight decay and 1 - momentum are uniform in their logarithms, and so is the end of the decay; its
    length and label smoothing are uniform.

    Args:
        space: The bounds.
        num_trials: How many; a power of two covers the space most evenly. One, where nothing is tuned.
        has_label_smoothing: Label smoothing is searched between 0 and 0.2; it is 0.1 where nothing is tuned.
        has_averaging: The share of the steps that weights are averaged over is searched between 2 % and 50 %.
        seed: Of the scrambling.

    Raises:
        UsageError: No trial.

    Example:
        >>> [len(points(space_of("adamw"), number, has_label_smoothing=True, seed=1)) for number in (1, 16, 20)]
        [1, 16, 20]

    References:
        Sobol: On the distribution of points in a cube and the approximate evaluation of integrals, 1967.
        Bousquet et al.: Critical hyper-parameters: no random, no cry, 2017.
    """
    from scipy.stats import qmc  # noqa: PLC0415 - it takes longer to import than all of numpy

    if num_trials < 1:
        raise UsageError(f"trials={num_trials} is below 1: nothing would be tried; take 16, or at least 1")
    if not space.is_tuned:
        own = Decay(until=1.0, to=1.0)
        smoothing = _USUAL_SMOOTHING if has_label_smoothing else 0.0
        return (Point(lr=space.lr[1], weight_decay=None, momentum=None, label_smoothing=smoothing, decay=own),)
    # All dimensions are always drawn, so that what is searched besides does not move the other settings.
    rows = qmc.Sobol(d=6, scramble=True, seed=seed % 2**32).random_base2(math.ceil(math.log2(num_trials)))
    found = tuple(_point(space, row.tolist(), has_label_smoothing) for row in rows[:num_trials])
    if not has_averaging:
        return found
    # A sequence of its own, so that what was searched before stays where it was.
    shares = qmc.Sobol(d=1, scramble=True, seed=keys.key(seed, 1) % 2**32).random_base2(len(rows).bit_length() - 1)
    averaged = (_between(_AVERAGED, share) for share in shares[:num_trials, 0].tolist())
    return tuple(replace(point, averaging=share) for point, share in zip(found, averaged, strict=True))


def seed_of(seed: int, optimizer: str, batch: int) -> int:
    """The seed of a cell's points: every optimiser and batch has points of its own."""
    return keys.key(seed, keys.name_key(optimizer), batch)


def _point(space: Space, row: list[float], has_label_smoothing: bool) -> Point:
    lr, weight_decay, momentum, until, to, smoothing = row
    span = space.one_minus_momentum
    shortest, longest = _DECAYS_UNTIL
    return Point(
        lr=_between(space.lr, lr),
        weight_decay=None if space.weight_decay is None else _between(space.weight_decay, weight_decay),
        momentum=None if span is None else 1.0 - _between(span, momentum),
        label_smoothing=_MOST_SMOOTHING * smoothing if has_label_smoothing else 0.0,
        decay=Decay(until=shortest + (longest - shortest) * until, to=_between(_DECAYS_TO, to)),
    )


def _between(bounds: Range, share: float) -> float:
    """From the lowest to the highest, uniform in the logarithm.

    >>> round(_between((0.001, 10.0), 0.5), 6)
    0.1
    """
    low, high = bounds
    return float(low * (high / low) ** share)
