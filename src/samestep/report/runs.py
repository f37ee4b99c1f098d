"""Runs laid side by side: their curves over steps and over seconds, and what they came to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import pairwise
from typing import Any

from samestep.report import breakdowns, charts, facts, palette, svg, text, thin
from samestep.report.charts import Axes, Curve, Mark
from samestep.report.records import Run
from samestep.report.shapes import Entry, Figure, Part, Section, Table, Verdict
from samestep.run.config import NumericSettings
from samestep.words import count

MOST_RUNS = 12
"""Runs whose curves are drawn."""

_LAST_STEPS = "the mean over the last steps of the run, as far back as it remembers"

_MOST_TOLD = 8
"""Runs that have a sentence of their own."""

_CROWDED = 25
"""Points of a curve above which they are seen only while they show their numbers."""

_STRETCHES = 100
_STEPS, _SECONDS = "steps", "time"
_TITLES = {_STEPS: "steps", _SECONDS: "seconds in training steps"}
_NUMERIC = [field.name for field in fields(NumericSettings)]

Looked = Sequence[tuple[Run, palette.Look]]
"""Runs, each with its look."""


def verdicts(runs: Sequence[Run]) -> list[Verdict]:
    """What each run came to, in a sentence; and whether those that had to end with the same bits did."""
    found = [
        Verdict(subject=f"Run {run.name}", sentence=_sentence(run), detail=_detail(run)) for run in runs[:_MOST_TOLD]
    ]
    if len(runs) > _MOST_TOLD:
        sentence = f"{len(runs) - _MOST_TOLD} more runs are in the table of what the runs came to."
        found.append(Verdict(subject="More runs", sentence=sentence))
    return found + [
        Verdict(subject="Same network", sentence=_same_bits(group)) for group in _alike(runs) if len(group) > 1
    ]


def section(runs: Sequence[Run]) -> Section:
    """The curves of runs under one legend, and a table of what they came to."""
    drawn = [(run, palette.look(index)) for index, run in enumerate(runs[:MOST_RUNS])]
    legend = [
        Entry(
            sample=svg.swatch(look),
            name=f"{run.name}: {run.workload}, {count(run.workers, 'worker')}",
        )
        for run, look in drawn
    ]
    left_out = (
        [f"The curves of the first {MOST_RUNS} of {len(runs)} runs are drawn; the tables hold all."]
        if len(runs) > MOST_RUNS
        else []
    )
    figures = [*_losses(drawn), *_evaluations(drawn), *_throughput(drawn)]
    curves = Part(legend=legend, figures=figures, tables=[_table(runs)], notes=left_out)
    title = "Training" if len(runs) == 1 else "Runs side by side"
    return Section(name="runs", title=title, parts=[curves, *_breakdowns(drawn)])


def _breakdowns(drawn: Looked) -> Iterable[Part]:
    for of, place in _by_place(drawn).items():
        known = {f"{run.name}, {count(run.workers, 'worker')}": run.breakdown for run, _ in place if run.breakdown}
        if known:
            yield breakdowns.part(f"Where the time of a step{of} went", known, over=_LAST_STEPS)


def _by_place(drawn: Looked) -> Mapping[str, Looked]:
    """Runs whose times can be compared, and so share a chart; by the words that tell such a chart from others."""
    if len(drawn) < 2:
        return {"": drawn}
    places: dict[str, list[tuple[Run, palette.Look]]] = {}
    for run, look in drawn:
        places.setdefault(facts.place(run), []).append((run, look))
    if len(places) < 2:
        return {"": drawn}
    return {f" of {', '.join(run.name for run, _ in place)}": place for place in places.values()}


def caveats(runs: Sequence[Run]) -> list[str]:
    """What happened on the way: notices, early ends, values that are no numbers."""
    said = [f"{run.name}: {text.clean(str(notice))}" for run in runs for notice in run.raw.get("notices") or ()]
    said += [f"{run.name}: the run was {run.raw['end']}." for run in runs if run.raw.get("end") == "stopped"]
    for run in runs:
        num_gaps = sum(not math.isfinite(value) for value in run.steps["loss"])
        if num_gaps:
            said.append(f"{run.name}: the loss is not finite in {count(num_gaps, 'step')}; the curves leave them out.")
    return said


# ---------------------------------------------------------------- words


def _sentence(run: Run) -> str:
    raw = run.raw
    num_steps, num_samples, wall_s = raw.get("steps"), raw.get("samples"), raw.get("wall_s")
    said = f"{run.workload} on {count(run.workers, 'worker')}: {text.number(num_steps)} steps"
    if num_samples is not None:
        said += f" ({text.number(num_samples)} samples)"
    if wall_s is not None:
        said += f" in {text.duration(wall_s)}"
    if raw.get("samples_per_s") is not None:
        said += f", {text.number(raw['samples_per_s'])} samples/s"
    if run.evaluations:
        last = run.evaluations[-1]
        said += f"; after step {last.step:,}: {text.value(dict(last.means))}"
    if raw.get("growths"):
        said += (
            f"; global batch {text.number(run.config.get('initial_batch'))} → {text.number(raw.get('global_batch'))}"
        )
    if raw.get("critical_batch") is not None:
        said += f"; {text.clean(raw['critical_batch'])}"
    return f"{said}."


def _detail(run: Run) -> str:
    end, digest = run.raw.get("end"), run.raw.get("weights_sha256")
    return "; ".join(
        [*([text.clean(end)] if end else []), *([f"weights sha256 {text.clean(digest)}"] if digest else [])]
    )


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that train the same network for as long, by their configuration."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = {name: run.config.get(name) for name in _NUMERIC}
        key = repr((run.workload, run.raw.get("steps"), settings, run.raw.get("numerics")))
        if run.raw.get("weights_sha256"):
            groups.setdefault(key, []).append(run)
    return list(groups.values())


def _same_bits(group: Sequence[Run]) -> str:
    named = ", ".join(f"{run.name} ({count(run.workers, 'worker')})" for run in group)
    digests = {run.raw["weights_sha256"] for run in group}
    if len(digests) == 1:
        return f"The same bits: {named} ended with equal weights."
    return f"Not the same bits: {named} are configured alike and ended with {len(digests)} different sets of weights."


# ---------------------------------------------------------------- curves


def _losses(runs: Looked) -> list[Figure]:
    """Each step's loss; the loss of a step is found before its update."""
    most = max((len(run.steps["step"]) for run, _ in runs), default=0)
    caption = "The mean loss over the step's global batch, before its update."
    if most > thin.MOST_DRAWN:
        caption += (
            f" Drawn are the lowest and the highest of every {math.ceil(2 * most / thin.MOST_DRAWN):,} steps, at most "
            f"{thin.MOST_DRAWN:,} points a curve; the downloads hold every step."
        )
    by_steps = [_loss_curve(*each, is_seconds=False) for each in runs]
    by_seconds = partial(_loss_curve, is_seconds=True)
    return [
        _figure("Training loss", _STEPS, by_steps, caption, kind="faint"),
        *_over_time("Training loss", runs, by_seconds, caption, kind="faint"),
    ]


def _loss_curve(run: Run, look: palette.Look, *, is_seconds: bool) -> Curve:
    steps, losses = run.steps["step"], run.steps["loss"]
    at = run.seconds if is_seconds else [step + 1 for step in steps]
    chosen = thin.extremes([value if math.isfinite(value) else None for value in losses])
    marks = [
        Mark(
            x=at[index],
            y=losses[index],
            tip=f"{run.name}, step {steps[index] + 1:,.0f} ({text.duration(run.seconds[index])}): "
            f"loss {text.number(losses[index])}",
        )
        for index in (chosen[position] for position in thin.spread(len(chosen), thin.MOST_SHOWN))
    ]
    line = [(at[index], losses[index]) for index in chosen]
    return Curve(look=look, line=line, marks=marks, width=1.5 if len(chosen) < thin.MOST_DRAWN / 2 else 1, opacity=0.85)


def _evaluations(runs: Looked) -> list[Figure]:
    metrics = dict.fromkeys(name for run, _ in runs for evaluation in run.evaluations for name in evaluation.means)
    figures = []
    for metric in metrics:
        title = f"{metric[:1].upper()}{metric[1:]} on the evaluation data"
        by_steps = [_evaluation_curve(*each, metric, lambda _, step: step) for each in runs]
        kind: svg.Kind = "faint" if any(len(curve.marks) > _CROWDED for curve in by_steps) else "points"
        figures.append(_figure(title, _STEPS, by_steps, kind=kind))
        by_seconds = partial(_evaluation_curve, metric=metric, position=Run.seconds_at)
        is_resumed = any(len(a.line) > len(by_seconds(*b).line) for a, b in zip(by_steps, runs, strict=True))
        caption = "What was evaluated before a resume has steps, and no seconds of this session." if is_resumed else ""
        figures += _over_time(title, runs, by_seconds, caption, kind=kind)
    return figures


def _evaluation_curve(run: Run, look: palette.Look, metric: str, position: Callable[[Run, int], float | None]) -> Curve:
    points = []
    for evaluation in run.evaluations:
        at, value = position(run, evaluation.step), evaluation.means.get(metric)
        if at is not None and value is not None and math.isfinite(value):
            tip = f"{run.name}, after step {evaluation.step:,}: {metric} {text.number(value)}"
            points.append(Mark(x=at, y=value, tip=tip))
    chosen = [points[index] for index in thin.extremes([point.y for point in points])]
    shown = [chosen[index] for index in thin.spread(len(chosen), thin.MOST_SHOWN)]
    return Curve(look=look, line=[(point.x, point.y) for point in chosen], marks=shown)


def _throughput(runs: Looked) -> list[Figure]:
    caption = (
        f"Samples of consecutive steps divided by their seconds, at most {_STRETCHES} stretches a run; evaluations and "
        "checkpoints are left out."
    )
    known = [(run, look) for run, look in runs if _throughput_curve(run, look).line]
    title = "Throughput (samples/s)"
    return _over_time(title, known, _throughput_curve, caption, kind="faint", is_from_zero=True) if known else []


def _throughput_curve(run: Run, look: palette.Look) -> Curve:
    bounds = thin.spread(len(run.seconds) + 1, _STRETCHES + 1)
    ends = [0.0, *run.seconds]
    marks = []
    for start, stop in pairwise(bounds):
        seconds = ends[stop] - ends[start]
        if seconds > 0:
            rate = sum(run.steps["num_samples"][start:stop]) / seconds
            tip = f"{run.name}, from {text.duration(ends[start])} to {text.duration(ends[stop])}: {rate:,.0f} samples/s"
            marks.append(Mark(x=ends[start], y=rate, tip=tip))
    line = [(mark.x, mark.y) for mark in marks]
    line += [(ends[-1], marks[-1].y)] if marks else []
    return Curve(look=look, line=line, marks=marks, width=1.5, is_steps=True)


def _over_time(
    title: str, runs: Looked, draw: Callable[[Run, palette.Look], Curve], caption: str, **how: Any
) -> list[Figure]:
    """A chart over time for every place that runs were measured in."""
    drawn = {of: [draw(*each) for each in place] for of, place in _by_place(runs).items()}
    shown = {of: curves for of, curves in drawn.items() if len(drawn) == 1 or any(curve.line for curve in curves)}
    return [_figure(f"{title}{of}", _SECONDS, curves, caption, **how) for of, curves in shown.items()]


def _figure(
    title: str,
    over: str,
    drawn: Sequence[Curve],
    caption: str = "",
    *,
    kind: svg.Kind = "points",
    is_from_zero: bool = False,
) -> Figure:
    corners = [corner for curve in drawn for corner in curve.line] or [(1.0, 1.0)]
    end, top = (max(values) for values in zip(*corners, strict=True))
    axes = Axes(
        x_title=_TITLES[over],
        x_domain=(0, end or 1),
        y_zero=is_from_zero,
        x_format=charts.format_for(end),
        y_format=charts.format_for(top),
    )
    name = f"{title} over {over}"
    return Figure(title=name, drawing=svg.render(charts.curves(drawn, axes), kind=kind), caption=caption)


# ---------------------------------------------------------------- table


def _table(runs: Sequence[Run]) -> Table:
    metrics = list(dict.fromkeys(name for run in runs for each in run.evaluations[-1:] for name in each.means))
    head = ["run", "workload", "workers", "steps", "time", "start-up", "samples/s", "last loss"]
    head += [f"{metric} (evaluation)" for metric in metrics] + ["memory", "weights sha256"]
    return Table(
        title="What the runs came to",
        head=head,
        rows=[_row(run, metrics) for run in runs],
        note="Time: from the call to the end. Samples/s: without start-up, the first three steps, evaluations and "
        "checkpoints. Memory: all processes on the machine of the record together, at their peak.",
    )


def _row(run: Run, metrics: Sequence[str]) -> list[str]:
    raw = run.raw
    last = run.evaluations[-1].means if run.evaluations else {}
    return [
        run.name,
        run.workload,
        f"{run.workers:,}",
        text.number(raw.get("steps")),
        text.duration(raw.get("wall_s")),
        text.duration(raw.get("startup_s")),
        text.number(raw.get("samples_per_s")),
        text.number(raw.get("train_loss")),
        *(text.number(last.get(metric)) for metric in metrics),
        text.size(raw.get("peak_memory_bytes")),
        text.value(raw.get("weights_sha256"))[:12],
    ]
