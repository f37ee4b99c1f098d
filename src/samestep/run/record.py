"""The record of a run: raw values, the configuration, and what they add up to."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from samestep.engine.breakdown import Breakdown
from samestep.engine.loop import EvaluationRecord, StepRecord
from samestep.host import records
from samestep.host.peaks import Peaks
from samestep.optim.doubling import Growth
from samestep.run import critical_batch, growth
from samestep.run.critical_batch import Pairs

_LEFT_OUT = 3
"""First steps of a process: they pay for what the later ones find ready."""


class StepTable:
    """One row per step, in compact columns: a long run has millions. They are the first fields of a `StepRecord`."""

    def __init__(self) -> None:
        kinds = {"step": "q", "loss": "d", "gradient_norm": "d", "num_samples": "q", "duration_s": "d"}
        kinds |= {"num_rounds": "q", "num_rows": "q"}
        self._columns: dict[str, array[Any]] = {name: array(kind) for name, kind in kinds.items()}
        self._steady_samples = 0
        self._steady_s = 0.0

    def extend(self, records: Sequence[StepRecord]) -> None:
        for column, values in zip(self._columns.values(), zip(*records, strict=True), strict=False):
            column.extend(values)
        steady = records[max(_LEFT_OUT - (len(self) - len(records)), 0) :]
        self._steady_samples += sum(record.num_samples for record in steady)
        self._steady_s += sum(record.duration_s for record in steady)

    def __len__(self) -> int:
        return len(self._columns["step"])

    def __getitem__(self, index: int) -> StepRecord:
        return StepRecord(**{name: column[index] for name, column in self._columns.items()})

    def __iter__(self) -> Iterator[StepRecord]:
        return (self[index] for index in range(len(self)))

    @property
    def samples_per_s(self) -> float | None:
        """The rate without the first three steps; None where there are no more."""
        return self._steady_samples / self._steady_s if self._steady_s > 0 else None

    @property
    def num_rounds(self) -> int:
        """Rounds of all steps, one after the other."""
        return sum(self._columns["num_rounds"])

    @property
    def num_rows(self) -> int:
        """Rows that all rounds have read, by all workers."""
        return sum(self._columns["num_rows"])

    def as_lists(self) -> dict[str, list[float]]:
        """The columns, by name."""
        return {name: column.tolist() for name, column in self._columns.items()}


@dataclass(kw_only=True)
class Record:
    """What a run did.

    Args:
        workload: Its name.
        engine: "solo" (the caller's process), "shared" (worker processes) or "group" (ranks of torch.distributed).
        workers: How many.
        config: The resolved configuration.
        numerics: What decides the bits.
        first_step: Where the run took up, when it was resumed.
        steps: One row per step of this session; a replayed step counts once.
        growths: Of the whole run's batch.
        pairs: What this session's steps tell of the noise scale; None where nobody asked.
        evaluations: One record per evaluation, those before a resume included.
        breakdown: Where the time of the last steps went; None where too few were run.
        notices: What happened on the way (deaths, damaged checkpoints).
        wall_s: Seconds from the call to the end.
        startup_s: Seconds from the call to the start of the first step.
        peak_memory_bytes: Of all processes on this machine together, proportional shares added, as seen in looks that
            take a thousandth of the time (a short run is looked at a few times only); None where the system
            does not tell.
        sent_bytes: Under the group engine: what this rank has sent, by exchange; early contributions went during the
            backward pass.
        sent_bytes_by_rank: The same of every rank; not of the ranks' farewell.
        device: On a GPU: its name, where the data lay, graphs or why not, and the most memory of tensors; else None.
        weights_sha256: The digest of the trained weights.
        last_loss: Loss of the last step.
        end: "finished" or "stopped".
        start: When the run began, and what the machine was like.
        code_sha256: Of the user's own code that the workload and the model are made of; None where there is none.
    """

    workload: str
    engine: str
    workers: int
    config: dict[str, Any]
    numerics: dict[str, Any]
    first_step: int = 0
    num_samples: int = 0
    steps: StepTable = field(default_factory=StepTable)
    growths: tuple[Growth, ...] = ()
    pairs: Pairs | None = None
    evaluations: list[EvaluationRecord] = field(default_factory=list)
    breakdown: Breakdown | None = None
    notices: list[str] = field(default_factory=list)
    wall_s: float = 0.0
    startup_s: float | None = None
    peak_memory_bytes: int | None = None
    sent_bytes: dict[str, int] | None = None
    sent_bytes_by_rank: list[dict[str, int]] | None = None
    device: dict[str, Any] | None = None
    weights_sha256: str = ""
    last_loss: float | None = None
    end: str = ""
    start: records.Start = field(default_factory=records.Start.now)
    code_sha256: str | None = None

    @property
    def num_steps(self) -> int:
        """Steps of the whole run, those before a resume included."""
        return self.steps[-1].step + 1 if len(self.steps) else self.first_step

    @property
    def global_batch(self) -> int:
        """Samples of a whole step; of the last ones, where the batch has grown."""
        if self.growths:
            return self.growths[-1].global_batch
        asked: int | str = self.config["global_batch"]
        return self.config["initial_batch"] if isinstance(asked, str) else asked

    @property
    def samples_per_s(self) -> float | None:
        """The steady rate: start-up, the first three steps, evaluations and checkpoints are left out.

        None where no more than three steps were run.
        """
        return self.steps.samples_per_s

    @property
    def last_evaluation(self) -> dict[str, float] | None:
        return dict(self.evaluations[-1].means) if self.evaluations else None

    def summary(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "workload": self.workload,
            "engine": self.engine,
            "workers": self.workers,
            "global_batch": self.global_batch,
            "growths": [growth.as_dict(each) for each in self.growths],
            "microbatch": self.config["microbatch"],
            "steps": self.num_steps,
            "samples": self.num_samples,
            "weights_sha256": self.weights_sha256,
            "train_loss": self.last_loss,
            "eval": self.last_evaluation,
            "wall_s": self.wall_s,
            "startup_s": self.startup_s,
            "samples_per_s": self.samples_per_s,
            "peak_memory_bytes": self.peak_memory_bytes,
            "waiting_for_data_frac": self.waiting_for_data_frac,
            "noise_scale": critical_batch.as_dict(self.pairs.noise_scale()) if self.pairs is not None else None,
            "critical_batch": self.critical_batch,
            "end": self.end,
            "notices": self.notices,
        }

    @property
    def critical_batch(self) -> str | None:
        """Up to which batch larger ones pay, by the noise scale, in a sentence; None where nobody asked."""
        if self.pairs is None:
            return None
        return critical_batch.sentence(
            self.pairs.noise_scale(),
            global_batch=self.global_batch,
            num_training_samples=self.pairs.num_training_samples,
        )

    @property
    def waiting_for_data_frac(self) -> float | None:
        """Share of a step that the slowest worker spends on getting its samples; None where it is not known."""
        if self.breakdown is None:
            return None
        return max(worker["data"] for worker in self.breakdown.workers) / self.breakdown.step_s

    def write(self, folder: Path, measured: Peaks | None = None) -> None:
        """Write ``record.json`` into a folder that is there, with where and when it was made.

        Args:
            folder: Where.
            measured: The machine's peaks; None: those that are kept, if any are.

        Raises:
            StateError: The disk is full, or the folder cannot be written.
        """
        environment = records.environment(self.start, measured)
        records.write(folder / "record.json", "run", {"environment": environment, **self.as_dict()})

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        own = {
            "config": self.config,
            "numerics": self.numerics,
            "code_sha256": self.code_sha256,
            "first_step": self.first_step,
            "evaluations": [asdict(record) for record in self.evaluations],
            "num_rounds": self.steps.num_rounds,
            "num_rows": self.steps.num_rows,
            "step_table": self.steps.as_lists(),
            "noise_scale": self.pairs.as_dict() if self.pairs is not None else None,
            "sent_bytes": self.sent_bytes,
            "sent_bytes_by_rank": self.sent_bytes_by_rank,
            "device": self.device,
            "breakdown": asdict(self.breakdown) if self.breakdown else None,
        }
        return {**self.summary(), **own}
