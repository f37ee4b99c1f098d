"""Whether the values of a configuration are in range and go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samestep.errors import UsageError
from samestep.optim import adascale, catalog, doubling
from samestep.run import syncing, ways

if TYPE_CHECKING:
    from samestep.run.config import Config

_AT_LEAST_1 = (
    *("base_batch", "initial_batch", "max_batch", "evaluate_every", "width", "depth", "base_width", "base_depth"),
    *("steps", "shuffle_block"),
)


def check(config: Config) -> None:
    """Refuse values that are out of range, or that contradict each other.

    Raises:
        UsageError: The first one.
    """
    for name in ("first_batch", "microbatch", "threads_per_worker", "workers", "stages", "chunks"):
        at_least(name, getattr(config, name), 1)
    for name in _AT_LEAST_1:
        if getattr(config, name) is not None:
            at_least(name, getattr(config, name), 1)
    if config.noise_scale != "off":
        at_least("noise_scale", config.noise_scale, 1)
    if config.epochs is not None and not 0 < config.epochs < float("inf"):
        raise UsageError(f"epochs={config.epochs:g} is not a finite number above 0; take one, or steps")
    if config.lr is not None and not 0 <= config.lr < float("inf"):
        raise UsageError(f"lr={config.lr} is not a finite number of 0 or more")
    if config.weight_decay is not None and not 0 <= config.weight_decay < float("inf"):
        raise UsageError(f"weight_decay={config.weight_decay} is not a finite number of 0 or more")
    if not -(2**63) <= config.seed < 2**63:
        raise UsageError(f"seed={config.seed} does not fit 64 bits; take a number from -2**63 to 2**63 - 1")
    if config.checkpoint_every_s <= 0:
        raise UsageError(f"checkpoint_every_s={config.checkpoint_every_s:g} is not positive")
    if config.resume and config.checkpoint is None:
        raise UsageError("resume needs the folder to resume from: name it with checkpoint")
    _check_rule(config)
    ways.check(config)
    syncing.check(config)
    adascale.check(**{name: getattr(config, name) for name in adascale.CHECKED}, global_batch=config.first_batch)
    if config.is_batch_growing:
        doubling.check(**{name: getattr(config, name) for name in doubling.CHECKED}, initial_batch=config.first_batch)


def _check_rule(config: Config) -> None:
    """Refuse to make a step longer that was found to be the best."""
    if config.batch_rule not in ("auto", "none") and catalog.entry(config.optimizer).has_rounds:
        raise UsageError(
            f"optimizer={config.optimizer!r} and batch_rule={config.batch_rule!r} do not go together; its step has a "
            "length of its own for every batch: leave batch_rule out, or take none"
        )


def at_least(name: str, value: int, smallest: int) -> None:
    """Refuse a number that is too small."""
    if value < smallest:
        raise UsageError(f"{name}={value} is below {smallest}; take {smallest} or more")
