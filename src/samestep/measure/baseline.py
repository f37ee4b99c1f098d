"""Plain torch, as its documentation writes it: what a speed-up is measured against."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from samestep.engine.loop import EvaluationRecord, StepRecord
from samestep.engine.randomness import preserved
from samestep.host import records
from samestep.measure.plain import PlainTorch
from samestep.optim import schedules
from samestep.run.config import Config
from samestep.run.record import Record, StepTable
from samestep.run.weights import digest
from samestep.run.workload import Workload

_LEFT_OUT = 3


@dataclass(frozen=True)
class Baseline:
    """One process of plain torch.

    Args:
        threads: Threads inside one operation.
        samples_per_s: Steady rate, the first three steps left out.
        wall_s: Seconds in the training loop.
        accuracy: On the evaluation data; None without such data or metric.
        weights_sha256: Digest of the trained weights.
        steps: One row per step; the gradient's norm is not looked at.
        start: When it began, and what the machine was like.
    """

    threads: int
    samples_per_s: float
    wall_s: float
    accuracy: float | None
    weights_sha256: str
    steps: StepTable
    start: records.Start

    def record(self, workload: str, config: Config) -> Record:
        """As the record of a run."""
        means = {} if self.accuracy is None else {"accuracy": self.accuracy}
        last = self.steps[-1]
        return Record(
            workload=workload,
            engine="torch",
            workers=1,
            config={**config.as_dict(), "workers": 1, "threads_per_worker": self.threads},
            numerics={},
            num_samples=sum(step.num_samples for step in self.steps),
            steps=self.steps,
            evaluations=[EvaluationRecord(last.step + 1, means, is_best=True, duration_s=0.0)] if means else [],
            wall_s=self.wall_s,
            weights_sha256=self.weights_sha256,
            last_loss=last.loss,
            end="finished",
            start=self.start,
        )


def train_plain(workload: Workload, config: Config, *, threads: int) -> Baseline:
    """Train a workload with one process of plain torch: the whole global batch at once, the same optimiser.

    Order and dropout masks are torch's own, so the weights differ from samestep's.
    """
    began = records.Start.now()
    with _threads(threads), preserved():
        plain = PlainTorch(workload, config)
        num_samples = plain.data.train.num_samples
        num_steps = config.steps or round((config.epochs or 1) * -(-num_samples // config.first_batch))
        schedule = schedules.by_name(config.lr_schedule, config.lr_warmup)
        taken: list[tuple[float, int, Tensor]] = []
        start = time.perf_counter()
        for step, indices in enumerate(_batches(num_samples, config.first_batch, num_steps)):
            before = time.perf_counter()
            loss = plain.step(step, indices, schedule((step + 0.5) / num_steps))
            taken.append((time.perf_counter() - before, len(indices), loss))
        plain.finish()
        wall_s = time.perf_counter() - start
        steps = StepTable()
        steps.extend(
            [
                StepRecord(step, float(value), math.nan, count, seconds, num_rounds=1, num_rows=count)
                for step, (seconds, count, value) in enumerate(taken)
            ]
        )
        steady = taken[_LEFT_OUT:] or taken
        rate_per_s = sum(count for _, count, _ in steady) / sum(seconds for seconds, _, _ in steady)
        return Baseline(threads, rate_per_s, wall_s, _accuracy(workload, plain), digest(plain.model), steps, began)


def _batches(num_samples: int, global_batch: int, num_steps: int) -> Iterator[Tensor]:
    step = 0
    while True:
        for indices in torch.randperm(num_samples).split(global_batch):  # type: ignore[no-untyped-call]
            if step == num_steps:
                return
            yield indices
            step += 1


def _accuracy(workload: Workload, plain: PlainTorch) -> float | None:
    data, model = plain.data.evaluation, plain.model
    if data is None or "accuracy" not in workload.metrics:
        return None
    model.eval()
    right = total = 0.0
    with torch.no_grad():
        for indices in torch.arange(data.num_samples).split(256):  # type: ignore[no-untyped-call]
            output = model(*(column.gather(indices) for column in data.inputs))
            hits, count = workload.metrics["accuracy"](output, data.target.gather(indices))
            right, total = right + float(hits), total + float(count)
    return right / total


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
