"""Benchmarks of several cases, each a few programs that take turns: measured, kept and written alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import results, rounds
from benchmarks.programs import Task
from benchmarks.results import Result
from benchmarks.rounds import Plan, say
from samestep.measure.stats import Values


@dataclass(frozen=True, kw_only=True)
class Family:
    """A benchmark.

    Args:
        name: Its module's, behind `benchmarks.`; its results are kept under it.
        doc: What it says of itself.
        page: The file that it writes.
        cases: All of them.
        tasks: The programs of a case.
        render: The page from the results by case.
        plan: How slots are dealt; `rounds` is the default of an option.
    """

    name: str
    doc: str | None
    page: Path
    cases: Sequence[str]
    tasks: Callable[[str], list[Task]]
    render: Callable[[Mapping[str, Result]], str]
    plan: Plan

    def run(self, words: Sequence[str] | None) -> int:
        """Measure what is not yet measured, and write the page; the exit code."""
        module = f"benchmarks.{self.name}"
        parser = results.parser(module, self.doc, self.page)
        parser.add_argument("--cases", default=",".join(self.cases), help="comma separated; default: all")
        help_text = "with the timing warm-up; default: %(default)s"
        parser.add_argument("--rounds", type=int, default=self.plan.rounds, help=help_text)
        arguments = parser.parse_args(words)
        plan = Plan(**{**self.plan.as_dict(), "rounds": arguments.rounds})
        if not arguments.page:
            names = arguments.cases.split(",")
            code = rounds.code_of(lambda: [self._measure(name, plan, is_forced=arguments.force) for name in names])
            if code is not None:
                return code
        found = {name: result for name in self.cases if (result := results.read(self._path(name)))}
        if not found:
            say(f"no results in {self._path('').parent}")
            return 1
        arguments.to.write_text(self.render(found))
        return 0

    def _measure(self, name: str, plan: Plan, *, is_forced: bool) -> Result:
        tasks = self.tasks(name)
        settings = {"case": name, **rounds.settings(plan, tasks)}
        return results.kept(
            self._path(name),
            settings,
            lambda: {"slots": rounds.measure(tasks, plan, name)},
            module=f"benchmarks.{self.name}",
            is_forced=is_forced,
        )

    def _path(self, name: str) -> Path:
        return results.FOLDER / self.name / f"{name}.json"


def num_rounds(found: Mapping[str, Result]) -> int:
    """Rounds that count, of a page's first case."""
    plan = next(iter(found.values()))["settings"]
    return int(plan["rounds"] - plan["warm_up"])


def step_s(result: Result) -> dict[str, Values]:
    """Seconds a step, by program, one value a round that counts."""
    return {name: np.array([slot["step_s"] for slot in slots]) for name, slots in rounds.after_warm_up(result).items()}
