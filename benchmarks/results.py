"""Results on disk: raw values, the settings and the machine, one JSON file each."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from samestep.host import facts

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks" / "results"

Result = dict[str, Any]


def new(settings: Result, measured: Result, *, module: str, duration_s: float) -> Result:
    """A result with all that belongs to it."""
    return {
        "settings": settings,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "revision": revision(),
        "machine": _public(facts.describe()),
        "duration_s": round(duration_s, 1),
        **measured,
    }


def _public(facts: Result) -> Result:
    """Without the paths of whoever ran it."""
    return {name: value for name, value in facts.items() if name not in ("executable", "variables")}


def write(path: Path, result: Result) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)


def read(path: Path) -> Result | None:
    if not path.exists():
        return None
    result: Result = json.loads(path.read_text())
    return result


def kept(path: Path, settings: Result, measure: Callable[[], Result], *, module: str, is_forced: bool) -> Result:
    """The result with these settings: the one that is there, or a new one."""
    old = read(path)
    if old is not None and old["settings"] == settings and not is_forced:
        return old
    start = time.monotonic()
    measured = measure()
    found = new(settings, measured, module=module, duration_s=time.monotonic() - start)
    write(path, found)
    return found


Case = tuple[Result, Callable[[], Result]]
"""The settings of a part of a benchmark, and what measures it."""


def run_cases(
    cases: Mapping[str, Case],
    arguments: argparse.Namespace,
    folder: Path,
    page: Callable[[Mapping[str, Result]], str],
    *,
    module: str,
) -> int:
    """Measure the cases that are asked for and have no result yet; write the page from all that have one.

    Args:
        cases: By name, which is that of the result's file, too.
        arguments: What `parser` has understood, with cases.
        folder: Of the results.
        page: Makes the page from the results that there are.
        module: Of the benchmark.

    Returns:
        The exit code.
    """
    names = arguments.cases.split(",")
    unknown = [name for name in names if name not in cases]
    if unknown:
        print(f"{module}: there is no case {unknown[0]!r}; there are {', '.join(cases)}", file=sys.stderr)
        return 2
    for name in names if not arguments.page else ():
        settings, measure = cases[name]
        kept(folder / f"{name}.json", settings, measure, module=module, is_forced=arguments.force)
    found = {name: result for name in cases if (result := read(folder / f"{name}.json")) is not None}
    if not found:
        print(f"{module}: no case has a result yet", file=sys.stderr)
        return 1
    arguments.to.write_text(page(found))
    return 0


def parser(
    module: str, description: str | None, page: Path, *, cases: Iterable[str] | None = None
) -> argparse.ArgumentParser:
    """What every benchmark with results and a page understands."""
    found = argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--page", action="store_true", help="only write the page from the results")
    found.add_argument("--force", action="store_true", help="measure again what has been measured")
    found.add_argument("--to", type=Path, default=page, help="the page to write")
    if cases is not None:
        found.add_argument("--cases", default=",".join(cases), help="comma separated; default: all")
    return found


def revision() -> str | None:
    """The commit, with a + where the sources have been changed since."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--", "src") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def header(results: list[Result], *, what: str) -> list[str]:
    """The lines that open a page: when, on what, with which versions, how often, by which command."""
    dates = sorted(result["date"] for result in results)
    facts = results[-1]["machine"]
    machines = {_hardware(result["machine"]): result["machine"]["system"] for result in results}
    versions = " · ".join(f"{name} {version}" for name, version in facts["packages"].items() if version)
    lines = [
        f"- date: {dates[0]}" + (f" to {dates[-1]}" if dates[-1] != dates[0] else "") + " (UTC)",
        *(f"- hardware: {machine}; {system}" for machine, system in machines.items()),
        (
            f"- versions: samestep {facts['samestep']} (commit {results[-1]['revision']}), Python {facts['python']}, "
            f"{versions}"
        ),
        f"- n: {what}",
        *(f"- command: `{command}`" for command in dict.fromkeys(result["command"] for result in results)),
    ]
    for name, kinds in (
        ("machines", set(machines)),
        ("versions", {json.dumps(r["machine"]["packages"], sort_keys=True) for r in results}),
        ("commits", {r["revision"] for r in results}),
    ):
        if len(kinds) > 1:
            lines.append(f"- **mixed {name}: {len(kinds)}**; ratios hold within a case only")
    return lines


def _hardware(facts: Result) -> str:
    return (
        f"{facts['processor']}, {facts['cores']} cores ({facts['instruction_set']}), {facts['memory_mb'] / 1024:.0f} GB"
    )


def verdict(value: float, target: float, *, is_least: bool, unit: str = "") -> str:
    """Met or missed, and by how much."""
    margin = value - target if is_least else target - value
    return f"**{'met' if margin >= 0 else 'missed'}** by {abs(margin):.3g}{unit}"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
