"""What a run is doing, in words, for whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from samestep.words import count

Stretch = Literal["reading", "starting", "training", "evaluating", "saving"]


@dataclass(frozen=True, kw_only=True)
class Doing:
    """What a run is doing at one moment.

    Args:
        stretch: What all of it waits for: "reading" until there are data and a network, "starting" until the workers'
            first step, "training", "evaluating", "saving" what came out.
        workers: How many a whole crew has.
        num_missing: Of them have died and are being replaced.
        is_saving: A checkpoint is being written while the run goes on.

    Example:
        >>> Doing(stretch="training", workers=2, num_missing=1).text
        '1 of 2 workers, a replacement is starting'
    """

    stretch: Stretch = "reading"
    workers: int = 1
    num_missing: int = 0
    is_saving: bool = False

    @property
    def text(self) -> str:
        """In words; empty where a whole crew trains and nothing else goes on: then the steps say enough."""
        beside = [self._missing, "saving a checkpoint" if self.is_saving else ""]
        return ", ".join(part for part in (self._stretch, *beside) if part)

    @property
    def _stretch(self) -> str:
        texts: dict[Stretch, str] = {
            "reading": "reading the data, building the network",
            "starting": f"starting {count(self.workers, 'worker')}",
            "training": "",
            "evaluating": "evaluating",
            "saving": "saving what came out",
        }
        return texts[self.stretch]

    @property
    def _missing(self) -> str:
        replacement = "a replacement is starting" if self.num_missing == 1 else "replacements are starting"
        if self.num_missing == 0:
            return ""
        if self.num_missing >= self.workers:
            return f"no worker is left, {replacement}"
        return f"{self.workers - self.num_missing} of {count(self.workers, 'worker')}, {replacement}"
