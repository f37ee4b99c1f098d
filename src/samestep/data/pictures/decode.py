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
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from PIL import ExifTags, Image

from samestep.errors import DataError
from samestep.host import files

_AT_ONCE = 64
"""Pictures in a line: enough to make the line cheap, few enough to share the last ones out."""
_GREY, _WITH_ALPHA = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"), ("LA", "PA", "RGBA")
"""Pillow's names for kinds of pixels."""
_NOTES = {"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"}
"""Where Pillow finds EXIF data; of a TIFF in its tags."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by the orientation that its EXIF data give it."""
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
    """One picture, shape (height, width, channels), as it is to be seen: upright, and what is transparent on white.

    Of values of 16 bits the upper 8 are kept.

    Raises:
        DataError: It is broken, or of another size.
    """
    try:
        with _opened(path) as picture:
            seen = _flat(_upright(picture), "L" if shape.channels == 1 else "RGB")
    except _BROKEN as error:
        raise DataError(f"cannot be decoded ({error})") from None
    if seen.size != (shape.width, shape.height):
        if not shape.is_resized:
            sizes = f"{seen.width} × {seen.height} pixels, and the others {shape.width} × {shape.height}"
            raise DataError(f"has {sizes}; resize all with picture_size {shape.height}x{shape.width}")
        seen = seen.resize((shape.width, shape.height), Image.Resampling.BILINEAR)
    return np.asarray(seen).reshape(shape.array)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture; Pillow's warnings (large pictures, odd EXIF data) are for those who write programs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as picture:
            yield picture


def _upright(picture: Image.Image) -> Image.Image:
    """The picture, turned as its EXIF data say; where these are damaged they say nothing."""
    picture.load()  # what is wrong with the pixels is said here
    if _NOTES.isdisjoint(picture.info) and not hasattr(picture, "tag_v2"):
        return picture  # most pictures; to ask for EXIF data that are not there takes time
    turn = None
    with suppress(Exception):  # Pillow raises many kinds of them over EXIF data
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    return picture if turn is None else picture.transpose(turn)


def _flat(picture: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """The picture with 8 bits a channel and nothing transparent."""
    if picture.mode.startswith("I"):  # Pillow itself makes 255 of all that is above
        values = np.clip(np.asarray(picture), 0, (1 << 16) - 1) >> 8
        return Image.fromarray(values.astype(np.uint8)).convert(mode)
    if picture.mode in _WITH_ALPHA or "transparency" in picture.info:
        whole = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert(mode)
    return picture.convert(mode)


def look_at(path: Path) -> Shape:
    """Size and channels of a picture.

    Raises:
        DataError: It cannot be decoded.
    """
    try:
        with _opened(path) as picture:
            seen = _upright(picture)
            return Shape(height=seen.height, width=seen.width, channels=1 if seen.mode in _GREY else 3)
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
