"""FEED.md from the records: ratios per round, their medians and intervals; met or missed is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks import results
from benchmarks.feed_bandwidth import SHAPES, TABLE_BYTES
from benchmarks.feed_cases import CASES, VERSIONS, Case
from benchmarks.feed_loaders import BATCH, BY_HAND, BY_STEP, NUM_ROWS, OURS, TWIN
from benchmarks.results import Result
from samestep.measure import stats
from samestep.measure.stats import Estimate, Values

_BANDWIDTH_AIM = 0.6
_LABELS = {
    OURS: "samestep",
    TWIN: "the same once more",
    BY_STEP: "samestep, asked for each step",
    BY_HAND: "by hand: `randperm`, then indexing",
    "batch-sampler": "DataLoader, `batch_size=None` and a BatchSampler as `sampler`",
    "grain-threads": "MapDataset, its 16 reading threads (default)",
    "grain-0": "MapDataset, `num_threads=0`",
    "grain-processes-2": "MapDataset, `mp_prefetch` with `num_workers=2`",
    "datasets-iter": "`shuffle(seed).iter(256)`",
    "nodes-thread-1": 'nodes, `method="thread"`, `num_workers=1`',
    "nodes-process-2": 'nodes, `method="process"`, `num_workers=2`',
}
_KINDS = {
    "dataloader": "DataLoader",
    "datasets": 'DataLoader over `with_format("torch")`',
    "streaming": "DataLoader over LocalDataset",
    "streaming-dataset": "DataLoader over StreamingDataset",
    "torchdata": "StatefulDataLoader",
}

Lines = list[str]


@dataclass(frozen=True)
class Measured:
    """What was measured of a case; rounds of the timing warm-up are left out.

    Args:
        case: Which.
        record: All of it.
        epoch_s: Seconds an epoch, by program; one a round.
    """

    case: Case
    record: Result
    epoch_s: Mapping[str, Values]

    @classmethod
    def of(cls, case: Case, record: Result) -> Measured:
        kept = _kept(record)
        return cls(case, record, {name: np.array([each["epoch_s"] for each in slots]) for name, slots in kept.items()})

    @property
    def num_batches(self) -> int:
        return -(-int(self.record["num_samples"]) // BATCH)

    @property
    def fastest(self) -> str | None:
        """Of the loaders that the aim is about, by its median."""
        names = [name for name, group in self.record.get("groups", {}).items() if group == self.case.group]
        return min(names, key=lambda name: float(np.median(self.epoch_s[name]))) if names else None

    def over_ours(self, name: str) -> Estimate:
        """How many times as long as samestep's feed a loader takes."""
        return stats.ratio(self.epoch_s[name], self.epoch_s[OURS])


def render(found: Mapping[str, Result]) -> str:
    """The page."""
    measured = [Measured.of(case, found[case.name]) for case in CASES if case.name in found]
    by_name = {each.case.name: each for each in measured}
    loaders = [each for each in measured if each.case.aim is not None]
    lines = ["# Samples to batches", "", *_header(measured), "", *_about(), ""]
    lines += _targets(loaders, by_name.get("bandwidth"))
    for each in loaders:
        lines += ["", *_loaders(each)]
    for name, section in (("bandwidth", _bandwidth), ("time", _time)):
        if name in by_name:
            lines += ["", *section(by_name[name])]
    return "\n".join([*lines, "", *_differences()]) + "\n"


def _kept(record: Result) -> dict[str, list[dict[str, float]]]:
    warm_up = record["settings"]["warm_up"]
    return {name: slots[warm_up:] for name, slots in record.get("slots", {}).items()}


def _header(measured: Sequence[Measured]) -> Lines:
    records = [each.record for each in measured]
    counts = sorted({each.record["settings"]["rounds"] - each.record["settings"]["warm_up"] for each in measured})
    settings = records[0]["settings"]
    what = (
        f"{' or '.join(map(str, counts))} rounds a case ({settings['warm_up']} more for timing warm-up left out), each "
        f"program once a round in random order, whole epochs for {settings['slot_s']:g} s or more; medians over rounds "
        "of ratios within rounds, with 95 % intervals (order statistics)"
    )
    versions = {tuple((name, record["loaders"][name]) for name in VERSIONS) for record in records}
    others = np.array([slot["others_frac"] for record in records for slots in _kept(record).values() for slot in slots])
    missing = [case.name for case in CASES if case.name not in {each.case.name for each in measured}]
    lines = results.header(records, what=what)
    for each in sorted(versions, key=str):
        texts = [f"{name} {version or '(not installed)'}" for name, version in each]
        lines.append(f"- loaders: {' · '.join(texts)}")
    if len(others):
        lines.append(
            f"- other processes took {np.median(others):.1%} of the cores in the median slot, "
            f"{np.quantile(others, 0.9):.1%} in the 90th percentile"
        )
    most = {record["settings"]["most_samples"] for record in records}
    if min(most) < NUM_ROWS:
        lines.append(f"- **a trial, with {' or '.join(f'{number:,}' for number in sorted(most))} samples at most**")
    return [*lines, *([f"- **not measured: {', '.join(missing)}**"] if missing else [])]


def _about() -> Lines:
    return [
        (
            f"From samples in memory to batches of {BATCH} in memory, shuffled anew every epoch, the short last batch "
            "kept. Nothing is computed with a batch. Before it is measured, every loader is checked: each of two "
            "epochs holds every sample once, in another order, as contiguous tensors of the right shape, float32 "
            "(int64 for targets and categories)."
        ),
        "",
        (
            "All loaders of a case take turns in one process, with one thread inside an operation, and freed memory is "
            "kept in the process (`mallopt`), as it is in samestep's workers: that helps all alike. `num_workers` is "
            "that of DataLoader: processes that load, kept from epoch to epoch (`persistent_workers=True`). samestep "
            "starts each epoch with a new Feed and a new Order, so the computing of the order is in it. Of a library's "
            "ways the fastest counts."
        ),
    ]


def _targets(loaders: Sequence[Measured], bandwidth: Measured | None) -> Lines:
    lines = ["| samestep's feed against | target | found [95 %] | |", "|---|---|---|---|"]
    for each in loaders:
        aim, fastest = each.case.aim, each.fastest
        assert aim is not None
        if fastest is None:
            lines.append(f"| {each.case.title} | ≥ {aim:g} × | not measured: {each.record.get('failure', '?')} | |")
            continue
        ratio = each.over_ours(fastest)
        lines.append(f"| {each.case.title} | ≥ {aim:g} × | {_digits(ratio)} × | {_verdict(ratio, aim)} |")
    if bandwidth is not None:
        for shape in SHAPES:
            share = _of_copy(bandwidth, f"{shape.name}/feed", shape.name)
            cells = [f"the copy: {shape.label}", f"≥ {_BANDWIDTH_AIM:.0%}", _percent(share), _share_verdict(share)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _loaders(each: Measured) -> Lines:
    lines = [f"## {each.case.title}", ""]
    if each.fastest is None:
        return [*lines, f"Not measured: {each.record.get('failure', '?')}"]
    aim = each.case.aim
    assert aim is not None
    verdict = _verdict(each.over_ours(each.fastest), aim)
    lines += [
        f"Target: ≥ {aim:g} × as fast as the fastest of its ways, here {_label(each.fastest)}: {verdict}.",
        "",
        "| loader | epoch, ms | batch, µs | million samples/s | time over samestep's [95 %] |",
        "|---|---|---|---|---|",
    ]
    for name, epoch_s in each.epoch_s.items():
        over = "" if name == OURS else each.over_ours(name).text(3) if name == TWIN else _digits(each.over_ours(name))
        median_s = stats.median(epoch_s)
        cells = [
            _digits(median_s.scaled(1e3)),
            _number(median_s.value * 1e6 / each.num_batches),
            _number(each.record["num_samples"] / median_s.value / 1e6),
        ]
        lines.append(f"| {_label(name)} | {' | '.join(cells)} | {over} |")
    return lines


def _bandwidth(each: Measured) -> Lines:
    lines = [
        "## Bandwidth",
        "",
        (
            f"Random rows of a table of {TABLE_BYTES // 2**20} MB, {BATCH} at a time. Bytes that have to be read and "
            "written (a row as it is stored, once; a row as float32, once) in a second, over those that the machine's "
            "copy reads and writes on one core, measured in the same round (`samestep.host.peaks`, the best of short "
            "runs). *Feed*: with the order, the target and all Python. *Gather*: gather, cast and normalise alone."
        ),
        "",
        f"Target: ≥ {_BANDWIDTH_AIM:.0%} for the feed.",
        "",
        "| rows | copy, GB/s | feed, GB/s | of the copy [95 %] | gather of the copy [95 %] | |",
        "|---|---|---|---|---|---|",
    ]
    copies = _copies(each)
    for shape in SHAPES:
        feed, gather = (_of_copy(each, f"{shape.name}/{part}", shape.name) for part in ("feed", "gather"))
        moved = each.record["moved_bytes"][shape.name] / each.epoch_s[f"{shape.name}/feed"]
        cells = [f"{np.median(copies) / 1e9:.2f}", f"{np.median(moved) / 1e9:.2f}", _percent(feed), _percent(gather)]
        lines.append(f"| {shape.label} | {' | '.join(cells)} | {_share_verdict(feed)} |")
    return lines


def _time(each: Measured) -> Lines:
    lines = [
        "## Where the time goes",
        "",
        (
            f"60,000 × 20 float32 and an int64 target, microseconds a batch of {BATCH}. *Order*: computing it alone. "
            "*Gather*: both columns, in an order that is known. *Rest*: what is left of the whole, in the same round: "
            "Python, and a new Feed and Order every epoch."
        ),
        "",
        "| | whole | order | gather | rest |",
        "|---|---|---|---|---|",
    ]
    scale = 1e6 / each.num_batches
    for name in (OURS, BY_STEP):
        whole, order, gather = (each.epoch_s[part] for part in (name, "order", f"{name}/gather"))
        parts: list[Values] = [whole, order, gather, whole - order - gather]
        cells = [f"{stats.median(part).scaled(scale).text(2)} ({np.median(part / whole):.0%})" for part in parts]
        lines.append(f"| {_label(name)} | {' | '.join(cells)} |")
    return lines


def _differences() -> Lines:
    return [
        "## How each is used",
        "",
        (
            "- **samestep**: asked for a stream of steps of one microbatch each, as its engine asks; small ones are "
            "gathered together. *For each step*: one call a step. Tensors start on 64-byte boundaries; nobody else "
            "sees to that."
        ),
        (
            "- **DataLoader**: `TensorDataset` for rows; for pictures torchvision's `FashionMNIST` with `ToTensor` and "
            "`Normalize`, augmented with `RandomCrop(28, padding=2)` and `RandomHorizontalFlip` (samestep: "
            "`shift=2,flip`)."
        ),
        (
            "- **The libraries** below that get arrays, also of pictures, which are normalised a batch at a time with "
            "samestep's two operations: faster than the sample at a time, with decoding, that their documentation "
            "shows."
        ),
        "- **grain** gives NumPy arrays, which torch takes over without a copy; a new pipeline an epoch, its seed.",
        "- **datasets**: an Arrow table saved to disk and mapped, with arrays of fixed shape.",
        "- **mosaicml-streaming**: MDS shards on the local disk, uncompressed; it shuffles within blocks.",
        (
            "- **torchdata**: nodes as in its guide for those who come from DataLoader; their processes are started "
            "anew every epoch."
        ),
    ]


def _of_copy(each: Measured, program: str, shape: str) -> Estimate:
    """Bytes a second over those of the copy of the same round."""
    moved: Values = each.record["moved_bytes"][shape] / each.epoch_s[program]
    return stats.ratio(moved, _copies(each))


def _copies(each: Measured) -> Values:
    """The copy's bytes a second, one a round: of several in a slot the last one."""
    counts = [int(slot["num_epochs"]) for slot in each.record["slots"]["copy"]]
    last = np.cumsum(counts) - 1
    found: Values = np.array(each.record["copy_bytes_per_s"])[last][each.record["settings"]["warm_up"] :]
    return found


def _label(name: str) -> str:
    if name in _LABELS:
        return _LABELS[name]
    kind, _, number = name.rpartition("-")
    return f"{_KINDS[kind]}, `num_workers={number}`"


def _verdict(found: Estimate, aim: float, unit: str = " ×") -> str:
    """Met only where the whole interval is: what was not shown is not met."""
    if found.low < aim <= found.value:
        return "not shown: the interval reaches below"
    return results.verdict(found.value, aim, is_least=True, unit=unit)


def _share_verdict(share: Estimate) -> str:
    return _verdict(share.scaled(100), 100 * _BANDWIDTH_AIM, " points")


def _digits(found: Estimate) -> str:
    """About three digits."""
    return found.text(int(np.clip(2 - np.floor(np.log10(found.value)), 0, 3)))


def _number(value: float) -> str:
    """
    >>> _number(2387.6), _number(51.52)
    ('2,388', '51.5')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(share: Estimate) -> str:
    return f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"
