"""Stages: what each worker touches of the model, of the optimiser's state, and of all else; counted page by page.

python -m benchmarks.stage_memory              measure what is not yet measured, then write the page
python -m benchmarks.stage_memory --page       only write the page from the results
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks import results
from benchmarks.results import Case, Result

_MODULE = "benchmarks.stage_memory"
_PAGE = results.ROOT / "benchmarks" / "STAGE_MEMORY.md"
_FOLDER = results.FOLDER / "stage_memory"
_DEPTH, _WIDTH, _SMALL_WIDTH = 32, 512, 8
_TIMEOUT_S = 300.0
_SLACK = 0.15
"""A worker may touch 1 / P of the state, and so much of it more."""

_CASES: Mapping[str, Mapping[str, Any]] = {
    "small": {"stages": 2, "schedule": "1f1b", "width": _SMALL_WIDTH},
    "p-1": {"stages": 1, "schedule": "1f1b"},
    "p-2-1f1b": {"stages": 2, "schedule": "1f1b"},
    "p-2-gpipe": {"stages": 2, "schedule": "gpipe"},
    "p-2-interleaved": {"stages": 2, "schedule": "interleaved"},
    "p-2-zbv": {"stages": 2, "schedule": "zbv"},
    "p-4-1f1b": {"stages": 4, "schedule": "1f1b"},
    "p-4-zbv": {"stages": 4, "schedule": "zbv"},
}

_COLUMNS = (
    "stages", "schedule", "model", "model and optimiser state", "at most", "", "two snapshots", "best state",
    "exchanged", "private, above the small network's", "resident in all",
)  # fmt: skip


def measure(case: Mapping[str, Any]) -> Result:
    """Train it in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.stage_memory_program", json.dumps(case)]
    found = subprocess.run(words, cwd=results.ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if found.returncode:
        raise RuntimeError(found.stderr[-2000:])
    measured: Result = json.loads(found.stdout.splitlines()[-1])
    return measured


def page(found: Mapping[str, Result]) -> str:
    """The page."""
    lines = [
        "# What a worker touches with stages",
        "",
        *results.header(list(found.values()), what="one run a case; the worker that touches most"),
        "",
        (
            f"{_DEPTH} linear layers of {_WIDTH} × {_WIDTH} with ReLU, AdamW. As many workers as stages, two where "
            "there is one; looked at when they have evaluated for the second time. Shares are of the whole model, of "
            "the model with the optimiser's state, or of two snapshots of both. Snapshots, the best state and what is "
            "exchanged lie in memory that all workers share: a page that two have touched is there once. Private "
            "memory holds gradients and the optimiser's temporaries; it is in MB, as what is exchanged."
        ),
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|---" * len(_COLUMNS) + "|",
        *(_line(result, found["small"]) for name, result in found.items() if name != "small" and "small" in found),
    ]
    return "\n".join(lines) + "\n"


def _line(result: Result, small: Result) -> str:
    case, whole = result["settings"], {"model": result["model"], "state": result["state"]}
    most = {key: max(worker[key] for worker in result["workers"]) for key in result["workers"][0]}
    bound = 1 / case["stages"] + _SLACK
    share = most["state"] / whole["state"]
    private = most["private"] - max(worker["private"] for worker in small["workers"])
    cells = [
        str(case["stages"]), case["schedule"] if case["stages"] > 1 else "", f"{most['model'] / whole['model']:.2f}",
        f"{share:.2f}", f"{bound:.2f}" if case["stages"] > 1 else "",
        results.verdict(share, bound, is_least=False) if case["stages"] > 1 else "",
        f"{most['copies'] / whole['state'] / 2:.2f}", f"{most['best'] / whole['model']:.2f}",
        *(f"{each / 2**20:.1f}" for each in (most["exchange"], private, most["resident"])),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _cases() -> Mapping[str, Case]:
    found: dict[str, Case] = {}
    for name, given in _CASES.items():
        case = {"depth": _DEPTH, "width": _WIDTH, **given, "workers": max(2, given["stages"])}
        found[name] = case, partial(measure, case)
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is not yet measured, and write the page; the exit code."""
    cases = _cases()
    arguments = results.parser(_MODULE, __doc__, _PAGE, cases=cases).parse_args(words)
    return results.run_cases(cases, arguments, _FOLDER, page, module=_MODULE)


if __name__ == "__main__":
    sys.exit(main())
