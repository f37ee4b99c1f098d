"""Pipelines: a network cut into stages, one rank each, through which microbatches flow; and who is which stage of what.

A *replica* is a set of ranks that hold one stage each: together they compute whole microbatches, as one rank does where
there is one stage. Neither stages nor schedules decide any bit: a contribution is the same, whoever computes its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

from samestep.errors import UsageError
from samestep.plan import schedules
from samestep.plan.layout import more_microbatches
from samestep.plan.schedules import Schedule
from samestep.words import count


@dataclass(frozen=True)
class Team:
    """How the ranks are put together.

    Args:
        num_replicas: Sets of ranks that compute microbatches side by side.
        num_stages: Ranks of a set.

    Example:
        >>> team = Team(num_replicas=2, num_stages=3)
        >>> team.world_size, team.replica(4), team.stage(4)
        (6, 1, 1)
    """

    num_replicas: int
    num_stages: int

    @property
    def world_size(self) -> int:
        return self.num_replicas * self.num_stages

    def replica(self, rank: int) -> int:
        """The set that a rank is in."""
        return rank // self.num_stages

    def stage(self, rank: int) -> int:
        """The stage that a rank holds."""
        return rank % self.num_stages


@dataclass(frozen=True)
class Drawn:
    """Where a network's random numbers stand before one of its operations.

    Args:
        num_modules: Modules that may have drawn some, each counted at every call.
        calls: How often each module that may draw was called.
    """

    num_modules: int
    calls: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Stages:
    """How a network is cut.

    Args:
        num_stages: Ranks of a replica.
        num_chunks: Pieces that each of them holds.
        schedule: The order of their passes.
        cuts: Edges between all chunks by number of stages, 2 .. num_stages: after a death there may be fewer workers
            than stages. Numbers in which the network cannot be cut are left out.
        homes: The chunk that every parameter belongs to, by name, likewise.
        room: Bytes that a message between stages takes at most.
        seconds: Of every operation, as measured.
        drawn: Where random numbers stand before every operation.
        begins: What every chunk begins with, where there are `num_stages`.
        evaluates: Whether the network is evaluated in stages, too.
    """

    num_stages: int
    num_chunks: int
    schedule: Schedule
    cuts: Mapping[int, tuple[int, ...]]
    homes: Mapping[int, Mapping[str, int]]
    room: int
    seconds: tuple[float, ...]
    drawn: tuple[Drawn, ...]
    begins: tuple[str, ...]
    evaluates: bool

    def num_stages_for(self, num_workers: int) -> int:
        """The most stages in which so many workers can hold the network; 1: each holds it whole."""
        return max((count for count in self.cuts if count <= num_workers), default=1)

    def shares(self, num_elements: Mapping[str, int]) -> tuple[float, ...]:
        """The share of the parameters that every stage holds, each where its home is.

        Args:
            num_elements: Of every parameter, by name.
        """
        stages, homes = self.stages_of(self.num_stages), self.homes[self.num_stages]
        held = [0] * self.num_stages
        for name, number in num_elements.items():
            held[stages[homes[name]]] += number
        return tuple(number / (sum(held) or 1) for number in held)

    def time_shares(self) -> tuple[float, ...]:
        """The share of the measured seconds that every stage has."""
        stages = self.stages_of(self.num_stages)
        took_s = [0.0] * self.num_stages
        for number, (start, stop) in enumerate(ranges(self.cuts[self.num_stages], len(self.seconds))):
            took_s[stages[number]] += sum(self.seconds[start:stop])
        return tuple(each / (sum(took_s) or 1) for each in took_s)

    def chunks_of(self, stage: int, num_stages: int) -> tuple[int, ...]:
        """The chunks that a stage of so many holds."""
        return schedules.chunks_of(self.schedule, num_stages=num_stages, num_chunks=self.num_chunks, stage=stage)

    def stages_of(self, num_stages: int) -> tuple[int, ...]:
        """The stage of so many that holds each chunk."""
        numbers = range(num_stages * self.num_chunks)
        return tuple(schedules.stage_of(self.schedule, num_stages=num_stages, chunk=number) for number in numbers)


def team_for(num_workers: int, stages: Stages | None) -> Team:
    """The team that so many workers are, whichever of them are needed; none for no workers."""
    num_stages = 1 if stages is None else stages.num_stages_for(num_workers)
    return team_of(num_workers, num_stages) if num_workers else Team(0, 1)


def team_of(num_workers: int, num_stages: int) -> Team:
    """As many whole replicas as there are workers for; where there are too few for one, fewer stages.

    >>> team_of(5, 2), team_of(1, 2)
    (Team(num_replicas=2, num_stages=2), Team(num_replicas=1, num_stages=1))
    """
    num_stages = min(num_stages, num_workers)
    return Team(num_workers // num_stages, num_stages)


def balanced(
    costs: Sequence[float],
    edges: Sequence[int],
    num_stages: int,
    allows: Callable[[int, int], bool] = lambda start, stop: True,
) -> tuple[int, ...] | None:
    """Where to cut a chain so that the most expensive stage costs least.

    Args:
        costs: Of every link of the chain.
        edges: Where it can be cut: edge e lies before link e.
        num_stages: Pieces wanted; one more than there are edges at most.
        allows: Whether the links ``start .. stop - 1`` may be a stage.

    Returns:
        One edge fewer than stages; None where no cut has allowed stages only.

    >>> balanced([1, 1, 4, 1, 1], [1, 2, 3, 4], 3)
    (2, 3)
    >>> balanced([1, 1, 4, 1, 1], [1, 2, 3, 4], 3, lambda start, stop: stop != 2)
    (1, 3)
    """
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    places = [0, *edges, len(costs)]
    # worst[k][i]: the best that can be done with k + 1 stages up to places[i]; from[k][i]: where the last one begins
    worst = [[before[place] if place == 0 or allows(0, place) else inf for place in places]]
    begins: list[list[int]] = [[0] * len(places)]
    for number in range(1, num_stages):
        row, begin = [], []
        for last in range(len(places)):
            found = [
                (max(worst[-1][first], before[places[last]] - before[places[first]]), first)
                for first in range(number, last)
                if worst[-1][first] < inf and allows(places[first], places[last])
            ]
            cost, first = min(found, default=(inf, 0))
            row.append(cost)
            begin.append(first)
        worst.append(row)
        begins.append(begin)
    if worst[-1][-1] == inf:
        return None
    cut: list[int] = []
    last = len(places) - 1
    for number in range(num_stages - 1, 0, -1):
        last = begins[number][last]
        cut.append(places[last])
    return tuple(reversed(cut))


def ranges(edges: Sequence[int], num_links: int) -> tuple[tuple[int, int], ...]:
    """The links of every stage: first, and one past the last.

    >>> ranges([2, 3], 5)
    ((0, 2), (2, 3), (3, 5))
    """
    return tuple(pairwise((0, *edges, num_links)))


def check_team(num_workers: int, num_stages: int, num_microbatches: int, *, is_all_data: bool = False) -> None:
    """Refuse workers that do not make whole replicas, or more replicas than there are microbatches.

    Raises:
        UsageError: The one line says what would do.
    """
    if num_workers % num_stages:
        below, above = num_workers // num_stages * num_stages, -(-num_workers // num_stages) * num_stages
        fitting = f"workers={above}" if below == 0 else f"workers={below} or {above}"
        raise UsageError(
            f"workers={num_workers} with stages={num_stages}: a replica is {num_stages} workers, one for each stage, "
            f"so the workers are a multiple of it; take {fitting}"
        )
    if num_workers // num_stages > num_microbatches:
        raise UsageError(
            f"workers={num_workers} with stages={num_stages} are {num_workers // num_stages} replicas, and a step has "
            f"{count(num_microbatches, 'microbatch')}; take workers={num_microbatches * num_stages} or less, "
            f"{more_microbatches(is_all_data)}"
        )
