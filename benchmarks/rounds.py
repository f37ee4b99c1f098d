"""What the interleaved benchmarks share: the plan of their rounds, and what is kept of a slot."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks import programs, results
from benchmarks.programs import Task
from benchmarks.results import Result
from samestep.errors import SamestepError
from samestep.measure import stats
from samestep.measure.interleave import deal_rounds, deal_turns, stage
from samestep.measure.running import Running
from samestep.measure.slots import Deal, Slot
from samestep.measure.stats import Estimate

FORMAT = 2
"""Of the raw values: in 1, programs wrote time stamps; since 2 they write events."""

KeptSlots = dict[str, list[dict[str, Any]]]
"""By program: what is kept of its slots, one a round."""

_LEFT_OUT = 3.5
"""Steps of a slot that are not measured: the first two, and on average one and a half at the end."""

_START_S = 2.0
"""About how long a program takes to start beside another one."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How slots are dealt.

    Args:
        rounds: Rounds, those left out included.
        warm_up: First rounds, run and kept in the results but left out of all statistics.
        slot_s: Shortest slot.
        slot_steps: Fewest whole steps that a slot measures.
        seed: Of the order of the slots.
        turns: Slots of every program in a round that begins with new processes, and that counts as one; None: those of
            the first round do all rounds, one slot in each.
    """

    rounds: int
    warm_up: int
    slot_s: float
    slot_steps: int
    seed: int
    turns: int | None = None

    def __post_init__(self) -> None:
        if self.warm_up < 0:
            raise ValueError(f"warm_up={self.warm_up} is below 0")
        if self.rounds <= self.warm_up:
            raise ValueError(f"rounds={self.rounds} leaves nothing after {self.warm_up} rounds of timing warm-up")
        self.deal()

    def deal(self) -> Deal:
        """The same, as it is dealt; it checks the rest."""
        turns = self.rounds if self.turns is None else self.turns
        return Deal(turns=turns, slot_s=self.slot_s, slot_steps=self.slot_steps, seed=self.seed)

    def slot_for(self, step_s: float) -> float:
        """About how many seconds a slot takes for a program with this step time."""
        return 0.05 + max(self.slot_s, (self.slot_steps + _LEFT_OUT) * step_s)

    def whole_for(self, step_s: float) -> float:
        """About how many seconds all that is measured of a program with this step time takes, its starts included."""
        starts, slots = (1, self.rounds) if self.turns is None else (self.rounds, self.rounds * self.turns)
        return starts * _START_S + slots * self.slot_for(step_s)

    def as_dict(self) -> Result:
        return asdict(self)


def settings(plan: Plan, tasks: Sequence[Task]) -> Result:
    """What decides what a result means."""
    return {"format": FORMAT, **plan.as_dict(), "programs": [task.as_dict() for task in tasks]}


def measure(tasks: Sequence[Task], plan: Plan, prefix: str) -> KeptSlots:
    """Run programs in turn.

    Args:
        tasks: What they do.
        plan: How slots are dealt.
        prefix: Opens what is said on the way.

    Returns:
        By program, one slot a round, the rounds of timing warm-up included.

    Raises:
        ProgramError: A program ended, or does no steps.
    """
    slots: KeptSlots = {task.name: [] for task in tasks}
    num_started = 0

    def report_start(running: Running) -> None:
        nonlocal num_started
        num_started += 1
        step_ms = running.first_step_s() * 1e3
        say(f"{prefix}: started {num_started}/{len(tasks)} {running.program.name} (about {step_ms:.3g} ms a step)")

    def keep(number: int, found: Mapping[str, Slot]) -> None:
        for name, slot in found.items():
            slots[name].append(kept(slot))

    def report_round(done: int, left_s: float) -> None:
        say(f"{prefix}: round {done}/{plan.rounds}, {left_s / 60:.1f} min left")

    deal, made = plan.deal(), [programs.program(task) for task in tasks]
    if plan.turns is not None:
        deal_rounds(
            made,
            deal,
            rounds=plan.rounds,
            keep=keep,
            report=report_round,
            begun=lambda number, running: None if number else report_start(running),
        )
        return slots
    with stage(made, deal, report_start) as started:
        round_s = sum(plan.slot_for(running.first_step_s()) for running in started)
        say(f"{prefix}: {plan.rounds} rounds of about {round_s:.1f} s: {plan.rounds * round_s / 60:.1f} min")
        deal_turns(started, deal, keep=keep, report=report_round)
    return slots


def add_arguments(parser: argparse.ArgumentParser, *, num_rounds: int) -> None:
    """How many rounds and turns, for benchmarks whose rounds begin with new processes."""
    parser.add_argument("--rounds", type=int, default=num_rounds, help="each with new processes; default: %(default)s")
    parser.add_argument("--turns", type=int, default=3, help="slots of a program in a round; default: %(default)s")


def kept(slot: Slot) -> dict[str, Any]:
    """A slot as plain values; of its steps only the median, for there may be thousands."""
    return {
        "step_s": slot.step_s,
        "median_step_s": float(np.median(slot.steps_s)),
        "num_steps": slot.num_steps,
        "others_frac": round(slot.others_frac, 5),
        "phases": [{group: round(seconds, 9) for group, seconds in each.items()} for each in slot.phases],
    }


def in_words(settings: Result, of_what: str) -> str:
    """How many rounds there were, and what a round is."""
    warm_up, num_turns = settings["warm_up"], settings.get("turns")
    num_rounds = settings["rounds"] - warm_up
    if num_turns is None:
        left_out = f" ({warm_up} more for timing warm-up left out)" if warm_up else ""
        return f"{num_rounds} rounds {of_what}{left_out}, each program once a round in random order"
    return (
        f"{num_rounds} rounds {of_what}, each with new processes, which then have {num_turns} slots each in random "
        f"order ({num_rounds * num_turns} interleaved pairs); a round's value is the mean of its slots"
    )


def after_warm_up(result: Result) -> KeptSlots:
    """The slots that count."""
    warm_up = result["settings"]["warm_up"]
    return {name: slots[warm_up:] for name, slots in result["slots"].items()}


def others_in_words(found: Sequence[Result]) -> str:
    """A line of a page's head: how much other processes took while it was measured."""
    others = [slot["others_frac"] for r in found for slots in after_warm_up(r).values() for slot in slots]
    return f"- other processes took {np.median(others):.1%} of the cores in the median slot"


def ratio(slots: KeptSlots, numerator: str, denominator: str) -> Estimate:
    """The step time of one program over that of another."""
    return stats.ratio(*([slot["step_s"] for slot in slots[name]] for name in (numerator, denominator)))


def cost_verdict(cost: Estimate, most: float) -> str:
    """Met only where the whole interval is: what was not shown is not met."""
    if cost.value <= most < cost.high:
        return "not shown: the interval reaches beyond"
    return results.verdict(cost.value, most, is_least=False)


def code_of(measure: Callable[[], object]) -> int | None:
    """The exit code of a measurement that was stopped or failed, when that was said; None: it came to its end."""
    try:
        measure()
    except KeyboardInterrupt:
        say("stopped; finished cases are kept")
        return 130
    except SamestepError as error:
        say(f"{error}; finished cases are kept")
        return 1
    return None


def say(text: str) -> None:
    """Tell whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
