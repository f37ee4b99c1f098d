"""Training on data larger than memory, beside data that fit: as fast, and in bounded memory.

python -m benchmarks.beyond_memory               make the data, measure what is not yet measured, write the page
python -m benchmarks.beyond_memory --page        only write the page from the results
python -m benchmarks.beyond_memory --gigabytes 2 --limit-gigabytes 0.7 --rounds 3 --to FILE   a quick try

Needs room on the disk for the data, and a memory controller of control groups that may be written (root on Linux): the
training runs in a group whose memory, the cache of files included, is limited, and its files are put out of the cache
before. On a machine that caches everything the large set would be one that fits.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from benchmarks import groups, results
from benchmarks.results import Result
from benchmarks.rounds import say
from samestep.data.pack import reader, writer
from samestep.data.target import Classes
from samestep.data.tensors.schema import Schema
from samestep.measure import stats

RESULT = results.FOLDER / "beyond_memory.json"
PAGE = results.ROOT / "benchmarks" / "BEYOND_MEMORY.md"

_LEAST, _NUM_VALUES, _BLOCK, _FITTING_ROWS = 0.9, 256, 8192, 500_000
_AT_ONCE = 1 << 16


def make(folder: Path, num_rows: int) -> None:
    """A pack of rows of 1 KB in two classes, unless it is there already."""
    if folder.exists() and reader.open_pack(folder).manifest.num_samples("train") == num_rows:
        return
    rng, schema = np.random.default_rng(0), _schema()
    start = time.monotonic()
    with writer.writing(folder) as place:
        for first in range(0, num_rows, _AT_ONCE):
            num = min(_AT_ONCE, num_rows - first)
            inputs = rng.standard_normal((num, _NUM_VALUES), np.float32)
            place.append("train", "inputs", inputs)
            place.append("train", "target", (inputs[:, :8].sum(axis=1) > 0).astype(np.int64))
            if first // _AT_ONCE % 16 == 0:
                say(f"{folder.name}: {first:,} of {num_rows:,} rows, {time.monotonic() - start:.0f} s")
        statistics = {"classes": {}, "missing": {}, "num_dropped": 0}
        place.finish(
            kind="arrays", schema=schema.as_dict(), statistics=statistics, source="made", made_of={"settings": {}}
        )


def _schema() -> Schema:
    return Schema(shape=(_NUM_VALUES,), target=Classes(name="target", values=("0", "1"), is_numeric=True))


def forget(folder: Path) -> None:
    """Put a folder's files out of the system's cache."""
    for path in folder.glob("*.npy"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def train(pack: Path, group: Path, steps: int, seed: int) -> Result:
    """One training in the group: its speed, and the most memory that it and the group took."""
    (group / "memory.max_usage_in_bytes").write_text("0")
    before = _read_bytes()
    words = [
        sys.executable, "-m", "samestep", "train", "--data", str(pack), "--model", "mlp", "--workers", "2",
        "--shuffle-block", str(_BLOCK), "--global-batch", "1024", "--microbatch", "512", "--steps", str(steps),
        "--seed", str(seed), "--json",
    ]  # fmt: skip
    done = subprocess.run(groups.words_in(group, words), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    record: Result = json.loads(done.stdout)
    return {
        "samples_per_s": record["samples_per_s"],
        "waiting_for_data_frac": record["waiting_for_data_frac"],
        "peak_memory_bytes": record["peak_memory_bytes"],
        "group_bytes": int((group / "memory.max_usage_in_bytes").read_text()),
        "read_bytes": _read_bytes() - before,
        "weights_sha256": record["weights_sha256"],
    }


def _read_bytes() -> int:
    """What the machine's disks have read."""
    counters = psutil.disk_io_counters()
    return 0 if counters is None else int(counters.read_bytes)


def measure_somewhere(arguments: argparse.Namespace) -> Result:
    """Measure in the folder that is named, or in one that is removed."""
    if arguments.folder is not None:
        return measure(arguments, arguments.folder)
    with tempfile.TemporaryDirectory(prefix="samestep-beyond-") as scratch:
        return measure(arguments, Path(scratch))


def measure(arguments: argparse.Namespace, folder: Path) -> Result:
    sizes = {"fits": _FITTING_ROWS, "large": int(arguments.gigabytes * 1e9) // (4 * _NUM_VALUES)}
    for name, num_rows in sizes.items():
        make(folder / name, num_rows)
    runs: dict[str, list[Result]] = {name: [] for name in sizes}
    order = np.random.default_rng(0)
    with groups.limited(int(arguments.limit_gigabytes * 1e9)) as group:
        for number in range(arguments.rounds + 1):
            for name in order.permutation([*sizes]).tolist():
                if name == "large":
                    forget(folder / name)
                found = train(folder / name, group, arguments.steps, seed=number)
                say(f"round {number} of {arguments.rounds}, {name}: {found['samples_per_s']:,.0f} samples/s")
                if number:  # the first one fills the cache with what fits
                    runs[name].append(found)
    return {"runs": runs, "num_rows": sizes}


def page(result: Result) -> str:
    """The page."""
    runs, settings = result["runs"], result["settings"]
    speeds = {name: [each["samples_per_s"] for each in found] for name, found in runs.items()}
    share = stats.ratio(speeds["large"], speeds["fits"])
    waiting = {name: stats.median([100 * each["waiting_for_data_frac"] for each in runs[name]]) for name in runs}

    def most(name: str, what: str) -> float:
        return float(max(each[what] for each in runs[name])) / 2**20

    rows = [
        f"| {name} | {result['num_rows'][name] * 4 * _NUM_VALUES / 1e9:,.1f} GB | {stats.median(speeds[name]).text(0)} "
        f"| {waiting[name].text(2)} | {most(name, 'peak_memory_bytes'):,.0f} | {most(name, 'group_bytes'):,.0f} "
        f"| {np.median([each['read_bytes'] for each in runs[name]]) / 1e9:,.2f} |"
        for name in runs
    ]
    rate = np.median(speeds["large"]) * 4 * _NUM_VALUES / 1e6
    return "\n".join(
        [
            "# Data larger than memory",
            "",
            *results.header([result], what="runs of each, interleaved in random order; medians with 95 % intervals"),
            "",
            (
                f"Rows of {_NUM_VALUES} float32 (1 KB) on disk, the default MLP, 2 workers, global batch 1,024, "
                f"`--shuffle-block {_BLOCK}`, {settings['steps']:,} steps ({settings['steps'] * 1024:,} rows). All "
                f"processes run in a control group limited to {settings['limit_gigabytes']:g} GB, the cache of files "
                "included. The large set is put out of the cache before every run; what fits stays in it."
            ),
            "",
            (
                f"Target: at least {_LEAST} of the speed with data that fit. Measured: {share.text(3)}: "
                f"{results.verdict(share.value, _LEAST, is_least=True)}. The large set is read at {rate:,.0f} MB/s."
            ),
            "",
            "| data | size | samples/s [95 %] | waiting, % | memory of processes, MB | of the group, MB | read, GB |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = results.parser("benchmarks.beyond_memory", __doc__, PAGE)
    parser.add_argument("--gigabytes", type=float, default=20, help="of the large set; default: %(default)s")
    parser.add_argument("--limit-gigabytes", type=float, default=4, help="of the group; default: %(default)s")
    parser.add_argument("--steps", type=int, default=4000, help="of a run; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where the data go and stay; default: a temporary folder")
    arguments = parser.parse_args(words)
    settings = {name: getattr(arguments, name) for name in ("gigabytes", "limit_gigabytes", "steps", "rounds")}
    found = results.read(RESULT)
    if not arguments.page:
        try:
            measure_all = partial(measure_somewhere, arguments)
            module = "benchmarks.beyond_memory"
            found = results.kept(RESULT, settings, measure_all, module=module, is_forced=arguments.force)
        except OSError as error:
            say(f"this machine cannot measure it: {error}")
            return 2
    if found is None:
        say(f"no result in {RESULT}")
        return 1
    arguments.to.write_text(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
