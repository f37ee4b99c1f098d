"""From pictures to the columns of a pack: decode with all cores, split, write."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samestep.data import keeping
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.pack.writer import Tell, Writer
from samestep.data.pictures import decode
from samestep.data.pictures.decode import Broken, Shape
from samestep.data.pictures.found import Labelled
from samestep.data.pictures.schema import Schema
from samestep.data.target import Classes, at_least_two
from samestep.errors import DataError, UsageError
from samestep.host.cores import num_cores

PICTURES, TARGET = "pictures", "target"

Pixels = npt.NDArray[np.uint8]

_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class Making:
    """How pictures become what a network learns from.

    Args:
        size: (height, width) that every picture is resized to; None: all have the first one's.
        broken_pictures: What happens where a picture cannot be decoded.
        evaluation_frac: The share of pictures kept for evaluation, where folders do not say which.
        split_seed: Another one keeps other pictures.
    """

    size: tuple[int, int] | None = None
    broken_pictures: Literal["stop", "skip"] = "stop"
    evaluation_frac: float = 0.1
    split_seed: int = 0

    def __post_init__(self) -> None:
        keeping.check_frac(self.evaluation_frac)


def parse_size(text: str) -> tuple[int, int]:
    """``HEIGHTxWIDTH``.

    >>> parse_size("32x48")
    (32, 48)
    """
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UsageError(f"picture_size {text!r} is not HEIGHTxWIDTH, such as 32x32")
    return int(height), int(width)


def make(pictures: Labelled, making: Making, writer: Writer, tell: Tell) -> tuple[Schema, dict[str, Any]]:
    """Write the columns of pictures in files; the schema, and statistics for people.

    Raises:
        DataError: A picture is broken, or there is one class only.
    """
    _classes(pictures.labels)  # before the work
    shape = _shape(pictures, making)
    raw = writer.scratch / "pictures.raw"
    is_broken = _decoded(pictures, shape, raw, making, tell)
    pixels = np.memmap(raw, np.uint8, "r", shape=(len(is_broken), *shape.array))
    schema, statistics = write(pixels, pictures.labels, pictures.parts, making, writer, is_broken=is_broken)
    return schema, {**statistics, "num_outside": pictures.num_outside}


def write(
    pixels: Pixels,
    labels: Sequence[str],
    parts: Sequence[str] | None,
    making: Making,
    writer: Writer,
    *,
    is_broken: npt.NDArray[np.bool_] | None = None,
) -> tuple[Schema, dict[str, Any]]:
    """Write the columns of decoded pictures.

    Args:
        pixels: Shape (n, height, width, channels).
        labels: A class each, as text.
        parts: The part that each belongs to; None: by what it shows.
        making: How.
        writer: Takes the columns.
        is_broken: Which of them are left out.

    Raises:
        DataError: There is one class only.
    """
    classes = _classes(labels)
    is_broken = np.zeros(len(pixels), np.bool_) if is_broken is None else is_broken
    is_kept = _is_evaluation(parts, pixels, making)
    targets = classes.of_texts(labels)
    counts = {}
    for part, chosen in ((TRAIN, ~is_kept & ~is_broken), (EVALUATION, is_kept & ~is_broken)):
        places = np.flatnonzero(chosen)
        for start in range(0, len(places), _AT_ONCE):
            some = places[start : start + _AT_ONCE]
            writer.append(part, PICTURES, pixels[some].transpose(0, 3, 1, 2))
            writer.append(part, TARGET, targets[some])
        if len(places):
            counts[part] = np.bincount(targets[places], minlength=classes.num_outputs).tolist()
    _, height, width, channels = pixels.shape
    schema = Schema(height=height, width=width, channels=channels, target=classes)
    rule = None if parts is not None else keeping.rule("pictures", frac=making.evaluation_frac, seed=making.split_seed)
    return schema, {"classes": counts, "missing": {}, "num_dropped": int(is_broken.sum()), "split": rule}


def _classes(labels: Sequence[str]) -> Classes:
    """In the order of numbers where all are whole ones, of texts otherwise."""
    different = set(labels)
    is_numeric = all(label.isascii() and label.isdigit() for label in different)
    values = tuple(sorted(different, key=int) if is_numeric else sorted(different))
    return at_least_two(Classes(name="label", values=values, is_numeric=is_numeric))


def _shape(pictures: Labelled, making: Making) -> Shape:
    """That of the first picture that can be decoded."""
    for number, path in enumerate(pictures.paths):
        try:
            shape = decode.look_at(path)
            break
        except DataError as error:
            if making.broken_pictures == "stop":
                raise _complaint(pictures, Broken(number, str(error))) from None
    else:
        raise _none_left(pictures)
    if making.size is None:
        return shape
    return Shape(height=making.size[0], width=making.size[1], channels=shape.channels, is_resized=True)


def _decoded(pictures: Labelled, shape: Shape, raw: Path, making: Making, tell: Tell) -> npt.NDArray[np.bool_]:
    """Decode all; which pictures are broken."""
    paths = pictures.paths
    is_broken = np.zeros(len(paths), np.bool_)
    num_done = 0
    with closing(decode.decode_all(paths, shape, raw, num_cores())) as answers:
        for num, broken in answers:
            if broken and making.broken_pictures == "stop":
                raise _complaint(pictures, min(broken, key=lambda found: found.number))
            is_broken[[found.number for found in broken]] = True
            num_done += num
            tell("decoding pictures", num_done, len(paths))
    if is_broken.all():
        raise _none_left(pictures)
    return is_broken


def _none_left(pictures: Labelled) -> DataError:
    return DataError(f"none of the {len(pictures.paths):,} pictures can be decoded")


def _complaint(pictures: Labelled, broken: Broken) -> DataError:
    return DataError(f"{pictures.name(broken.number)} {broken.why}; leave such pictures out with broken_pictures skip")


def _is_evaluation(parts: Sequence[str] | None, pixels: Pixels, making: Making) -> npt.NDArray[np.bool_]:
    """By what is said where it is; otherwise by what a picture shows."""
    if parts is not None:
        return np.array([part == EVALUATION for part in parts])
    return keeping.by_content(pixels, frac=making.evaluation_frac, seed=making.split_seed)
