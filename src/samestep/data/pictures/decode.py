"""Decoding pictures in processes of their own: each writes what it decodes into one mapped file.

A process reads lines of JSON, ``{"start": 17, "paths": [...]}``, answers each with a line, and ends with its input.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from samestep.errors import DataError
from samestep.host import files

_AT_ONCE = 64
"""Pictures in a line: enough to make the line cheap, few enough to share the last ones out."""
_BROKEN = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises where a file is no picture that it decodes."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What every picture is turned into.

    Args:
        height: Rows of pixels.
        width: Pixels of a row.
        channels: 1 for grey, 3 for colours.
        is_resized: Whether pictures of other sizes are resized; otherwise they are broken.
    """

    height: int
    width: int
    channels: int
    is_resized: bool = False

    @property
    def array(self) -> tuple[int, int, int]:
        return (self.height, self.width, self.channels)


@dataclass(frozen=True)
class Broken:
    """A picture that could not be decoded, and why."""

    number: int
    why: str


def decode(path: Path, shape: Shape) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One picture, shape (height, width, channels).

    Raises:
        DataError: It is broken, or of another size.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore")
            turned = picture.convert("L" if shape.channels == 1 else "RGB")
    except _BROKEN as error:
        raise DataError(f"cannot be decoded ({error})") from None
    if turned.size != (shape.width, shape.height):
        if not shape.is_resized:
            sizes = f"{turned.width} × {turned.height} pixels, and the others {shape.width} × {shape.height}"
            raise DataError(f"has {sizes}; resize all with picture_size {shape.width}x{shape.height}")
        turned = turned.resize((shape.width, shape.height), Image.Resampling.BILINEAR)
    return np.asarray(turned).reshape(shape.array)


def look_at(path: Path) -> Shape:
    """Size and channels of a picture.

    Raises:
        DataError: It cannot be decoded.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as picture:
            warnings.simplefilter("ignore")
            is_grey = picture.mode in ("1", "L", "I", "I;16", "F")
            return Shape(height=picture.height, width=picture.width, channels=1 if is_grey else 3)
    except _BROKEN as error:
        raise DataError(f"cannot be decoded ({error})") from None


def decode_all(
    paths: Sequence[Path], shape: Shape, target: Path, num_processes: int
) -> Generator[tuple[int, list[Broken]], None, None]:
    """Decode pictures into a file of shape (len(paths), height, width, channels), with several processes.

    Yields:
        How many more are decoded, and which of them are broken (their bytes are 0).

    Raises:
        OSError: The disk has no room for them.
    """
    size = int(np.prod(shape.array))
    files.reserve(target, len(paths) * size)
    tasks = iter(range(0, len(paths), _AT_ONCE))
    words = [
        sys.executable,
        "-m",
        "samestep.data.pictures.decode",
        json.dumps([asdict(shape), str(target), len(paths)]),
    ]
    pool = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(max(1, min(num_processes, -(-len(paths) // _AT_ONCE))))
    ]
    try:
        busy = [process for process in pool if _give(process, tasks, paths)]
        while busy:
            for process in tuple(busy):
                answer = _ask(process)
                yield answer["num"], [Broken(*found) for found in answer["broken"]]
                if not _give(process, tasks, paths):
                    busy.remove(process)
    finally:
        for process in pool:
            process.kill()
            process.communicate()


def _give(process: subprocess.Popen[str], tasks: Iterator[int], paths: Sequence[Path]) -> bool:
    start = next(tasks, None)
    if start is None:
        return False
    assert process.stdin is not None
    some = [str(path) for path in paths[start : start + _AT_ONCE]]
    process.stdin.write(json.dumps({"start": start, "paths": some}) + "\n")
    process.stdin.flush()
    return True


def _ask(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise DataError(f"a process that decodes pictures has ended with exit code {process.wait()}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def main(words: Sequence[str], lines: IO[str], answers: IO[str]) -> None:
    """The life of a process that decodes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it decides, and closes its input
    shape, target, num = json.loads(words[0])
    shape = Shape(**shape)
    into = np.memmap(target, np.uint8, "r+", shape=(num, *shape.array))
    for line in lines:
        task = json.loads(line)
        broken = []
        for number, path in enumerate(task["paths"], start=task["start"]):
            try:
                into[number] = decode(Path(path), shape)
            except DataError as error:
                broken.append((number, str(error)))
        answers.write(json.dumps({"num": len(task["paths"]), "broken": broken}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:], sys.stdin, sys.stdout)
