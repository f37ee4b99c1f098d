"""Steps to a target against the batch, on the four families: tuned optimisers, their bends, the noise scale.

python -m benchmarks.batches                     run what is left of the sweeps, then write the page
python -m benchmarks.batches --page              only write the page from the results
python -m benchmarks.batches --only cnn          one family
python -m benchmarks.batches --quick --only mlp --results DIR --to FILE    a try with 2 trials and small budgets

Interrupt it at any moment: every run that has ended is a file, and the same command goes on from there. A family is a
`samestep sweep`; its record is RESULTS/FAMILY/sweep.json.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import results
from samestep.cli.teller import Teller
from samestep.host import records
from samestep.measure.sweep import result, study
from samestep.measure.sweep.result import Curve, Findings
from samestep.measure.sweep.space import space_of
from samestep.measure.sweep.study import RECORD, Wishes
from samestep.run.config import NumericSettings
from samestep.workloads import catalog

FOLDER = results.FOLDER / "batches"
PAGE = results.ROOT / "benchmarks" / "BATCHES.md"

RIVALS = ("sgd", "adamw", "lamb", "muon", "soap")
ROWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Family:
    """A sweep.

    Args:
        workload: A built-in name.
        width: About a quarter of the workload's own.
        goal: What a well tuned small batch just reaches with so many rows.
        most_steps: The highest budget.
        rows: Training rows that are used; None: all.
        has_label_smoothing: Whether it is searched.
    """

    workload: str
    width: int
    goal: str
    most_steps: int
    rows: int | None = ROWS
    has_label_smoothing: bool = True

    def wishes(self, optimizers: Sequence[str]) -> Wishes:
        return Wishes(
            batches=(64, 256, 1024, 4096, "full"),
            optimizers=tuple(optimizers),
            goal=self.goal,
            trials=16,
            seeds=5,
            most_steps=self.most_steps,
            rows=self.rows,
            has_label_smoothing=self.has_label_smoothing,
            has_averaging=True,
        )


FAMILIES: Mapping[str, Family] = {
    "mlp": Family(workload="fashion-mlp", width=64, goal="error<=0.16", most_steps=1024),
    "cnn": Family(workload="fashion-cnn", width=8, goal="error<=0.14", most_steps=1024),
    "lstm": Family(workload="fashion-lstm", width=32, goal="error<=0.20", most_steps=1024),
    "transformer": Family(
        workload="shakespeare-transformer", width=32, goal="accuracy>=0.38", most_steps=1024, rows=None,
        has_label_smoothing=False,
    ),
}  # fmt: skip


def measure(family: Family, optimizers: Sequence[str], folder: Path, *, is_quick: bool) -> None:
    """Run what is left of a family's sweep."""
    build = partial(catalog.build, family.workload, width=family.width)
    wishes = family.wishes(optimizers)
    if is_quick:
        wishes = replace(wishes, batches=(64, 256), trials=2, seeds=1, first_steps=8, most_steps=16, rows=2_000)
    planned = study.plan(build, NumericSettings(width=family.width), wishes)
    with Teller() as teller:
        study.measure(planned, folder, teller)


def page(found: Mapping[str, Findings]) -> str:
    """The page."""
    lines = ["# Batches that pay, on four families", ""]
    if found:
        records_of = [findings.record for findings in found.values()]
        what = "; ".join(dict.fromkeys(_how_many(record["study"]) for record in records_of))
        lines += [*results.header([_as_result(record) for record in records_of], what=what), ""]
    for name, findings in found.items():
        lines += _lines(name, findings)
    return "\n".join(lines) + "\n"


def _how_many(tried: Mapping[str, Any]) -> str:
    untuned = [name for name in tried["optimizers"] if not space_of(name).is_tuned]
    but = f" (for {', '.join(untuned)} one, its own)" if untuned else ""
    return f"{tried['trials']} settings for every optimiser and batch{but}, medians over {tried['seeds']} fresh seeds"


def _as_result(record: Mapping[str, Any]) -> results.Result:
    """The head of a sweep's record, in the words of a benchmark's result."""
    environment = record["environment"]
    return {
        "date": environment["created"],
        "machine": environment["host"],
        "revision": environment["git_commit"],
        "command": "python -m benchmarks.batches",
    }


def _lines(name: str, findings: Findings) -> list[str]:
    tried = findings.record["study"]
    lines = [
        f"## {name}: {tried['workload']} to {tried['target']}",
        "",
        f"{tried['num_train']:,} rows; {_how_many(tried)}; budgets up to {tried['budgets'][-1]:,} steps.",
        "",
    ]
    batches = [f"{batch:,}" for batch in tried["batches"]]
    lines.append(
        f"| optimiser | {' | '.join(f'steps at {each}' for each in batches)} | perfect to | bend | noise scale |"
    )
    lines.append("|---" * (4 + len(batches)) + "|")
    lines += [_row(curve) for curve in findings.curves]
    return [*lines, "", *(f"- {said}" for said in (*findings.sentences, *findings.shortcomings)), ""]


def _row(curve: Curve) -> str:
    cells = ["-" if cell.steps is None else cell.steps.text(0) for cell in curve.cells]
    bend = "-" if curve.fit.critical_batch is None else curve.fit.critical_batch.text(0)
    scale = "-" if curve.noise_scale is None else f"{curve.noise_scale:,.0f}"
    until = "-" if curve.perfect_until is None else f"{curve.perfect_until:,}"
    return f"| {' | '.join([curve.optimizer, *cells, until, bend, scale])} |"


def main(words: Sequence[str] | None = None) -> int:
    parser = results.parser("benchmarks.batches", __doc__, PAGE)
    parser.add_argument("--only", default=",".join(FAMILIES), help="families, comma separated; default: %(default)s")
    parser.add_argument("--optimizers", default=",".join(RIVALS), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="2 trials and small budgets")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the results; default: %(default)s")
    arguments = parser.parse_args(words)
    for name in arguments.only.split(",") if not arguments.page else ():
        folder = arguments.results / name
        measure(FAMILIES[name], arguments.optimizers.split(","), folder, is_quick=arguments.quick)
    paths = {name: arguments.results / name / RECORD for name in FAMILIES}
    found = {name: result.analyse(records.read(path, "sweep")) for name, path in paths.items() if path.exists()}
    arguments.to.write_text(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
