"""How a peer does what two programs may do differently: which samples a step has, who gets them, what is averaged.

All of it is pure, so that a run can be done again with one habit changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from samestep.engine.job import Job
from samestep.plan.batch import cut

Peer = Literal["torch", "ddp"]

NUM_RANKS: dict[Peer, int] = {"torch": 1, "ddp": 2}


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How a program does what two programs may do differently. The defaults are samestep's ways.

    Args:
        order: Whose order of samples.
        last_batch: What becomes of an epoch's short last batch: its samples weigh alike, the ranks' means are averaged,
            it is filled up from the epoch's first samples, or it is left out.
        mean: Of a full batch: its samples weigh as the loss says, or the means of ranks (and of parts) are averaged.
        loss: Sums of microbatches over the weight of the batch; the workload's loss as it stands; or even that
            without class weights.
        clip: How long gradients are scaled down; `clip_grad_norm_` adds 1e-6 to the norm.
        statistics: What BatchNorm normalises, and takes its running statistics of: microbatches, or what is forwarded.
        parts: What is forwarded at once: a microbatch, or a rank's whole share.
        draws: Where dropout's masks come from: keyed per microbatch and module, or the default generator as it stands.
        threads: Threads inside one operation; None is samestep's number.
        nudge: Above 0, training starts one rounding aside of the initial weights, up or down by this seed, and the end
            is set back by as much: what training makes of one rounding.
    """

    order: Literal["samestep", "DistributedSampler"] = "samestep"
    last_batch: Literal["weighted", "mean of means", "padded", "dropped"] = "weighted"
    mean: Literal["weighted", "mean of means"] = "weighted"
    loss: Literal["sums", "own", "own, unweighted"] = "sums"
    clip: Literal["samestep", "torch"] = "samestep"
    statistics: Literal["microbatch", "forwarded"] = "microbatch"
    parts: Literal["microbatches", "share"] = "microbatches"
    draws: Literal["keyed", "stream"] = "keyed"
    threads: int | None = None
    nudge: int = 0


def usual(peer: Peer) -> Habits:
    """What a user of the peer would write.

    torch takes the whole batch at once, with the threads that it has here. DDP gives every rank its part of the batch
    and averages the gradients of their means; its launcher gives a rank one thread, as samestep does.
    """
    return Habits(
        last_batch="mean of means",
        mean="mean of means",
        loss="own",
        clip="torch",
        statistics="forwarded",
        parts="share",
        draws="stream",
        threads=torch.get_num_threads() if peer == "torch" else None,
    )


@dataclass(frozen=True)
class Part:
    """What is forwarded at once.

    Args:
        number: Of the microbatch that it is, or begins with.
        start: First sample of the batch.
        stop: One past the last.
        is_filler: A rank without samples takes one again, for it must take part in the average.
    """

    number: int
    start: int
    stop: int
    is_filler: bool = False


def shares(num_samples: int, world_size: int, unit: int = 1) -> list[tuple[int, int]]:
    """Contiguous shares of a batch, cut at multiples of `unit`; the first ranks get more.

    >>> shares(11, 2), shares(11, 2, unit=4)
    ([(0, 6), (6, 11)], [(0, 8), (8, 11)])
    """
    num_units = -(-num_samples // unit)
    cuts = [min(num_samples, unit * -(-num_units * rank // world_size)) for rank in range(world_size + 1)]
    return list(pairwise(cuts))


def parts(habits: Habits, num_samples: int, microbatch: int, rank: int, world_size: int) -> list[Part]:
    """What a rank forwards of a batch.

    >>> parts(Habits(), 11, 4, 0, 2)
    [Part(number=0, start=0, stop=4, is_filler=False), Part(number=1, start=4, stop=8, is_filler=False)]
    """
    is_cut_at_microbatches = habits.parts == "microbatches" or habits.statistics == "microbatch"
    unit = microbatch if is_cut_at_microbatches else 1
    start, stop = shares(num_samples, world_size, unit)[rank]
    if start == stop:
        return [Part(0, 0, min(unit, num_samples), is_filler=True)]
    pieces = cut(start, stop, microbatch if habits.parts == "microbatches" else stop - start)
    return [Part(piece.start // microbatch, piece.start, piece.stop) for piece in pieces]


@cache
def _sampler(num_samples: int, seed: int) -> DistributedSampler[int]:
    return DistributedSampler(range(num_samples), num_replicas=1, rank=0, seed=seed)  # type: ignore[arg-type]


def batch_of(job: Job, habits: Habits, step: int) -> tuple[Tensor, bool]:
    """The samples of a step over all ranks, and whether they are fewer than a global batch."""
    batches = replace(job.batches, last_batch="drop") if habits.last_batch == "dropped" else job.batches
    span = batches.span(step)
    if habits.order == "samestep":
        epoch = job.order.indices(epoch=span.epoch, start=0, stop=batches.num_samples)
    else:
        sampler = _sampler(batches.num_samples, job.seed)
        sampler.set_epoch(span.epoch)
        epoch = list(sampler)  # type: ignore[assignment]
    order = torch.as_tensor(epoch)
    indices = order[span.start : span.stop]
    missing = min(batches.global_batch, batches.num_samples) - len(indices)
    if missing and habits.last_batch == "padded":
        return torch.cat((indices, order[:missing])), False
    return indices, missing > 0
