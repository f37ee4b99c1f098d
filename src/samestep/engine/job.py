"""The job: everything that a rank needs to know, the same for all ranks; and the memory that the ranks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from samestep.data.columns import Samples
from samestep.engine import events
from samestep.engine.device.seam import Kind
from samestep.engine.flat import BufferPlan
from samestep.engine.losses import SummedLoss
from samestep.engine.numerics import Switches
from samestep.engine.signals import SIGNAL_WORDS, num_turns
from samestep.optim import adascale, doubling
from samestep.optim.adascale import AdaScale
from samestep.optim.doubling import Doubling
from samestep.optim.kfac.rule import DAMPINGS, NUM_COLUMNS
from samestep.optim.kfac.units import CurvaturePlan
from samestep.optim.rounds import Rule
from samestep.optim.schedules import Schedule
from samestep.optim.state import UpdatePlan
from samestep.plan import rounds
from samestep.plan.batch import BatchPlan, Microbatch, cut
from samestep.plan.course import Course
from samestep.plan.layout import BLOCK
from samestep.plan.order import Order
from samestep.plan.pipeline import Stages
from samestep.plan.regions import Regions, lay_out

Precision = Literal["fp32", "bf16"]
Compiler = Literal["inductor", "aot_eager"]


BEST_VALUE, BEST_STEP, HAS_STOPPED, EVALUATED_STEP, LAST_LOSS, KEPT = range(6)
"""The best evaluation so far and its step (0: none yet); whether a target or a callback has ended the run; the step of
the last whole evaluation; the loss of the last step; from `KEPT` on, what AdaScale keeps."""

GROWN = KEPT + adascale.NUM_KEPT
"""From here on, what the growth of the batch keeps."""

NUM_DECIDED = GROWN + doubling.NUM_KEPT
"""Numbers that a run keeps beside its arrays."""

LOSS, WEIGHT, SAMPLES = range(3)
"""Columns of the table of sums."""

CONTROL_WORDS = 64


@dataclass(frozen=True)
class Judgement:
    """What an evaluation led to: numbers to keep, whether it is the best so far, whether the goal is reached."""

    decided: tuple[float, ...]
    is_best: bool
    stops: bool


class Judge(Protocol):
    """Decides after an evaluation, purely: every rank decides alike."""

    def judge(self, step: int, means: Mapping[str, float], decided: tuple[float, ...]) -> Judgement: ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation round over all samples of a set, in their own order.

    Args:
        samples: What is evaluated.
        microbatch: Samples at once.
        every_steps: How often; it also happens at the end.
    """

    samples: Samples
    microbatch: int
    every_steps: int

    @property
    def microbatches(self) -> tuple[Microbatch, ...]:
        return cut(0, self.samples.num_samples, self.microbatch)


@dataclass(frozen=True, kw_only=True)
class LocalSync:
    """How replicas train by themselves for a period; the job's own update, rule and batches are those of the meetings.

    Args:
        num_replicas: How many.
        update: What a step of a replica updates how; laid out as the job's own.
        rule: The rounds of such a step.
        schedule: Of its learning rates.
        is_quantised: Whether what a replica has changed is rounded to 8 bits before it is added up, and what a meeting
            changes likewise.
    """

    num_replicas: int
    update: UpdatePlan
    rule: Rule
    schedule: Schedule
    is_quantised: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training run as the engines see it; `num_steps` counts steps of the first batch."""

    model: nn.Module
    update: UpdatePlan
    buffers: BufferPlan
    dtype: Literal["float32", "float64"]
    batches: BatchPlan
    order: Order
    samples: Samples
    loss: SummedLoss
    class_check: Callable[[Any, Tensor], None] | None
    metrics: Mapping[str, Callable[[Any, Tensor], Any]]
    evaluation: Evaluation | None
    judge: Judge
    rule: Rule
    schedule: Schedule
    num_steps: int
    seed: int
    precision: Precision
    is_channels_last: bool
    is_backprop_concurrent: bool
    stages: Stages | None
    switches: Switches
    has_callbacks: bool
    noise_every: int | None = None
    gain: AdaScale | None = None
    doubling: Doubling | None = None
    curvature: CurvaturePlan | None = None
    local: LocalSync | None = None
    trace: events.Trace | None = None
    device: Kind = "cpu"
    compiler: Compiler | None = None
    has_graphs: bool = True
    snapshot_every_s: float = 0.5
    wait_timeout_s: float = 600.0

    @property
    def num_elements(self) -> int:
        return self.update.layout.num_elements

    @property
    def contribution_size(self) -> int:
        """Elements of a contribution: gradients, then the changes of the tracked buffers."""
        return self.num_elements + self.buffers.num_tracked

    @property
    def is_seeded_once(self) -> bool:
        """Whether a microbatch has one key for all that its pass draws, and not every module one."""
        return self.device != "cpu" or self.compiler is not None

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def plans(self) -> tuple[BatchPlan, ...]:
        """How an epoch is cut with every batch that the run may come to."""
        return (self.batches,) if self.doubling is None else self.doubling.plans(self.batches)

    def course(self, decided: Sequence[float]) -> Course:
        """What every step holds, as far as it is decided."""
        course = Course(start=self.batches, length=self.num_steps)
        return course if self.doubling is None else self.doubling.course(course, tuple(decided[GROWN:]))

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(self.metrics)


@dataclass
class Image:
    """A state of the run: enough to go on from, on any number of workers, with the same bits.

    Args:
        step: Steps done.
        arrays: Live arrays by region name.
        scalars: Numbers of optimiser state.
        decided: The judge's numbers.
        best: Parameters and buffers at the best evaluation, by region name; empty before the first.
    """

    step: int
    arrays: Mapping[str, Tensor]
    scalars: Tensor
    decided: Tensor
    best: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def empty(cls, job: Job) -> Image:
        """A state of zeros with the names and shapes of a job's arrays."""
        return cls(
            0,
            {name: torch.zeros(shape, dtype=getattr(torch, dtype)) for name, dtype, shape in live_arrays(job)},
            torch.zeros(len(job.update.scalars), dtype=torch.float64),
            torch.zeros(NUM_DECIDED, dtype=torch.float64),
        )

    def copied(self) -> Image:
        """The same state in memory of its own."""
        return Image(
            self.step,
            {name: values.clone() for name, values in self.arrays.items()},
            self.scalars.clone(),
            self.decided.clone(),
            {name: values.clone() for name, values in self.best.items()},
        )


MODEL_ARRAYS = ("parameters", "tracked", "others")
"""Live arrays that make up the model; the best state keeps these."""


def live_arrays(job: Job) -> list[tuple[str, str, tuple[int, ...]]]:
    """The arrays of the live state: name, dtype, shape."""
    return [
        ("parameters", job.dtype, (job.num_elements,)),
        ("tracked", job.dtype, (job.buffers.num_tracked,)),
        ("others", "uint8", (job.buffers.num_other_bytes,)),
        ("used", "uint8", (len(job.update.layout.places),)),
        *((array.name, array.dtype, array.shape) for array in job.update.arrays),
        *_replicas_arrays(job),
    ]


KEPT_BY_REPLICAS = "replicas/"
"""What the name of an array begins with that has a row for every replica."""


def _replicas_arrays(job: Job) -> list[tuple[str, str, tuple[int, ...]]]:
    """What replicas keep from period to period; each begins it with the parameters and buffers that all share."""
    if job.local is None:
        return []
    count, update = job.local.num_replicas, job.local.update
    return [
        (f"{KEPT_BY_REPLICAS}used", "uint8", (count, len(update.layout.places))),
        (f"{KEPT_BY_REPLICAS}scalars", "float64", (count, len(update.scalars))),
        *((f"{KEPT_BY_REPLICAS}{each.name}", each.dtype, (count, *each.shape)) for each in update.arrays),
    ]


def live_regions(job: Job) -> Regions:
    """Where the live arrays lie in a zone of state."""
    return lay_out(live_arrays(job))


def run_regions(job: Job, world_size: int, *, num_copies: int) -> Regions:
    """The memory of a run: the live state, `num_copies` snapshots of it, and what the ranks exchange."""
    num_microbatches = job.plans[-1].num_microbatches
    counts = frozenset(len(plan.microbatches(step)) for plan in job.plans for step in (0, plan.steps_per_epoch - 1))
    num_evaluated = len(job.evaluation.microbatches) if job.evaluation else 0
    live = live_regions(job).num_bytes
    num_scalars = len(job.update.scalars)
    num_stages = job.stages.num_stages if job.stages else 1
    num_replicas = max(1, world_size // num_stages)
    num_linked, num_chunks = (world_size, job.stages.num_chunks) if job.stages else (0, 0)
    room = job.stages.room if job.stages else 0
    is_alone = world_size == 1 and job.device != "cpu"  # a GPU has no memory that is not used before it is written
    contribution_size = job.buffers.num_tracked if is_alone else job.contribution_size
    return lay_out(
        [
            ("control", "int64", (CONTROL_WORDS,)),
            ("events", "uint8", (world_size, events.num_bytes(events.CAPACITY))),
            ("signals", "int64", (max(num_turns(world_size), 1), world_size, SIGNAL_WORDS)),
            ("arrived", "int64", (world_size, SIGNAL_WORDS)),
            ("table", "float64", (num_microbatches, 3)),
            ("squares", "float64", (num_microbatches, len(job.update.layout.places))),
            ("used_table", "uint8", (num_microbatches, len(job.update.layout.places))),
            ("norms", job.dtype, (job.num_elements // BLOCK,)),
            ("evaluated", "float64", (num_evaluated, 2 + 2 * len(job.metrics))),
            ("live", "uint8", (live,)),
            ("copies", "uint8", (num_copies, live)),
            ("copied_scalars", "float64", (num_copies, num_scalars)),
            ("copied_decided", "float64", (num_copies, NUM_DECIDED)),
            *((f"best/{name}", dtype, shape) for name, dtype, shape in live_arrays(job) if name in MODEL_ARRAYS),
            ("contributions", job.dtype, (num_replicas, rounds.num_slots(counts, num_replicas), contribution_size)),
            *_curvature_regions(job, num_replicas, rounds.num_slots(counts, num_replicas)),
            *_quantised_regions(job),
            ("links", "int64", (num_linked, num_chunks, 2, 2, SIGNAL_WORDS)),
            ("link_rooms", "uint8", (num_linked, num_chunks, 2, num_stages + 1, room)),
        ]
    )


def _curvature_regions(job: Job, num_replicas: int, num_slots: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """What a step with several directions exchanges besides."""
    if job.curvature is None:
        return []
    return [
        ("factors", job.dtype, (num_replicas, num_slots, job.curvature.factors.num_elements)),
        ("directions", job.dtype, (1 + len(DAMPINGS), job.num_elements)),
        ("has_failed", "uint8", (num_replicas,)),
        ("small_table", "float64", (job.batches.num_microbatches, NUM_COLUMNS + 1)),
    ]


def _quantised_regions(job: Job) -> list[tuple[str, str, tuple[int, ...]]]:
    """What replicas have changed, and what is then changed for all, in 8 bits."""
    if job.local is None or not job.local.is_quantised:
        return []
    count = job.local.num_replicas
    return [
        ("codes", "uint8", (count, job.num_elements)),
        ("code_scales", job.dtype, (count, job.num_elements // BLOCK)),
        ("update_codes", "uint8", (job.num_elements,)),
        ("update_scales", job.dtype, (job.num_elements // BLOCK,)),
    ]
