"""kfac untuned: how good a network is after a few large steps, and what such a step costs.

python -m benchmarks.kfac               what has no result yet, then write the page
python -m benchmarks.kfac --cases goal-full-8   only these
python -m benchmarks.kfac --page        only write the page from the results
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from torch import nn

import samestep
from benchmarks import results
from benchmarks.results import Case, Result
from benchmarks.rounds import say
from samestep.data.columns import Dataset, Rows, Samples
from samestep.measure import stats
from samestep.workloads import catalog

FOLDER = results.FOLDER / "kfac"
MODULE = "benchmarks.kfac"
PAGE = results.ROOT / "benchmarks" / "KFAC.md"

NUM_TRAIN, NUM_HELD_OUT, WIDTH = 50_000, 10_000, 128
GOAL = 0.115
SEEDS = (101, 102, 103, 104, 105)
SMOOTHING = 0.1

_BUDGETS = {NUM_TRAIN: (6, 8, 10, 12), 8192: (12, 16), 4096: (24, 32)}
"""Steps that are tried for each global batch; the first one that is no stretch is the target."""
_TARGETS = {NUM_TRAIN: 8, 8192: 12, 4096: 24}
_COST_ROUNDS, _COST_STEPS = 3, 6
_MOST_TIMES, _MOST_ON_TWO = 3.0, 0.6


def _goal_name(batch: int, steps: int) -> str:
    return f"goal-{'full' if batch == NUM_TRAIN else batch}-{steps}"


_GOALS = {_goal_name(batch, steps): (batch, steps) for batch, budgets in _BUDGETS.items() for steps in budgets}
_COSTS = {f"cost-{'full' if batch == NUM_TRAIN else batch}": batch for batch in _BUDGETS}


def workload(smoothing: float = 0.0) -> samestep.Workload:
    """fashion-mlp at the study's width, its last 10,000 training images held out; the test part is not looked at."""
    built = catalog.build("fashion-mlp", width=WIDTH)
    whole = built.data().train

    def part(start: int, stop: int) -> Samples:
        inputs = tuple(_cut(column, start, stop) for column in whole.inputs)
        return Samples(inputs, _cut(whole.target, start, stop))

    data = Dataset(part(0, NUM_TRAIN), part(NUM_TRAIN, NUM_TRAIN + NUM_HELD_OUT))
    return replace(
        built, data=lambda: data, loss=nn.CrossEntropyLoss(label_smoothing=smoothing), recipe={}, target=None
    )


def _cut(column: Any, start: int, stop: int) -> Rows:
    assert isinstance(column, Rows)
    return replace(column, values=column.tensor[start:stop])


def _train(work: samestep.Workload, batch: int, steps: int, **settings: Any) -> samestep.Result:
    return samestep.train(work, global_batch=batch, steps=steps, noise_scale="off", **settings)


def measure_goal(batch: int, steps: int) -> Result:
    """Held-out errors at the end of a budget, read once, with fresh seeds; and rows read beyond those of the steps."""
    errors: dict[str, list[float]] = {}
    rows: list[int] = []
    for smoothing in (0.0, SMOOTHING):
        work = workload(smoothing)
        found = errors.setdefault(str(smoothing), [])
        for seed in SEEDS:
            record = _train(work, batch, steps, optimizer="kfac", seed=seed, workers=2).record
            found.append(1 - record.evaluations[-1].means["accuracy"])
            rows.append(record.steps.num_rows - record.num_samples)
            say(f"{batch} rows, {steps} steps, smoothing {smoothing}, seed {seed}: error {found[-1]:.4f}")
    return {"errors": errors, "rows_beyond": rows}


def measure_cost(batch: int) -> Result:
    """Seconds of a step by plain gradients and by kfac, on one worker and on two, in turns."""
    work = workload()
    programs = {"sgd-1": ("sgd", 1), "kfac-1": ("kfac", 1), "sgd-2": ("sgd", 2), "kfac-2": ("kfac", 2)}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(_COST_ROUNDS):
        for name, (optimizer, workers) in programs.items():
            rate = {} if optimizer == "kfac" else {"lr": 0.1}
            record = _train(work, batch, _COST_STEPS, optimizer=optimizer, workers=workers, seed=number, **rate).record
            seconds[name].append(median(record.steps.as_lists()["duration_s"][1:]))
            say(f"{batch} rows, {name}: {seconds[name][-1]:.3f} s a step")
    return {"seconds": seconds}


def page(found: Mapping[str, Result]) -> str:
    """The page."""
    lines = ["# kfac: few and large steps", ""]
    lines += results.header(list(found.values()), what=f"{len(SEEDS)} seeds a budget, {_COST_ROUNDS} rounds of times")
    lines += [
        "",
        (
            f"`fashion-mlp --width {WIDTH}`, {NUM_TRAIN:,} training images, the last {NUM_HELD_OUT:,} of the training "
            f"part held out; kfac with nothing set; goal: held-out error ≤ {GOAL}, read once at the end of a fixed "
            "number of steps. Medians over fresh seeds, smallest and largest in brackets. Passes for products and "
            "candidates (on a quarter of the batch, 1,024 to 8,192 rows; below the full batch rows of a later step) "
            "come on top of the batch's own."
        ),
        "",
        "| batch | steps | error, plain loss | error, label smoothing 0.1 | rows read beyond the batch's, a step | |",
        "|---|---|---|---|---|---|",
    ]
    for name, (batch, steps) in _GOALS.items():
        if name in found:
            errors = found[name]["errors"]
            medians = {smoothing: median(values) for smoothing, values in errors.items()}
            plain, smoothed = (results.verdict(value, GOAL, is_least=False) for value in medians.values())
            verdict = f"plain {plain}, smoothed {smoothed}" if steps == _TARGETS[batch] else ""
            cells = [f"{medians[key]:.4f} [{min(errors[key]):.4f}, {max(errors[key]):.4f}]" for key in errors]
            cells.append(_rows_beyond(found[name].get("rows_beyond"), batch, steps))
            lines.append(f"| {batch:,} | {steps} | {' | '.join(cells)} | {verdict} |")
    lines += ["", "## A step", "", "Seconds, and ratios with 95 % intervals (Student's of logarithms).", ""]
    lines += ["| batch | sgd, 1 worker | kfac, 1 worker | kfac over sgd | sgd, 2 workers | kfac, 2 workers "]
    lines[-1] += "| kfac over sgd, 2 workers | kfac, 2 workers over 1 |"
    lines += ["|---" * 8 + "|"]
    for name, batch in _COSTS.items():
        if name in found:
            times = found[name]["seconds"]
            cells = [f"{batch:,}"]
            for workers in (1, 2):
                ours, plain = times[f"kfac-{workers}"], times[f"sgd-{workers}"]
                cells += [f"{median(plain):.3f}", f"{median(ours):.3f}", stats.ratio(ours, plain).text(2)]
            cells.append(stats.ratio(times["kfac-2"], times["kfac-1"]).text(2))
            lines.append(f"| {' | '.join(cells)} |")
    times = {batch: found[name]["seconds"] for name, batch in _COSTS.items() if name in found}
    if times:
        lines += ["", *_cost_verdicts(times)]
    return "\n".join(lines) + "\n"


def _rows_beyond(rows: Sequence[int] | None, batch: int, steps: int) -> str:
    """Read for factors, products and candidates, and what share of the batch that is."""
    if rows is None:
        return "not kept"
    beyond = median(rows) / steps
    return f"{beyond:,.0f} ({beyond / batch:.2f} × the batch)"


def _cost_verdicts(times: Mapping[int, Mapping[str, Sequence[float]]]) -> list[str]:
    """A step's time at each batch against what it may be."""
    lines = []
    for what, one, other, most in (
        ("A step of kfac over the gradient's, one worker", "kfac-1", "sgd-1", _MOST_TIMES),
        ("kfac on two workers over one", "kfac-2", "kfac-1", _MOST_ON_TWO),
    ):
        found = [
            f"{batch:,}: {results.verdict(stats.ratio(each[one], each[other]).value, most, is_least=False)}"
            for batch, each in times.items()
        ]
        lines.append(f"- {what}, at most {most:g}: {', '.join(found)}.")
    return lines


def _cases() -> Mapping[str, Case]:
    goals: dict[str, Case] = {
        name: ({"batch": batch, "steps": steps, "seeds": list(SEEDS)}, partial(measure_goal, batch, steps))
        for name, (batch, steps) in _GOALS.items()
    }
    costs: dict[str, Case] = {
        name: ({"batch": batch, "rounds": _COST_ROUNDS, "steps": _COST_STEPS}, partial(measure_cost, batch))
        for name, batch in _COSTS.items()
    }
    return {**goals, **costs}


def main(words: Sequence[str] | None = None) -> int:
    cases = _cases()
    arguments = results.parser(MODULE, __doc__, PAGE, cases=cases).parse_args(words)
    return results.run_cases(cases, arguments, FOLDER, page, module=MODULE)


if __name__ == "__main__":
    sys.exit(main())
