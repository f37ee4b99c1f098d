"""Is it the same network? Train with several numbers of workers, or with a peer, and compare every tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from samestep.errors import UsageError
from samestep.measure.against.causes import find_cause
from samestep.measure.against.comparison import Against, against
from samestep.measure.against.habits import Habits, Peer
from samestep.measure.against.peer import Trainer
from samestep.measure.differences import Difference, compare
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
class Verdict:
    """What a verification found.

    Args:
        trained: One entry per number of workers, the reference first.
        differences: Per number of workers, the tensors that differ from the reference, in the model's order.
        against: The comparison of the reference with a peer; None where there was none.
        cause: Why, where it can be told: a sentence per cause.
    """

    trained: tuple[Trained, ...]
    differences: dict[int, tuple[Difference, ...]]
    against: Against | None
    cause: tuple[str, ...]

    @property
    def is_same(self) -> bool:
        """Whether all numbers of workers gave the same bits."""
        return not any(self.differences.values())

    @property
    def is_passed(self) -> bool:
        """Whether all is as it should be: the same bits, and against a peer nothing but rounding."""
        return self.is_same and (self.against is None or self.against.is_explained)

    @property
    def first(self) -> tuple[int, Difference] | None:
        """The first number of workers that differs, and its first tensor."""
        return next(((workers, found[0]) for workers, found in self.differences.items() if found), None)


def default_workers(peer: Peer | None) -> tuple[int, ...]:
    """Numbers of workers, where none are named."""
    return (1, 2) if peer is None else (1,)


def verify(
    build: Callable[[], Workload],
    settings: NumericSettings,
    workers: Sequence[int],
    progress: Progress,
    *,
    peer: Peer | None = None,
    habits: Habits | None = None,
    trainer: Trainer | None = None,
) -> Verdict:
    """Train once per number of workers and compare every tensor with the first one's, bit by bit; and with a peer's.

    Args:
        build: Makes the workload anew for each run.
        settings: Of the runs; 20 steps where it names neither steps nor epochs.
        workers: Numbers of workers; the first is the reference.
        progress: Who shows how it goes.
        peer: Whom to compare the reference with.
        habits: See `against`.
        trainer: See `against`.
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
    cause = find_cause(build(), differences) if any(differences.values()) else ()
    compared = None
    if peer is not None:
        alone = Settings(**vars(settings), workers=1)
        compared = against(peer, build, alone, trained[0].state, progress, habits=habits, trainer=trainer)
        cause += tuple(text for text in compared.cause if text not in cause)
    return Verdict(tuple(trained), differences, compared, cause)
