"""Why two trainings differ. Every cause is found by a check: a pass run again, or a training with one thing changed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samestep.engine import numerics
from samestep.engine.randomness import preserved
from samestep.measure.against.habits import Habits, batch_of
from samestep.measure.against.peer import State, Task, Trainer
from samestep.measure.against.rounding import Gap
from samestep.measure.against.sentences import describe, size_of_last_batch
from samestep.measure.differences import Difference
from samestep.run.workload import Workload


def find_cause(workload: Workload, differences: Mapping[int, tuple[Difference, ...]]) -> tuple[str, ...]:
    """Why runs differ, found by running one microbatch again: a forward pass must depend on nothing else.

    Python's and NumPy's generators, torch's number of threads and state that a module keeps outside of its buffers
    are what depends on who computes.
    """
    samples = workload.data().train
    indices = torch.arange(min(8, samples.num_samples))
    threads = torch.get_num_threads()
    with preserved():
        model = workload.model().train()
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        inputs = tuple(column.gather(indices) for column in samples.inputs)

        def answer() -> tuple[Tensor, int]:
            model.load_state_dict(state)
            torch.manual_seed(0)
            try:
                output = model(*inputs)
                return _first_tensor(output), torch.get_num_threads()
            finally:
                torch.set_num_threads(threads)

        python_state, numpy_state = random.getstate(), repr(np.random.get_state())  # noqa: NPY002
        first, threads_after = answer()
        draws_python, draws_numpy = random.getstate() != python_state, repr(np.random.get_state()) != numpy_state  # noqa: NPY002
        second, _ = answer()
    found = [
        f"the forward pass draws from {name}, which is not keyed: draw from torch instead"
        for is_drawn, name in ((draws_python, "Python's random"), (draws_numpy, "numpy.random"))
        if is_drawn
    ]
    if threads_after != threads:
        found.append(
            f"the forward pass changes torch's number of threads ({threads} before, {threads_after} after), on which "
            "bits depend: leave it to threads_per_worker"
        )
    if found:
        return tuple(found)
    if not torch.equal(first, second):
        text = (
            "the forward pass gives another answer when run again on the same samples: it depends on something that "
            "is neither parameter, buffer nor torch's default generator"
        )
        return (text,)
    names = {difference.tensor for found_there in differences.values() for difference in found_there}
    if names and names <= {name for name, _ in model.named_buffers()}:
        return ("only buffers differ: a module changes them in a way that depends on who computes",)
    return ()


def is_drawing(task: Task) -> bool:
    """Whether a forward pass, or a transform of the data, draws from torch's default generator."""
    with preserved():
        before = torch.get_rng_state()
        _forward(task, task.job.batches.microbatch)
        return not torch.equal(before, torch.get_rng_state())


def find_threads(task: Task, peer: str, habits: Habits) -> tuple[str, ...]:
    """Whether a forward pass of the global batch gives other bits with the peer's number of threads."""
    own, others = task.job.switches.intra_op_threads, habits.threads
    if others is None or others == own:
        return ()
    answers = []
    for threads in (own, others):
        with numerics.applied(replace(task.job.switches, intra_op_threads=threads)), preserved():
            torch.default_generator.manual_seed(task.job.seed)
            answers.append(_forward(task, task.job.batches.global_batch))
    if torch.equal(*answers):
        return ()
    text = (
        f"threads: {peer} ran with {others} inside an operation and samestep with {own}; the forward pass gives other "
        f"bits, for sums are taken in another order (threads_per_worker={others} takes as many)"
    )
    return (text,)


def _forward(task: Task, num_samples: int) -> Tensor:
    indices = batch_of(task.job, Habits(), 0)[0][:num_samples]
    inputs = tuple(column.gather(indices) for column in task.job.samples.inputs)
    with torch.no_grad():
        return _first_tensor(copy.deepcopy(task.job.model).train()(*inputs))


def _first_tensor(output: Any) -> Tensor:
    """What a model answers, or the first part of it."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output


def diagnose(
    trainer: Trainer,
    task: Task,
    peer: str,
    habits: Habits,
    trained: State,
    reference: State,
    is_rounding: Callable[[Gap], bool],
) -> tuple[str, ...]:
    """Train the peer again and again, each time with one more habit changed to samestep's.

    A habit whose change moves the result by more than rounding is a cause. At the end nothing but rounding may be left.

    Args:
        trainer: The peer.
        task: What it trains.
        peer: Its name.
        habits: How it trains.
        trained: What that gave.
        reference: What samestep gave.
        is_rounding: Whether rounding explains a difference.
    """
    found = []
    for name, before, after in _ladder(task, habits, trainer.world_size):
        changed = trainer.train(task, after)
        gap = task.gap(changed, trained)
        if name is not None and not is_rounding(gap):
            with_buffers = {**trained, **{buffer: changed[buffer] for buffer in task.buffers}}
            is_only_buffers = name in ("statistics", "parts") and is_rounding(task.gap(changed, with_buffers))
            text = describe("buffers" if is_only_buffers else name, task, peer, before, trainer.world_size)
            found.append(f"{text} (doing as samestep does moves the peer's update by {gap.relative:.1e} of it)")
        trained = changed
    left = task.gap(reference, trained)
    if found and not is_rounding(left):
        found.append(f"something else: with all of that changed, {left.relative:.1e} of the update is still left")
    return tuple(found)


def _ladder(task: Task, habits: Habits, world_size: int) -> Iterator[tuple[str | None, Habits, Habits]]:
    """Changes to samestep's habits, one at a time; those that cannot matter here come along with the next."""
    own = Habits(threads=habits.threads)
    draws = is_drawing(task)
    has_many = world_size > 1 or habits.parts == "microbatches"
    does_matter = {
        "order": True,
        "last_batch": size_of_last_batch(task) is not None and (has_many or habits.last_batch != "mean of means"),
        "loss": True,
        "mean": has_many,
        "clip": getattr(task.job.rule, "clip_norm", None) is not None,
        "statistics": bool(task.job.buffers.tracked or task.job.buffers.others),
        "parts": True,
        "draws": draws,
    }
    trained = now = habits
    for name, matters in does_matter.items():
        now = replace(now, **{name: getattr(own, name)})
        if matters and getattr(now, name) != getattr(trained, name):
            # In other parts the masks are others too, and then nothing can be told.
            yield None if name == "parts" and draws else name, trained, now
            trained = now
    if now != trained:
        yield None, trained, now
