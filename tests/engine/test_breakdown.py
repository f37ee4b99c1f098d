"""Where the time goes: phases add up to the step, and planted times come back in their own phase."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from samestep.engine import events
from samestep.engine.breakdown import GROUPS, breakdown, step_times
from samestep.engine.events import Events, Phase

STEP = {
    Phase.DATA: 1.0,
    Phase.FORWARD: 2.0,
    Phase.BACKWARD: 4.0,
    Phase.PUBLISH: 0.5,
    Phase.BARRIER_CONTRIBUTIONS: 0.25,
    Phase.COMBINE: 0.125,
    Phase.UPDATE: 0.0625,
    Phase.BARRIER_UPDATE: 0.03125,
    Phase.BETWEEN: 0.015625,
}
"""Seconds by phase: sums are exact and tell which phases are in them."""


def made(steps: list[int], extra: dict[tuple[int, Phase], float] | None = None, microbatches: int = 1) -> Events:
    rows: list[tuple[float, int, int]] = []
    now = 0.0
    for step in steps:
        for phase, duration in STEP.items():
            is_repeated = phase in (Phase.DATA, Phase.FORWARD, Phase.BACKWARD, Phase.PUBLISH)
            for _ in range(microbatches if is_repeated and phase is Phase.DATA else 1):
                rows.append((now, phase, step))
                now += duration + (extra or {}).get((step, phase), 0.0)
    rows.append((now, Phase.DATA, steps[-1] + 1))
    return np.array(rows, dtype=events._DTYPE)


def test_every_phase_but_the_evaluation_is_in_one_group() -> None:
    grouped = [phase for phases in GROUPS.values() for phase in phases]
    assert sorted(grouped) == sorted(set(Phase) - {Phase.EVALUATION})


def test_phases_add_up_to_the_step() -> None:
    found = breakdown([made(list(range(8)), microbatches=3)])
    assert found is not None
    assert found.workers[0] == {
        "data": 3.0,
        "compute": 6.0,
        "waiting": 0.28125,
        "combine + update": 0.6875,
        "machinery": 0.015625,
    }
    assert sum(found.workers[0].values()) == found.step_s
    assert found.num_steps == 5, "the first three are left out"


@pytest.mark.parametrize(
    ("phase", "group"), [(phase, group) for group, phases in GROUPS.items() for phase in phases if phase in STEP]
)
def test_a_planted_delay_is_in_its_own_group_and_worker(phase: Phase, group: str) -> None:
    steps = list(range(8))
    delayed = breakdown([made(steps), made(steps, {(step, phase): 1.0 for step in steps})])
    assert delayed is not None
    before, after = delayed.workers
    assert {name: after[name] - before[name] for name in GROUPS} == {name: float(name == group) for name in GROUPS}


def test_an_evaluation_is_no_part_of_a_step() -> None:
    rows = made([3, 4, 5, 6])
    cut = int(np.flatnonzero((rows["step"] == 5) & (rows["phase"] == Phase.DATA))[0])
    evaluation = np.array([(rows["time_s"][cut], Phase.EVALUATION, 5)], dtype=rows.dtype)
    later = rows[cut:].copy()
    later["time_s"] += 100.0
    times = step_times(np.concatenate([rows[:cut], evaluation, later]))
    assert times.durations_s.tolist() == [sum(STEP.values())] * 4


def test_a_replay_counts_once() -> None:
    first, second = made([4, 5, 6]), made([5, 6, 7, 8])
    second["time_s"] += first["time_s"][-1]
    times = step_times(np.concatenate([first[:-1], second]))
    assert times.steps.tolist() == [5, 6, 7, 8]
    assert all(a < b for a, b in pairwise(times.starts_s.tolist()))


def test_too_few_events_tell_nothing() -> None:
    assert breakdown([]) is None
    assert breakdown([made([0])]) is None
    assert breakdown([np.zeros(0, dtype=events._DTYPE)]) is None
