"""From a map-style data set to the columns of a pack: every sample is asked for once, and kept as an array."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from samestep.data import keeping
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.pack.writer import Tell, Writer
from samestep.data.target import Classes, Target, Value, at_least_two
from samestep.data.tensors.schema import Schema
from samestep.errors import DataError

INPUTS, TARGET = "inputs", "target"

_AT_ONCE = 1024

Inputs = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Making:
    """How arrays become what a network learns from.

    Args:
        evaluation_frac: The share of samples kept for evaluation, where there is no data set of its own for it.
        split_seed: Another one keeps other samples.
    """

    evaluation_frac: float = 0.1
    split_seed: int = 0

    def __post_init__(self) -> None:
        keeping.check_frac(self.evaluation_frac)


def is_dataset(data: Any) -> bool:
    """Whether something is a map-style data set: it has a length, and gives pairs of an input and a target."""
    if isinstance(data, Mapping | Tensor | np.ndarray) or hasattr(data, "columns"):
        return False
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and len(data) > 0 and _is_pair(data[0])


def make(training: Any, evaluation: Any, making: Making, writer: Writer, tell: Tell) -> tuple[Schema, dict[str, Any]]:
    """Write the columns of a data set; the schema, and statistics for people.

    Raises:
        DataError: A sample is no pair of an array and a target, or differs from the others in its shape.
    """
    inputs, goals = _read(training, writer.scratch / "train.raw", tell)
    if evaluation is not None:
        others, other_goals = _read(evaluation, writer.scratch / "evaluation.raw", tell)
        everyone = (np.arange(len(goals)), np.arange(len(other_goals)))
        kept = {TRAIN: (inputs, goals, everyone[0]), EVALUATION: (others, other_goals, everyone[1])}
    else:
        is_kept = keeping.by_content(inputs, frac=making.evaluation_frac, seed=making.split_seed)
        kept = {TRAIN: (inputs, goals, np.flatnonzero(~is_kept)), EVALUATION: (inputs, goals, np.flatnonzero(is_kept))}
    everything = np.concatenate([each for _, each, _ in kept.values()])
    target = _target(goals[kept[TRAIN][2]], everything)
    counts = {}
    for part, (some, its_goals, places) in kept.items():
        encoded = _encoded(target, its_goals[places])
        for start in range(0, len(places), _AT_ONCE):
            writer.append(part, INPUTS, np.asarray(some[places[start : start + _AT_ONCE]]))
            writer.append(part, TARGET, encoded[start : start + _AT_ONCE])
        if isinstance(target, Classes) and len(places):
            counts[part] = np.bincount(encoded, minlength=target.num_outputs).tolist()
    rule = (
        None if evaluation is not None else keeping.rule("samples", frac=making.evaluation_frac, seed=making.split_seed)
    )
    statistics = {"classes": counts, "missing": {}, "num_dropped": 0, "split": rule}
    return Schema(shape=inputs.shape[1:], target=target), statistics


def _read(data: Any, raw: Path, tell: Tell) -> tuple[Inputs, npt.NDArray[Any]]:
    """Every sample's input, on disk, and its target."""
    targets: list[Any] = []
    shape: tuple[int, ...] | None = None
    with open(raw, "wb") as file:
        for number, (values, target) in enumerate(_pairs(data)):
            shape = shape or values.shape
            if values.shape != shape:
                raise DataError(f"sample {number:,} has shape {values.shape}, and those before {shape}; all need one")
            if not np.isfinite(values).all():
                raise DataError(f"sample {number:,} holds NaN or infinity; leave it out or fill it")
            file.write(np.ascontiguousarray(values).data)
            targets.append(target)
            if not len(targets) % _AT_ONCE or len(targets) == len(data):
                tell("reading samples", len(targets), len(data))
    assert shape is not None
    goals = np.array(targets)
    goals = goals.astype(np.int64) if goals.dtype == np.bool_ else goals
    return np.memmap(raw, np.float32, "r", shape=(len(targets), *shape)), goals


def _pairs(data: Any) -> Iterator[tuple[Inputs, Any]]:
    for number in range(len(data)):
        pair = data[number]
        if not _is_pair(pair):
            raise DataError(f"sample {number:,} of the data set is no pair (input, target)")
        values = pair[0].numpy() if isinstance(pair[0], Tensor) else np.asarray(pair[0])
        if values.dtype.kind not in "fiub":
            raise DataError(f"the input of sample {number:,} has dtype {values.dtype}, which is not a number")
        target = pair[1].item() if isinstance(pair[1], Tensor) and pair[1].numel() == 1 else pair[1]
        if not isinstance(target, int | float | np.bool_ | np.integer | np.floating | str):
            raise DataError(
                f"the target of sample {number:,} is a {type(target).__name__}; it must be a class or a number"
            )
        if isinstance(target, float | np.floating) and not math.isfinite(target):
            raise DataError(f"the target of sample {number:,} is {target}; leave the sample out or fill it")
        yield values.astype(np.float32), target


def _is_pair(sample: Any) -> bool:
    return isinstance(sample, tuple | list) and len(sample) == 2


def _target(training: npt.NDArray[Any], everything: npt.NDArray[Any]) -> Target:
    if training.dtype.kind == "f":
        deviation = float(training.std())
        if deviation == 0.0:
            raise DataError(f"the target is {training[0]:g} in every sample: there is nothing to learn")
        return Value(name="target", mean=float(training.mean()), deviation=deviation)
    values = tuple(map(str, np.unique(everything).tolist()))
    return at_least_two(Classes(name="target", values=values, is_numeric=everything.dtype.kind in "iu"))


def _encoded(target: Target, goals: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if isinstance(target, Value) or target.is_numeric:
        return target.of_numbers(goals)
    return target.of_texts(goals.tolist())
