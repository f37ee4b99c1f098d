"""The best learning rate over width and depth, with and without μP; and the noise scale there.

python -m benchmarks.widths                measure what is not yet measured, part by part, then write the page
python -m benchmarks.widths --page         only write the page from the results
python -m benchmarks.widths --cases width-64-mup-adam --steps 20 --seeds 1 --results DIR --to FILE   a quick try

A part is one network, one way and one optimiser: all learning rates, side by side on the cores, each on one thread.
Widths are those of fashion-mlp (784-w-w-10), depths the numbers of blocks of a residual network of width 64.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from benchmarks import results
from benchmarks.results import Result
from benchmarks.rounds import say
from samestep.data import images
from samestep.data.columns import Dataset
from samestep.errors import NonFiniteError
from samestep.host.cores import num_cores
from samestep.run.train import train
from samestep.run.workload import Workload
from samestep.workloads.feed_forward import layers

MODULE = "benchmarks.widths"
FOLDER = results.FOLDER / "widths"
PAGE = results.ROOT / "benchmarks" / "WIDTHS.md"

Axis = Literal["width", "depth"]
Way = Literal["mup", "standard"]

SIZES: Mapping[Axis, tuple[int, ...]] = {"width": (64, 128, 256, 512, 1024, 2048), "depth": (3, 6, 12)}
"""The first is the base."""
WAYS: tuple[Way, ...] = ("mup", "standard")
RATES: Mapping[str, tuple[float, ...]] = {
    "adam": tuple(2.0**power for power in range(-14, -4)),
    "sgd": tuple(2.0**power for power in range(-9, 1)),
}
FACTOR = 1.5
"""The best learning rate of the largest network may be so many times that of the smallest, or a part of it."""

_ROWS, _BATCH, _RESIDUAL_WIDTH, _LAST = 10_000, 128, 64, 0.1


class Branch(nn.Module):
    """``x + w2 relu(w1 norm(x))``."""

    branch_ends = ("inner.3",)

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = nn.Linear(width, width)
        self.inner = nn.Sequential(nn.LayerNorm(width), hidden, nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = x + self.inner(x)
        return summed


def residual(*, width: int, depth: int) -> nn.Sequential:
    """784 numbers to 10 scores through so many branches."""
    blocks = [Branch(width) for _ in range(depth)]
    return nn.Sequential(nn.Linear(784, width), *blocks, nn.LayerNorm(width), nn.Linear(width, 10))


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is measured together: one network, one way, one optimiser."""

    axis: Axis
    size: int
    way: Way
    optimizer: str

    @property
    def name(self) -> str:
        return f"{self.axis}-{self.size}-{self.way}-{self.optimizer}"

    def workload(self) -> Workload:
        training, _ = images.mnist_like("fashion-mnist")
        first = images.Pictures(training.images[:_ROWS], training.labels[:_ROWS])
        smallest, is_scaled = SIZES[self.axis][0], self.way == "mup"
        if self.axis == "width":
            build = partial(layers, 784, depth=2, num_classes=images.NUM_CLASSES)
            model, base = partial(build, width=self.size), partial(build, width=smallest)
        else:
            model = base = partial(residual, width=_RESIDUAL_WIDTH, depth=self.size)
        return Workload(
            name=self.name,
            model=model,
            data=lambda: Dataset(first.samples((784,)), None),
            loss=nn.CrossEntropyLoss(),
            base_model=base if is_scaled else None,
            depth_ratio=self.size / smallest if is_scaled and self.axis == "depth" else 1.0,
        )


PARTS = tuple(
    Part(axis=axis, size=size, way=way, optimizer=optimizer)
    for optimizer in RATES
    for axis, sizes in SIZES.items()
    for size in sizes
    for way in WAYS
)


def run(part: Part, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """One training: the mean loss of its last tenth, and its noise scale; None for a loss that is not finite."""
    settings: dict[str, Any] = {"optimizer": part.optimizer, "lr": rate, "seed": seed, "steps": steps}
    try:
        found = train(
            part.workload(), workers=1, global_batch=_BATCH, lr_schedule="linear", noise_scale=2, **settings
        ).record
    except NonFiniteError:
        return {"loss": None, "noise_scale": None}
    losses = found.steps.as_lists()["loss"]
    assert found.pairs is not None
    return {
        "loss": float(np.mean(losses[-max(1, round(_LAST * steps)) :])),
        "noise_scale": found.pairs.noise_scale().value,
    }


def measure(part: Part, num_seeds: int, steps: int) -> Result:
    """All learning rates and seeds of a part."""
    say(f"{part.name}: {len(RATES[part.optimizer])} rates, {num_seeds} seeds, {steps} steps")
    asked = [(rate, seed) for rate in RATES[part.optimizer] for seed in range(num_seeds)]
    with ProcessPoolExecutor(num_cores(), mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, part, rate, seed, steps) for rate, seed in asked]
        return {
            "runs": [{"lr": r, "seed": s, **each.result()} for (r, s), each in zip(asked, futures, strict=True)],
        }


@dataclass(frozen=True, kw_only=True)
class Best:
    """Where the loss of a part is lowest.

    Args:
        rate: Between those that were tried.
        loss: At the nearest of them.
        noise_scale: There, too.
        flaw: "edge": it is the lowest or highest that was tried, and a better one may lie beyond; "grid": a neighbour
            diverged, so it is one of those that were tried; otherwise empty.
    """

    rate: float
    loss: float
    noise_scale: float | None
    flaw: str


def best(result: Result) -> Best | None:
    """The best learning rate by a parabola through the best one and its neighbours; None where every run diverged.

    >>> runs = [{"lr": 2.0**n, "loss": (n - 1.25) ** 2, "noise_scale": None} for n in range(4)]
    >>> round(math.log2(best({"runs": runs}).rate), 6)
    1.25
    """
    rates = sorted({each["lr"] for each in result["runs"]})
    losses = []
    for rate in rates:
        found = [each["loss"] for each in result["runs"] if each["lr"] == rate]
        losses.append(math.inf if None in found else float(np.mean(found)))
    at = int(np.argmin(losses))
    if not math.isfinite(losses[at]):
        return None
    logs, shift = np.log2(rates), 0.0
    flaw = "edge" if at in (0, len(rates) - 1) else ""
    if not flaw and not all(math.isfinite(losses[near]) for near in (at - 1, at + 1)):
        flaw = "grid"
    if not flaw:
        before, here, after = losses[at - 1 : at + 2]
        curvature = before - 2 * here + after
        shift = 0.5 * (before - after) / curvature * float(logs[at + 1] - logs[at]) if curvature > 0 else 0.0
    scales = [each["noise_scale"] for each in result["runs"] if each["lr"] == rates[at] and each["noise_scale"]]
    noise_scale = float(np.median(scales)) if scales else None
    return Best(rate=float(2 ** (logs[at] + shift)), loss=losses[at], noise_scale=noise_scale, flaw=flaw)


def page(found: Mapping[str, Result]) -> str:
    """The page."""
    first = next(iter(found.values()))["settings"]
    what = f"{first['seeds']} seeds, {first['steps']} steps of {_BATCH}, {_ROWS:,} rows; mean loss of the last tenth"
    lines = ["# The best learning rate over width and depth", "", *results.header(list(found.values()), what=what), ""]
    lines.append(
        "Adam, and SGD with momentum 0.9; linear decay. The best rate lies between those that were tried (factors of "
        "2), by a parabola; *grid*: it is one of those, for a neighbour diverged; *edge*: the lowest or highest. Rates "
        "are those of the base network (the first row): μP changes them from there. The noise scale, in samples, is "
        "that of the later half at the best rate."
    )
    for axis, sizes in SIZES.items():
        for optimizer in RATES:
            lines += _table(found, axis, sizes, optimizer)
    return "\n".join(lines) + "\n"


def _table(found: Mapping[str, Result], axis: Axis, sizes: Sequence[int], optimizer: str) -> list[str]:
    names = {way: {size: f"{axis}-{size}-{way}-{optimizer}" for size in sizes} for way in WAYS}
    bests = {
        way: {size: best(found[name]) for size, name in of_way.items() if name in found}
        for way, of_way in names.items()
    }
    if not any(bests.values()):
        return []
    head = f"| {axis} | μP: best lr | loss | noise scale | standard: best lr | loss | noise scale |"
    lines = ["", f"## {axis.capitalize()}, {optimizer}", "", head, "|---|---|---|---|---|---|---|"]
    for size in sizes:
        cells = [cell for way in WAYS for cell in _cells(bests[way].get(size))]
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    lines.append("")
    lines += [f"- {way}: {_change(axis, way, sizes, bests[way])}." for way in WAYS]
    return lines


def _change(axis: Axis, way: Way, sizes: Sequence[int], bests: Mapping[int, Best | None]) -> str:
    """How the best rate changes from the smallest network to the largest."""
    first, last = (bests.get(size) for size in (sizes[0], sizes[-1]))
    between = f"from {axis} {sizes[0]} to {sizes[-1]:,}"
    if first is None or last is None:
        return f"{between}: not measured, or every run diverged"
    factor = max(last.rate / first.rate, first.rate / last.rate)
    told = f"{between} the best rate changes {factor:.2f} times"
    if "edge" in (first.flaw, last.flaw):
        return f"{told} or more, for one is at the edge of what was tried"
    if way == "standard":
        return told
    return f"{told}, at most {FACTOR:g}: {results.verdict(factor, FACTOR, is_least=False)}"


def _cells(each: Best | None) -> tuple[str, ...]:
    if each is None:
        return ("-", "-", "-")
    flaw = f" ({each.flaw})" if each.flaw else ""
    scale = "-" if each.noise_scale is None else f"{each.noise_scale:,.0f}"
    return (f"{each.rate:.3g}{flaw}", f"{each.loss:.3f}", scale)


def main(words: Sequence[str] | None = None) -> int:
    parser = results.parser(MODULE, __doc__, PAGE, cases=[part.name for part in PARTS])
    parser.add_argument("--steps", type=int, default=160, help="of a run; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the results; default: %(default)s")
    arguments = parser.parse_args(words)
    settings: Result = {"steps": arguments.steps, "seeds": arguments.seeds, "rows": _ROWS, "batch": _BATCH}
    cases = {part.name: (settings, partial(measure, part, arguments.seeds, arguments.steps)) for part in PARTS}
    return results.run_cases(cases, arguments, arguments.results, page, module=MODULE)


if __name__ == "__main__":
    sys.exit(main())
