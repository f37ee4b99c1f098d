"""Where data lie: a folder named by the environment, the user's cache, or this package."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

from samestep.errors import DataError
from samestep.host import files

DATA_VARIABLE = "SAMESTEP_DATA"
"""The environment variable that names a folder of data sets."""

_ORIGINS = {
    "mnist": "kaggle: hojjatk/mnist-dataset",
    "fashion-mnist": "kaggle: zalando-research/fashionmnist",
    "adult": "UCI: archive.ics.uci.edu/dataset/2/adult; kaggle: uciml/adult-census-income",
    "tinyshakespeare": "github: karpathy/char-rnn, data/tinyshakespeare",
}

_EMBEDDED = Path(__file__).with_name("embedded")


def find(folder: str, filename: str) -> Path:
    """The path of a data file: in ``$SAMESTEP_DATA/<folder>``, else in the user's cache.

    A name that ends in ``.gz`` is also found unpacked, without the ending: so do Kaggle's archives hold them.

    Args:
        folder: Name of the data set, such as "mnist".
        filename: Name of the file inside the folder.

    Returns:
        The first file there is.

    Raises:
        DataError: There is none; the one line names the file, both places and where the data come from.
    """
    for place in _places(folder):
        for name in (filename, filename.removesuffix(".gz")):
            if (place / name).is_file():
                return place / name
    raise DataError(_how_to_get(folder, filename))


def embedded(filename: str) -> Path:
    """The path of a file that comes with the package."""
    return _EMBEDDED / filename


def read_bytes(path: Path) -> bytes:
    """All bytes of a file, unpacked where it is a gzip file (whatever it is called).

    Raises:
        DataError: The file cannot be read, is cut short or damaged; the one line names it.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); is it cut short? Fetch it again") from error


def read_text(path: Path) -> str:
    """All characters of a UTF-8 file, unpacked where it is a gzip file.

    Raises:
        DataError: As for `read_bytes`, or the bytes are not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; is this the right file?") from error


def _places(folder: str) -> tuple[Path, ...]:
    """The folders to look into, first the one named by the environment."""
    named, cache = os.environ.get(DATA_VARIABLE), files.cache_folder()
    places = ([Path(named).expanduser()] if named else []) + ([cache / "data"] if cache else [])
    return tuple(place / folder for place in places)


def _how_to_get(folder: str, filename: str) -> str:
    named = os.environ.get(DATA_VARIABLE)
    first = Path(named).expanduser() / folder if named else f"${DATA_VARIABLE}/{folder} ({DATA_VARIABLE} is not set)"
    origin = f" ({_ORIGINS[folder]})" if folder in _ORIGINS else ""
    cache = files.cache_folder()
    second = f" or {cache / 'data' / folder}" if cache else ""
    return f"{folder}: {filename} not found; put it into {first}{second}{origin}"
