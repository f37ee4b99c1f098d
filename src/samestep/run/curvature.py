"""Whether a run can have `kfac`, and what it then needs besides a plain step."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from samestep.errors import UsageError
from samestep.optim.kfac.rule import SubspaceKfac
from samestep.optim.kfac.units import DECIDED, FACTORS, PREVIOUS, CurvaturePlan, factor_layout, units_of
from samestep.optim.state import StateArray, UpdatePlan
from samestep.plan.batch import BatchPlan
from samestep.run.config import Config

SHRINK = 0.5
"""Of a step below the full batch."""


def plan(model: nn.Module, config: Config, batches: BatchPlan) -> CurvaturePlan:
    """The units of a model, and which samples tell of their curvature.

    Raises:
        UsageError: Something does not go with it.
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
    units = units_of(model)
    is_full = batches.steps_per_epoch == 1
    return CurvaturePlan(units=units, factors=factor_layout(units), has_fresh_rows=not is_full)


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
    return SubspaceKfac(shrink=SHRINK if curved.has_fresh_rows else 1.0)
