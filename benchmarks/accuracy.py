"""What the default recipes reach: every built-in workload trained to its end, on as many workers as there are cores.

    python -m benchmarks.accuracy [--workloads a,b] [--force]      measure, then write the page
    python -m benchmarks.accuracy --page                           only write the page from the results

Each workload's record goes to benchmarks/results/accuracy/NAME.json; one that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from samestep.host.facts import describe
from samestep.workloads import catalog

FOLDER = Path(__file__).parent / "results" / "accuracy"
PAGE = Path(__file__).parent / "ACCURACY.md"

GOALS = {
    "digits-mlp": 0.95,
    "digits-cnn": 0.95,
    "digits-transformer": 0.95,
    "fashion-mlp": 0.88,
    "adult-mlp": 0.85,
    "mnist-cnn": 0.99,
    "fashion-cnn": 0.90,
    "fashion-resnet": 0.90,
    "fashion-lstm": 0.87,
    "shakespeare-transformer": 0.48,
}
"""Accuracy on the official test part (characters for the language model) that the recipe is to reach."""


def measure(name: str) -> dict[str, Any]:
    """Train one workload by its recipe."""
    script = Path(sys.executable).with_name("samestep")
    done = subprocess.run([script, "train", name, "--json"], stdout=subprocess.PIPE, check=True)
    summary: dict[str, Any] = json.loads(done.stdout)
    return {
        **summary,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {name: v for name, v in describe().items() if name not in ("executable", "variables")},
    }


def page(records: dict[str, dict[str, Any]]) -> str:
    """The page, from the records alone."""

    def each(of: Callable[[dict[str, Any]], Any]) -> str:
        """What the records say, in order, each thing once."""
        return ", ".join(sorted({str(of(record)) for record in records.values()}))

    processors = each(lambda r: f"{r['machine']['processor']} ({r['machine']['instruction_set']})")
    lines = [
        "# What the default recipes reach",
        "",
        (
            f"{each(lambda r: r['date'])}; {processors}, {each(lambda r: r['machine']['cores'])} cores; "
            f"samestep {each(lambda r: r['machine']['samestep'])}; "
            f"torch {each(lambda r: r['machine']['packages']['torch'])}; "
            "n = 1 run each; made by `python -m benchmarks.accuracy`. Accuracy on the test part, at the end of "
            "the recipe (recipes were chosen on the same part: take them as working settings, not as clean estimates)."
        ),
        "",
        "| workload | goal | accuracy | loss | met | steps | global batch | workers | seconds | samples/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, record in records.items():
        accuracy = record["eval"]["accuracy"]
        met = "yes" if accuracy >= GOALS[name] else f"no, by {GOALS[name] - accuracy:.4f}"
        lines.append(
            f"| {name} | {GOALS[name]:.2f} | {accuracy:.4f} | {record['eval']['loss']:.4f} | {met} | {record['steps']} "
            f"| {record['global_batch']} | {record['workers']} | {record['wall_s']:.0f} "
            f"| {record['samples_per_s']:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else "")
    parser.add_argument("--workloads", default=",".join(catalog.names()))
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--page", action="store_true", help="only write the page from the results")
    parser.add_argument("--to", type=Path, default=PAGE, help="the page to write")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in arguments.workloads.split(",") if not arguments.page else ():
        path = FOLDER / f"{name}.json"
        if path.exists() and not arguments.force:
            continue
        path.write_text(json.dumps(measure(name), indent=1))
    records = {
        name: json.loads((FOLDER / f"{name}.json").read_text())
        for name in catalog.names()
        if (FOLDER / f"{name}.json").exists()
    }
    if records:
        arguments.to.write_text(page(records))
    return 0 if all(record["eval"]["accuracy"] >= GOALS[name] for name, record in records.items()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
