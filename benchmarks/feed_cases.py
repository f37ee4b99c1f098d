"""What is measured, case by case, and how: in every round each program once, whole epochs, in a random order."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import psutil
import torch

from benchmarks import feed_bandwidth, feed_loaders, feed_peers, results
from benchmarks.feed_bandwidth import SHAPES, Copies, Runs
from benchmarks.feed_loaders import BATCH, Loader, Source
from benchmarks.results import ROOT, Result
from samestep.engine import allocator
from samestep.measure.processes import cpu_s, machine_s

FOLDER = results.FOLDER / "feed"
TOOLS = ROOT / ".venv-loaders" / "bin"
FORMAT = 1
VERSIONS = ("torchvision", "pillow", *feed_peers.PACKAGES.values())

Say = Callable[[str], None]
Slots = dict[str, list[dict[str, float]]]
"""By program, one slot a round."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How slots are dealt.

    Args:
        rounds: Rounds, those left out included.
        warm_up: First rounds, run and kept in the results but left out of all statistics.
        slot_s: Shortest slot; a slot holds whole epochs, one at least.
        seed: Of the order within each round.
        most_samples: Rows or pictures are cut to so many, for a trial.
    """

    rounds: int = 17
    warm_up: int = 1
    slot_s: float = 0.3
    seed: int = 0
    most_samples: int = feed_loaders.NUM_ROWS

    def __post_init__(self) -> None:
        if self.warm_up < 0:
            raise ValueError(f"warm_up={self.warm_up} is below 0")
        if self.rounds <= self.warm_up:
            raise ValueError(f"rounds={self.rounds} leaves nothing after {self.warm_up} rounds of timing warm-up")
        if self.slot_s <= 0:
            raise ValueError(f"slot_s={self.slot_s} is not above 0")
        if self.most_samples < 2 * BATCH:
            raise ValueError(f"most_samples={self.most_samples} is below {2 * BATCH}: two batches, to see their order")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured together, in a process of its own.

    Args:
        name: Of its record.
        title: On the page.
        measure: Takes it.
        about: What is in it.
        aim: How many times as long as samestep's feed the fastest loader of the group should take.
        group: The loaders that the aim is about.
    """

    name: str
    title: str
    measure: Callable[[Plan, Say], Result]
    about: str = ""
    aim: float | None = None
    group: str = "dataloader"

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.json"

    def settings(self, plan: Plan) -> Result:
        """What a record must have been made with to count as this case."""
        return {"format": FORMAT, "case": self.name, "batch": BATCH, **asdict(plan)}

    def is_done(self, plan: Plan) -> bool:
        record = results.read(self.path)
        return record is not None and record["settings"] == self.settings(plan)


def run(case: Case, plan: Plan, say: Say) -> None:
    """Measure a case in this process, and write its record."""
    torch.set_num_threads(1)
    allocator.keep_freed()
    start = time.monotonic()
    measured = case.measure(plan, say)
    duration_s = time.monotonic() - start
    measured["loaders"] = versions()
    results.write(
        case.path, results.new(case.settings(plan), measured, module="benchmarks.feed", duration_s=duration_s)
    )


def versions() -> dict[str, str | None]:
    """Of what is compared; None: not installed."""
    found: dict[str, str | None] = {}
    for name in VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if found["torchvision"] and not feed_loaders.torchvision().extension._has_ops():
        found["torchvision"] += " (without its compiled operators, which do not load beside this torch)"
    return found


def deal(runs: Runs, plan: Plan, say: Say) -> Slots:
    """Every program once a round, in a random order; each goes on with the epoch after its last one."""
    slots: Slots = {name: [] for name in runs}
    epochs = dict.fromkeys(runs, 2)  # the first two were taken when it was checked
    order, start = random.Random(plan.seed), time.monotonic()
    for number in range(1, plan.rounds + 1):
        for name in order.sample(list(runs), len(runs)):
            found = _slot(runs[name], epochs[name], plan.slot_s)
            epochs[name] += int(found["num_epochs"])
            slots[name].append(found)
        left_s = (time.monotonic() - start) / number * (plan.rounds - number)
        say(f"round {number}/{plan.rounds}, {left_s / 60:.1f} min left")
    return slots


def _slot(run_epoch: Callable[[int], object], first: int, slot_s: float) -> dict[str, float]:
    own_s, (busy_s, all_s) = _own_s(), machine_s()
    start, count = time.perf_counter(), 0
    while (elapsed_s := time.perf_counter() - start) < slot_s or not count:
        run_epoch(first + count)
        count += 1
    own_s, (busy_now_s, all_now_s) = _own_s() - own_s, machine_s()
    others = (busy_now_s - busy_s - own_s) / max(all_now_s - all_s, 1e-9)
    return {"epoch_s": elapsed_s / count, "num_epochs": count, "others_frac": round(max(0.0, others), 5)}


def _own_s() -> float:
    """Core seconds of this process and its children, those that have ended included."""
    own = psutil.Process()
    ended = own.cpu_times()
    return cpu_s([own.pid, *(child.pid for child in own.children(recursive=True))]) + (
        ended.children_user + ended.children_system
    )


def _loaders(
    plan: Plan, say: Say, *, source: Callable[[], Source], make: Callable[[Source, Path], list[Loader]]
) -> Result:
    """Check every loader, then deal them."""
    with tempfile.TemporaryDirectory(prefix="samestep-feed-") as folder:
        samples = source().first(plan.most_samples)
        loaders = make(samples, Path(folder))
        for loader in loaders:
            start = time.monotonic()
            feed_loaders.check(loader, samples)
            say(f"checked {loader.name} in {time.monotonic() - start:.2f} s")
        return {
            "num_samples": samples.num_samples,
            "groups": {loader.name: loader.group for loader in loaders},
            "slots": deal({loader.name: loader.run for loader in loaders}, plan, say),
        }


def _peer(plan: Plan, say: Say, *, peer: str, source: Callable[[], Source]) -> Result:
    def make(samples: Source, folder: Path) -> list[Loader]:
        return [*feed_loaders.ours(samples), *feed_peers.loaders(peer, samples, folder)]

    try:
        return _loaders(plan, say, source=source, make=make)
    except ImportError as error:
        return {"failure": f"{type(error).__name__}: {error}"}


def _bandwidth(plan: Plan, say: Say) -> Result:
    copies = Copies()
    slots = deal(feed_bandwidth.bandwidth_runs(copies), plan, say)
    moved = {shape.name: shape.moved_bytes for shape in SHAPES}
    return {"slots": slots, "moved_bytes": moved, "copy_bytes_per_s": copies.bytes_per_s}


def _time(plan: Plan, say: Say) -> Result:
    return {"num_samples": feed_loaders.NUM_ROWS, "slots": deal(feed_bandwidth.time_runs(), plan, say)}


def _usual(source: Source, folder: Path) -> list[Loader]:
    return feed_loaders.usual_rows(source)


_DATA = {"table": feed_loaders.table, "pictures": feed_loaders.fashion}

CASES: tuple[Case, ...] = (
    Case(
        name="rows-table",
        title="Rows: 60,000 × 20 float32",
        measure=partial(_loaders, source=feed_loaders.table, make=_usual),
        aim=25,
    ),
    Case(
        name="rows-adult",
        title="Rows: Adult, 32,561 × (6 float32, 8 int64)",
        measure=partial(_loaders, source=feed_loaders.adult, make=_usual),
        aim=25,
    ),
    Case(
        name="pictures",
        title="Pictures: Fashion-MNIST, normalised",
        measure=partial(
            _loaders, source=feed_loaders.fashion, make=partial(feed_loaders.usual_pictures, is_augmented=False)
        ),
        aim=20,
    ),
    Case(
        name="pictures-augmented",
        title="Pictures: Fashion-MNIST, shifted and flipped, normalised",
        measure=partial(
            _loaders, source=feed_loaders.fashion, make=partial(feed_loaders.usual_pictures, is_augmented=True)
        ),
        aim=15,
    ),
    *(
        Case(
            name=f"{data}-{peer}",
            title=f"{feed_peers.PACKAGES[peer]}: {what}",
            measure=partial(_peer, peer=peer, source=_DATA[data]),
            aim=3,
            group=peer,
        )
        for data, what in (("table", "the table of 60,000 × 20"), ("pictures", "Fashion-MNIST, normalised"))
        for peer in feed_peers.PEERS
    ),
    Case(name="bandwidth", title="Bandwidth", measure=_bandwidth),
    Case(name="time", title="Where the time goes", measure=_time),
)
