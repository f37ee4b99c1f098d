"""What each worker does in a step: which microbatches it computes, and which slices of the flat vector it owns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from samestep.plan import layout
from samestep.plan.batch import BatchPlan
from samestep.plan.buckets import parts_of
from samestep.plan.layout import FlatLayout, Range, Segment
from samestep.plan.pipeline import Stages, Team


@dataclass(frozen=True, kw_only=True)
class Allotment:
    """One worker's part of a run.

    Args:
        worker: 0 .. W - 1.
        stage: Which one it holds; 0 where there is one.
        microbatches: ``start .. stop - 1`` of a round of a whole step.
        num_samples: In these.
        last_microbatches: Those of the last step of an epoch, which may be shorter.
        segments: What it adds and updates, in the order of the flat vector.
    """

    worker: int
    stage: int
    microbatches: Range
    num_samples: int
    last_microbatches: Range
    segments: tuple[Segment, ...]

    @property
    def num_elements(self) -> int:
        """Of its segments, padding included."""
        return sum(segment.stop - segment.start for segment in self.segments)


def owned(
    flat: FlatLayout,
    team: Team,
    stages: Stages | None,
    *,
    num_hands: int,
    buckets: tuple[Range, ...] = (),
) -> tuple[tuple[tuple[Segment, ...], ...], ...]:
    """What every rank's every hand owns: by rank, then by hand.

    Args:
        flat: Where the parameters lie.
        team: The ranks.
        stages: How the network is cut; with stages a rank has one hand.
        num_hands: Threads of a rank that share what it owns.
        buckets: Every rank owns a share of each of these, and of what is in none; without stages.
    """
    if team.num_stages == 1:
        found = layout.owners(flat, team.world_size * num_hands, parts_of(flat, buckets))
        return tuple(found[at : at + num_hands] for at in range(0, len(found), num_hands))
    assert stages is not None
    homes = stages.homes[team.num_stages]
    numbers = [homes[place.spec.name] for place in flat.places]
    in_stages = layout.owners_in_stages(flat, numbers, stages.stages_of(team.num_stages), team.num_replicas)
    return tuple((segments,) for segments in in_stages)


def allot(
    batches: BatchPlan, flat: FlatLayout, team: Team, stages: Stages | None = None, *, num_hands: int
) -> tuple[Allotment, ...]:
    """Who does what.

    Args:
        batches: How an epoch is cut.
        flat: Where the parameters lie.
        team: The workers.
        stages: How the network is cut, where it is.
        num_hands: Threads of a worker that share what it owns.

    Example:
        >>> weight = layout.ParameterSpec(name="weight", shape=(4000,), group=0, is_whole=False)
        >>> batches = BatchPlan(num_samples=50, global_batch=32, microbatch=8)
        >>> parts = allot(batches, layout.flat_layout([weight]), Team(2, 1), num_hands=1)
        >>> [(part.microbatches, part.num_samples, part.last_microbatches, part.num_elements) for part in parts]
        [((0, 2), 16, (0, 1), 2048), ((2, 4), 16, (1, 3), 2048)]
    """
    steps = (0, batches.steps_per_epoch - 1)
    counts = (len(batches.microbatches(step)) for step in steps)
    whole, last = (layout.blocks_of_microbatches(count, team.num_replicas) for count in counts)
    segments = owned(flat, team, stages, num_hands=num_hands)
    replicas = [team.replica(rank) for rank in range(team.world_size)]
    return tuple(
        Allotment(
            worker=rank,
            stage=team.stage(rank),
            microbatches=whole[replica],
            num_samples=sum(each.num_samples for each in batches.microbatches(0)[slice(*whole[replica])]),
            last_microbatches=last[replica],
            segments=tuple(chain.from_iterable(segments[rank])),
        )
        for rank, replica in enumerate(replicas)
    )
