"""Back-propagation in halves: first the gradients of the inputs, for which others wait; those of the weights later.

So a stage of a pipeline gives the gradients that the stage before needs, and computes the rest when it would wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from samestep.engine.backprop.concurrent import Concurrent, Deferred
from samestep.engine.helpers import Task

Rest = Sequence[Deferred]
"""What is left to do of a backward pass."""


class Halves:
    """Backward passes whose weight gradients wait until they are asked for.

    What is not known, or cannot be split, is computed in the first half.

    Args:
        parameters: Those whose gradients may come later.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._concurrent = Concurrent(parameters, _Nobody(), least_work=0)

    @property
    def watch(self) -> AbstractContextManager[object]:
        """A context for a forward pass, the layers of which are noticed."""
        return self._concurrent.watch

    def rest(self) -> Rest:
        """What the backward pass that has just ended has left to do."""
        return self._concurrent.take()

    def finish(self, rest: Rest) -> bool:
        """Give the parameters their gradients, beside those that they have from the first half.

        Returns:
            Whether they are those of the ordinary way; see `Concurrent.finish`.
        """
        for _, _, task in rest:
            task.run()
        self._concurrent.put(rest)
        return self._concurrent.finish()


class _Nobody:
    """Tasks wait."""

    def give(self, task: Task[Any]) -> None:
        """It will be run when its results are asked for."""

    def finish(self) -> None:
        """Nobody works."""
