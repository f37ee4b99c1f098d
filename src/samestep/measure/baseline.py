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
from samestep.engine.randomness import preserved, seed_initialisation
from samestep.optim import build, schedules
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
    """

    threads: int
    samples_per_s: float
    wall_s: float
    accuracy: float | None
    weights_sha256: str
    steps: StepTable

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
        )


def train_plain(workload: Workload, config: Config, *, threads: int) -> Baseline:
    """Train a workload with one process of plain torch: the whole global batch at once, the same optimiser.

    The batches are indexed from memory, which is faster than torch's `DataLoader`; order and dropout masks are
    torch's own, so the weights differ from samestep's.
    """
    data = workload.data()
    with _threads(threads), preserved():
        seed_initialisation(config.seed)
        model = workload.model().train()
        parts = build.parts(
            model, config.optimizer, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        named = dict(model.named_parameters())
        optimizers = [
            build.build(part, [{**g, "params": [named[name] for name in g["params"]]} for g in part.groups])
            for part in parts
        ]
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        schedule = schedules.by_name(config.lr_schedule, config.lr_warmup)
        steps_per_epoch = -(-data.train.num_samples // config.global_batch)
        num_steps = config.steps or round((config.epochs or 1) * steps_per_epoch)
        taken: list[tuple[float, int, Tensor]] = []
        start = time.perf_counter()
        for step, indices in enumerate(_batches(data.train.num_samples, config.global_batch, num_steps)):
            before = time.perf_counter()
            inputs = tuple(column.gather(indices) for column in data.train.inputs)
            loss = workload.loss(model(*inputs), data.train.target.gather(indices))
            loss.backward()
            if config.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            for optimizer, base in zip(optimizers, rates, strict=True):
                for group, rate in zip(optimizer.param_groups, base, strict=True):
                    group["lr"] = rate * schedule((step + 0.5) / num_steps)
                optimizer.step()
                optimizer.zero_grad()
            taken.append((time.perf_counter() - before, len(indices), loss.detach()))
        wall_s = time.perf_counter() - start
        steps = StepTable()
        for step, (seconds, count, value) in enumerate(taken):
            steps.append(StepRecord(step, float(value), math.nan, count, seconds))
        steady = taken[_LEFT_OUT:] or taken
        rate_per_s = sum(count for _, count, _ in steady) / sum(seconds for seconds, _, _ in steady)
        return Baseline(threads, rate_per_s, wall_s, _accuracy(workload, model), digest(model), steps)


def _batches(num_samples: int, global_batch: int, num_steps: int) -> Iterator[Tensor]:
    step = 0
    while True:
        for indices in torch.randperm(num_samples).split(global_batch):  # type: ignore[no-untyped-call]
            if step == num_steps:
                return
            yield indices
            step += 1


def _accuracy(workload: Workload, model: torch.nn.Module) -> float | None:
    data = workload.data().evaluation
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
