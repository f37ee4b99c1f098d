"""Raw values: summaries to read, and everything inside of the page for downloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from samestep.host import records
from samestep.report import text, thin
from samestep.report.records import Found, Program, Run, Study, Sweep
from samestep.report.shapes import Part, Raw, Section, Table
from samestep.words import count

_KINDS: Mapping[type, str] = {Run: "run", Study: "study", Sweep: "sweep"}
_MOST_ROWS = 20
_MOST_ROUNDS = 400


def downloads(found: Found) -> list[Raw]:
    """Each record, whole, as JSON that can stand inside of a script element."""
    return [_raw(each, _KINDS[type(each)]) for each in found.all]


def _raw(each: Run | Study | Sweep, kind: str) -> Raw:
    if isinstance(each, Run):
        amount = count(len(each.seconds), "step")
    elif isinstance(each, Sweep):
        amount = count(each.num_runs, "run")
    else:
        amount = count(sum(len(slot.steps_s) for program in each.programs for slot in program.slots), "step")
    body = {name: value for name, value in each.raw.items() if name not in ("format", "kind")}
    return Raw(
        title=f"{kind.capitalize()} {each.name}",
        file=text.file_name(f"{each.name}-{kind}"),
        kind=kind,
        detail=f"{amount}, every value",
        json=in_script(records.to_json(each.raw["kind"], body).decode().strip()),
    )


def in_script(json: str) -> Markup:
    """JSON that does not end the script element that it stands in.

    >>> print(in_script('{"name": "</script>"}'))
    {"name": "\\u003c/script>"}
    """
    return Markup(json.replace("<", "\\u003c"))


def section(found: Found) -> Section:
    """Tables that sum the records up."""
    parts = [Part(tables=_of_study(study)) for study in found.studies] + [
        Part(tables=_of_run(run)) for run in found.runs
    ]
    return Section(name="raw", title="Raw values", parts=parts)


def _of_study(study: Study) -> list[Table]:
    return [
        _rounds(f"{study.name}, {axis} scaling: seconds a step, round by round", study.on(axis)) for axis in study.axes
    ]


def _rounds(title: str, programs: Sequence[Program]) -> Table:
    slots = [(program, slot) for program in programs for slot in program.slots]
    rows = [
        [
            program.name,
            str(slot.round),
            text.duration(slot.step_s),
            f"{len(slot.steps_s):,}",
            f"{100 * slot.others_frac:.1f} %",
        ]
        for program, slot in slots[:_MOST_ROUNDS]
    ]
    note = "Step time: the mean over the slot. Steps: of the first process. Others: core time that other programs took."
    if len(slots) > _MOST_ROUNDS:
        note += f" The first {_MOST_ROUNDS} of {len(slots):,} rows; the downloads hold all."
    return Table(
        title=title,
        head=["program", "round", "step time", "steps", "others"],
        rows=rows,
        note=note,
        is_folded=True,
    )


def _of_run(run: Run) -> list[Table]:
    tables = [_steps(run)] if len(run.seconds) else []
    return [*tables, _evaluations(run)] if run.evaluations else tables


def _steps(run: Run) -> Table:
    columns, length = run.steps, len(run.seconds)
    chosen = thin.spread(length, _MOST_ROWS)
    rows = [
        [
            f"{columns['step'][index] + 1:,}",
            text.number(columns["loss"][index]),
            text.number(columns["gradient_norm"][index]),
            f"{columns['num_samples'][index]:,}",
            text.duration(columns["duration_s"][index]),
            text.duration(run.seconds[index]),
        ]
        for index in chosen
    ]
    note = f"{len(chosen)} of {length:,} steps, evenly spread; the downloads hold all." if len(chosen) < length else ""
    return Table(
        title=f"{run.name}: steps",
        head=["step", "loss", "gradient norm", "samples", "time", "time since the start"],
        rows=rows,
        note=note,
        is_folded=True,
    )


def _evaluations(run: Run) -> Table:
    metrics = list(dict.fromkeys(name for each in run.evaluations for name in each.means))
    chosen = thin.spread(len(run.evaluations), _MOST_ROWS)
    found = [run.evaluations[index] for index in chosen]
    note = f"{len(chosen)} of {len(run.evaluations):,} evaluations, evenly spread; the downloads hold all."
    return Table(
        title=f"{run.name}: evaluations",
        head=["after step", *metrics],
        rows=[[f"{each.step:,}", *(text.number(each.means.get(metric)) for metric in metrics)] for each in found],
        note=note if len(chosen) < len(run.evaluations) else "",
        is_folded=True,
    )
