"""Pipeline schedules: who holds which chunk of a network, and what every stage does in a round, in order.

A *chunk* is a run of consecutive operations. A stage holds one of them, or several (``interleaved``, ``zbv``): a
microbatch then comes by more than once, and a stage that would wait for others works on another chunk meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Literal

from samestep.errors import UsageError

Schedule = Literal["gpipe", "1f1b", "interleaved", "zbv"]


class Pass(StrEnum):
    """What is done to a microbatch in a chunk."""

    FORWARD = "F"
    BACKWARD = "B"
    """All gradients at once."""
    INPUT = "I"
    """The part of the backward pass that the chunk before waits for: the gradients of the inputs."""
    WEIGHT = "W"
    """The rest of it: the gradients of the weights."""

    @property
    def completes(self) -> bool:
        """Whether a microbatch's gradients are whole when it is done."""
        return self in (Pass.BACKWARD, Pass.WEIGHT)


@dataclass(frozen=True)
class Action:
    """A pass of one of a replica's microbatches, counted from 0, through one chunk, counted over the network."""

    kind: Pass
    chunk: int
    number: int


def check_chunks(schedule: Schedule, num_chunks: int) -> None:
    """Refuse numbers of chunks a stage that a schedule is not made for.

    Raises:
        UsageError: The one line says what would do.
    """
    if schedule == "zbv" and num_chunks != 2:
        raise UsageError(f"chunks={num_chunks} with schedule='zbv', in which a stage holds 2 chunks; take chunks=2")
    if schedule == "interleaved" and num_chunks < 2:
        raise UsageError(
            f"chunks={num_chunks} with schedule='interleaved', in which a stage holds at least 2; take chunks=2 or "
            "more, or schedule='1f1b'"
        )
    if schedule in ("gpipe", "1f1b") and num_chunks != 1:
        raise UsageError(
            f"chunks={num_chunks} with schedule={schedule!r}, in which a stage holds one; take schedule='interleaved'"
        )


def chunks_of(schedule: Schedule, *, num_stages: int, num_chunks: int, stage: int) -> tuple[int, ...]:
    """The chunks that a stage holds, in the order of the network.

    ``zbv`` goes through the stages and back again, so that the loss is computed where the microbatch came in; all
    others go round.

    Args:
        schedule: Which.
        num_stages: Of a replica.
        num_chunks: Of every stage.
        stage: Whose.

    Example:
        >>> chunks_of("interleaved", num_stages=3, num_chunks=2, stage=0)
        (0, 3)
        >>> chunks_of("zbv", num_stages=3, num_chunks=2, stage=0)
        (0, 5)
    """
    if schedule == "zbv":
        return stage, 2 * num_stages - 1 - stage
    return tuple(range(stage, num_stages * num_chunks, num_stages))


def stage_of(schedule: Schedule, *, num_stages: int, chunk: int) -> int:
    """The stage that holds a chunk.

    >>> [stage_of("zbv", num_stages=2, chunk=chunk) for chunk in range(4)]
    [0, 1, 1, 0]
    """
    place = chunk % (2 * num_stages)
    if schedule == "zbv" and place >= num_stages:
        return 2 * num_stages - 1 - place
    return chunk % num_stages


def actions(
    schedule: Schedule, *, num_stages: int, num_chunks: int = 1, stage: int, num_microbatches: int
) -> tuple[Action, ...]:
    """What a stage does in a round, in order; in every chunk gradients are complete in the order of the microbatches.

    ``gpipe``: all forward passes, then all backward passes (Huang et al., 2019). ``1f1b``: as soon as the first
    microbatch has come back, one backward pass after every forward pass, so that a stage never holds more than
    ``num_stages - stage`` microbatches' activations (Narayanan et al., "PipeDream", 2019, without its stale weights).
    ``interleaved``: the same over several chunks a stage (Narayanan et al., "Efficient large-scale language model
    training on GPU clusters using Megatron-LM", 2021). ``zbv``: two chunks a stage, and backward passes in halves, of
    which the one that nobody waits for fills the gaps (Qi et al., "Pipeline parallelism with controllable memory",
    2024).

    The last two are made for a number of microbatches that is large, or a multiple of the stages'. With any other a
    stage does what it would do with more of them, and leaves out those that are not there.

    Args:
        schedule: Which.
        num_stages: Of a replica.
        num_chunks: Of every stage.
        stage: Whose actions.
        num_microbatches: That the replica computes in the round.

    Example:
        >>> found = actions("1f1b", num_stages=2, stage=0, num_microbatches=3)
        >>> "".join(each.kind for each in found)
        'FFBFBB'
        >>> found = actions("zbv", num_stages=2, num_chunks=2, stage=1, num_microbatches=1)
        >>> " ".join(f"{each.kind}{each.chunk}" for each in found)
        'F1 F2 I2 W2 I1 W1'
    """
    check_chunks(schedule, num_chunks)
    chunks = chunks_of(schedule, num_stages=num_stages, num_chunks=num_chunks, stage=stage)
    if schedule == "zbv":
        found = _zbv(num_stages, stage, chunks, num_microbatches)
    else:
        first = num_microbatches * num_chunks
        if schedule != "gpipe":  # as many as are on their way when the first one comes back
            first = (
                num_stages - stage if num_chunks == 1 else 2 * (num_stages - stage) - 1 + (num_chunks - 1) * num_stages
            )
        found = _paired(num_stages, chunks, num_microbatches, first)
    return tuple(each for each in found if each.number < num_microbatches)


def is_filled(schedule: Schedule, *, num_stages: int, num_microbatches: int) -> bool:
    """Whether a schedule is made for so many microbatches of a replica: with others stages wait longer than they need.

    >>> [is_filled("zbv", num_stages=2, num_microbatches=count) for count in (2, 3)]
    [False, True]
    >>> [is_filled("interleaved", num_stages=2, num_microbatches=count) for count in (2, 3)]
    [True, False]
    """
    if schedule == "interleaved":
        return num_microbatches % num_stages == 0
    return num_microbatches >= (2 * num_stages - 1 if schedule == "zbv" else num_stages)


def bubble_frac(schedule: Schedule, *, num_stages: int, num_chunks: int = 1, num_microbatches: int) -> float:
    """The share of a round in which a stage has nothing to do, where all chunks take equally long.

    With P stages, m microbatches and v chunks a stage: (P - 1) / (v m + P - 1), where backward passes are not cut in
    halves (``interleaved``: m is a multiple of P). ``zbv``: (P - 1) / (6 m + P - 1), where a forward pass and both
    halves of a backward pass take equally long, and there are 2 P - 1 microbatches at least.

    >>> bubble_frac("1f1b", num_stages=2, num_microbatches=3)
    0.25
    """
    passes = 6 if schedule == "zbv" else num_chunks
    return (num_stages - 1) / (passes * num_microbatches + num_stages - 1)


def _paired(num_stages: int, chunks: Sequence[int], num_microbatches: int, first: int) -> list[Action]:
    """`first` forward passes, then a backward pass and a forward pass in turn; microbatches go in groups.

    A group, of as many microbatches as there are stages, goes through one chunk of the stage after the other.
    """
    size = num_stages if len(chunks) > 1 else 1
    groups = [range(start, start + size) for start in range(0, num_microbatches, size)]
    forward = [Action(Pass.FORWARD, chunk, number) for group in groups for chunk in chunks for number in group]
    backward = [Action(Pass.BACKWARD, chunk, number) for group in groups for chunk in chunks[::-1] for number in group]
    first = min(first, len(forward))
    steady = chain.from_iterable(zip(backward, forward[first:], strict=False))
    return [*forward[:first], *steady, *backward[len(forward) - first :]]


def _zbv(num_stages: int, stage: int, chunks: Sequence[int], num_microbatches: int) -> list[Action]:
    """The handcrafted order of the paper: fill, steady state, drain; weights fill the gaps of the drain."""
    going, coming = chunks
    total = max(2 * num_stages - 1, num_microbatches)
    plan = [(Pass.FORWARD, going)] * (2 * (num_stages - stage) - 1)
    plan += [(Pass.FORWARD, coming), (Pass.FORWARD, going)] * stage
    last = [(Pass.FORWARD, coming), (Pass.INPUT, coming), (Pass.WEIGHT, coming)]
    plan += last * (num_stages - stage)
    first = [(Pass.INPUT, going), (Pass.WEIGHT, going)]
    plan += [(Pass.FORWARD, going), *first, *last] * (total - (2 * num_stages - 1 - stage))
    plan += [*first, *last] * (num_stages - 1 - stage)
    plan += [(Pass.INPUT, going), (Pass.INPUT, coming)] * stage
    plan += first * (num_stages - stage)
    plan += [(Pass.WEIGHT, coming)] * stage + [(Pass.WEIGHT, going)] * stage
    counts: dict[tuple[Pass, int], int] = {}
    found = []
    for kind, chunk in plan:
        number = counts.get((kind, chunk), 0)
        counts[kind, chunk] = number + 1
        found.append(Action(kind, chunk, number))
    return found
