"""Workloads whose learning rate was chosen for another width or depth."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial

from samestep.run.workload import Workload


def based(workload: Workload, *, base_width: int | None, base_depth: int | None) -> Workload:
    """A workload with its network at the base width beside it.

    Args:
        workload: Its model is a `partial` with a width and a depth.
        base_width: The width that rates were chosen for; None: its own.
        base_depth: The depth that rates were chosen for; None: its own.

    Example:
        >>> from samestep.workloads.feed_forward import digits_mlp
        >>> found = based(digits_mlp(width=64), base_width=16, base_depth=None)
        >>> found.base_model().state_dict()["0.weight"].shape, found.depth_ratio
        (torch.Size([16, 64]), 1.0)
    """
    if base_width is None and base_depth is None:
        return workload
    model = workload.model
    assert isinstance(model, partial), "a built-in network"
    sizes = model.keywords
    wanted = base_width or sizes["width"]
    if "base_width" in inspect.signature(model.func).parameters:
        model = partial(model, base_width=wanted)
    depth_ratio = sizes["depth"] / (base_depth or sizes["depth"])
    return replace(workload, model=model, base_model=partial(model, width=wanted), depth_ratio=depth_ratio)
