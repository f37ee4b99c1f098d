"""Snapshots: whole states in two places in turn, of which the newest that counts is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from samestep.engine.job import BEST_STEP, Image, Job
from samestep.engine.loop import Control, live_views
from samestep.engine.solo import read_best, write_image

NUM_COPIES = 2


@dataclass(frozen=True)
class Snapshots:
    """The snapshots in the memory of a run.

    Args:
        memory: The regions of the run.
        copies: The arrays of every snapshot.
    """

    memory: Mapping[str, Tensor]
    copies: tuple[dict[str, Tensor], ...]

    @property
    def steps(self) -> list[int]:
        """Of every snapshot its step + 1, 0 where it does not count."""
        return [int(self.memory["control"][Control.COPY_STEP + number]) for number in range(NUM_COPIES)]

    def begin(self, image: Image) -> None:
        """Lay the state that a run starts from into the first one."""
        write_image(image, self.copies[0], self.memory)
        self.memory["copied_scalars"][0].copy_(image.scalars)
        self.memory["copied_decided"][0].copy_(image.decided)
        self.memory["control"][Control.COPY_STEP] = image.step + 1

    def newest_decided(self) -> tuple[int, tuple[float, ...]]:
        """The step of the newest state that is whole, and what was decided by then; while nobody writes."""
        steps = self.steps
        number = steps.index(max(steps))
        return steps[number] - 1, tuple(self.memory["copied_decided"][number].tolist())

    def newest(self) -> Image:
        """A copy of the newest state that is whole."""
        while True:
            steps = self.steps
            number = steps.index(max(steps))
            arrays = {name: values.clone() for name, values in self.copies[number].items()}
            scalars = self.memory["copied_scalars"][number].clone()
            decided = self.memory["copied_decided"][number].clone()
            best = {name: values.clone() for name, values in read_best(self.memory).items()}
            if int(self.memory["control"][Control.BEST_STEP]) != int(decided[BEST_STEP]):
                best = {}  # of another step than this state: the replay will find it again
            if self.steps[number] == steps[number]:
                return Image(steps[number] - 1, arrays, scalars, decided, best)


def snapshots_in(job: Job, memory: Mapping[str, Tensor]) -> Snapshots:
    """Those of a job's run."""
    return Snapshots(memory, tuple(live_views(job, memory["copies"][number]) for number in range(NUM_COPIES)))
