"""The demonstration: plain torch, then samestep on one worker and on all cores; what it bought, and the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from samestep.host import files, peaks
from samestep.host.cores import num_cores
from samestep.measure.baseline import train_plain
from samestep.report import page
from samestep.run.config import Settings, resolve
from samestep.run.prepare import Choices
from samestep.run.progress import Progress
from samestep.run.train import run
from samestep.run.workload import Workload


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        program: What ran.
        wall_s: Seconds for the whole training, start-up included for samestep.
        samples_per_s: Steady rate.
        speed_up: Rate over that of the best single process.
        accuracy: On the test part.
        weights_sha256: Digest of the trained weights.
    """

    program: str
    wall_s: float
    samples_per_s: float
    speed_up: float
    accuracy: float | None
    weights_sha256: str


@dataclass(frozen=True)
class Outcome:
    """What the demonstration showed."""

    rows: tuple[Row, ...]
    is_same: bool
    verdict: str
    page: Path


WORKLOAD, GLOBAL_BATCH, EPOCHS = "digits-transformer", 128, 16.0
"""Large enough that a step is mostly computation, which threads share badly; done in about a minute."""


def demonstrate(build: Callable[[], Workload], progress: Progress, folder: Path, *, epochs: float = EPOCHS) -> Outcome:
    """Train the same workload three ways; plain torch with one thread and with one per core, the better counts.

    Args:
        build: Makes the workload anew for each run.
        progress: Who shows how it goes.
        folder: Where the runs' records and the page about them go.
        epochs: Of each training.
    """
    # As coarse as the cores allow: one microbatch per worker, a power of two so that the sums are one node each.
    num_microbatches = min(max(2, 1 << (num_cores() - 1).bit_length()), GLOBAL_BATCH // 8)
    settings = Settings(global_batch=GLOBAL_BATCH, microbatch=GLOBAL_BATCH // num_microbatches, epochs=epochs)
    config = resolve(settings, build().recipe)
    if peaks.cached() is None:
        progress.line("measuring what the machine can copy and multiply ...")
        peaks.measure()
    plain = []
    for threads in sorted({1, num_cores()}):
        progress.line(f"plain torch, {threads} thread{'s' if threads > 1 else ''} ...")
        plain.append(train_plain(build(), config, threads=threads))
        files.make_folder(folder / f"torch-{threads}", "the run's record")
        plain[-1].record(build().name, config).write(folder / f"torch-{threads}")
    best = max(plain, key=lambda baseline: baseline.samples_per_s)
    rows = [
        Row(
            f"torch, {baseline.threads} thread{'s' if baseline.threads > 1 else ''}",
            baseline.wall_s,
            baseline.samples_per_s,
            baseline.samples_per_s / best.samples_per_s,
            baseline.accuracy,
            baseline.weights_sha256,
        )
        for baseline in plain
    ]
    for workers in sorted({1, min(num_cores(), num_microbatches)}):
        given = replace(settings, workers=workers, out=folder / f"samestep-{workers}")
        result = run(build(), given, choices=Choices(), progress=progress)
        record = result.record
        rate = record.samples_per_s or 0.0
        accuracy = (record.last_evaluation or {}).get("accuracy")
        name = f"samestep, {workers} worker{'s' if workers > 1 else ''}"
        rows.append(Row(name, record.wall_s, rate, rate / best.samples_per_s, accuracy, record.weights_sha256))
    ours = rows[len(plain) :]
    is_same = len({row.weights_sha256 for row in ours}) == 1
    verdict = _verdict(rows[: len(plain)], ours)
    return Outcome(tuple(rows), is_same, verdict, page.write(folder, said=[f"{verdict}."]))


def _verdict(plain: list[Row], ours: list[Row]) -> str:
    fastest = max(plain, key=lambda row: row.samples_per_s)
    parallel = ours[-1]
    if len(ours) == 1:
        return "parallel training cannot pay here: this machine has one core"
    ratio = parallel.speed_up
    if ratio >= 1.05:
        return (
            f"parallel training paid here: {parallel.program} was {ratio:.2f} × the best single process "
            f"({fastest.program})"
        )
    if ratio > 0.95:
        return (
            f"parallel training made no clear difference here: {parallel.program} was {ratio:.2f} × the best single "
            f"process ({fastest.program}); one run cannot tell that from noise"
        )
    return (
        f"parallel training did not pay here: {parallel.program} was {ratio:.2f} × the best single process "
        f"({fastest.program}); samestep scale says why"
    )
