"""What makes up the bubble of two stages: the time lines of their steps, replayed with one cause after the other.

python -m benchmarks.bubble              print a table, of 1f1b with 2, 4, 8 and 16 microbatches a step
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks import programs
from benchmarks.programs import Task
from samestep.engine.events import SUFFIX, Events, Phase, Trace, read_file
from samestep.plan import schedules

_MICROBATCH, _FIRST = 32, 8
"""Samples of a microbatch; steps that are left out."""


class _Kind(Enum):
    WORK = 0
    SEND = 1
    RECEIVE = 2
    MEET = 3


@dataclass(frozen=True)
class Span:
    """What a stage does for a while, and for how long."""

    kind: _Kind
    phase: Phase
    seconds: float


Line = Sequence[Span]
"""A step of one stage, in order."""

Seconds = Callable[[int, Span], float]
"""How long a stage's span takes in a replay; of a receipt, after the value has been sent."""

_BARRIERS = (Phase.BARRIER_CONTRIBUTIONS, Phase.BARRIER_COMBINATION, Phase.BARRIER_UPDATE)
_ENDS = (Phase.COMBINE, Phase.UPDATE, Phase.DECIDE, Phase.BETWEEN, Phase.SNAPSHOT)


def lines(events: Events) -> dict[int, Line]:
    """The steps of one stage, by number."""
    begins: dict[int, int] = {}
    for at in np.flatnonzero(events["phase"] == Phase.DATA).tolist():
        begins.setdefault(int(events["step"][at]), at)
    return {step: _line(events[begins[step] : begins[step + 1] + 1]) for step in begins if step + 1 in begins}


def _line(events: Events) -> Line:
    phases = [Phase(each) for each in events["phase"].tolist()]
    durations = np.diff(events["time_s"]).tolist()
    found = []
    for (phase, behind), seconds in zip(pairwise(phases), durations, strict=True):
        kind = _Kind.MEET if phase in _BARRIERS else _Kind.WORK
        if phase is Phase.STAGES:  # what is received is worked on next
            kind = _Kind.RECEIVE if behind in (Phase.FORWARD, Phase.BACKWARD) else _Kind.SEND
        found.append(Span(kind, phase, seconds))
    return found


@dataclass
class _Stage:
    """A stage in a replay: how far it is."""

    left: list[Span]
    clock_s: float = 0.0
    waited_s: float = 0.0
    sent: list[float] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    num_received: int = 0
    num_met: int = 0

    def go_on(self, other: _Stage, seconds: Callable[[Span], float]) -> bool:
        """Do what can be done; whether that was anything."""
        before = len(self.left)
        while self.left:
            span = self.left[-1]
            if span.kind is _Kind.MEET and len(self.arrived) == self.num_met:
                self.arrived.append(self.clock_s)
            needed, number = {
                _Kind.RECEIVE: (other.sent, self.num_received),
                _Kind.MEET: (other.arrived, self.num_met),
            }.get(span.kind, ([self.clock_s], 0))
            if len(needed) <= number:
                break
            takes = 0.0 if span.kind is _Kind.MEET else seconds(span)
            end = max(self.clock_s, needed[number]) + takes
            if span.kind is not _Kind.WORK:
                self.waited_s += end - self.clock_s
            self.clock_s = end
            self.num_received += span.kind is _Kind.RECEIVE
            self.num_met += span.kind is _Kind.MEET
            if span.kind is _Kind.SEND:
                self.sent.append(end)
            self.left.pop()
        return len(self.left) < before


def replayed(step: Sequence[Line], seconds: Seconds) -> float:
    """The share of waiting, exchanges included, where spans take as long as is said.

    Args:
        step: Its two lines.
        seconds: Of a stage's spans.

    Example:
        >>> work, send, receive = (Span(kind, Phase.STAGES, 1.0) for kind in (_Kind.WORK, _Kind.SEND, _Kind.RECEIVE))
        >>> replayed([[work, send], [receive, work]], lambda stage, span: span.seconds if span is work else 0.0)
        0.25
    """
    first, second = (_Stage(list(reversed(line))) for line in step)
    while first.left or second.left:
        has_moved = first.go_on(second, lambda span: seconds(0, span))
        has_moved |= second.go_on(first, lambda span: seconds(1, span))
        assert has_moved, "the lines of the two stages are not of the same step"
    return float(np.mean([each.waited_s / max(each.clock_s, 1e-12) for each in (first, second)]))


def causes(found: Sequence[Mapping[int, Line]]) -> dict[str, float]:
    """The share of waiting with one cause after the other: equal passes, ..., and as it was measured."""
    numbers = sorted(found[0].keys() & found[1].keys())[_FIRST:]
    steps = [[each[number] for each in found] for number in numbers]
    spans = [[span for step in steps for span in step[stage]] for stage in (0, 1)]

    def typical(stage: int, phase: Phase) -> float:
        return float(np.median([span.seconds for span in spans[stage] if span.phase is phase] or [0.0]))

    medians = [{phase: typical(stage, phase) for phase in Phase} for stage in (0, 1)]
    equal = {phase: (medians[0][phase] + medians[1][phase]) / 2 for phase in Phase}
    exchanges = {
        kind: float(np.percentile([span.seconds for stage in spans for span in stage if span.kind is kind], percent))
        for kind, percent in ((_Kind.SEND, 50), (_Kind.RECEIVE, 10))  # those that did not wait
    }
    ways: dict[str, Seconds] = {
        "equal passes": lambda stage, span: 0.0 if span.phase in (*_ENDS, Phase.STAGES) else equal[span.phase],
        "ends of steps": lambda stage, span: 0.0 if span.phase is Phase.STAGES else equal[span.phase],
        "unequal stages": lambda stage, span: 0.0 if span.phase is Phase.STAGES else medians[stage][span.phase],
        "varying times": lambda stage, span: 0.0 if span.phase is Phase.STAGES else span.seconds,
        "copies": lambda stage, span: exchanges.get(span.kind, span.seconds),
    }
    shares = {name: float(np.mean([replayed(step, way) for step in steps])) for name, way in ways.items()}
    waiting = [sum(s.seconds for s in line if s.kind is not _Kind.WORK) for step in steps for line in step]
    total = [sum(s.seconds for s in line) for step in steps for line in step]
    shares["measured"] = float(np.mean(np.divide(waiting, total)))
    shares["a copy in, us"], shares["out, us"] = (1e6 * each for each in exchanges.values())
    return shares


def measured(count: int, num_steps: int) -> list[dict[int, Line]]:
    """The steps of both stages with so many microbatches a step."""
    task = Task(
        name="1f1b", kind="samestep", net="deep", global_batch=count * _MICROBATCH, microbatch=_MICROBATCH, workers=2,
        stages=2,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        programs.train(task, steps=num_steps, trace=Trace(Path(name)))
        return [lines(read_file(Path(name) / f"{rank}{SUFFIX}").since(0)) for rank in (0, 1)]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bubble", description=__doc__)
    parser.add_argument("--counts", default="2,4,8,16", help="microbatches a step; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=4.0, help="of training for each; default: %(default)s")
    arguments = parser.parse_args()
    for place, count in enumerate(map(int, arguments.counts.split(","))):
        shares = causes(measured(count, _FIRST + 2 + int(arguments.seconds / (0.006 * (count + 1)))))
        if place == 0:
            print(f"| m | formula | {' | '.join(shares)} |\n{'|---' * (len(shares) + 2)}|")
        wanted = schedules.bubble_frac("1f1b", num_stages=2, num_microbatches=count)
        print(f"| {count} | {wanted:.3f} | {' | '.join(f'{each:.3g}' for each in shares.values())} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
