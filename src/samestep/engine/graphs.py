"""Passes as graphs: captured once for each shape of a microbatch, then played back in one call.

A pass of small kernels takes as long as it takes to ask for them; a graph is asked for once. It does the same on the
same places in memory, so inputs are copied to where the captured pass read them. What a graph gives is compared with a
plain pass, bit by bit, before it is used; a pass that no graph can hold runs as it is, and the reason is told.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from samestep.data.columns import Batch
from samestep.engine.device.seam import CannotCapture, Device, Number, Passed, mapped
from samestep.engine.flat import FlatModel

_MOST = 8
"""Shapes of microbatches that are captured; each keeps its activations' memory."""

Sums = tuple[Number, Number]
"""The sum of a microbatch's losses, and their weight."""


@dataclass(frozen=True)
class _Graph:
    inputs: Batch
    found: Passed
    replay: Callable[[], None]


class Graphs:
    """The graphs of a model's passes.

    Args:
        device: What they run on.
        model: The model over flat memory.
        compute: A plain pass over a microbatch of a step: leaves gradients in the model, and gives the sums.

    Attributes:
        refusal: Why some passes run as they are; None while all are graphs.
    """

    def __init__(self, device: Device, model: FlatModel, compute: Callable[[Batch, int], Sums]) -> None:
        self._device, self._model, self._compute = device, model, compute
        self._graphs: dict[tuple[object, ...], _Graph | None] = {}
        self.refusal: str | None = None

    @property
    def num_graphs(self) -> int:
        return sum(graph is not None for graph in self._graphs.values())

    def run(self, batch: Batch, step: int, num_samples: int, restart: Callable[[], None]) -> Sums | None:
        """Play a pass back, or capture it first; None: it cannot be captured, and nothing was done.

        Args:
            batch: The microbatch, on the device.
            step: Its step.
            num_samples: Of the step: the backward pass starts from it.
            restart: Sets back what a pass changes and draws from; it has been called.
        """
        key = (num_samples, *((x.shape, x.stride(), x.dtype) for x in (*batch.inputs, batch.target)))
        if key not in self._graphs:
            self._graphs[key] = self._captured(batch, step, restart)
            restart()
        graph = self._graphs[key]
        if graph is None:
            return None
        for target, source in zip(
            (*graph.inputs.inputs, graph.inputs.target), (*batch.inputs, batch.target), strict=True
        ):
            target.copy_(source)
        graph.replay()
        self._model.set_gradients(graph.found.gradients)
        weight = graph.found.weight
        return graph.found.total.clone(), weight.clone() if isinstance(weight, Tensor) else weight

    def _captured(self, batch: Batch, step: int, restart: Callable[[], None]) -> _Graph | None:
        try:
            return self._capture(batch, step, restart)
        except CannotCapture as error:
            reason = str(error)
        except torch.OutOfMemoryError:
            reason = "the memory does not hold them beside the rest"
        self._model.drop_gradients()
        self._model.collect_replaced()
        self._device.release()
        self.refusal = self.refusal or reason
        return None

    def _capture(self, batch: Batch, step: int, restart: Callable[[], None]) -> _Graph:
        if self.num_graphs >= _MOST:
            raise CannotCapture(f"microbatches have more than {_MOST} shapes")
        inputs = mapped(batch, lambda values: values.clone(memory_format=torch.preserve_format))

        def run() -> Passed:
            self._model.drop_gradients()
            total, weight = self._compute(inputs, step)
            assert isinstance(total, Tensor)
            return Passed(total, weight, self._model.gradients())

        drawn = _python_draws()
        restart()
        wanted, wanted_buffers = _copied(run()), self._model.buffers_now()
        if _python_draws() != drawn:
            raise CannotCapture("the model draws from Python's or NumPy's generator")
        if replaced := self._model.replaced():
            raise CannotCapture(f"the forward pass puts a new tensor in the place of buffer {replaced[0]}")
        found, replay = self._device.capture(restart, run)
        restart()
        replay()
        is_same = all(map(_same_bits, _tensors(found), _tensors(wanted)))
        if not (is_same and all(map(_same_bits, self._model.buffers_now(), wanted_buffers))):
            raise CannotCapture("a graph gives other bits than the pass that it was captured from")
        return _Graph(inputs, found, replay)


def _python_draws() -> object:
    """The state of generators that a graph would not ask again."""
    return random.getstate(), str(np.random.get_state(legacy=False))  # noqa: NPY002 (others may use it)


def _copied(passed: Passed) -> Passed:
    weight = passed.weight.clone() if isinstance(passed.weight, Tensor) else passed.weight
    gradients = [None if each is None else each.clone() for each in passed.gradients]
    return replace(passed, total=passed.total.clone(), weight=weight, gradients=gradients)


def _tensors(passed: Passed) -> list[Tensor | None]:
    return [passed.total, passed.weight if isinstance(passed.weight, Tensor) else None, *passed.gradients]


def _same_bits(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two tensors, of which NaN may be a part, are the same."""
    if one is None or other is None:
        return one is other
    flat = (each.detach().contiguous().reshape(-1).view(torch.uint8) for each in (one, other))
    return torch.equal(*flat)
