"""Pipelines: every schedule can be carried out, and cuts are the best there are."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.plan import pipeline
from samestep.plan.pipeline import Action, Schedule, Team

SCHEDULES: tuple[Schedule, ...] = ("gpipe", "1f1b")


def clocked(schedule: Schedule, num_stages: int, num_microbatches: int) -> tuple[int, list[int]]:
    """Ticks that a round takes where every pass takes one, and the most microbatches in flight on every stage."""
    plans = [
        list(pipeline.actions(schedule, num_stages=num_stages, stage=stage, num_microbatches=num_microbatches))
        for stage in range(num_stages)
    ]
    done: dict[tuple[int, Action], int] = {}
    flights, most, tick = [0] * num_stages, [0] * num_stages, 0
    while any(plans):
        tick += 1
        assert tick <= 4 * num_stages * num_microbatches, "a stage waits for ever"
        for stage, plan in enumerate(plans):
            if not plan:
                continue
            action = plan[0]
            other = stage - 1 if action.is_forward else stage + 1
            if 0 <= other < num_stages and done.get((other, action), tick) >= tick:
                continue
            done[stage, plan.pop(0)] = tick
            flights[stage] += 1 if action.is_forward else -1
            most[stage] = max(most[stage], flights[stage])
    return tick, most


@given(st.sampled_from(SCHEDULES), st.integers(1, 6), st.integers(1, 12))
def test_a_round_takes_what_the_formula_says(schedule: Schedule, num_stages: int, num_microbatches: int) -> None:
    ticks, most = clocked(schedule, num_stages, num_microbatches)
    assert ticks == 2 * (num_microbatches + num_stages - 1)
    assert 1 - 2 * num_microbatches / ticks == pytest.approx(pipeline.bubble_frac(num_stages, num_microbatches))
    if schedule == "1f1b":
        assert most == [min(num_stages - stage, num_microbatches) for stage in range(num_stages)]
    else:
        assert most == [num_microbatches] * num_stages


@given(st.sampled_from(SCHEDULES), st.integers(1, 6), st.integers(0, 12), st.data())
def test_gradients_come_in_the_order_of_the_tree(
    schedule: Schedule, num_stages: int, num_microbatches: int, data: st.DataObject
) -> None:
    stage = data.draw(st.integers(0, num_stages - 1))
    found = pipeline.actions(schedule, num_stages=num_stages, stage=stage, num_microbatches=num_microbatches)
    for is_forward in (True, False):
        assert [each.number for each in found if each.is_forward == is_forward] == list(range(num_microbatches))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.data())
def test_no_other_cut_is_better(costs: list[int], data: st.DataObject) -> None:
    places = st.integers(1, max(1, len(costs) - 1))
    edges = data.draw(st.lists(places, unique=True, max_size=len(costs) - 1).map(sorted))
    num_stages = data.draw(st.integers(1, len(edges) + 1))

    def worst(cut: tuple[int, ...]) -> int:
        return max(sum(costs[start:stop]) for start, stop in pipeline.ranges(cut, len(costs)))

    found = pipeline.balanced(costs, edges, num_stages)
    assert set(found) <= set(edges)
    assert worst(found) == min(map(worst, combinations(edges, num_stages - 1)))


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
