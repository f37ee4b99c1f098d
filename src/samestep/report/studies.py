"""A scaling study as a person reads it: the verdict, the curves with their intervals, where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from samestep.errors import UsageError
from samestep.measure import scale, stats
from samestep.measure.laws import Fit
from samestep.measure.scale import Findings
from samestep.measure.scaling import Scaling
from samestep.measure.series import Axis, Point
from samestep.report import breakdowns, speed_ups, text
from samestep.report.records import Program, Study
from samestep.report.shapes import Alert, Part, Section, Table, Verdict

_WHAT = {
    "strong": "The global batch is fixed: more workers share the same step.",
    "weak": "The batch of each worker is fixed: more workers make a larger global batch. Speed-ups compare samples/s.",
}


@dataclass(frozen=True, kw_only=True)
class Analysed:
    """A study and what its numbers mean."""

    study: Study
    findings: Findings

    @property
    def scalings(self) -> Mapping[Axis, Scaling]:
        return self.findings.scalings


def analyse(study: Study) -> Analysed:
    """Ask `measure.scale` what a study's record means.

    Raises:
        UsageError: The study lacks a program, or its batches do not match.
    """
    try:
        return Analysed(study=study, findings=scale.analyse(dict(study.raw)))
    except UsageError as error:
        raise UsageError(f"{study.path}: {error}") from None


# ---------------------------------------------------------------- words


def verdicts(analysed: Analysed) -> list[Verdict]:
    """One sentence per axis, as `measure.scaling` puts it."""
    study = analysed.study
    return [
        Verdict(
            subject=f"{axis.capitalize()} scaling of {study.workload} ({study.name})",
            sentence=f"{found.verdict[:1].upper()}{found.verdict[1:].removesuffix('.')}.",
        )
        for axis, found in analysed.scalings.items()
    ]


def alerts(analysed: Analysed) -> list[Alert]:
    """What is unstable, and what to run next; nothing where every program is stable."""
    if not analysed.findings.warnings:
        return []
    said = [f"{text.clean(each)}." for each in analysed.findings.warnings]
    return [Alert(title=f"Unstable: measured again, {analysed.study.name} may say something else", sentences=said)]


def caveats(analysed: Analysed) -> list[str]:
    """What makes the numbers weaker than they look: hints, fits that are missing."""
    name, found = analysed.study.name, analysed.findings
    said = [f"{name}: {hint}." for hint in found.hints]
    for axis, scaled in found.scalings.items():
        fits = [fit for fit in scaled.fits if fit.reason and _applies(fit, axis)]
        said += [f"{name}, {axis} scaling: no fit of {_law(fit)}: {fit.reason}." for fit in fits]
    return said


def _applies(fit: Fit, axis: str) -> bool:
    """Amdahl's law is about a fixed global batch: its absence from weak scaling is no weakness."""
    return axis == "strong" or fit.law != "Amdahl"


def _law(fit: Fit) -> str:
    return "Amdahl's law" if fit.law == "Amdahl" else "the Universal Scalability Law"


# ---------------------------------------------------------------- section


def section(analysed: Analysed, number: int, *, is_only: bool) -> Section:
    """Curves, breakdown and tables of a study, a part per axis."""
    study = analysed.study
    parts = [part for axis in analysed.scalings for part in _parts(analysed, axis)]
    title = f"Scaling of {study.workload}"
    return Section(name=f"scaling-{number}", title=title if is_only else f"{title} ({study.name})", parts=parts)


def _parts(analysed: Analysed, axis: Axis) -> list[Part]:
    found, programs = analysed.scalings[axis], analysed.study.on(axis)
    curves = Part(
        title=f"{axis.capitalize()} scaling",
        words=_WHAT[axis],
        legend=speed_ups.legend(found),
        figures=speed_ups.figures(found),
        tables=[_points(found), _programs(programs), _fits(found)],
    )
    by_name = analysed.findings.breakdowns[axis]
    short = dict(zip(breakdowns.short_names([*by_name]), by_name.values(), strict=True))
    where = breakdowns.part(f"Where the time of a step goes ({axis} scaling)", short, over="the mean over all rounds")
    return [curves, where]


# ---------------------------------------------------------------- tables


def _points(found: Scaling) -> Table:
    return Table(
        title=f"{found.axis.capitalize()} scaling: values with 95 % intervals",
        head=[
            "workers",
            "step time",
            "samples/s",
            "× best single process",
            "× one worker",
            f"{found.axis} scaling efficiency",
            "roof (× best single)",
            "of the roof",
            "against the best single process",
        ],
        rows=[_row(point) for point in found.points],
        note="Efficiency: the speed-up over one worker, divided by the number of workers. Of the roof: the roof's step "
        "time / samestep's, in the same rounds. The last column says what the rounds show of the time for a sample.",
    )


def _row(point: Point) -> list[str]:
    return [
        f"{point.workers:,}",
        text.estimated_duration(point.step_s),
        text.estimate(point.samples_per_s),
        text.estimate(point.speed_up),
        text.estimate(point.relative),
        text.estimate(point.efficiency),
        text.estimate(point.roof) if point.roof else text.UNKNOWN,
        text.estimate(point.of_roof) if point.of_roof else text.UNKNOWN,
        point.relation,
    ]


def _programs(programs: Sequence[Program]) -> Table:
    rows = [
        [
            program.name,
            text.estimated_duration(stats.median([slot.step_s for slot in program.slots])),
            f"{program.global_batch:,}",
            f"{program.threads:,}",
            f"{program.copies:,}",
            f"{len(program.slots):,}",
        ]
        for program in programs
    ]
    return Table(
        title="All programs that were timed",
        head=["program", "step time", "global batch", "threads", "copies", "rounds"],
        rows=rows,
        note="Median over rounds with its 95 % interval.",
        is_folded=True,
    )


def _fits(found: Scaling) -> Table:
    return Table(
        title="Fitted laws",
        head=["law", "parameters", "more workers slow down beyond"],
        rows=[
            [
                fit.law,
                ", ".join(f"{text.label(name)} {text.estimate(value)}" for name, value in fit.parameters.items())
                or f"no fit: {fit.reason}",
                text.UNKNOWN if fit.peak_workers is None else f"{fit.peak_workers:.1f} workers",
            ]
            for fit in found.fits
        ],
        is_folded=True,
        is_text=True,
    )
