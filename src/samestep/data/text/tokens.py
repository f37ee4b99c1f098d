"""Tokens of a text: the places of its parts in the vocabulary of a tokenizer of the user's.

A tokenizer is a file tokenizer.json, as the package tokenizers and all of Hugging Face write it.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samestep.errors import DataError, UsageError


class Tokenizer:
    """Text to tokens and back.

    Args:
        description: The content of a tokenizer.json.
        name: What it is called in a complaint.

    Raises:
        UsageError: The package tokenizers is not installed.
        DataError: It is not the content of such a file.
    """

    def __init__(self, description: str, name: str = "the tokenizer") -> None:
        try:
            library: Any = importlib.import_module("tokenizers")
        except ImportError:
            raise UsageError(
                f"{name} needs the package tokenizers; install it: pip install 'samestep[tokenizers]'"
            ) from None
        try:
            self._tokenizer = library.Tokenizer.from_str(description)
        except Exception as error:  # the library raises nothing more special
            raise DataError(f"{name} is no tokenizer.json ({error})") from None

    def numbers(self, text: str) -> npt.NDArray[np.uint32]:
        """The tokens of a text, without those that mark a beginning or an end; shape (num_tokens,)."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.uint32)

    def text(self, number: int) -> str:
        """What a token stands for."""
        return str(self._tokenizer.decode([number], skip_special_tokens=False))


def read(path: Path) -> str:
    """The content of a tokenizer.json.

    Raises:
        DataError: There is no such file, or it holds no text.
    """
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise DataError(f"the tokenizer {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"the tokenizer {path} is no tokenizer.json: it is not text") from None
