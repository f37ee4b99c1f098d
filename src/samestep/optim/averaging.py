"""Weight averaging around any optimiser: one set of weights is trained, their running average is judged and saved.

After t steps the newest weights enter the average by a part of 1 / (share × t), and by all until that is below 1: the
average is over about the last `share` of the steps, whatever the number of steps, and so at any global batch.

References:
    Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
    Shamir and Zhang, "Stochastic Gradient Descent for Non-smooth Optimization", 2013 (polynomial-decay averaging).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from samestep import torch_private
from samestep.errors import UsageError


class Averaged(Optimizer):
    """An optimiser with an average of what it trains; groups and state are those of the one inside.

    Args:
        inner: The optimiser that trains.
        share: Over about the last share of the steps, 0 .. 1.

    Raises:
        UsageError: The optimiser has an average of its own.
    """

    def __init__(self, inner: Optimizer, share: float) -> None:
        if callable(getattr(inner, "eval", None)):
            raise UsageError(f"averaging={share:g}: {type(inner).__name__} averages by itself; leave averaging out")
        self.inner, self._share = inner, share
        self.defaults, self.state, self.param_groups = inner.defaults, inner.state, inner.param_groups
        self._step = torch_private.plain_step(inner)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """A step of the one inside; then the average takes part of what came out."""
        assert closure is None, "no step of ours has one"
        self._step()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._take(parameter)

    def _take(self, parameter: torch.Tensor) -> None:
        state = self.state[parameter]
        number = state.get("averaged_steps", 0) + 1
        part = min(1.0, 1.0 / (self._share * number))
        if part == 1.0:
            state.setdefault("average", torch.empty_like(parameter)).copy_(parameter)
        else:
            state["average"].mul_(1.0 - part).add_(parameter, alpha=part)
        state["averaged_steps"] = number

    @torch.no_grad()
    def eval(self) -> None:
        """Put the averages into place; who wants the trained values back has kept them."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if "average" in self.state[parameter]:
                    parameter.copy_(self.state[parameter]["average"])

    def train(self) -> None:
        """The trained values are put back by who has kept them."""


def inner(optimizer: Optimizer) -> Optimizer:
    """The optimiser that trains."""
    return optimizer.inner if isinstance(optimizer, Averaged) else optimizer
