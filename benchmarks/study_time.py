"""How long a scaling study takes as it comes: `samestep scale WORKLOAD --out DIR`, whole commands.

python -m benchmarks.study_time           what has no result yet, then write the page
python -m benchmarks.study_time --page    only write the page from the results
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks import results
from benchmarks.results import Result
from benchmarks.rounds import say

MODULE = "benchmarks.study_time"
FOLDER = results.FOLDER / "study_time"
PAGE = results.ROOT / "benchmarks" / "STUDY_TIME.md"
CASES = ("fashion-mlp", "fashion-cnn")
MOST_S = 180.0


def measure(workload: str) -> Result:
    """One study, from the command to its end.

    Raises:
        RuntimeError: It failed.
    """
    say(workload)
    with tempfile.TemporaryDirectory(prefix="samestep-study-") as folder:
        words = [sys.executable, "-m", "samestep", "scale", workload, "--out", folder, "--json"]
        start = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        seconds = time.monotonic() - start
        if done.returncode:
            raise RuntimeError(done.stderr)
        record = json.loads((Path(folder) / "scale.json").read_text())
    first, last = (next(line for line in done.stderr.splitlines() if text in line) for text in (": about", "in all"))
    return {
        "seconds": seconds,
        "rounds": record["study"]["rounds"],
        "programs": len({key.partition("/")[2] for key in record["slots"]}),
        "estimates": [first, last],
    }


def page(found: Mapping[str, Result]) -> str:
    """The page."""
    lines = [
        "# How long a scaling study takes",
        "",
        *results.header(list(found.values()), what="one study each"),
        "",
        (
            "`samestep scale WORKLOAD --out DIR` with nothing else said, from the command to its end. The estimates "
            "are the lines that it printed before it began, and once all programs had started."
        ),
        "",
        f"| workload | seconds | at most {MOST_S:.0f} s | programs | rounds | estimates |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in found.items():
        verdict = results.verdict(result["seconds"], MOST_S, is_least=False, unit=" s")
        cells = [name, f"{result['seconds']:.0f}", verdict, str(result["programs"]), str(result["rounds"])]
        lines.append(f"| {' | '.join([*cells, '; '.join(result['estimates'])])} |")
    return "\n".join([*lines, ""])


def main(words: Sequence[str] | None = None) -> int:
    arguments = results.parser(MODULE, __doc__, PAGE, cases=CASES).parse_args(words)
    cases = {name: ({"workload": name}, partial(measure, name)) for name in CASES}
    return results.run_cases(cases, arguments, FOLDER, page, module=MODULE)


if __name__ == "__main__":
    sys.exit(main())
