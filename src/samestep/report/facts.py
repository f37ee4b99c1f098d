"""What was set and where it ran: what all records share, and what differs between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from samestep.host import records
from samestep.report import text
from samestep.report.records import Found, Run, Study, Sweep
from samestep.report.shapes import Alert, Part, Section, Table

Each = Run | Study | Sweep

Columns = Mapping[str, Mapping[str, Any]]
"""Flat values by field, for each record by its name."""

_KINDS: Mapping[type, str] = {Run: "run", Study: "study", Sweep: "sweep"}
_ABSENT = object()
_TELLING = {
    *("processor", "architecture", "instruction_set", "cores", "physical_cores", "quota_cores", "caches", "memory_mb"),
    *("memory_limit_mb", "gpus", "os", "variables"),
}
"""What decides how fast a host is; the rest is in a folded table."""


def configuration(found: Found) -> Section:
    """Only what differs between the records' configurations, and all of it in a folded table."""
    columns = _unique_names(found, lambda each: each.config)
    shared, differing = compare(columns)
    tables = []
    if len(columns) > 1 and differing:
        tables.append(_table("What differs between the configurations", columns, differing))
    tables.append(_table("The whole configuration", columns, [*shared, *differing], is_folded=len(columns) > 1))
    words = "All records have the same configuration." if len(columns) > 1 and not differing else ""
    return Section(name="configuration", title="Configuration", parts=[Part(words=words, tables=tables)])


def machine(found: Found) -> Section:
    """Processor, memory, limits, versions and measured peaks."""
    known = Found(
        runs=tuple(run for run in found.runs if run.environment),
        studies=tuple(study for study in found.studies if study.environment),
        sweeps=tuple(sweep for sweep in found.sweeps if sweep.environment),
    )
    unknown = [run.name for run in found.runs if not run.environment]
    notes = [f"{name}: the record does not tell where it ran." for name in unknown]
    if not known.all:
        return Section(name="machine", title="Machine", parts=[Part(notes=notes)])
    found_tables = {title: _group(title, _unique_names(known, read)) for title, read in _GROUPS.items()}
    notes += [f"{title}: not measured, or not told." for title, tables in found_tables.items() if not tables]
    everything = _unique_names(known, _host)
    whole = _table(
        "All that is known of the host",
        everything,
        [name for names in compare(everything) for name in names],
        is_folded=True,
    )
    parts = [
        Part(tables=[table for tables in found_tables.values() for table in tables], is_grid=True),
        Part(tables=[whole], notes=notes),
    ]
    return Section(name="machine", title="Machine", parts=parts)


def _group(title: str, columns: Columns) -> list[Table]:
    """A table of what the records share, and one of what differs, as far as there is such."""
    shared, differing = compare(columns)
    tables = [_shared_table(title, columns, shared)] if shared else []
    return [*tables, _table(f"{title}: what differs", columns, differing)] if differing else tables


def _host(each: Each) -> dict[str, Any]:
    return flat(each.environment.get("host") or {})


def _host_in_short(each: Each) -> dict[str, Any]:
    return {name: value for name, value in _host(each).items() if name.split(" ")[0] in _TELLING}


def _origin(each: Each) -> dict[str, Any]:
    found = {name: each.environment.get(name) for name in ("created", "git_commit", "source_sha256")}
    of = each.raw if isinstance(each, Run) else each.raw.get("study")
    return found | {"code_sha256": of.get("code_sha256") if isinstance(of, Mapping) else None}


_GROUPS: Mapping[str, Callable[[Each], Mapping[str, Any]]] = {
    "Host": _host_in_short,
    "Peaks": lambda each: flat(each.environment.get("peaks") or {}),
    "Versions": lambda each: flat(each.environment.get("versions") or {}),
    "Origin": _origin,
}


def compare(columns: Columns) -> tuple[list[str], list[str]]:
    """The fields that all records share with one value, and those that differ or are not in all; in their order.

    >>> compare({"a": {"lr": 0.1, "seed": 0, "width": 8}, "b": {"lr": 0.1, "seed": 1}})
    (['lr'], ['seed', 'width'])
    """
    names = dict.fromkeys(name for column in columns.values() for name in column)
    shared: list[str] = []
    differing: list[str] = []
    for name in names:
        first, *others = [column.get(name, _ABSENT) for column in columns.values()]
        (shared if all(_is_same(first, other) for other in others) else differing).append(name)
    return shared, differing


def _is_same(one: Any, other: Any) -> bool:
    """Equal and of one type: 1, 1.0 and True are told apart."""
    return type(one) is type(other) and bool(one == other)


def flat(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Nested fields as one level, named by their way.

    >>> flat({"cores": 2, "caches": {"L2_bytes": 1}, "gpus": []})
    {'cores': 2, 'caches L2_bytes': 1, 'gpus': []}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{place}{name} ")
        else:
            found[f"{place}{name}"] = value
    return found


def place(each: Each) -> str:
    """What has to be the same for times of two records to share a chart, as one text: see `records.comparable`."""
    return repr(records.comparable(each.raw))


def alerts(found: Found) -> list[Alert]:
    """Which records were not measured alike, and which field tells; nothing where all were."""
    said = differences(found)
    if len(found.runs) > 1 and len({place(run) for run in found.runs}) > 1:
        said.append("Charts of runs over time are drawn for each machine, version and setting of threads by itself.")
    return [Alert(title="Not measured alike", sentences=said)] if said else []


def differences(found: Found) -> list[str]:
    """Which records' times cannot be compared, and why; each is held against the first one that tells."""
    known = [each for each in found.all if each.environment]
    said = [
        f"{each.name} does not tell where it was measured, so its times cannot be compared with those of others."
        for each in found.all
        if known and not each.environment
    ]
    for other in known[1:]:
        first, second = records.comparable(known[0].raw), records.comparable(other.raw)
        names = [name for name, value in first.items() if second[name] != value]
        if names:
            told = "; ".join(
                f"{text.label(name)} is {text.value(first[name])} in one and {text.value(second[name])} in the other"
                for name in names
            )
            said.append(
                f"{known[0].name} and {other.name} were not measured alike, so their times cannot be compared: {told}."
            )
    return said


def _unique_names(found: Found, values: Callable[[Each], Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Values by the record's name; a study, a sweep and a run in the same folder are told apart."""
    named: dict[str, Mapping[str, Any]] = {}
    for each in found.all:
        name = each.name if each.name not in named else f"{each.name} ({_KINDS[type(each)]})"
        named[name] = values(each)
    return named


def _table(title: str, columns: Columns, names: Sequence[str], *, is_folded: bool = False) -> Table:
    rows = [
        [text.label(name), *(text.value(column[name], name) if name in column else "" for column in columns.values())]
        for name in names
    ]
    return Table(title=title, head=["field", *columns], rows=rows, is_folded=is_folded, is_text=True)


def _shared_table(title: str, columns: Columns, names: Sequence[str]) -> Table:
    column = next(iter(columns.values()))
    head = ["field", "all records" if len(columns) > 1 else next(iter(columns))]
    rows = [[text.label(name), text.value(column[name], name)] for name in names]
    return Table(title=title, head=head, rows=rows, is_text=True)
