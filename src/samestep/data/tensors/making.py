"""From a map-style data set to the columns of a pack: every sample is asked for once, and kept as an array."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.pack.writer import Writer
from samestep.data.table.schema import Classes, Value
from samestep.data.tensors.schema import Schema
from samestep.errors import DataError

INPUTS, TARGET = "inputs", "target"

_AT_ONCE = 1024

Tell = Callable[[str, int, int], None]
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
    inputs, targets = _read(training, writer.scratch / "train.raw", tell)
    parts = {TRAIN: (inputs, targets)}
    if evaluation is not None:
        parts[EVALUATION] = _read(evaluation, writer.scratch / "evaluation.raw", tell)
    else:
        is_kept = _is_evaluation(inputs, making)
        parts = {TRAIN: (inputs[~is_kept], targets[~is_kept]), EVALUATION: (inputs[is_kept], targets[is_kept])}
    target = _target(parts[TRAIN][1], np.concatenate([each for _, each in parts.values()]))
    counts = {}
    for part, (some, goals) in parts.items():
        encoded = _encoded(target, goals)
        for start in range(0, len(some), _AT_ONCE):
            writer.append(part, INPUTS, np.asarray(some[start : start + _AT_ONCE]))
            writer.append(part, TARGET, encoded[start : start + _AT_ONCE])
        if isinstance(target, Classes) and len(some):
            counts[part] = np.bincount(encoded, minlength=len(target.values)).tolist()
    return Schema(shape=inputs.shape[1:], target=target), {"classes": counts, "missing": {}, "num_dropped": 0}


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
                tell("reading", len(targets), len(data))
    assert shape is not None
    return np.memmap(raw, np.float32, "r", shape=(len(targets), *shape)), np.array(targets)


def _pairs(data: Any) -> Iterator[tuple[Inputs, Any]]:
    for number in range(len(data)):
        pair = data[number]
        if not _is_pair(pair):
            raise DataError(f"sample {number:,} of the data set is no pair (input, target)")
        values = pair[0].numpy() if isinstance(pair[0], Tensor) else np.asarray(pair[0])
        if values.dtype.kind not in "fiub":
            raise DataError(f"the input of sample {number:,} has dtype {values.dtype}, which is not a number")
        target = pair[1].item() if isinstance(pair[1], Tensor) and pair[1].numel() == 1 else pair[1]
        if not isinstance(target, int | float | np.integer | np.floating | str):
            raise DataError(
                f"the target of sample {number:,} is a {type(target).__name__}; it must be a class or a number"
            )
        yield values.astype(np.float32), target


def _is_pair(sample: Any) -> bool:
    return isinstance(sample, tuple | list) and len(sample) == 2


def _is_evaluation(inputs: Inputs, making: Making) -> npt.NDArray[np.bool_]:
    limit, key = making.evaluation_frac * 2.0**64, f"samestep {making.split_seed}".encode()
    words = (hashlib.blake2b(values.tobytes(), digest_size=8, key=key).digest() for values in inputs)
    return np.array([int.from_bytes(word, "little") < limit for word in words])


def _target(training: npt.NDArray[Any], everything: npt.NDArray[Any]) -> Classes | Value:
    if training.dtype.kind == "f":
        deviation = float(training.std())
        if deviation == 0.0:
            raise DataError(f"the target is {training[0]:g} in every sample: there is nothing to learn")
        return Value(name="target", mean=float(training.mean()), deviation=deviation)
    different = np.unique(everything)
    if len(different) < 2:
        raise DataError(f"all samples have one class ({different[0]}): there is nothing to learn")
    return Classes(name="target", values=tuple(map(str, different.tolist())), is_numeric=everything.dtype.kind in "iu")


def _encoded(target: Classes | Value, goals: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if isinstance(target, Value):
        return ((goals - target.mean) / target.deviation).astype(np.float32)[:, np.newaxis]
    known = np.array([int(text) if target.is_numeric else text for text in target.values])
    return np.searchsorted(known, goals).astype(np.int64)
