"""From a text to the column of a pack: read twice, in pieces; first which symbols there are, then their places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from samestep.data import keeping
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.pack.writer import Tell, Writer
from samestep.data.text.schema import Schema, points_of
from samestep.errors import DataError, UsageError

CODES = "codes"

_AT_ONCE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Making:
    """How a text becomes what a network learns from.

    Args:
        text: What its symbols are.
        window: Symbols of a sample.
        evaluation_frac: The share at the end of the text that is kept for evaluation: neighbouring windows tell of
            each other, so they are not mixed.
        encoding: Of the characters.
    """

    text: Literal["characters", "bytes"] = "characters"
    window: int = 64
    evaluation_frac: float = 0.1
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UsageError(f"window={self.window} is below 1; take the number of symbols of a sample")
        keeping.check_frac(self.evaluation_frac)


def make(paths: Sequence[Path], making: Making, writer: Writer, tell: Tell) -> tuple[Schema, dict[str, Any]]:
    """Write the column of a text.

    Raises:
        DataError: The text is empty, too short for a window, or in another encoding.
    """
    known, num_symbols = np.empty(0, np.uint32), 0
    for piece in _pieces(paths, making):
        known = np.union1d(known, points_of(piece))
        num_symbols += len(piece)
    cut = num_symbols - round(num_symbols * making.evaluation_frac)
    if cut <= making.window:
        raise DataError(f"the text has {cut:,} symbols to train on, and one window needs {making.window + 1:,}")
    dtype, done = np.min_scalar_type(len(known) - 1), 0
    for piece in _pieces(paths, making):
        codes = np.searchsorted(known, points_of(piece)).astype(dtype)
        middle = min(max(cut - done, 0), len(codes))
        for part, some in ((TRAIN, codes[:middle]), (EVALUATION, codes[middle:])):
            if len(some):
                writer.append(part, CODES, some)
        done += len(codes)
        tell("encoding symbols", done, num_symbols)
    schema = Schema(symbols="".join(map(chr, known.tolist())), are_bytes=making.text == "bytes", window=making.window)
    return schema, {"classes": {}, "missing": {}, "num_dropped": 0}


def _pieces(paths: Sequence[Path], making: Making) -> Iterator[str]:
    for path in paths:
        if making.text == "bytes":
            with open(path, "rb") as file:
                while block := file.read(_AT_ONCE):
                    yield block.decode("latin-1")
            continue
        try:
            with open(path, encoding=making.encoding, newline="") as text:
                while piece := text.read(_AT_ONCE):
                    yield piece
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path.name} is not {making.encoding} ({error.reason}); say what it is, such as encoding latin-1, or "
                "take text bytes"
            ) from None
        except LookupError:
            raise DataError(f"encoding {making.encoding!r} is not known; take utf-8, latin-1, cp1252, ...") from None
