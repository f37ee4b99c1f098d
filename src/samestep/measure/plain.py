"""Plain torch in one process, step by step, as its documentation writes it: the whole global batch at once.

The batches are indexed from memory, which is faster than torch's `DataLoader`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samestep.data.columns import Dataset
from samestep.engine.events import Enter, Phase
from samestep.errors import UsageError
from samestep.optim import build
from samestep.run import curvature, networks
from samestep.run.config import Config
from samestep.run.workload import Workload


class PlainTorch:
    """A model, its data and its optimisers.

    Args:
        workload: What is trained.
        config: Its seed decides the initial weights.
    """

    def __init__(self, workload: Workload, config: Config) -> None:
        if config.batch_rule == "adascale":
            raise UsageError(
                "batch_rule='adascale' sets the rate by what every step finds, and plain torch has nothing like it to "
                "compare with; take linear here"
            )
        curvature.refuse(config, "plain torch has nothing like its step to compare with; take another optimizer here")
        config.fixed_batch("plain torch has nothing like it to compare with")
        self.data: Dataset = workload.data()
        model, scaled = networks.network(workload, config)
        self.model = model.train()
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._loss, self._config = workload.loss, config
        named = dict(self.model.named_parameters())
        self._optimizers = [
            build.build(part, [{**g, "params": [named[name] for name in g["params"]]} for g in part.groups])
            for part in networks.parts(self.model, config, scaled)
        ]
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]
        self._autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision == "bf16")

    def finish(self) -> None:
        """After the last step: the model holds what is to be evaluated."""
        build.show_averages(self._optimizers)

    def step(self, number: int, indices: Tensor, lr_factor: float, enter: Enter = lambda phase, step: None) -> Tensor:
        """Train on some samples.

        Args:
            number: Of the step.
            indices: The samples, shape (n,), int64.
            lr_factor: Every learning rate is multiplied with it.
            enter: Told what is done next.

        Returns:
            The mean loss, a tensor without dimensions.
        """
        enter(Phase.DATA, number)
        inputs = tuple(column.gather(indices) for column in self.data.train.inputs)
        target = self.data.train.target.gather(indices)
        enter(Phase.FORWARD, number)
        with self._autocast:
            loss = mean_of(self._loss(self.model(*inputs), target))
        enter(Phase.BACKWARD, number)
        loss.backward()  # type: ignore[no-untyped-call]
        enter(Phase.UPDATE, number)
        if self._config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._config.clip_norm)
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * lr_factor
            optimizer.step()
            optimizer.zero_grad()
        enter(Phase.BETWEEN, number)
        return loss.detach()


def mean_of(value: Any) -> Tensor:
    """What a workload's loss returned as the number that a user of torch would call `backward` on.

    >>> mean_of((torch.tensor(6.0), 3)), mean_of(torch.tensor([1.0, 3.0]))
    (tensor(2.), tensor(2.))
    """
    if isinstance(value, tuple):
        quotient: Tensor = value[0] / value[1]
        return quotient
    mean: Tensor = value.mean() if value.dim() else value
    return mean
