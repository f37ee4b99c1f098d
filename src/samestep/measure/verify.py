"""Is it the same network? Train with several numbers of workers and compare every tensor."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from samestep.engine.randomness import preserved
from samestep.errors import UsageError
from samestep.run.config import NumericSettings, Settings
from samestep.run.prepare import Choices
from samestep.run.progress import Progress
from samestep.run.train import run
from samestep.run.weights import digest
from samestep.run.workload import Workload

_DEFAULT_STEPS = 20


@dataclass(frozen=True)
class Trained:
    """What training with one number of workers gave."""

    workers: int
    state: dict[str, Tensor]
    loss: float | None
    samples_per_s: float | None

    @property
    def sha256(self) -> str:
        return digest(self.state)


@dataclass(frozen=True)
class Difference:
    """A tensor that two runs do not share.

    Args:
        tensor: Its name.
        num_different: Elements whose bits differ.
        num_elements: Of so many.
        largest: Largest absolute difference; NaN where the shapes differ.
    """

    tensor: str
    num_different: int
    num_elements: int
    largest: float


@dataclass(frozen=True)
class Verdict:
    """What a verification found.

    Args:
        trained: One entry per number of workers, the reference first.
        differences: Per number of workers, the tensors that differ from the reference, in the model's order.
        cause: Why, where it can be told.
    """

    trained: tuple[Trained, ...]
    differences: dict[int, tuple[Difference, ...]]
    cause: str | None

    @property
    def is_same(self) -> bool:
        return not any(self.differences.values())

    @property
    def first(self) -> tuple[int, Difference] | None:
        """The first number of workers that differs, and its first tensor."""
        return next(((workers, found[0]) for workers, found in self.differences.items() if found), None)


def verify(
    build: Callable[[], Workload], settings: NumericSettings, workers: Sequence[int], progress: Progress
) -> Verdict:
    """Train once per number of workers and compare every tensor with the first one's, bit by bit.

    Args:
        build: Makes the workload anew for each run.
        settings: Of the runs; 20 steps where it names neither steps nor epochs.
        workers: Numbers of workers; the first is the reference.
        progress: Who shows how it goes.
    """
    if not workers:
        raise UsageError("verify needs at least one number of workers, such as --workers 1,2")
    if settings.steps is None and settings.epochs is None:
        settings = replace(settings, steps=_DEFAULT_STEPS)
    trained = []
    for number in workers:
        result = run(build(), Settings(**vars(settings), workers=number), choices=Choices(), progress=progress)
        state = {name: tensor.clone() for name, tensor in result.model.state_dict().items()}
        trained.append(Trained(number, state, result.record.last_loss, result.record.samples_per_s))
    differences = {other.workers: compare(trained[0].state, other.state) for other in trained[1:]}
    cause = find_cause(build(), differences) if any(differences.values()) else None
    return Verdict(tuple(trained), differences, cause)


def compare(reference: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[Difference, ...]:
    """The tensors of two states that differ in a bit, in the reference's order.

    >>> compare({"w": torch.zeros(3)}, {"w": torch.tensor([0.0, 0.0, 1.0])})
    (Difference(tensor='w', num_different=1, num_elements=3, largest=1.0),)
    """
    found = []
    for name, expected in reference.items():
        actual = other.get(name)
        if actual is None or actual.shape != expected.shape or actual.dtype != expected.dtype:
            found.append(Difference(name, expected.numel(), expected.numel(), float("nan")))
            continue
        different = (_bits(expected) != _bits(actual)).reshape(-1, expected.element_size()).any(dim=1)
        if bool(different.any()):
            largest = float((expected.double() - actual.double()).abs().max())
            found.append(Difference(name, int(different.sum()), expected.numel(), largest))
    return tuple(found)


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().reshape(-1).view(torch.uint8)


def find_cause(workload: Workload, differences: dict[int, tuple[Difference, ...]]) -> str | None:
    """Why runs differ, found by running one microbatch again: a forward pass must depend on nothing else.

    Python's and NumPy's generators and state that a module keeps outside of its buffers are what depends on who
    computes.
    """
    samples = workload.data().train
    indices = torch.arange(min(8, samples.num_samples))
    with preserved():
        model = workload.model().train()
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        inputs = tuple(column.gather(indices) for column in samples.inputs)

        def answer() -> Tensor:
            model.load_state_dict(state)
            torch.manual_seed(0)
            output = model(*inputs)
            return output if isinstance(output, Tensor) else output[0]

        python_state, numpy_state = random.getstate(), repr(np.random.get_state())  # noqa: NPY002
        first = answer()
        draws_python, draws_numpy = random.getstate() != python_state, repr(np.random.get_state()) != numpy_state  # noqa: NPY002
        second = answer()
    for is_drawn, name in ((draws_python, "Python's random"), (draws_numpy, "numpy.random")):
        if is_drawn:
            return f"the forward pass draws from {name}, which is not keyed: draw from torch instead"
    if not torch.equal(first, second):
        return (
            "the forward pass gives another answer when run again on the same samples: it depends on something that "
            "is neither parameter, buffer nor torch's default generator"
        )
    names = {difference.tensor for found in differences.values() for difference in found}
    if names and names <= {name for name, _ in model.named_buffers()}:
        return "only buffers differ: a module changes them in a way that depends on who computes"
    return None
