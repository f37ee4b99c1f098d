"""Steps to a target against the batch, on the four families: tuned optimisers, their bends, the noise scale.

python -m benchmarks.batches                     run what is left of the sweeps, then write the page
python -m benchmarks.batches --page              only write the page from the results
python -m benchmarks.batches --cases cnn         one family
python -m benchmarks.batches --cases fashion-cnn,mnist-cnn    the full size, for who has the hardware: not run otherwise
python -m benchmarks.batches --quick --cases mlp --results DIR --to FILE    a try with 2 trials and small budgets

Interrupt it at any moment: every run that has ended is a file, and the same command goes on from there. A family is a
`samestep sweep`; its record is RESULTS/FAMILY/sweep.json.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks import results
from benchmarks.batches_page import page
from samestep.cli.teller import Teller
from samestep.errors import Interrupted, SamestepError
from samestep.host import records
from samestep.measure.sweep import result, study
from samestep.measure.sweep.study import RECORD, Wishes
from samestep.run.config import NumericSettings
from samestep.workloads import catalog

MODULE = "benchmarks.batches"
FOLDER = results.FOLDER / "batches"
PAGE = results.ROOT / "benchmarks" / "BATCHES.md"

OPTIMIZERS = ("sgd", "nesterov", "adamw", "lamb", "muon", "soap", "kfac")
ROWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Family:
    """A sweep.

    Args:
        workload: A built-in name.
        goal: What a well tuned small batch just reaches with so many rows.
        most_steps: The highest budget.
        width: About a quarter of the workload's own; None: its own.
        depth: None: its own.
        rows: Training rows that are used; None: all.
        has_label_smoothing: Whether it is searched.
        optimizers: Which ones.
    """

    workload: str
    goal: str
    most_steps: int
    width: int | None = None
    depth: int | None = None
    rows: int | None = ROWS
    has_label_smoothing: bool = True
    optimizers: tuple[str, ...] = OPTIMIZERS

    def wishes(self) -> Wishes:
        return Wishes(
            batches=(64, 256, 1024, 2048, "full"),
            optimizers=self.optimizers,
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
    "cnn": Family(workload="fashion-cnn", width=4, goal="error<=0.16", most_steps=256),
    "lstm": Family(workload="fashion-lstm", width=32, goal="error<=0.20", most_steps=1024),
    "transformer": Family(
        workload="shakespeare-transformer", width=16, depth=1, goal="accuracy>=0.32", most_steps=256,
        has_label_smoothing=False,
    ),
}  # fmt: skip
FULL_SIZE: Mapping[str, Family] = {
    "fashion-cnn": Family(
        workload="fashion-cnn", goal="error<=0.10", most_steps=4096, rows=None, optimizers=("soap", "muon", "kfac")
    ),
    "mnist-cnn": Family(
        workload="mnist-cnn", goal="error<=0.01", most_steps=4096, rows=None, optimizers=("soap", "muon", "kfac")
    ),
}
"""Days on two cores."""


def measure(family: Family, folder: Path, *, is_quick: bool) -> None:
    """Run what is left of a family's sweep."""
    build = partial(catalog.build, family.workload, width=family.width, depth=family.depth)
    wishes = family.wishes()
    if is_quick:
        wishes = replace(wishes, batches=(64, 256), trials=2, seeds=1, first_steps=8, most_steps=16, rows=2_000)
    planned = study.plan(build, NumericSettings(width=family.width, depth=family.depth), wishes)
    with Teller() as teller:
        study.measure(planned, folder, teller)


def main(words: Sequence[str] | None = None) -> int:
    families = {**FAMILIES, **FULL_SIZE}
    parser = results.parser(MODULE, __doc__, PAGE, cases=FAMILIES)
    parser.add_argument("--quick", action="store_true", help="2 trials and small budgets")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the results; default: %(default)s")
    arguments = parser.parse_args(words)
    names = arguments.cases.split(",")
    for name in names:
        if name not in families:
            parser.error(f"there is no case {name!r}; there are {', '.join(families)}")
    paths = {name: arguments.results / name / RECORD for name in families}
    try:
        for name in names if not arguments.page else ():
            if arguments.force:
                shutil.rmtree(paths[name].parent, ignore_errors=True)
            if not paths[name].exists():
                measure(families[name], paths[name].parent, is_quick=arguments.quick)
    except SamestepError as error:
        print(f"{MODULE}: {error}", file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 2
    found = {name: result.analyse(records.read(path, "sweep")) for name, path in paths.items() if path.exists()}
    if not found:
        print(f"{MODULE}: no case has a result yet", file=sys.stderr)
        return 1
    arguments.to.write_text(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
