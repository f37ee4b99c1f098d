"""Whether a run can have `kfac`, and what it then needs besides a plain step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from samestep.engine.job import Job
from samestep.engine.losses import SummedLoss, draws_targets, is_straight
from samestep.errors import UsageError
from samestep.optim.kfac.rule import SubspaceKfac
from samestep.optim.kfac.units import DECIDED, FACTORS, PREVIOUS, CurvaturePlan, factor_layout, units_of
from samestep.optim.state import StateArray, UpdatePlan
from samestep.plan.batch import BatchPlan
from samestep.run.config import Config
from samestep.run.workload import Workload

SHARE = 0.25
"""Of the batch: as many samples give factors, and steps are tried on as many, within the limits below."""

FACTOR_ROWS, TRIAL_ROWS = (2048, 4096), (1024, 8192)
"""Fewest and most samples."""


def check(config: Config) -> None:
    """Refuse what does not go with it, as far as settings tell.

    Raises:
        UsageError: What, and the way out.
    """
    for name, is_asked, way_out in (
        ("stages", config.stages > 1, "no single worker sees a whole network then: take stages=1"),
        ("engine", config.engine == "group", "its ranks have to share their memory: leave it out"),
        ("sam_radius", config.sam_radius is not None, "it has rounds of its own: leave it out"),
        ("clip_norm", config.clip_norm is not None, "the length of its step is tried out already: leave it out"),
        ("precision", config.precision != "fp32", "its small differences of losses need fp32: leave it out"),
    ):
        if is_asked:
            raise UsageError(f"optimizer='kfac' and {name}={getattr(config, name)!r} do not go together; {way_out}")


def plan(model: nn.Module, config: Config, batches: BatchPlan, loss: SummedLoss) -> CurvaturePlan:
    """The units of a model, and which samples tell of their curvature.

    Raises:
        UsageError: Something does not go with it.
    """
    check(config)
    if is_straight(loss):
        raise UsageError(
            "optimizer='kfac': nn.L1Loss has no curvature, from which its step is found; take nn.HuberLoss or "
            "nn.MSELoss, or another optimizer (time series from data alone are learned with nn.L1Loss)"
        )
    units = units_of(model)
    is_full = batches.global_batch >= batches.num_samples  # with last_batch="drop" one step may not be all
    return CurvaturePlan(
        units=units,
        factors=factor_layout(units),
        factor_rows=rows(batches.global_batch, *FACTOR_ROWS),
        trial_rows=rows(batches.global_batch, *TRIAL_ROWS),
        has_fresh_rows=not is_full,
    )


def refuse(config: Config, why: str) -> None:
    """For what takes the optimiser alone, which is gradient descent without the rounds that find its step.

    Raises:
        UsageError: It is `kfac`.
    """
    if config.optimizer == "kfac":
        raise UsageError(f"optimizer='kfac': {why}")


def lines(job: Job, config: Config, workload: Workload) -> list[str]:
    """What is left out of the recipe, and what of the curvature is known less well than could be, in words."""
    curved, clip_norm = job.curvature, workload.recipe.get("clip_norm")
    if curved is None:
        return []
    found = []
    if clip_norm is not None and config.clip_norm is None:
        found.append(
            f"kfac: the recipe's clip_norm={clip_norm:g} is left out; the length of its step is tried out already"
        )
    less = [
        f"of {_some([unit.weight for unit in curved.units if unit.kind == kind])} ({how})"
        for kind, how in (("matrix", "gradients, not inputs"), ("diagonal", "the diagonal"))
        if any(unit.kind == kind for unit in curved.units)
    ]
    if less:
        found.append(f"kfac: less is known of the curvature {' and '.join(less)}")
    if not draws_targets(job.loss):
        found.append(
            "kfac: factors are those of the given targets (an empirical Fisher matrix), for of this loss none can be "
            "drawn; nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss and nn.BCEWithLogitsLoss let the network draw them"
        )
    return found


def _some(names: list[str]) -> str:
    """
    >>> _some(["a", "b", "c", "d"])
    'a, b and 2 more'
    """
    return ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]} and {len(names) - 2} more"


def rows(global_batch: int, fewest: int, most: int) -> int:
    """Samples for the work besides the gradient: it grows with the batch.

    >>> [rows(size, 1024, 8192) for size in (512, 8192, 50_000)]
    [1024, 2048, 8192]
    """
    return min(max(int(SHARE * global_batch), fewest), most)


def with_state(update: UpdatePlan, curved: CurvaturePlan, dtype: torch.dtype) -> UpdatePlan:
    """What is kept from step to step, so that it outlives its owner."""
    kind = str(dtype).removeprefix("torch.")
    arrays = (
        StateArray(FACTORS, "", (), kind, (curved.factors.num_elements,)),
        StateArray(PREVIOUS, "", (), kind, (update.layout.num_elements,)),
        StateArray(DECIDED, "", (), "float64", (1,)),
    )
    return replace(update, arrays=update.arrays + arrays)


def rule(curved: CurvaturePlan) -> SubspaceKfac:
    """The rounds of its step."""
    return SubspaceKfac(has_fresh_rows=curved.has_fresh_rows)
