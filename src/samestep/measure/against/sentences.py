"""Causes in words, with their numbers."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _NormBase

from samestep.engine import losses
from samestep.measure.against.habits import Habits, parts
from samestep.measure.against.peer import Task


def size_of_last_batch(task: Task) -> int | None:
    """Samples of a short last batch, where the run comes to one."""
    batches = task.job.batches
    step = min(task.job.num_steps, batches.steps_per_epoch) - 1
    span = batches.span(step)
    size = span.stop - span.start
    return size if size < min(batches.global_batch, batches.num_samples) else None


def describe(name: str, task: Task, peer: str, habits: Habits, world_size: int) -> str:
    """What a peer does otherwise than samestep.

    Args:
        name: The habit; or "buffers", where only these differ.
        task: What is trained.
        peer: Its name.
        habits: The peer's.
        world_size: Its ranks.
    """
    batches = task.job.batches
    what = "its whole share of a batch" if world_size > 1 else "a whole batch"
    match name:
        case "order":
            return f"order: {peer} takes the samples in {habits.order}'s order, and samestep in its own"
        case "last_batch":
            return _describe_last_batch(task, peer, habits, world_size)
        case "loss":
            return f"loss weights: {_describe_loss(task, peer, habits)}"
        case "mean":
            return (
                f"mean of means: {peer} averages means of unequal weight ({_unequal(task, habits, world_size)}), and "
                "samestep divides a sum over the batch by its weight"
            )
        case "clip":
            return f"clipping: {peer}'s clip_grad_norm_ adds 1e-6 to the norm, and samestep does not"
        case "buffers":
            has_norms = any(isinstance(module, _NormBase) for module in task.job.model.modules())
            return (
                f"{'BatchNorm' if has_norms else 'buffers'}: {peer}'s buffers follow what it forwards ({what}), and "
                f"samestep's change by the mean over its microbatches of {batches.microbatch}"
            )
        case "statistics":
            return (
                f"BatchNorm: {peer} normalises {what} and samestep each microbatch of {batches.microbatch}, and the "
                "running statistics are those of what is normalised"
            )
        case "draws":
            return (
                f"dropout: {peer} draws from torch's default generator as it stands, and samestep keys what is drawn "
                "by step, microbatch and module"
            )
    return (
        f"parts: the answer for a sample depends on what is forwarded with it; {peer} forwards {what} at once, and "
        f"samestep microbatches of {batches.microbatch}"
    )


def _describe_last_batch(task: Task, peer: str, habits: Habits, world_size: int) -> str:
    size = size_of_last_batch(task) or 0
    start = f"last batch: an epoch ends with {size} samples instead of {task.job.batches.global_batch}, which {peer}"
    if habits.last_batch == "dropped":
        return f"{start} leaves out, and samestep keeps"
    if habits.last_batch == "padded":
        return f"{start} fills up with samples that the epoch has had, and samestep takes as they are"
    sizes = _part_sizes(task, habits, size, world_size)
    return f"{start} splits into {sizes} to average their means, and samestep weighs alike"


def _part_sizes(task: Task, habits: Habits, num_samples: int, world_size: int) -> str:
    found = [
        str(part.stop - part.start)
        for rank in range(world_size)
        for part in parts(habits, num_samples, task.job.batches.microbatch, rank, world_size)
    ]
    return " + ".join(found)


def _describe_loss(task: Task, peer: str, habits: Habits) -> str:
    if habits.loss == "own, unweighted" and task.unweighted_loss is not task.loss:
        return f"{peer}'s loss does not weigh the classes, and samestep's does"
    if getattr(task.loss, "reduction", None) == "sum":
        return f"the loss is a sum for {peer} (reduction='sum'), and samestep divides it by the weight of the batch"
    return (
        f"the mean that the loss gives for all of {peer}'s samples is not the mean of what it gives for microbatches; "
        "let it return per-sample losses, or a pair (sum, weight)"
    )


def _unequal(task: Task, habits: Habits, world_size: int) -> str:
    """What makes the weights of ranks and parts unequal."""
    found = []
    sizes = _part_sizes(task, habits, min(task.job.batches.global_batch, task.job.batches.num_samples), world_size)
    if len(set(sizes.split(" + "))) > 1:
        found.append(f"{sizes} samples")
    if getattr(task.loss, "weight", None) is not None:
        found.append("class weights")
    if losses.has_class_targets(task.loss):
        target = task.job.samples.target.gather(torch.arange(task.job.samples.num_samples))
        if bool((target == losses.ignored_class(task.loss)).any()):
            found.append("ignored targets")
    return ", ".join(found) or "weights that the loss gives"
