"""What a person brings: a model, data, a loss. Everything else has a default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from samestep.data.columns import Dataset

Loss = Callable[[Any, Tensor], Any]
"""loss(output, target): a torch loss (module or function), or a function of ours that returns per-sample losses of
shape (n,), a pair (sum, weight), or a mean over the samples (a tensor without dimensions)."""

Metric = Callable[[Any, Tensor], Any]
"""metric(output, target) -> pair (sum, weight) or per-sample values of shape (n,); the mean over all is reported."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """When training has reached its goal: read at every evaluation.

    Args:
        metric: "loss" or the name of a metric of the workload.
        value: The goal.
        mode: "max" is reached at `value` or above, "min" at `value` or below.
    """

    metric: str
    value: float
    mode: Literal["max", "min"] = "max"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A network, its data and its loss.

    Args:
        name: What it is called in records.
        model: Builds the module; called once, in the parent, under the run's seed.
        data: Builds the data set; called once, in the parent.
        loss: See `Loss`.
        metrics: By name; see `Metric`.
        target: Where training may stop early.
        class_names: Names of the classes, where the target is a class.
        recipe: Defaults of this workload for the settings of a run, by their names (``{"lr": 0.1, "epochs": 5}``).
        base_model: Builds the same network, as deep as `model`, at the width that the learning rate was chosen for:
            initial values and learning rates then follow the width of `model` (see `optim.parametrisation`).
        depth_ratio: How many times as many residual blocks `model` has as the network that the learning rate was chosen
            for; its blocks say where their branches end (``branch_ends = ("dense.3",)``).

    Example:
        >>> import torch
        >>> from samestep.data.columns import Rows, Samples
        >>> def data():
        ...     x = torch.randn(64, 3)
        ...     return Dataset(Samples((Rows(values=x),), Rows(values=x.sum(1, keepdim=True))))
        >>> workload = Workload(name="sum", model=lambda: nn.Linear(3, 1), data=data, loss=nn.MSELoss())
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[], Dataset]
    loss: Loss
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    target: Target | None = None
    class_names: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    base_model: Callable[[], nn.Module] | None = None
    depth_ratio: float = 1.0
