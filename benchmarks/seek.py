"""How long it takes to find the samples of any step of any epoch, without any step before it.

python -m benchmarks.seek           measure, then write the page
python -m benchmarks.seek --page    only write the page from the results
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from benchmarks import results
from benchmarks.results import Result
from samestep.plan.order import Order

MODULE = "benchmarks.seek"
FOLDER = results.FOLDER / "seek"
PAGE = results.ROOT / "benchmarks" / "SEEK.md"
NUM_ROWS, BATCH, NUM_SEEKS = 10**9, 256, 2000
MOST_MS = 1.0
CASES: Mapping[str, int | None] = {"permutation": None, "blocks-of-4096": 4096}


def measure(block: int | None) -> Result:
    """Seconds of seeks to random steps of random epochs, each with an order that knows nothing yet."""
    draw = random.Random(0)
    seconds = []
    for _ in range(NUM_SEEKS):
        epoch, start = draw.randrange(1000), draw.randrange(NUM_ROWS // BATCH) * BATCH
        seed, begin = draw.randrange(1 << 30), time.perf_counter()
        order = Order(num_samples=NUM_ROWS, seed=seed, block=block)
        found = order.indices(epoch=epoch, start=start, stop=start + BATCH)
        seconds.append(time.perf_counter() - begin)
        assert len(found) == BATCH
    return {"seconds": seconds}


def page(found: Mapping[str, Result]) -> str:
    """The page."""
    lines = [
        "# Seeking to a step",
        "",
        *results.header(list(found.values()), what=f"{NUM_SEEKS:,} seeks a case"),
        "",
        (
            f"The indices of the {BATCH} samples of a random step in a random epoch of {NUM_ROWS:,} rows; every time "
            "with a new order, so that nothing is remembered."
        ),
        "",
        "| order | median, ms | 99 of 100, ms | most, ms | 99 of 100 at most 1 ms |",
        "|---|---|---|---|---|",
    ]
    for name, result in found.items():
        median, late, most = np.quantile(result["seconds"], [0.5, 0.99, 1.0]) * 1e3
        verdict = results.verdict(float(late), MOST_MS, is_least=False, unit=" ms")
        lines.append(f"| {name} | {median:.3f} | {late:.3f} | {most:.3f} | {verdict} |")
    return "\n".join([*lines, ""])


def main(words: Sequence[str] | None = None) -> int:
    arguments = results.parser(MODULE, __doc__, PAGE, cases=CASES).parse_args(words)
    cases = {name: ({"block": block, "rows": NUM_ROWS}, partial(measure, block)) for name, block in CASES.items()}
    return results.run_cases(cases, arguments, FOLDER, page, module=MODULE)


if __name__ == "__main__":
    sys.exit(main())
