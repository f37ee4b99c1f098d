"""STEP_TIME.md from the results: ratios per round, their medians and intervals; met or missed is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import cases, results, rounds
from samestep.engine.breakdown import GROUPS
from samestep.measure import scale, stats
from samestep.measure.stats import Estimate, Values

Ratio = Callable[["Measured"], Values]


@dataclass(frozen=True)
class Measured:
    """The step times of a case, in seconds, by program; one per round, those of the timing warm-up left out."""

    case: str
    step_s: dict[str, Values]
    others_frac: Values
    steps_per_slot: int
    phases: Mapping[str, float]
    """Seconds of a step of samestep on two workers by group: the mean over rounds and workers."""

    @classmethod
    def of(cls, result: results.Result) -> Measured:
        kept = rounds.after_warm_up(result)
        return cls(
            result["settings"]["case"],
            {name: np.array([slot["step_s"] for slot in slots]) for name, slots in kept.items()},
            np.array([slot["others_frac"] for slots in kept.values() for slot in slots]),
            min(slot["num_steps"] for slots in kept.values() for slot in slots),
            _mean_phases(kept["samestep-2"]),
        )

    def over_samestep(self, name: str) -> Values:
        """How many times as long as samestep on two workers a program takes, per round."""
        ratios: Values = self.step_s[name] / self.step_s["samestep-2"]
        return ratios

    @property
    def best_single(self) -> str:
        """The better of one and two threads, by its median."""
        return min(("torch-1", "torch-2"), key=lambda name: float(np.median(self.step_s[name])))


@dataclass(frozen=True)
class Target:
    """A table of the page.

    Args:
        title: Its heading.
        explanation: What the ratio is.
        ratio: Per round.
        aim: For the geometric mean.
        is_least: Whether the aim is the least that is wanted, or the most.
        each: Aim for every case, if there is one.
        most: What a case counts as at most.
        names_slower: Whether the cases are named in which samestep is slower beyond noise.
        is_ddp: Whether the roof is held beside it.
    """

    title: str
    explanation: str
    ratio: Ratio
    aim: float
    is_least: bool = True
    each: float | None = None
    most: float = float("inf")
    names_slower: bool = False
    is_ddp: bool = False


TARGETS = (
    Target(
        "Of the roof",
        "The roof (two independent single-thread programs at once, half of the batch each, nothing exchanged) over "
        "samestep on two workers. A fraction above 1 counts as 1 in the mean.",
        lambda m: m.over_samestep("roof"),
        0.97,
        each=0.90,
        most=1.0,
    ),
    Target(
        "Against DistributedDataParallel",
        "DDP on Gloo, two ranks, over samestep on two workers. A case is slower beyond noise where its whole interval "
        "is below 1.",
        lambda m: m.over_samestep("ddp"),
        1.6,
        names_slower=True,
        is_ddp=True,
    ),
    Target(
        "Against the best single process",
        "Plain torch with the whole batch, the better of one and two threads (by its median), over samestep on two "
        "workers. A case is slower beyond noise where its whole interval is below 1.",
        lambda m: m.over_samestep(m.best_single),
        1.1,
        names_slower=True,
    ),
    Target(
        "One worker against plain torch",
        "samestep on one worker over plain torch on one thread that accumulates the same two microbatches.",
        lambda m: m.step_s["samestep-1"] / m.step_s["torch-accumulating"],
        1.03,
        is_least=False,
        each=1.03,
    ),
)

_TWINS = (("samestep-2-twin", "samestep-2"), ("torch-accumulating-twin", "torch-accumulating"))
_STANDARD = (
    "samestep-2",
    "roof",
    "ddp",
    "torch-1",
    "torch-2",
    "samestep-1",
    "torch-accumulating",
)


def render(found: Sequence[results.Result]) -> str:
    """The page."""
    measured = [Measured.of(result) for result in found]
    what = (
        f"{rounds.in_words(found[0]['settings'], 'a case')}, of {min(m.steps_per_slot for m in measured)} steps or "
        "more; medians over rounds with 95 % intervals (order statistics; of geometric means over cases: bootstrap)"
    )
    others = np.concatenate([m.others_frac for m in measured])
    missing = [name for name in cases.all_names() if name not in {m.case for m in measured}]
    lines = [
        "# Step time",
        "",
        *results.header(list(found), what=what),
        (
            f"- other processes took {np.median(others):.1%} of the cores in the median slot, "
            f"{np.quantile(others, 0.9):.1%} in the 90th percentile"
        ),
        *([f"- **not measured: {', '.join(missing)}**"] if missing else []),
        "",
        (
            "Exactly one program runs at a time; the others are stopped. SGD with momentum (fused) for everybody, "
            "8,192 random samples in memory, gathered with `index_select`. Two workers, two ranks: half of the global "
            "batch each, as one microbatch."
        ),
        "",
    ]
    for target in TARGETS:
        lines += [*_table(target, measured), ""]
    lines += [*_twins(measured), "", *_phases(measured), *_times(measured)]
    extras = _extras(measured)
    return "\n".join([*lines, *(["", *extras] if extras else [])]) + "\n"


def _table(target: Target, measured: Sequence[Measured]) -> list[str]:
    ratios = [target.ratio(m) for m in measured]
    estimates = [stats.median(ratio) for ratio in ratios]
    mean = stats.geometric_mean(ratios, most=target.most)
    sign = "≥" if target.is_least else "≤"
    each = "" if target.each is None else f", each {sign} {target.each:g}"
    lines = [
        f"## {target.title}",
        "",
        target.explanation,
        "",
        (
            f"Target: geometric mean {sign} {target.aim:g}{each}. Geometric mean over {len(measured)} cases: "
            f"{mean.text()}: {results.verdict(mean.value, target.aim, is_least=target.is_least)}."
        ),
    ]
    if target.each is not None:
        furthest, word = (min, "Lowest") if target.is_least else (max, "Highest")
        worst = furthest(range(len(measured)), key=lambda i: estimates[i].value)
        verdict = results.verdict(estimates[worst].value, target.each, is_least=target.is_least)
        lines.append(f"{word}: {measured[worst].case} with {estimates[worst].text()}: {verdict}.")
    if target.names_slower:
        slower = [m.case for m, estimate in zip(measured, estimates, strict=True) if estimate.high < 1]
        lines.append(f"Slower beyond noise: {', '.join(slower) or 'none'}.")
    if target.is_ddp:
        roof = stats.geometric_mean([m.step_s["ddp"] / m.step_s["roof"] for m in measured])
        lines.append(f"Over the roof, which exchanges nothing, DDP takes {roof.text()}.")
    lines += ["", "| case | ratio [95 %] | |", "|---|---|---|"]
    for m, estimate in zip(measured, estimates, strict=True):
        note = _note(target, m, estimate)
        lines.append(f"| {m.case} | {estimate.text()} | {note} |")
    return lines


def _note(target: Target, measured: Measured, estimate: Estimate) -> str:
    words = []
    if target.title == "Against the best single process":
        words.append(f"better: {measured.best_single}")
    if target.names_slower and estimate.high < 1:
        words.append("slower beyond noise")
    if target.each is not None and (estimate.value < target.each) == target.is_least:
        words.append(f"{'below' if target.is_least else 'above'} {target.each:g}")
    return ", ".join(words)


def _twins(measured: Sequence[Measured]) -> list[str]:
    lines = [
        "## The same program twice",
        "",
        "What the method itself gets wrong: a second copy of the same program over the first. 1 is right.",
        "",
        "| case | " + " | ".join(name for _, name in _TWINS) + " |",
        "|---|" + "---|" * len(_TWINS),
    ]
    for m in measured:
        cells = [stats.median(m.step_s[twin] / m.step_s[name]).text() for twin, name in _TWINS]
        lines.append(f"| {m.case} | {' | '.join(cells)} |")
    for twin, name in _TWINS:
        estimates = [stats.median(m.step_s[twin] / m.step_s[name]) for m in measured]
        mean = stats.geometric_mean([m.step_s[twin] / m.step_s[name] for m in measured])
        inside = sum(estimate.low <= 1 <= estimate.high for estimate in estimates)
        furthest = max(abs(estimate.value - 1) for estimate in estimates)
        lines += [
            "",
            (
                f"{name}: geometric mean {mean.text()}; 1 is inside of the interval in {inside} of {len(measured)} "
                f"cases; the furthest median is {furthest:.1%} off."
            ),
        ]
    return lines


def _times(measured: Sequence[Measured]) -> list[str]:
    lines = [
        "## Step times",
        "",
        "Milliseconds, medians over rounds (half of the range between the quartiles).",
        "",
        "| case | " + " | ".join(_STANDARD) + " |",
        "|---|" + "---|" * len(_STANDARD),
    ]
    lines += [f"| {m.case} | {' | '.join(_time_text(m.step_s[name]) for name in _STANDARD)} |" for m in measured]
    return lines


def _phases(measured: Sequence[Measured]) -> list[str]:
    lines = [
        "## Where a step goes",
        "",
        (
            "Milliseconds of a step of samestep on two workers, means over rounds and workers, beside the roof's whole "
            "step, which updates all parameters where a worker updates its half."
        ),
        "",
        f"| case | {' | '.join(GROUPS)} | the roof's step |",
        "|---|" + "---|" * (len(GROUPS) + 1),
    ]
    for each in measured:
        parts = [f"{each.phases[group] * 1e3:.3g}" for group in GROUPS]
        lines.append(f"| {each.case} | {' | '.join(parts)} | {np.mean(each.step_s['roof']) * 1e3:.3g} |")
    return [*lines, ""]


def _mean_phases(slots: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    workers = scale.mean_phases(slots)
    return {group: sum(worker[group] for worker in workers) / len(workers) for group in GROUPS}


def _time_text(step_s: Values) -> str:
    low, middle, high = np.quantile(step_s, (0.25, 0.5, 0.75)) * 1e3
    return f"{middle:.3g} ({(high - low) / 2:.1g})"


def _extras(measured: Sequence[Measured]) -> list[str]:
    usual = {*_STANDARD, *(twin for twin, _ in _TWINS)}
    names = list(dict.fromkeys(name for m in measured for name in m.step_s if name not in usual))
    if not names:
        return []
    lines = [
        "## Variants",
        "",
        (
            "Step time over that of samestep on two workers; below 1 is faster than it. `kept-memory`: malloc keeps "
            "freed memory, as it does in samestep's workers."
        ),
        "",
        "| case | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for m in measured:
        cells = [stats.median(m.over_samestep(name)).text() if name in m.step_s else "" for name in names]
        lines.append(f"| {m.case} | {' | '.join(cells)} |")
    return lines
