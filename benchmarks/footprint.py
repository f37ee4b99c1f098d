"""Start-up and memory of samestep on two workers, from the outside.

python -m benchmarks.footprint              measure (or go on where it was interrupted), then write the page
python -m benchmarks.footprint --page       only write the page from the result

This process must not import torch while it measures: it would share torch's pages with what it measures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import psutil

from samestep.run import usage

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "footprint_programs.py"
FOLDER_VARIABLE = "SAMESTEP_FOOTPRINT"
NETS = ("mlp", "cnn")
OURS = "samestep-2"
LAUNCHERS = (OURS, "ddp-spawn", "ddp-torchrun")

_NUM_IMAGES = 60_000
_SAMPLE_EVERY_S = 0.05
_TIMEOUT_S = 300.0
_PEER_TRIALS = 2
"""How often a run of a peer is tried; what fails every time is noted as failed."""

_PAGE = ROOT / "benchmarks" / "FOOTPRINT.md"
_PARTIAL = ROOT / "benchmarks" / "results" / "footprint.partial.json"

Values = dict[str, Any]


class RunError(RuntimeError):
    """A measured program failed; the message holds the end of what it printed.

    Attributes:
        short: How it failed, in a line without anybody's paths.
    """

    def __init__(self, message: str, short: str) -> None:
        super().__init__(message)
        self.short = short


@dataclass
class Partial:
    """Values as they are measured, kept in a file: an interrupted measurement goes on from them.

    Args:
        settings: Values that were measured with others do not count.
        spent_s: Seconds of earlier sessions.
        values: By what was measured, such as "memory/mlp/3/ddp-spawn".
    """

    settings: Values
    spent_s: float = 0.0
    values: dict[str, Values] = field(default_factory=dict)
    start_s: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, settings: Values) -> Partial:
        """What there is for these settings, or nothing yet."""
        old = json.loads(_PARTIAL.read_text()) if _PARTIAL.exists() else {}
        if old.get("settings") != settings:
            return cls(settings)
        _say(f"going on with {len(old['values'])} values that were measured before")
        return cls(settings, old["spent_s"], old["values"])

    @property
    def duration_s(self) -> float:
        """Seconds so far, those of earlier sessions included."""
        return self.spent_s + time.monotonic() - self.start_s

    def keep(self, name: str, value: Values) -> None:
        """Write a value down, whole or not at all."""
        self.values[name] = value
        text = json.dumps({"settings": self.settings, "spent_s": self.duration_s, "values": self.values}, indent=1)
        _PARTIAL.parent.mkdir(parents=True, exist_ok=True)
        scratch = _PARTIAL.with_suffix(".tmp")
        scratch.write_text(text + "\n")
        scratch.replace(_PARTIAL)


def command(launcher: str, net: str, steps: int) -> list[str]:
    """The command line that trains a net with two workers or ranks."""
    tools = Path(sys.executable).parent
    match launcher:
        case "samestep-2":
            return [str(tools / "samestep"), "train", f"{SCRIPT}:{net}", "--workers", "2", "--steps", str(steps)]
        case "ddp-spawn":
            return [sys.executable, str(SCRIPT), net, str(steps)]
        case _:
            # A free port of this machine, found by torchrun itself.
            return [str(tools / "torchrun"), "--standalone", "--nproc-per-node=2", str(SCRIPT), net, str(steps)]


@contextlib.contextmanager
def started(words: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a process group of its own; nothing of it is left afterwards."""
    environment = {**os.environ, FOLDER_VARIABLE: str(folder), "OMP_NUM_THREADS": "1"}
    with open(folder / "output", "wb") as output:
        process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
        )
    family: list[psutil.Process] = []
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for member in family:  # torchrun's ranks have sessions of their own
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
        psutil.wait_procs(family, timeout=5)


def fail(words: Sequence[str], folder: Path, why: str) -> RunError:
    output = (folder / "output").read_text(errors="replace")[-3000:]
    said = output.strip().splitlines()[-1:]
    short = re.sub(r"\S*/\S*", "…", ": ".join([why, *said]))
    return RunError(f"{' '.join(words)} {why}:\n{output}", short[:200])


def import_s() -> float:
    """Seconds from the start of a fresh interpreter until it has imported torch."""
    words = [sys.executable, "-c", "import time, torch; print(time.perf_counter())"]
    start = time.perf_counter()
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
    return float(done.stdout) - start


def startup_s(net: str, folder: Path) -> tuple[float, float]:
    """Seconds from the start of the command until every worker has computed its first, and its second, loss."""
    for path in folder.glob("*.first"):
        path.unlink()
    words = command("samestep-2", net, 50)
    start = time.perf_counter()
    with started(words, folder) as process:
        if process.wait(_TIMEOUT_S) != 0:
            raise fail(words, folder, f"ended with code {process.returncode}")
    times = [[float(word) for word in path.read_text().split()] for path in folder.glob("*.first")]
    if len(times) != 2 or any(len(both) != 2 for both in times):
        raise fail(words, folder, f"wrote the stamps {times}; two workers with two each were expected")
    return max(first for first, _ in times) - start, max(second for _, second in times) - start


def peak_bytes(launcher: str, net: str, steps: int, folder: Path) -> Values:
    """Largest memory of all processes together: the sum of their proportional shares, sampled while they run."""
    (folder / "rendezvous").unlink(missing_ok=True)
    words = command(launcher, net, steps)
    peak = peak_processes = num_samples = 0
    deadline = time.monotonic() + _TIMEOUT_S
    with started(words, folder) as process:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise fail(words, folder, f"did not end in {_TIMEOUT_S:g} s")
            shares = [usage.proportional_bytes(pid) or 0 for pid in _tree(process.pid)]
            total, count = sum(shares), sum(share > 0 for share in shares)
            num_samples += 1
            if total > peak:
                peak, peak_processes = total, count
            time.sleep(_SAMPLE_EVERY_S)
        if process.returncode != 0:
            raise fail(words, folder, f"ended with code {process.returncode}")
    return {"peak_bytes": peak, "processes": peak_processes, "samples": num_samples}


def _tree(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def measure_startup(net: str, pairs: int, folder: Path, partial: Partial) -> Values:
    """Pairs of (import torch, samestep up to its first step), in random order; one pair more goes first unmeasured."""
    names = [f"startup/{net}/{number}" for number in range(1, pairs + 1)]
    todo = [name for name in names if name not in partial.values]
    for name in [f"startup/{net}/0", *todo] if todo else []:
        taken: Values = {}
        for what in random.Random(f"{partial.settings['seed']}/{name}").sample(("import", "start"), 2):
            if what == "import":
                taken["import_s"] = import_s()
            else:
                taken["first_step_s"], taken["second_step_s"] = startup_s(net, folder)
        _say(
            f"{name} of {pairs}: import torch {taken['import_s']:.2f} s, first step after {taken['first_step_s']:.2f} s"
        )
        if name in todo:
            partial.keep(name, taken)
    kinds = ("import_s", "first_step_s", "second_step_s")
    return {kind: [partial.values[name][kind] for name in names] for kind in kinds}


def measure_memory(net: str, repeats: int, steps: int, folder: Path, partial: Partial) -> Values:
    """Every launcher once a repeat, in random order."""
    found: Values = {launcher: [] for launcher in LAUNCHERS}
    for number in range(1, repeats + 1):
        repeat = f"memory/{net}/{number}"
        for launcher in random.Random(f"{partial.settings['seed']}/{repeat}").sample(LAUNCHERS, len(LAUNCHERS)):
            name = f"{repeat}/{launcher}"
            if partial.values.get(name, {}).get("peak_bytes") is None:  # one that failed is tried again
                partial.keep(name, _peak_of(launcher, net, steps, folder))
                _say(f"{name} of {repeats}: {_in_words(partial.values[name])}")
            found[launcher].append(partial.values[name])
    return found


def _peak_of(launcher: str, net: str, steps: int, folder: Path) -> Values:
    """A peak and the failures before it; a peer that always fails has none, and our own failure is no value at all."""
    failures: list[str] = []
    while len(failures) < _PEER_TRIALS:
        try:
            return {**peak_bytes(launcher, net, steps, folder), "failures": failures}
        except RunError as error:
            if launcher == OURS:
                raise
            _say(str(error))
            failures.append(error.short)
    return {"peak_bytes": None, "processes": None, "samples": None, "failures": failures}


def _in_words(taken: Values) -> str:
    if taken["peak_bytes"] is None:
        return f"failed {len(taken['failures'])} times"
    return f"{taken['peak_bytes'] / 2**20:.0f} MB in {taken['processes']} processes"


def measure(partial: Partial) -> Values:
    """Everything that the settings ask for and that has not been measured yet."""
    pairs, repeats, steps = (partial.settings[name] for name in ("pairs", "repeats", "steps"))
    guess_s = len(NETS) * ((pairs + 1) * 10 + repeats * len(LAUNCHERS) * (10 + steps * 0.04))
    _say(f"about {guess_s / 60:.0f} min for the whole")
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="samestep-footprint-") as name:
            folder = Path(name)
            generator = np.random.default_rng(0)
            np.save(folder / "images.npy", generator.integers(256, size=(_NUM_IMAGES, 1, 28, 28), dtype=np.uint8))
            np.save(folder / "labels.npy", generator.integers(10, size=_NUM_IMAGES))
            return {
                "startup": {net: measure_startup(net, pairs, folder, partial) for net in NETS},
                "memory": {net: measure_memory(net, repeats, steps, folder, partial) for net in NETS},
            }
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=__doc__)
    parser.add_argument("--pairs", type=int, default=12, help="start-ups a net; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="memory runs a net and program; default: %(default)s")
    parser.add_argument("--steps", type=int, default=200, help="steps of a memory run; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the order; default: %(default)s")
    parser.add_argument("--page", action="store_true", help="only write the page from the result")
    parser.add_argument("--to", type=Path, default=_PAGE, help="the page to write")
    arguments = parser.parse_args(words)
    if min(arguments.pairs, arguments.repeats, arguments.steps) < 1:
        parser.error("pairs, repeats and steps are 1 or more")
    settings = {name: getattr(arguments, name) for name in ("pairs", "repeats", "steps", "seed")}
    measured = None
    if not arguments.page:
        partial = Partial.open(settings)
        try:
            measured = measure(partial)
        except KeyboardInterrupt:
            _say("stopped; what was measured is kept, the same command goes on")
            return 130
        except RunError as error:
            _say(f"{error}\nwhat was measured is kept, the same command goes on")
            return 1
    # Imports torch, to describe the machine: only now, when nothing is measured any more.
    page = import_module("benchmarks.footprint_page")
    if measured is not None:
        page.keep(settings, measured, partial.duration_s)
        _PARTIAL.unlink(missing_ok=True)
    text = page.render()
    if text is None:
        _say("no result yet")
        return 1
    arguments.to.write_text(text)
    _say(f"wrote {arguments.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
