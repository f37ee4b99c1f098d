"""The IDX format of the MNIST family: a magic number, the sizes, then the bytes.

References:
    LeCun, Cortes and Burges, "The MNIST database of handwritten digits", 1998.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samestep.data import sources
from samestep.errors import DataError

_UNSIGNED_BYTE = 0x08


def read(path: Path, *, num_dims: int) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, packed with gzip or not.

    Args:
        path: The file.
        num_dims: Dimensions it must have: 3 for images, 1 for labels.

    Returns:
        The values, in the shape that the file states.

    Raises:
        DataError: The file is cut short, damaged, or holds something else; the one line names it.

    Example:
        >>> read(sources.embedded("digits-images-idx3-ubyte.gz"), num_dims=3).shape
        (1797, 8, 8)
    """
    content = sources.read_bytes(path)
    magic = struct.pack(">HBB", 0, _UNSIGNED_BYTE, num_dims)
    if content[:4] != magic:
        found = content[:4].hex()
        raise DataError(f"{path}: starts with 0x{found}, bytes in {num_dims} dimensions as IDX with 0x{magic.hex()}")
    start = 4 + 4 * num_dims
    if len(content) < start:
        raise DataError(f"{path}: ends inside its header, after {len(content)} of {start} bytes")
    shape = struct.unpack(f">{num_dims}I", content[4:start])
    expected = start + math.prod(shape)
    if len(content) != expected:
        sizes = " × ".join(map(str, shape))
        raise DataError(f"{path}: {len(content):,} bytes, and {sizes} values need {expected:,}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
