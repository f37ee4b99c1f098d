"""Successive halving: nothing of worth is dropped, and what comes next depends on nothing but what was found."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.measure.sweep.halving import Ladder, Move, Outcome, Run, ladder, next_move, ranked
from samestep.run.workload import Target

GOAL = Target(metric="error", value=0.1, mode="min")
Answer = Callable[[Run], Outcome]


def climb(climbed: Ladder, num_seeds: int, answer: Answer, *, seed: int = 0) -> tuple[Move, dict[Run, Outcome]]:
    """Play a cell to its end, the runs of each move in some order and one at a time."""
    found: dict[Run, Outcome] = {}
    shuffle = random.Random(seed)
    while (move := next_move(climbed, num_seeds, GOAL, found)).verdict == "going on":
        assert move.runs
        assert not set(move.runs) & set(found)
        run = shuffle.choice(move.runs)
        found[run] = answer(run)
    assert move.runs == ()
    return move, found


def errors(reaches_at: int | None) -> Answer:
    """The error of trial t with so many steps is (t + 1) / steps; the target may be reached from a budget on."""

    def answer(run: Run) -> Outcome:
        best = (run.trial + 1) / run.steps
        is_reached = reaches_at is not None and run.steps >= reaches_at and run.trial == 0
        return Outcome(best=best, reached_step=run.steps // 2 if is_reached else None)

    return answer


# ---------------------------------------------------------------- the ladder


@given(st.integers(1, 100), st.integers(1, 50), st.integers(0, 20_000))
def test_budgets_double_and_trials_are_at_most_halved(num_trials: int, first: int, more: int) -> None:
    found = ladder(num_trials, first_steps=first, most_steps=first + more)
    assert found.budgets[-1] == first + more
    assert first <= found.budgets[0] < 2 * first or found.budgets == (first + more,)
    for low, high in zip(found.budgets, found.budgets[1:], strict=False):
        assert low == high // 2
    assert found.kept[0] == num_trials, "all of them start"
    for before, after in zip(found.kept, found.kept[1:], strict=False):
        assert before / 2 <= after <= before
    assert found.kept[-1] >= min(num_trials, 2)
    if 2 ** (len(found.budgets) - 1) >= num_trials:
        assert found.kept[-1] <= 2


@pytest.mark.parametrize(
    ("trials", "first", "most", "text"),
    [
        (0, 8, 64, "trials=0 is below 1"),
        (1, 0, 64, "first_steps=0"),
        (1, 8, 4, "first_steps=8 to most_steps=4"),
    ],
)
def test_a_ladder_that_cannot_be_climbed(trials: int, first: int, most: int, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        ladder(trials, first_steps=first, most_steps=most)


# ---------------------------------------------------------------- climbing it


def outcomes() -> st.SearchStrategy[Outcome]:
    return st.one_of(
        st.builds(Outcome, best=st.floats(0.11, 1.0)),
        st.builds(Outcome, best=st.floats(0.0, 0.1), reached_step=st.integers(1, 4)),
        st.just(Outcome(best=float("nan"))),
        st.just(Outcome(failure="diverged")),
    )


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 4), st.integers(4, 70))
def test_the_best_is_never_dropped(data: st.DataObject, num_trials: int, num_seeds: int, most: int) -> None:
    climbed = ladder(num_trials, first_steps=4, most_steps=most)
    drawn: dict[Run, Outcome] = {}

    def answer(run: Run) -> Outcome:
        return drawn.setdefault(run, data.draw(outcomes()))

    move, found = climb(climbed, num_seeds, answer)
    rungs = {steps: [run for run in found if run.stage == "choose" and run.steps == steps] for steps in climbed.budgets}
    assert {run.trial for run in rungs[climbed.budgets[0]]} == set(range(num_trials)), "all start"
    for low, high in zip(climbed.budgets, climbed.budgets[1:], strict=False):
        if rungs[high]:
            order = ranked({run.trial: found[run] for run in rungs[low]}, GOAL)
            kept = {run.trial for run in rungs[high]}
            assert kept == set(order[: len(kept)])
    seeds = {stage: {run.seed for run in found if run.stage == stage} for stage in ("choose", "confirm", "report")}
    assert not seeds["report"] & (seeds["choose"] | seeds["confirm"]), "what is reported has chosen nothing"
    if move.verdict == "reached":
        assert sum(run.stage == "report" and run.trial == move.trial and run.steps == move.steps for run in found) == (
            num_seeds
        )


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 8), st.integers(1, 3))
def test_the_order_in_which_runs_end_changes_nothing(data: st.DataObject, num_trials: int, num_seeds: int) -> None:
    climbed = ladder(num_trials, first_steps=4, most_steps=16)
    drawn: dict[Run, Outcome] = {}

    def answer(run: Run) -> Outcome:
        return drawn.setdefault(run, data.draw(outcomes()))

    first = climb(climbed, num_seeds, answer, seed=0)
    assert climb(climbed, num_seeds, answer, seed=1) == first


def test_a_cell_ends_at_the_first_budget_that_reaches_the_target() -> None:
    move, found = climb(ladder(8, first_steps=8, most_steps=64), 3, errors(16))
    assert move == Move(verdict="reached", trial=0, steps=16)
    assert {run.steps for run in found} == {8, 12, 16}
    assert [run for run in found if run.steps == 12] == [Run(stage="choose", trial=0, steps=12, seed=0)]
    assert sum(run.stage == "confirm" for run in found) == sum(run.stage == "report" for run in found) == 3


@pytest.mark.parametrize(("reaches_at", "steps"), [(5, 6), (6, 6), (7, 8), (11, 12), (12, 12), (13, 16), (33, 48)])
def test_what_is_enough_is_told_to_half_of_the_way_between_rungs(reaches_at: int, steps: int) -> None:
    move, found = climb(ladder(4, first_steps=4, most_steps=64), 3, errors(reaches_at))
    assert move == Move(verdict="reached", trial=0, steps=steps)
    assert {run.steps for run in found if run.stage == "report"} == {steps}


def test_other_settings_may_be_enough_half_way() -> None:
    """Both reach the target on the rung, the second trial only later; below it, the second one alone does."""

    def answer(run: Run) -> Outcome:
        is_reached = run.steps == 16 or (run.steps == 12 and run.trial == 1)
        return Outcome(best=0.1 if is_reached else 0.2, reached_step=8 + run.trial if is_reached else None)

    move, _ = climb(ladder(2, first_steps=8, most_steps=16), 3, answer)
    assert move == Move(verdict="reached", trial=1, steps=12)


def test_a_record_from_before_half_way_says_what_it_said() -> None:
    move, found = climb(replace(ladder(4, first_steps=4, most_steps=64), has_halfway=False), 3, errors(11))
    assert move == Move(verdict="reached", trial=0, steps=16)
    assert {run.steps for run in found} == {4, 8, 16}


def test_what_fell_short_on_a_lower_rung_is_not_the_end_of_a_higher_one() -> None:
    """On the first rung the reported part falls short; above it fresh seeds do not confirm anything."""

    def answer(run: Run) -> Outcome:
        is_reached = run.stage != "report" and run.steps == 8
        return Outcome(best=0.2 / run.steps, reached_step=4 if is_reached else None)

    move, _ = climb(ladder(2, first_steps=8, most_steps=16), 3, answer)
    assert move == Move(verdict="not reached", trial=0, steps=16)


def test_where_half_way_falls_short_on_the_reported_part_the_rung_is_reported() -> None:
    def answer(run: Run) -> Outcome:
        is_reached = run.steps >= (16 if run.stage == "report" else 12)
        return Outcome(best=0.1 if is_reached else 0.2, reached_step=8 if is_reached else None)

    move, found = climb(ladder(2, first_steps=8, most_steps=16), 3, answer)
    assert move == Move(verdict="reached", trial=0, steps=16)
    assert {run.steps for run in found if run.stage == "report"} == {12, 16}


def test_a_target_that_is_never_reached() -> None:
    move, found = climb(ladder(8, first_steps=8, most_steps=64), 3, errors(None))
    assert move == Move(verdict="not reached", trial=0, steps=64)
    assert [sum(run.steps == steps for run in found) for steps in (8, 16, 32, 64)] == [8, 8, 4, 2]


def test_luck_is_found_out_by_fresh_seeds() -> None:
    """Trial 0 reaches the target with the first seed alone; trial 1 does with all of them, in more steps."""

    def answer(run: Run) -> Outcome:
        is_lucky = run.trial == 0 and run.seed == 0
        return Outcome(best=0.1, reached_step=(4 if is_lucky else 6) if is_lucky or run.trial == 1 else None)

    move, found = climb(ladder(4, first_steps=8, most_steps=8), 3, answer)
    assert move == Move(verdict="reached", trial=1, steps=8)
    assert {run.trial for run in found if run.stage == "confirm"} == {0, 1}
    assert {run.trial for run in found if run.stage == "report"} == {1}


def test_half_of_the_fresh_seeds_are_not_enough() -> None:
    def answer(run: Run) -> Outcome:
        return Outcome(best=0.1, reached_step=4 if run.seed % 2 == 0 else None)

    move, _ = climb(ladder(1, first_steps=8, most_steps=8), 2, answer)
    assert move.verdict == "not reached"


def test_the_reported_part_lengthens_and_never_chooses() -> None:
    """Both trials reach the target where settings are chosen; the reported part is harder, and needs more steps."""

    def answer(run: Run) -> Outcome:
        return Outcome(best=0.1, reached_step=4 + run.trial if run.stage != "report" or run.steps == 16 else None)

    move, found = climb(ladder(2, first_steps=8, most_steps=16), 3, answer)
    assert move == Move(verdict="reached", trial=0, steps=16)
    assert {(run.trial, run.steps) for run in found if run.stage == "report"} == {(0, 8), (0, 12), (0, 16)}
    move, _ = climb(ladder(2, first_steps=8, most_steps=8), 3, answer)
    assert move == Move(verdict="not reached", trial=0, steps=8)


def test_a_cell_whose_every_trial_fails_ends_at_once() -> None:
    move, found = climb(ladder(4, first_steps=8, most_steps=64), 3, lambda run: Outcome(failure="diverged"))
    assert move.verdict == "failed"
    assert len(found) == 4


def test_a_failure_is_behind_whatever_did_not_fail() -> None:
    found = {0: Outcome(failure="x"), 1: Outcome(best=float("nan")), 2: Outcome(best=0.9), 3: Outcome(best=0.2)}
    assert ranked(found, GOAL) == [3, 2, 1, 0]
    upward = Target(metric="accuracy", value=0.95, mode="max")
    assert ranked(found, upward) == [2, 3, 1, 0]
