"""What a sweep leaves in its folder, and whether a command may go on with it.

Optimisers do not touch each other's runs, so a folder takes further ones, and a command may go on with some of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samestep.errors import UsageError
from samestep.host import provenance, records
from samestep.measure.sweep import space, trial
from samestep.measure.sweep.halving import Run
from samestep.measure.sweep.trial import Cell, Finished

RECORD, PARTIAL, RUNS = "sweep.json", "sweep.part.json", "runs"

DECIDING = ("plan", "data", "optim", "engine", "run", "workloads", "measure/sweep", "torch_private.py")
"""Sources that decide what a run finds; all others (words, pages, commands) may change between two runs."""

_WAY_OUT = "name another folder with --out"


def begin(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a sweep without its runs: that which lies in the folder with what is asked beside it, or a new one.

    Raises:
        UsageError: The folder holds another sweep.
    """
    record: dict[str, Any] = {
        "environment": records.environment(),
        "deciding_sha256": provenance.source_sha256(DECIDING),
        **asked,
    }
    path = next((folder / name for name in (PARTIAL, RECORD) if (folder / name).exists()), None)
    if path is not None:
        found = records.read(path, "sweep")
        _check_same(found, record, path)
        record = _joined(found, record)
    elif any((folder / RUNS).iterdir()):
        raise UsageError(f"{folder / RUNS} holds runs of a sweep that is not known; {_WAY_OUT}, or remove it")
    records.write(folder / PARTIAL, "sweep", record)
    return record


def end(folder: Path, record: Mapping[str, Any]) -> None:
    """Write a record with its runs."""
    records.write(folder / RECORD, "sweep", record)
    (folder / PARTIAL).unlink(missing_ok=True)


def runs(folder: Path) -> dict[tuple[Cell, Run], Finished]:
    """The runs whose files lie in the folder."""
    found = {}
    for path in sorted((folder / RUNS).glob("*.json")):
        values = records.read(path, "sweep-run")
        try:
            cell, run, finished = trial.read_entry(values)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path} is not a run of a sweep ({error}); remove it, and it is run again") from None
        found[cell, run] = finished
    return found


def _check_same(found: Mapping[str, Any], record: Mapping[str, Any], path: Path) -> None:
    """Refuse a record of other settings, sources or machines; other optimisers are welcome.

    Raises:
        UsageError: With the first difference.
    """
    known = found.get("spaces") or {}
    pairs = (
        ("study", _without_optimizers(found.get("study")), _without_optimizers(record["study"])),
        ("config", found.get("config"), record["config"]),
        ("spaces", known, {name: space.space_of(name).as_dict() for name in known}),
    )
    for name, before, now in pairs:
        if difference := records.difference(before, now, name):
            raise UsageError(
                f"{path.parent} holds another sweep: {difference}; {_WAY_OUT}, or remove {path.name} and {RUNS} in it"
            )
    records.check_mixable(
        [found, record], names=[str(path), "this run"], without=("source_sha256",), way_out=f"{_WAY_OUT} for a new one"
    )
    if found.get("deciding_sha256") != record["deciding_sha256"]:
        raise UsageError(
            f"{path} was begun with another samestep, which may find other things (its sources in "
            f"{', '.join(DECIDING)} differ); {_WAY_OUT} for a new one, or go on with the samestep that began it"
        )


def _without_optimizers(study: Any) -> Any:
    return {**study, "optimizers": None} if isinstance(study, dict) else study


def _joined(found: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """What was begun, with the optimisers of both."""
    names = dict.fromkeys([*found["study"]["optimizers"], *record["study"]["optimizers"]])
    return {
        **{name: found[name] for name in record},
        "study": {**record["study"], "optimizers": list(names)},
        "spaces": {**found["spaces"], **record["spaces"]},
    }
