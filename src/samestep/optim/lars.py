"""Layer-wise adaptive rate scaling, written from the paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """SGD with momentum whose step is, tensor by tensor, in proportion to the norm of the weights.

    ``λ = trust · |w| / (|g| + β·|w|)``, ``v = momentum · v + lr · λ · (g + β·w)``, ``w = w - v``, with β the weight
    decay (algorithm 1 of the paper). Tensors of fewer than two dimensions (biases, norms), and those whose weights or
    gradients are all zero, have ``λ = 1``, as is common since Goyal et al. (2017) treat them apart.

    Args:
        params: Parameters, or parameter groups.
        lr: Learning rate; much larger than that of SGD, for `trust` is small.
        momentum: Momentum, 0 .. 1.
        weight_decay: Weight decay.
        trust: The paper's trust coefficient η.

    Raises:
        ValueError: An option is out of its range.

    Example:
        >>> weight = torch.nn.Parameter(torch.full((1, 4), 0.5))
        >>> weight.grad = torch.full((1, 4), 3.0)
        >>> LARS([weight], lr=2.0, momentum=0.0, trust=0.1).step()  # |w| = 1, |g| = 6: λ = 1/60
        >>> weight.data
        tensor([[0.4000, 0.4000, 0.4000, 0.4000]])

    References:
        You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay), ("trust", trust)):
            if not value >= 0:
                raise ValueError(f"Invalid {name}: {value}")
        if momentum >= 1:
            raise ValueError(f"Invalid momentum: {momentum}")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; a closure is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        decay = group["weight_decay"]
        direction = gradient.add(parameter, alpha=decay) if decay else gradient
        rate = group["lr"] * _local_rate(parameter, gradient, decay, group["trust"])
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        state["velocity"].mul_(group["momentum"]).add_(direction, alpha=rate)
        parameter.sub_(state["velocity"])


def _local_rate(parameter: Tensor, gradient: Tensor, decay: float, trust: float) -> float:
    if parameter.dim() < 2:
        return 1.0
    weights, slope = float(torch.linalg.vector_norm(parameter)), float(torch.linalg.vector_norm(gradient))
    if weights == 0 or slope == 0:
        return 1.0
    return trust * weights / (slope + decay * weights)
