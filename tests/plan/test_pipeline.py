"""Pipelines: cuts are the best there are, and ranks fill replicas."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.plan import pipeline
from samestep.plan.pipeline import Stages, Team


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.data())
def test_no_other_cut_is_better(costs: list[int], data: st.DataObject) -> None:
    places = st.integers(1, max(1, len(costs) - 1))
    edges = data.draw(st.lists(places, unique=True, max_size=len(costs) - 1).map(sorted))
    num_stages = data.draw(st.integers(1, len(edges) + 1))
    weights = data.draw(st.lists(st.integers(0, 9), min_size=len(costs), max_size=len(costs)))
    most = data.draw(st.integers(0, 90))

    def allows(start: int, stop: int) -> bool:
        return sum(weights[start:stop]) <= most

    def worst(cut: tuple[int, ...]) -> int:
        return max(sum(costs[start:stop]) for start, stop in pipeline.ranges(cut, len(costs)))

    cuts = [*combinations(edges, num_stages - 1)]
    allowed = [cut for cut in cuts if all(allows(*each) for each in pipeline.ranges(cut, len(costs)))]
    for candidates, found in (
        (cuts, pipeline.balanced(costs, edges, num_stages)),
        (allowed, pipeline.balanced(costs, edges, num_stages, allows)),
    ):
        assert (found is None) == (not candidates)
        if found is not None:
            assert found in candidates
            assert worst(found) == min(map(worst, candidates))


@given(st.integers(1, 12), st.integers(1, 5))
def test_ranks_fill_replicas(num_workers: int, num_stages: int) -> None:
    team = pipeline.team_of(num_workers, num_stages)
    assert team.world_size <= num_workers < team.world_size + num_stages
    assert team.num_stages == min(num_stages, num_workers)
    places = [(team.replica(rank), team.stage(rank)) for rank in range(team.world_size)]
    assert places == [(replica, stage) for replica in range(team.num_replicas) for stage in range(team.num_stages)]


def test_teams_that_cannot_be() -> None:
    pipeline.check_team(4, 2, 2)
    with pytest.raises(UsageError, match=r"take workers=2 or 4$"):
        pipeline.check_team(3, 2, 8)
    with pytest.raises(UsageError, match=r"take workers=4$"):
        pipeline.check_team(1, 4, 8)
    with pytest.raises(UsageError, match=r"are 3 replicas, and a step has 2 microbatches"):
        pipeline.check_team(6, 2, 2)
    assert Team(2, 3).world_size == 6


def test_shares_of_the_parameters_are_by_stage_and_not_by_chunk() -> None:
    stages = Stages(
        num_stages=2, num_chunks=2, schedule="zbv", cuts={2: (1, 2, 3)}, homes={2: {"a": 0, "b": 1, "c": 2, "d": 3}},
        room=0, seconds=(), drawn=(), begins=(), evaluates=True,
    )  # fmt: skip
    found = stages.shares({"a": 10, "b": 20, "c": 30, "d": 40})
    assert found == (0.5, 0.5), "the first stage holds the first chunk and the last"
    assert stages.shares({"a": 10, "b": 30}) == (0.25, 0.75)


def test_shares_of_the_time_are_by_stage_and_not_by_chunk() -> None:
    stages = Stages(
        num_stages=2, num_chunks=2, schedule="zbv", cuts={2: (1, 2, 4)}, homes={}, room=0,
        seconds=(1.0, 2.0, 3.0, 4.0, 10.0), drawn=(), begins=(), evaluates=True,
    )  # fmt: skip
    assert stages.time_shares() == (0.55, 0.45), "the first stage holds the first chunk and the last"


def test_the_team_that_goes_on_after_a_death() -> None:
    stages = Stages(
        num_stages=3, num_chunks=1, schedule="1f1b", cuts={2: (1,), 3: (1, 2)}, homes={}, room=0, seconds=(), drawn=(),
        begins=(), evaluates=True,
    )  # fmt: skip
    assert [pipeline.team_for(count, stages).world_size for count in range(7)] == [0, 1, 2, 3, 3, 3, 6]
    assert [pipeline.team_for(count, None) for count in (0, 3)] == [Team(0, 1), Team(3, 1)]
