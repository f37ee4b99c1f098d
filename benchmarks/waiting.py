"""How much of a step goes into waiting for data, on every built-in workload at its defaults.

python -m benchmarks.waiting               measure what is not yet measured, then write the page
python -m benchmarks.waiting --page        only write the page from the result
python -m benchmarks.waiting --rounds 2 --to FILE   a quick try
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks import results
from benchmarks.results import Result
from benchmarks.rounds import say
from samestep.measure import stats

RESULT = results.FOLDER / "waiting.json"
PAGE = results.ROOT / "benchmarks" / "WAITING.md"

_MOST_PERCENT = 2.0
_WORKERS = (1, 2)
_STEPS = {
    "digits-mlp": 2000, "digits-cnn": 300, "digits-transformer": 60, "adult-mlp": 800,
    "fashion-mlp": 700, "fashion-cnn": 40, "mnist-cnn": 40,
    "fashion-resnet": 12, "fashion-lstm": 100, "shakespeare-transformer": 30,
}  # fmt: skip
"""By workload: enough for some seconds."""

Shares = dict[str, list[float]]
"""By workload and workers, one a round."""


def run(name: str, workers: int) -> float:
    """The share of a run's steps that went into waiting for data."""
    words = [
        sys.executable, "-m", "samestep", "train", name, "--workers", str(workers), "--steps", str(_STEPS[name]),
        "--evaluate-every", "1000000", "--json",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(json.loads(done.stdout)["waiting_for_data_frac"])


def measure(num_rounds: int) -> Result:
    programs = {f"{name}, {workers}": (name, workers) for name in _STEPS for workers in _WORKERS}
    shares: Shares = {program: [] for program in programs}
    order = np.random.default_rng(0)
    for number in range(1, num_rounds + 1):
        for program in order.permutation([*programs]).tolist():
            shares[program].append(run(*programs[program]))
        say(f"round {number} of {num_rounds}")
    return {"shares": shares}


def page(result: Result) -> str:
    """The page."""
    shares: Shares = result["shares"]
    num = result["settings"]["rounds"]
    percents = {program: stats.median([100 * each for each in found]) for program, found in shares.items()}
    above = [program for program, percent in percents.items() if percent.value > _MOST_PERCENT]
    measured = list(result["settings"]["steps"])
    rows = [
        f"| {name} | " + " | ".join(percents[f"{name}, {workers}"].text(2) for workers in _WORKERS) + " |"
        for name in measured
    ]
    lacking = [name for name in _STEPS if name not in measured]
    return "\n".join(
        [
            "# Waiting for data",
            "",
            *results.header([result], what=f"{num} runs of each, in random order; medians with 95 % intervals"),
            "",
            (
                "The share of a step that the training thread spends on getting its microbatches, in percent, as every "
                "run reports it. With one worker a core is free, and a thread loads ahead; with two none is."
            ),
            "",
            f"Target: at most {_MOST_PERCENT:g} % on every workload. "
            + (f"**Missed** by {', '.join(above)}." if above else "**Met** by all that were measured."),
            *(["", f"Not measured: {', '.join(lacking)}."] if lacking else []),
            "",
            "| workload | 1 worker | 2 workers |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = results.parser("benchmarks.waiting", __doc__, PAGE)
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    arguments = parser.parse_args(words)
    settings = {"rounds": arguments.rounds, "steps": _STEPS}
    found = results.read(RESULT)
    if not arguments.page:
        measure_all = partial(measure, arguments.rounds)
        found = results.kept(RESULT, settings, measure_all, module="benchmarks.waiting", is_forced=arguments.force)
    if found is None:
        say(f"no result in {RESULT}")
        return 1
    arguments.to.write_text(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
