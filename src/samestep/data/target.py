"""What is to be learned: classes, or a value; the same for tables, time series, pictures and arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samestep.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Classes:
    """A target of classes.

    Args:
        name: Of the target.
        values: As texts; a class's number is its place.
        is_numeric: Whether the classes are numbers, in their order.
    """

    name: str
    values: tuple[str, ...]
    is_numeric: bool

    @property
    def num_outputs(self) -> int:
        """Scores that a network gives for a sample."""
        return len(self.values)

    def of_numbers(self, numbers: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The class of every number, where the classes are numbers; shape as given."""
        assert self.is_numeric
        return np.searchsorted(np.array([float(text) for text in self.values]), numbers).astype(np.int64)

    def of_texts(self, texts: Collection[str]) -> npt.NDArray[np.int64]:
        """The class of every text, shape (n,)."""
        places = {text: place for place, text in enumerate(self.values)}
        return np.fromiter((places[text] for text in texts), np.int64, len(texts))


@dataclass(frozen=True, kw_only=True)
class Value:
    """A target that is a number: learned as ``(y - mean) / deviation``.

    Args:
        name: Of the target.
        mean: Of the training part.
        deviation: Standard deviation of the training part.
    """

    name: str
    mean: float
    deviation: float

    @property
    def num_outputs(self) -> int:
        """Numbers that a network gives for a sample."""
        return 1

    def of_numbers(self, numbers: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Standardised, shape (n, 1): as the network's output of one number is compared with it."""
        standardised = (numbers - self.mean) / self.deviation
        return standardised.astype(np.float32)[:, np.newaxis]


Target = Classes | Value


def at_least_two(classes: Classes) -> Classes:
    """The classes, if there is something to learn.

    Raises:
        DataError: There are fewer than two.
    """
    if len(classes.values) < 2:
        raise DataError(
            f"the target {classes.name} has one class only ({', '.join(classes.values) or 'none'}): "
            "there is nothing to learn"
        )
    return classes


def check_training(classes: Classes, counts: Sequence[int]) -> None:
    """Look at what is left to train on.

    Args:
        classes: All classes.
        counts: Samples to train on, by class.

    Raises:
        DataError: They are all of one class.
    """
    if np.count_nonzero(counts) == 1:
        raise DataError(
            f"all {sum(counts):,} samples to train on are of the class {classes.values[int(np.argmax(counts))]}: there "
            "is nothing to learn; keep others for evaluation (split_seed, split_by, evaluation), or bring more"
        )


def as_dict(target: Target) -> dict[str, Any]:
    """As plain values for JSON."""
    return {"task": "classes" if isinstance(target, Classes) else "value", **asdict(target)}


def from_dict(values: Mapping[str, Any]) -> Target:
    """The target that `as_dict` was made of."""
    fields = {name: value for name, value in values.items() if name != "task"}
    if values["task"] == "value":
        return Value(**fields)
    return Classes(**{**fields, "values": tuple(fields["values"])})
