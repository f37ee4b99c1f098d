"""Arrays in files: NumPy's .npy and .npz, and the IDX files of the MNIST family."""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from samestep.data import idx
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.errors import DataError, UsageError
from samestep.host.files import is_full

ENDINGS = (".npy", ".npz")

_IDX = re.compile(r"(.*?)[-_.]?(images|labels)[-_.]idx[13][-_.]ubyte(\.gz)?", re.IGNORECASE)
_PICTURES_AT_ONCE, _COPIED_AT_ONCE = 1024, 1 << 20
_INPUT_NAMES, _TARGET_NAMES = ("x", "data", "images", "inputs"), ("y", "labels", "label", "target", "targets")


@dataclass(frozen=True)
class Part:
    """The arrays of a part.

    Args:
        inputs: Samples first.
        target: One entry a sample; None: it is among the inputs' columns.
    """

    inputs: npt.NDArray[Any]
    target: npt.NDArray[Any] | None

    @property
    def are_pictures(self) -> bool:
        """Whether the inputs are bytes of pictures with a label each."""
        return self.inputs.dtype == np.uint8 and self.inputs.ndim in (3, 4) and self.target is not None

    @property
    def are_samples(self) -> bool:
        """Whether the inputs are arrays of numbers with a target each, and no rows of a table."""
        return self.inputs.ndim > 2 and self.target is not None and np.issubdtype(self.inputs.dtype, np.number)

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """Shape (n, height, width, channels)."""
        if self.inputs.ndim == 3:
            return self.inputs[..., np.newaxis]
        is_channels_first = self.inputs.shape[1] in (1, 3) and self.inputs.shape[3] not in (1, 3)
        return self.inputs.transpose(0, 2, 3, 1) if is_channels_first else self.inputs

    def columns(self, target: str) -> dict[str, npt.NDArray[Any]]:
        """The inputs' columns by name, and the target.

        Raises:
            DataError: The inputs are no rows of numbers.
        """
        if self.inputs.ndim != 2:
            shape, dtype = self.inputs.shape, self.inputs.dtype
            raise DataError(f"inputs of shape {shape} and dtype {dtype} are no table of numbers")
        found = {_column(place): self.inputs[:, place] for place in range(self.inputs.shape[1])}
        return found if self.target is None else {**found, target: self.target}


def _column(place: int) -> str:
    return f"column{place}"


def columns_again(
    inputs: npt.NDArray[Any], known: Collection[str], target: str, name: str
) -> dict[str, npt.NDArray[Any]]:
    """The columns of an array by the names that they had in another one; the target may be left out.

    Args:
        inputs: New rows.
        known: The names of all columns of the other one, its target included.
        target: Of these, what was learned.
        name: What messages call the array.

    Raises:
        DataError: It has another number of columns.

    Example:
        >>> [*columns_again(np.zeros((2, 2)), ("column0", "column1", "column2"), "column0", "new.npy")]
        ['column1', 'column2']
    """
    found = Part(inputs, None).columns(target)
    places = [place for place in map(_column, range(len(known))) if place in known]
    for wanted in (places, [place for place in places if place != target]):
        if len(wanted) == len(found):
            return dict(zip(wanted, found.values(), strict=True))
    raise DataError(f"{name} has {len(found)} columns, and the network has learned from {len(places)}")


def are_tokens(data: Any) -> bool:
    """Whether an array (or tensor) is a row of whole numbers: a text that was cut into tokens."""
    return getattr(data, "ndim", None) == 1 and np.asarray(data).dtype.kind in "iu"


def is_pair(data: Any) -> bool:
    """Whether something is a tuple of two arrays (or tensors): inputs and targets."""
    return isinstance(data, tuple) and len(data) == 2 and all(map(_is_array, data))


def _is_array(data: Any) -> bool:
    return hasattr(data, "ndim") and hasattr(data, "dtype") and data.ndim > 0


def of_pair(data: Any, what: str) -> Part:
    """A tuple of two arrays as a part.

    Raises:
        DataError: It is none, or the arrays have different lengths.
    """
    if not is_pair(data):
        raise DataError(f"{what} is a {type(data).__name__}, and must be a tuple (inputs, target) of two arrays")
    inputs, target = map(np.asarray, data)
    if len(inputs) != len(target):
        raise DataError(f"{what}: {len(inputs):,} inputs and {len(target):,} targets; every sample needs both")
    return Part(inputs, target.reshape(len(target)) if target.size == len(target) else target)


def refuse_single_idx(path: Path) -> None:
    """An IDX file holds pictures or their labels, and nothing can be learned of one alone.

    Raises:
        UsageError: The path is an IDX file.
    """
    if _IDX.fullmatch(path.name) and path.is_file():
        raise UsageError(
            f"{path.name} is an IDX file, of which pictures and labels belong together; give the folder with both, "
            f"{path.parent}"
        )


def is_idx(folder: Path) -> bool:
    """Whether a folder holds IDX files."""
    return next(idx_files(folder), None) is not None


def idx_files(folder: Path) -> Iterator[Path]:
    """The IDX files in a folder and the folders in it."""
    for path in sorted(folder.rglob("*ubyte*")) if folder.is_dir() else ():
        if path.is_file() and _IDX.fullmatch(path.name):
            yield path


def read_idx(folder: Path) -> dict[str, Part]:
    """Pictures and labels, by part: "train" where the file's name says so, "evaluation" otherwise.

    Raises:
        DataError: Pictures lack labels or the other way round, or a file is damaged.
    """
    found: dict[str, dict[str, Path]] = {}
    for path in idx_files(folder):
        match = _IDX.fullmatch(path.name)
        assert match is not None
        part = TRAIN if "train" in match[1].lower() else EVALUATION
        found.setdefault(part, {}).setdefault(match[2].lower(), path)
    parts = {}
    for part, files in found.items():
        if len(files) != 2:
            raise DataError(f"{folder}: {next(iter(files.values())).name} has no images or labels that belong to it")
        images, labels = idx.read(files["images"], num_dims=3), idx.read(files["labels"], num_dims=1)
        parts[part] = _same_length(Part(images, labels), folder)
    if TRAIN not in parts:
        raise DataError(f"{folder} holds no training pictures (such as train-images-idx3-ubyte.gz)")
    return parts


def joined(pixels: Sequence[npt.NDArray[np.uint8]], path: Path) -> npt.NDArray[np.uint8]:
    """Pictures of the same shape, one after the other; of several arrays in a file, which is mapped."""
    if len(pixels) == 1:
        return pixels[0]
    shapes = sorted({each.shape[1:] for each in pixels})
    if len(shapes) > 1:
        raise DataError(f"the parts hold pictures of different shapes: {', '.join(map(str, shapes))}")
    with open(path, "wb") as file:
        for each in pixels:
            for start in range(0, len(each), _PICTURES_AT_ONCE):
                file.write(np.ascontiguousarray(each[start : start + _PICTURES_AT_ONCE]).data)
    return np.memmap(path, np.uint8, "r", shape=(sum(map(len, pixels)), *shapes[0]))


def read_numpy(path: Path, target: str | None, scratch: Path | None = None) -> dict[str, Part]:
    """The arrays in a .npy or .npz file, by part; they are mapped, and read where they are looked at.

    A .npz file holds the inputs (x, data, images or inputs) and the target (named by `target`; or y, labels, ...);
    with ``_train`` and ``_test`` behind the names, as Keras writes them, both parts. Its arrays are unpacked into the
    folder `scratch`, which a .npy file does not need.

    Raises:
        DataError: The file is damaged, or holds something else.
        UsageError: Which array is which is left open.
    """
    arrays = _loaded(path, scratch)
    if path.suffix == ".npy":
        return {TRAIN: Part(arrays["x"], None)}
    parts = {}
    for part, endings in ((TRAIN, ("_train", "")), (EVALUATION, ("_test", "_val"))):
        inputs = _named(arrays, _INPUT_NAMES, endings)
        goal = _named(arrays, (target,) if target else _TARGET_NAMES, endings)
        if inputs is not None and goal is not None:
            parts[part] = _same_length(Part(inputs, goal), path)
    if TRAIN not in parts:
        names = ", ".join(arrays)
        raise UsageError(f"{path.name} holds {names}; name the inputs x, and the target y or with target")
    return parts


def new_inputs(path: Path, scratch: Path) -> npt.NDArray[Any] | None:
    """The inputs of new samples, of which no target is known, in a .npy, .npz or IDX file; None: it is none of these.

    Raises:
        DataError: The file is damaged, or holds something else.
        UsageError: Which array is meant is left open.
    """
    match = _IDX.fullmatch(path.name)
    if match is not None and match[2].lower() == "images" and path.is_file():
        return idx.read(path, num_dims=3)
    if path.suffix not in ENDINGS:
        return None
    arrays = _loaded(path, scratch)
    named = [_named(arrays, _INPUT_NAMES, (ending,)) for ending in ("", "_test", "_val", "_train")]
    inputs = next((found for found in named if found is not None), None)
    if inputs is None:
        raise UsageError(f"{path.name} holds {', '.join(arrays)}; name the inputs x")
    return np.asarray(inputs)


def _loaded(path: Path, scratch: Path | None) -> dict[str, npt.NDArray[Any]]:
    try:
        if path.suffix == ".npy":
            return {"x": _mapped(path)}
        assert scratch is not None
        return {name: _mapped(member) for name, member in _unpacked(path, scratch).items()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, OSError) and is_full(error):
            raise  # the disk, and not the file
        raise DataError(
            f"{path.name} cannot be read as arrays ({error}); objects are not read, for they may run code"
        ) from None


def _mapped(path: Path) -> npt.NDArray[Any]:
    found = np.load(path, allow_pickle=False, mmap_mode="r")
    return cast("npt.NDArray[Any]", found)


def _unpacked(path: Path, scratch: Path) -> dict[str, Path]:
    """The members of a .npz file by name, as files."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for number, name in enumerate(archive.namelist()):
            own = scratch / f"array-{number}.npy"
            with archive.open(name) as content, open(own, "wb") as file:
                shutil.copyfileobj(content, file, _COPIED_AT_ONCE)
            found[name.removesuffix(".npy")] = own
    return found


def _named(arrays: Mapping[str, Any], names: tuple[str, ...], endings: tuple[str, ...]) -> Any:
    for name, array in arrays.items():
        if any(name.lower() == wanted.lower() + ending for wanted in names for ending in endings):
            return array
    return None


def _same_length(part: Part, path: Path) -> Part:
    assert part.target is not None
    if len(part.inputs) != len(part.target):
        counts = f"{len(part.inputs):,} inputs and {len(part.target):,} targets"
        raise DataError(f"{path.name}: {counts}; every sample needs both")
    return part
