"""How fast sources are packed: a CSV file beside the readers that only parse it, and PNG files on one core and on all.

python -m benchmarks.packing               measure what is not yet measured, then write the page
python -m benchmarks.packing --page        only write the page from the results
python -m benchmarks.packing --megabytes 64 --rounds 3 --to FILE   a quick try
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module, util
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl

from benchmarks import groups, results
from benchmarks.results import Case, Result
from benchmarks.rounds import say
from samestep.data import images, making
from samestep.data.settings import DataSettings
from samestep.host.cores import num_cores
from samestep.measure import stats

FOLDER = results.FOLDER / "packing"
PAGE = results.ROOT / "benchmarks" / "PACKING.md"

_LEAST, _NUM_NUMBERS = 0.8, 16
_GROWING = (1, 4, 12)
"""How many times as large the files get."""
_LIMIT_BYTES = 1_000_000_000
_NUM_PICTURES = 60_000

Times = dict[str, list[float]]


def write_csv(path: Path, megabytes: int) -> None:
    """Numbers with five decimals, two columns of texts and a target of classes."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        while file.tell() < megabytes * 1_000_000:
            num = 50_000
            columns: dict[str, Any] = {f"x{n}": rng.normal(size=num).round(5) for n in range(_NUM_NUMBERS)}
            columns["color"] = rng.choice(["red", "green", "blue", "none of them"], num)
            columns["town"] = rng.choice([f"town {n}" for n in range(300)], num)
            columns["y"] = rng.integers(0, 2, num)
            pl.DataFrame(columns).write_csv(file, include_header=file.tell() == 0)


def _tell(what: str, done: int, total: int) -> None:
    """Tells nobody."""


def pack(path: Path, folder: Path) -> None:
    making.ensure(str(path), folder, DataSettings(target="y"), _tell)


def readers(path: Path) -> dict[str, Callable[[], object]]:
    """What parses the file and does no more: types known, all cores, every row looked at."""
    schema = {name: pl.Float64 if name[0] in "xy" else pl.String for name in pl.read_csv(path, n_rows=1).columns}
    found: dict[str, Callable[[], object]] = {
        "polars, read_csv": lambda: pl.read_csv(path, schema=schema),
        "polars, batches": lambda: [len(each) for each in pl.scan_csv(path, schema=schema).collect_batches()],
    }
    if util.find_spec("pyarrow") is not None:
        arrow = import_module("pyarrow.csv")
        found["pyarrow, read_csv"] = lambda: arrow.read_csv(path)
        found["pyarrow, open_csv"] = lambda: [len(each) for each in arrow.open_csv(path)]
    return found


def measure_csv(megabytes: int, num_rounds: int) -> Result:
    """Seconds of each program, interleaved."""
    with tempfile.TemporaryDirectory(prefix="samestep-packing-") as name:
        folder = Path(name)
        write_csv(folder / "t.csv", megabytes)
        programs = readers(folder / "t.csv")
        times: Times = {program: [] for program in [*programs, "samestep", "samestep-twin"]}
        order = np.random.default_rng(0)
        for number in range(num_rounds + 1):
            say(f"csv: round {number} of {num_rounds}")
            for program in order.permutation([*times]).tolist():
                target = folder / f"pack-{number}-{program}"
                start = time.perf_counter()
                programs.get(program, partial(pack, folder / "t.csv", target))()
                if number:  # the first one warms the file cache
                    times[program].append(time.perf_counter() - start)
        return {"times": times, "num_bytes": (folder / "t.csv").stat().st_size}


def measure_memory(megabytes: int) -> Result:
    """The most memory of their own that processes take to pack larger and larger files, and one under a limit."""
    runs: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="samestep-packing-") as name:
        path = Path(name) / "t.csv"
        for factor in _GROWING:
            say(f"memory: {factor} times {megabytes} MB")
            write_csv(path, factor * megabytes)
            runs.append(_in_a_process(path, []))
        with groups.limited(_LIMIT_BYTES) as group:
            runs.append({**_in_a_process(path, groups.words_in(group, [])), "limit_bytes": _LIMIT_BYTES})
    return {"runs": runs}


def _in_a_process(path: Path, before: Sequence[str]) -> Result:
    """Pack in a process of its own."""
    folder = path.with_name("pack")
    code = "import sys; from benchmarks import packing; packing.pack_and_tell(*sys.argv[1:])"
    words = [*before, sys.executable, "-c", code, str(path), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=results.ROOT)
    shutil.rmtree(folder)
    told: Result = json.loads(done.stdout.splitlines()[-1])
    return {**told, "num_bytes": path.stat().st_size}


def pack_and_tell(path: str, folder: str) -> None:
    """Pack, and print the seconds and the most memory of its own that this process had.

    Its own are its heaps and stacks. Pages of files are left out, mapped ones too: the system takes them back at will.
    """
    peak, is_done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_done.wait(0.005):
            status = Path("/proc/self/status").read_text()
            peak = max(peak, int(status.split("RssAnon:")[1].split()[0]) * 1024)

    watching = threading.Thread(target=watch)
    watching.start()
    start = time.perf_counter()
    pack(Path(path), Path(folder))
    took = time.perf_counter() - start
    is_done.set()
    watching.join()
    print(json.dumps({"seconds": took, "peak_bytes": peak}))


def measure_pictures(num_pictures: int, num_rounds: int) -> Result:
    """Seconds to pack PNG files with one process and with one per core, interleaved."""
    from PIL import Image  # noqa: PLC0415

    from samestep.data.pictures import making as pictures  # noqa: PLC0415

    training, _ = images.mnist_like("fashion-mnist")
    with tempfile.TemporaryDirectory(prefix="samestep-packing-") as name:
        folder = Path(name)
        for number in range(num_pictures):
            place = folder / "set" / str(training.labels[number])
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(training.images[number]).save(place / f"{number:05}.png")
        times: Times = {"1": [], str(num_cores()): []}
        for number in range(num_rounds + 1):
            say(f"pictures: round {number} of {num_rounds}")
            for count in times:
                start = time.perf_counter()
                with patch.object(pictures, "num_cores", return_value=int(count)):
                    making.ensure(str(folder / "set"), folder / f"pack-{number}-{count}", DataSettings(), _tell)
                if number:
                    times[count].append(time.perf_counter() - start)
    return {"times": times, "num_pictures": num_pictures}


def page(found: Mapping[str, Result]) -> str:
    """The page."""
    kept = list(found.values())
    what = "interleaved, each program once a round in random order; medians with 95 % intervals"
    lines = ["# Packing", "", *results.header(kept, what=what), ""]
    if "csv" in found:
        lines += _csv_lines(found["csv"])
    if "memory" in found:
        lines += _memory_lines(found["memory"])
    if "pictures" in found:
        lines += _picture_lines(found["pictures"])
    return "\n".join(lines) + "\n"


def _csv_lines(result: Result) -> list[str]:
    times: Times = result["times"]
    peers = [name for name in times if not name.startswith("samestep")]
    fastest = min(peers, key=lambda name: float(np.median(times[name])))
    share = stats.ratio(times[fastest], times["samestep"])
    megabytes = result["num_bytes"] / 1e6
    return [
        "## A CSV file",
        "",
        (
            f"{megabytes:,.0f} MB, {_NUM_NUMBERS} columns of numbers, 2 of texts. The readers know the types and only "
            "parse; samestep finds out what the columns are, splits, fits, encodes, hashes and writes."
        ),
        "",
        (
            f"Target: at least {_LEAST} of the fastest reader's rate. Against {fastest}: {share.text(3)}: "
            f"{results.verdict(share.value, _LEAST, is_least=True)}."
        ),
        "",
        "| program | MB/s [95 %] |",
        "|---|---|",
        *(f"| {name} | {stats.median([megabytes / s for s in each]).text(1)} |" for name, each in times.items()),
        "",
    ]


def _memory_lines(result: Result) -> list[str]:
    rows = [
        f"| {run['num_bytes'] / 1e6:,.0f} | {_limit(run)} | {run['peak_bytes'] / 1e6:,.0f} | {run['seconds']:.1f} |"
        for run in result["runs"]
    ]
    return [
        "## Memory",
        "",
        (
            "The same table in larger files; a process each, the readers' libraries and torch in it. Its own memory is "
            "what the system cannot take back. The limit is a control group's, the cache of files included."
        ),
        "",
        "| file, MB | limit, MB | own memory at most, MB | seconds |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def _limit(run: Result) -> str:
    return f"{run['limit_bytes'] / 1e6:,.0f}" if "limit_bytes" in run else "none"


def _picture_lines(result: Result) -> list[str]:
    times: Times = result["times"]
    one, many = times.values()
    rows = [
        f"| {count} | {stats.median([result['num_pictures'] / s for s in each]).text(0)} |"
        for count, each in times.items()
    ]
    return [
        "## PNG files",
        "",
        (
            f"{result['num_pictures']:,} pictures of Fashion-MNIST, a file each. One process over all cores: "
            f"{stats.ratio(one, many).text(2)}."
        ),
        "",
        "| processes | pictures/s [95 %] |",
        "|---|---|",
        *rows,
        "",
    ]


def main(words: Sequence[str] | None = None) -> int:
    parser = results.parser("benchmarks.packing", __doc__, PAGE, cases=("csv", "memory", "pictures"))
    parser.add_argument("--megabytes", type=int, default=200, help="of the CSV file; default: %(default)s")
    parser.add_argument("--pictures", type=int, default=_NUM_PICTURES, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    arguments = parser.parse_args(words)
    num_rounds, few = arguments.rounds, max(3, arguments.rounds // 3)
    cases: dict[str, Case] = {
        "csv": (
            {"megabytes": arguments.megabytes, "rounds": num_rounds},
            partial(measure_csv, arguments.megabytes, num_rounds),
        ),
        "memory": ({"megabytes": arguments.megabytes}, partial(measure_memory, arguments.megabytes)),
        "pictures": (
            {"pictures": arguments.pictures, "rounds": few},
            partial(measure_pictures, arguments.pictures, few),
        ),
    }
    return results.run_cases(cases, arguments, FOLDER, page, module="benchmarks.packing")


if __name__ == "__main__":
    sys.exit(main())
