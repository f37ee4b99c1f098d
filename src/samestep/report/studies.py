"""A scaling study as a person reads it: the verdict, the curves with their intervals, where the time goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from samestep.errors import UsageError
from samestep.measure import scaling, stats
from samestep.measure.scaling import Axis, Fit, Point, Scaling, Series
from samestep.report import breakdowns, speed_ups, text
from samestep.report.records import Program, Study
from samestep.report.shapes import Part, Section, Table, Verdict

_WHAT = {
    "strong": "The global batch is fixed: more workers share the same step.",
    "weak": "The batch of each worker is fixed: more workers make a larger global batch. Speed-ups compare samples/s.",
}


@dataclass(frozen=True, kw_only=True)
class Analysed:
    """A study and what its numbers mean, by axis."""

    study: Study
    scalings: Mapping[str, Scaling]


def analyse(study: Study) -> Analysed:
    """Ask `measure.scaling` what a study's step times mean.

    Raises:
        UsageError: The study lacks a program, or its rounds do not match.
    """
    return Analysed(study=study, scalings={axis: _scaling(study, axis) for axis in study.axes})


def _scaling(study: Study, axis: str) -> Scaling:
    programs = study.on(axis)
    rounds = rounds_of_all(programs)
    try:
        return scaling.analyse(
            cast("Axis", axis),
            [_series(program, rounds) for program in programs],
            cores=study.cores,
            losses=breakdowns.shares(programs),
        )
    except UsageError as error:
        raise UsageError(f"{study.path}: {axis} scaling: {error}") from None


def rounds_of_all(programs: Sequence[Program]) -> set[int]:
    """The rounds in which every program has a slot; only those can be compared."""
    return set.intersection(*({slot.round for slot in program.slots} for program in programs)) if programs else set()


def _series(program: Program, rounds: set[int]) -> Series:
    if program.kind not in ("torch", "samestep", "roof"):
        raise UsageError(f"the program {program.name!r} is of kind {program.kind!r}, not torch, samestep or roof")
    return Series(
        name=program.name,
        kind=program.kind,  # type: ignore[arg-type]  # narrowed above
        workers=program.copies if program.kind == "roof" else program.workers,
        threads=program.threads,
        global_batch=program.global_batch,
        step_s=tuple(slot.step_s for slot in program.slots if slot.round in rounds),
    )


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


def caveats(analysed: Analysed) -> list[str]:
    """What makes the numbers weaker than they look: left-out rounds, unstable programs, fits that are missing."""
    study, said = analysed.study, []
    for axis, found in analysed.scalings.items():
        programs = study.on(axis)
        rounds = rounds_of_all(programs)
        every = {slot.round for program in programs for slot in program.slots}
        where = f"{study.name}, {axis} scaling"
        if every - rounds:
            said.append(
                f"{where}: {text.count(len(every - rounds), 'round')} of {len(every)} left out, since not every "
                "program has a slot in it."
            )
        for program in programs:
            said += [f"{where}, {program.name}: {warning}." for warning in _unstable(program, rounds)]
        said += [
            f"{where}: no fit of {_law(fit)}: {fit.reason}." for fit in found.fits if fit.reason and _applies(fit, axis)
        ]
    return said


def _unstable(program: Program, rounds: set[int]) -> tuple[str, ...]:
    slots = [slot for slot in program.slots if slot.round in rounds]
    others = [slot.others_frac for slot in slots if slot.others_frac is not None]
    return stats.stability([slot.step_s for slot in slots], others_frac=others).warnings


def _applies(fit: Fit, axis: str) -> bool:
    """Amdahl's law is about a fixed global batch: its absence from weak scaling is no weakness."""
    return axis == "strong" or fit.law != "Amdahl"


def _law(fit: Fit) -> str:
    return "Amdahl's law" if fit.law == "Amdahl" else "the Universal Scalability Law"


# ---------------------------------------------------------------- section


def section(analysed: Analysed, number: int, *, is_only: bool) -> Section:
    """Curves, breakdown and tables of a study, a part per axis."""
    study = analysed.study
    parts = [part for axis, found in analysed.scalings.items() for part in _parts(study, axis, found)]
    title = f"Scaling of {study.workload}"
    return Section(name=f"scaling-{number}", title=title if is_only else f"{title} ({study.name})", parts=parts)


def _parts(study: Study, axis: str, found: Scaling) -> list[Part]:
    programs = study.on(axis)
    curves = Part(
        title=f"{axis.capitalize()} scaling",
        words=_WHAT[axis],
        legend=speed_ups.legend(found),
        figures=speed_ups.figures(found),
        tables=[_points(found), _programs(programs), _fits(found)],
    )
    where = breakdowns.part(f"Where the time of a step goes ({axis} scaling)", programs)
    return [curves, *([where] if where else [])]


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
