"""Who a rank is, what it computes on, and how it meets the others."""

from __future__ import annotations

from dataclasses import dataclass, field

from samestep.engine.device.host import Host
from samestep.engine.device.seam import Device
from samestep.engine.events import Enter
from samestep.engine.exchange import Exchange
from samestep.engine.stages.links import Neighbours
from samestep.plan.machines import Machines
from samestep.plan.pipeline import Team


@dataclass(frozen=True)
class Rank:
    """Who a rank is, and how it meets the others.

    Args:
        index: 0 .. world_size - 1.
        team: How the ranks are put together.
        exchange: How it shows the others what it wrote.
        enter: Told what the rank does next.
        neighbours: The links of each of its chunks to others; None where there is one stage.
        num_helpers: Threads beside its training thread, where the ranks agree on it; None: as its cores allow.
        device: What it computes on.
        machines: Which ranks share a memory, where they are programs of their own; None: all ranks share one, and
            serve the same program.
    """

    index: int
    team: Team
    exchange: Exchange
    enter: Enter
    neighbours: tuple[Neighbours, ...] | None = None
    num_helpers: int | None = None
    device: Device = field(default_factory=Host)
    machines: Machines | None = None

    @property
    def world_size(self) -> int:
        return self.team.world_size

    @property
    def place(self) -> tuple[int, int]:
        """The number of its stage, and of how many."""
        return self.team.stage(self.index), self.team.num_stages

    @property
    def leads(self) -> bool:
        """Whether it writes what all ranks of its memory read."""
        return self.index == 0 if self.machines is None else self.machines.is_first(self.index)

    @property
    def speaks(self) -> bool:
        """Whether a program hears of the run from it."""
        return self.leads or self.machines is not None

    @property
    def stands_for(self) -> tuple[int, ...]:
        """The owners whose elements come into its memory through it: itself, and some of other machines."""
        return (self.index,) if self.machines is None else self.machines.stands_for(self.index)
