"""From a text to the column of a pack: read twice, in pieces; first which symbols there are, then their codes.

A text that a tokenizer has to cut is read once: its tokens wait in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from samestep.data import keeping
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.pack.writer import Tell, Writer
from samestep.data.text import tokens
from samestep.data.text.schema import Schema, Unit, points_of
from samestep.errors import DataError, UsageError

CODES = "codes"

_AT_ONCE = 1 << 20

_LONGEST_LINE = 1 << 24
"""Characters; a longer line is cut into tokens in pieces."""

Numbers = npt.NDArray[np.uint32]
Read = Callable[[], Iterator[Numbers]]
"""The numbers of all symbols in pieces, from the beginning whenever it is called."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files become symbols.

    Args:
        text: What the symbols are, where no tokenizer is given; None: characters.
        tokenizer: A file tokenizer.json, which cuts the text into tokens. None: there is none.
        encoding: Of the characters.
    """

    text: Literal["characters", "bytes"] | None = None
    tokenizer: str | None = None
    encoding: str = "utf-8"

    def __post_init__(self) -> None:
        if self.text is not None and self.tokenizer is not None:
            raise UsageError(f"text {self.text} does not go with a tokenizer, which decides what the symbols are")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How symbols become samples.

    Args:
        window: Symbols of a sample.
        evaluation_frac: The share at the end of the text that is kept for evaluation: neighbouring windows tell of
            each other, so they are not mixed.
    """

    window: int = 64
    evaluation_frac: float = 0.1

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UsageError(f"window={self.window} is below 1; take the number of symbols of a sample")
        keeping.check_frac(self.evaluation_frac)


def make(
    paths: Sequence[Path], reading: Reading, cut: Cut, writer: Writer, tell: Tell
) -> tuple[Schema, dict[str, Any]]:
    """Write the column of a text.

    Raises:
        DataError: The text is empty, too short for a window, or in another encoding.
        UsageError: The package tokenizers is needed and not there.
    """
    if reading.tokenizer is None:
        unit: Unit = reading.text or "characters"
        return _write(lambda: map(points_of, pieces(paths, reading)), unit, None, cut, writer, tell)
    description = tokens.read(Path(reading.tokenizer))
    numbers = _tokens(paths, reading, description, writer.scratch / "tokens", tell)
    return _write(partial(_in_pieces, numbers), "tokens", description, cut, writer, tell)


def make_of_numbers(numbers: npt.NDArray[Any], cut: Cut, writer: Writer, tell: Tell) -> tuple[Schema, dict[str, Any]]:
    """Write the column of a text that was cut into tokens already.

    Args:
        numbers: Of the tokens, whole and not negative, shape (num_tokens,).
        cut: How they become samples.
        writer: Of the pack.
        tell: Is told how far it is.

    Raises:
        DataError: A number is negative or beyond 32 bits, or there are too few for a window.
    """
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < 1 << 32:
        raise DataError(f"numbers of tokens go from 0 to 2³² - 1, and there are {numbers.min():,} to {numbers.max():,}")
    return _write(partial(_in_pieces, numbers), "tokens", None, cut, writer, tell)


def _write(
    read: Read, unit: Unit, tokenizer: str | None, cut: Cut, writer: Writer, tell: Tell
) -> tuple[Schema, dict[str, Any]]:
    known, num_symbols = np.empty(0, np.uint32), 0
    for numbers in read():
        known = np.union1d(known, numbers)
        num_symbols += len(numbers)
    num_train = num_symbols - round(num_symbols * cut.evaluation_frac)
    if num_train <= cut.window:
        raise DataError(f"the text has {num_train:,} symbols to train on, and one window needs {cut.window + 1:,}")
    if len(known) == 1:
        raise DataError(f"the text is one symbol (number {known[0]}), {num_symbols:,} times: there is nothing to learn")
    dtype, done = np.min_scalar_type(len(known) - 1), 0
    for numbers in read():
        codes = np.searchsorted(known, numbers).astype(dtype)
        middle = min(max(num_train - done, 0), len(codes))
        for part, some in ((TRAIN, codes[:middle]), (EVALUATION, codes[middle:])):
            if len(some):
                writer.append(part, CODES, some)
        done += len(codes)
        tell("encoding symbols", done, num_symbols)
    schema = Schema(unit=unit, numbers=tuple(known.tolist()), window=cut.window, tokenizer=tokenizer)
    rule = keeping.rule_of_time("the text", cut.evaluation_frac)
    return schema, {"classes": {}, "missing": {}, "num_dropped": 0, "split": rule}


def _in_pieces(numbers: npt.NDArray[Any]) -> Iterator[Numbers]:
    for start in range(0, len(numbers), _AT_ONCE):
        yield np.asarray(numbers[start : start + _AT_ONCE]).astype(np.uint32)


def _tokens(paths: Sequence[Path], reading: Reading, description: str, path: Path, tell: Tell) -> Numbers:
    """All tokens, in a mapped file; the text is cut between lines, so that a piece does not split a token."""
    assert reading.tokenizer is not None
    tokenizer, done = tokens.Tokenizer(description, reading.tokenizer), 0
    about = sum(each.stat().st_size for each in paths)
    with open(path, "wb") as file:
        for lines in _whole_lines(pieces(paths, reading)):
            file.write(tokenizer.numbers(lines).data)
            done += len(lines.encode(reading.encoding))
            tell("cutting into tokens", done, about)
    return np.memmap(path, np.uint32, "r") if path.stat().st_size else np.empty(0, np.uint32)


def _whole_lines(pieces: Iterator[str]) -> Iterator[str]:
    kept = ""
    for piece in pieces:
        lines, end, rest = (kept + piece).rpartition("\n")
        if end:
            yield lines + end
        kept = rest
        if len(kept) > _LONGEST_LINE:
            yield kept
            kept = ""
    if kept:
        yield kept


def pieces(paths: Sequence[Path], reading: Reading) -> Iterator[str]:
    """The texts of files, one after the other, piece by piece.

    Raises:
        DataError: One is in another encoding, or cannot be read.
    """
    for path in paths:
        if reading.text == "bytes":
            with open(path, "rb") as file:
                while block := file.read(_AT_ONCE):
                    yield block.decode("latin-1")
            continue
        try:
            with open(path, encoding=reading.encoding, newline="") as text:
                while piece := text.read(_AT_ONCE):
                    yield piece
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path.name} is not {reading.encoding} ({error.reason}); say what it is, such as encoding latin-1, or "
                "take text bytes"
            ) from None
        except LookupError:
            raise DataError(f"encoding {reading.encoding!r} is not known; take utf-8, latin-1, cp1252, ...") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})") from None
