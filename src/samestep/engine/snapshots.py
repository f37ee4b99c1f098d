"""Snapshots: whole states in two places in turn, of which the newest that counts is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from samestep.engine.job import BEST_STEP, MODEL_ARRAYS, Image, Job
from samestep.engine.loop import Control, live_views

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
            arrays = {name: values.to("cpu", copy=True) for name, values in self.copies[number].items()}
            scalars = self.memory["copied_scalars"][number].to("cpu", copy=True)
            decided = self.memory["copied_decided"][number].to("cpu", copy=True)
            best = {name: values.to("cpu", copy=True) for name, values in read_best(self.memory).items()}
            if int(self.memory["control"][Control.BEST_STEP]) != int(decided[BEST_STEP]):
                best = {}  # of another step than this state: the replay will find it again
            if self.steps[number] == steps[number]:
                return Image(steps[number] - 1, arrays, scalars, decided, best)


def snapshots_in(job: Job, memory: Mapping[str, Tensor]) -> Snapshots:
    """Those of a job's run."""
    return Snapshots(memory, tuple(live_views(job, memory["copies"][number]) for number in range(NUM_COPIES)))


def write_image(image: Image, live: Mapping[str, Tensor], memory: Mapping[str, Tensor]) -> None:
    """Copy a state into the live arrays, and its best state beside them."""
    for name, values in image.arrays.items():
        live[name].copy_(values)
    for name, values in image.best.items():
        memory[f"best/{name}"].copy_(values)
    memory["control"][Control.BEST_STEP] = int(image.decided[BEST_STEP]) if image.best else 0


def read_best(memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The best state, if there is one."""
    if int(memory["control"][Control.BEST_STEP]) == 0:
        return {}
    return {name: memory[f"best/{name}"] for name in MODEL_ARRAYS}
