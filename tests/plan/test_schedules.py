"""Schedules: each can be carried out, in the time and the memory of its paper, however little room links have."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.plan import schedules
from samestep.plan.schedules import Action, Pass, Schedule

KINDS: list[tuple[Schedule, int]] = [("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 3), ("zbv", 2)]
any_kind = st.sampled_from(KINDS)


@dataclass
class Clock:
    """Carries out a round in which every pass takes one tick.

    Args:
        schedule: Which.
        num_stages: Of a replica.
        num_chunks: Of every stage.
        num_microbatches: Of the replica.
        num_rooms: Messages that a link holds; who sends more waits. None: as many as there are.
    """

    schedule: Schedule
    num_stages: int
    num_chunks: int
    num_microbatches: int
    num_rooms: int | None = None
    done: dict[Action, int] = field(default_factory=dict)

    def plans(self) -> list[list[Action]]:
        return [list(self.actions(stage)) for stage in range(self.num_stages)]

    def actions(self, stage: int) -> tuple[Action, ...]:
        return schedules.actions(
            self.schedule,
            num_stages=self.num_stages,
            num_chunks=self.num_chunks,
            stage=stage,
            num_microbatches=self.num_microbatches,
        )

    def run(self) -> tuple[int, list[int]]:
        """Ticks, and the most microbatches in flight on every stage, each counted in every chunk."""
        plans, tick = self.plans(), 0
        flights, most = [0] * self.num_stages, [0] * self.num_stages
        self.done.clear()
        while any(plans):
            tick += 1
            assert tick <= 8 * self.num_stages * self.num_chunks * self.num_microbatches, "a stage waits for ever"
            for stage, plan in enumerate(plans):
                if plan and all(self.done.get(each, tick) < tick for each in self.needed(plan[0])):
                    action = plan.pop(0)
                    self.done[action] = tick
                    flights[stage] += (action.kind is Pass.FORWARD) - action.kind.completes
                    most[stage] = max(most[stage], flights[stage])
        return tick, most

    def needed(self, action: Action) -> list[Action]:
        """What must have been done before."""
        chunk, number = action.chunk, action.number
        last = self.num_stages * self.num_chunks - 1
        if action.kind is Pass.FORWARD:
            found = [Action(Pass.FORWARD, chunk - 1, number)] if chunk else []
            receiver = chunk + 1
        elif action.kind is Pass.WEIGHT:
            return [Action(Pass.INPUT, chunk, number)]
        else:
            found = [Action(Pass.FORWARD, chunk, number)]
            found += [Action(action.kind, chunk + 1, number)] if chunk < last else []
            receiver = chunk - 1
        if self.num_rooms is not None and 0 <= receiver <= last and number >= self.num_rooms:
            found.append(Action(action.kind, receiver, number - self.num_rooms))
        return found


@given(any_kind, st.integers(2, 6), st.integers(1, 14))
def test_every_pass_is_there_once_and_gradients_come_in_the_order_of_the_tree(
    kind: tuple[Schedule, int], num_stages: int, num_microbatches: int
) -> None:
    clock = Clock(*_ordered(kind, num_stages), num_microbatches)
    halves = (Pass.INPUT, Pass.WEIGHT) if kind[0] == "zbv" else (Pass.BACKWARD,)
    for stage, plan in enumerate(clock.plans()):
        chunks = schedules.chunks_of(kind[0], num_stages=num_stages, num_chunks=kind[1], stage=stage)
        assert len(plan) == len(set(plan)) == len(chunks) * (1 + len(halves)) * num_microbatches
        for chunk in chunks:
            assert schedules.stage_of(kind[0], num_stages=num_stages, chunk=chunk) == stage
            for each in (Pass.FORWARD, *halves):
                numbers = [action.number for action in plan if action.kind is each and action.chunk == chunk]
                assert numbers == list(range(num_microbatches))


@given(any_kind, st.integers(1, 6))
def test_every_chunk_has_one_stage(kind: tuple[Schedule, int], num_stages: int) -> None:
    schedule, num_chunks = kind
    found = [
        chunk
        for stage in range(num_stages)
        for chunk in schedules.chunks_of(schedule, num_stages=num_stages, num_chunks=num_chunks, stage=stage)
    ]
    assert sorted(found) == list(range(num_stages * num_chunks))


@given(any_kind, st.integers(2, 6), st.integers(1, 14))
def test_a_round_takes_what_the_formula_says(
    kind: tuple[Schedule, int], num_stages: int, num_microbatches: int
) -> None:
    schedule, num_chunks = kind
    if schedule == "interleaved":
        num_microbatches = -(-num_microbatches // num_stages) * num_stages
    elif schedule == "zbv":
        num_microbatches = max(num_microbatches, 2 * num_stages - 1)
    ticks, _ = Clock(schedule, num_stages, num_chunks, num_microbatches).run()
    busy = (3 if schedule == "zbv" else 2) * num_chunks * num_microbatches
    wanted = schedules.bubble_frac(
        schedule, num_stages=num_stages, num_chunks=num_chunks, num_microbatches=num_microbatches
    )
    assert 1 - busy / ticks == pytest.approx(wanted)


@given(any_kind, st.integers(2, 6), st.integers(1, 20))
def test_activations_are_bounded(kind: tuple[Schedule, int], num_stages: int, num_microbatches: int) -> None:
    """In chunks: a stage of ``zbv`` holds what the first one of ``1f1b`` does, two half as large chunks for each."""
    schedule, num_chunks = kind
    _, most = Clock(schedule, num_stages, num_chunks, num_microbatches).run()
    for stage, found in enumerate(most):
        bounds = {
            "gpipe": num_microbatches,
            "1f1b": num_stages - stage,
            "interleaved": 2 * (num_stages - stage) - 1 + (num_chunks - 1) * num_stages,
            "zbv": 2 * num_stages,
        }
        assert found <= min(bounds[schedule], num_chunks * num_microbatches)
        if num_microbatches >= 2 * num_stages:
            assert found == bounds[schedule]


@given(any_kind, st.integers(2, 5), st.integers(1, 12), st.integers(1, 4))
def test_nobody_waits_for_ever_however_little_room_there_is(
    kind: tuple[Schedule, int], num_stages: int, num_microbatches: int, num_rooms: int
) -> None:
    found, _ = Clock(*_ordered(kind, num_stages), num_microbatches, num_rooms).run()
    free, _ = Clock(*_ordered(kind, num_stages), num_microbatches).run()
    assert found == free or num_rooms == 1


def _ordered(kind: tuple[Schedule, int], num_stages: int) -> tuple[Schedule, int, int]:
    return kind[0], num_stages, kind[1]


def test_more_chunks_and_halves_wait_less() -> None:
    found = [
        schedules.bubble_frac(schedule, num_stages=4, num_chunks=num_chunks, num_microbatches=8)
        for schedule, num_chunks in KINDS
    ]
    assert found[0] == found[1] > found[2] > found[3] > found[4]


@pytest.mark.parametrize(
    ("schedule", "num_chunks", "says"),
    [
        ("zbv", 3, "a stage holds 2 chunks; take chunks=2$"),
        ("interleaved", 1, "at least 2; take chunks=2 or more, or schedule='1f1b'$"),
        ("gpipe", 2, "a stage holds one; take schedule='interleaved'$"),
    ],
)
def test_chunks_that_a_schedule_is_not_made_for(schedule: Schedule, num_chunks: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        schedules.check_chunks(schedule, num_chunks)
