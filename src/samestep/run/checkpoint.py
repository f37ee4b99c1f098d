"""Checkpoints: a folder of states, each whole or not there at all, readable without pickle.

A checkpoint is two files: ``step-N.safetensors`` with the arrays, then ``step-N.json`` with its SHA-256, the numerics
and the step. The second one makes it count. A folder belongs to one run at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from filelock import FileLock, Timeout
from torch import Tensor

from samestep.engine.job import MODEL_ARRAYS, Image
from samestep.errors import StateError, UsageError
from samestep.host.files import make_folder, sweep, write_atomically
from samestep.words import cut_to_difference

_FORMAT = 1
_KEPT = 3
_BEFORE = {"device": "cpu", "compile": "off"}
"""What was not written down while there was nothing else."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read back.

    Args:
        image: The state.
        history: What the run wants to remember beside its state (evaluations, the last loss).
    """

    image: Image
    history: Mapping[str, Any]


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Keep a folder for this run alone.

    Raises:
        StateError: Another run has it.
    """
    make_folder(folder, "checkpoints")
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StateError(f"another run is writing to {folder}; wait for its end or name another folder") from None
    except OSError as error:
        raise StateError(f"{folder} cannot be written: {error.strerror}; name another folder") from None
    try:
        _sweep(folder)
        yield
    finally:
        lock.release()


def _sweep(folder: Path) -> None:
    """Remove what a run that was killed while it saved has left, which nobody would read."""
    sweep(folder, "step-*")
    for arrays in folder.glob("step-*.safetensors"):
        if not arrays.with_suffix(".json").exists():
            with suppress(OSError):
                arrays.unlink()


def exists(folder: Path) -> bool:
    """Whether a folder holds checkpoints."""
    return any(folder.glob("step-*.json"))


def check_empty(folder: Path) -> None:
    """Refuse to mix runs.

    Raises:
        UsageError: The folder holds checkpoints.
    """
    if exists(folder):
        raise UsageError(f"{folder} holds checkpoints of a run; go on from them with resume, or name another folder")


def write(folder: Path, image: Image, numerics: Mapping[str, Any], history: Mapping[str, Any]) -> Path:
    """Write a checkpoint and drop the oldest ones.

    Raises:
        StateError: The disk is full, or the folder cannot be written; older checkpoints are untouched.
    """
    arrays: dict[str, Tensor] = {f"live/{name}": values.contiguous() for name, values in image.arrays.items()}
    arrays |= {f"best/{name}": values.contiguous() for name, values in image.best.items()}
    arrays |= {"scalars": image.scalars, "decided": image.decided}
    data = safetensors.torch.save({name: values for name, values in arrays.items() if values.numel()})
    stem = folder / f"step-{image.step:09d}"
    write_atomically(stem.with_suffix(".safetensors"), data)
    header = {
        "format": _FORMAT,
        "step": image.step,
        "sha256": hashlib.sha256(data).hexdigest(),
        "numerics": dict(numerics),
        "history": dict(history),
    }
    header["header_sha256"] = _header_hash(header)
    write_atomically(stem.with_suffix(".json"), json.dumps(header, indent=1).encode())
    for old in sorted(folder.glob("step-*.json"))[:-_KEPT]:
        old.unlink(missing_ok=True)
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    return stem.with_suffix(".json")


def read_newest(folder: Path, numerics: Mapping[str, Any], empty: Image, notice: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint that is whole; None where the folder has none at all.

    Args:
        folder: Where they are.
        numerics: What decides the bits of the run that wants to go on.
        empty: An image of that run, for the names and shapes of its arrays.
        notice: Told of every damaged checkpoint that is passed over.

    Raises:
        StateError: It belongs to another model or to other numerics, or none is whole.
    """
    headers = sorted(folder.glob("step-*.json"), reverse=True)
    for path in headers:
        try:
            header, arrays = _read(path)
        except _DamagedError as error:
            notice(f"checkpoint {path.stem} is damaged ({error}); taking the one before it")
            continue
        compare_numerics(header["numerics"], numerics, path)
        return Saved(_image(header["step"], arrays, empty), header["history"])
    if headers:
        raise StateError(f"none of the {len(headers)} checkpoints in {folder} is whole; start anew in another folder")
    return None


def compare_numerics(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Refuse a state whose run would have had other bits, and say which field differs."""
    wanted, found = {**_BEFORE, **json.loads(json.dumps(dict(wanted)))}, {**_BEFORE, **found}
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        if found.get(name) != wanted.get(name):
            theirs, ours = cut_to_difference(str(found.get(name)), str(wanted.get(name)))
            raise StateError(
                f"{path} is of a run with {name}={theirs} and this one has {name}={ours}; a resumed run "
                "must have the same. Set it back, or start anew in another folder (from trained weights: weights=FILE)"
            )


class _DamagedError(Exception):
    pass


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        header = json.loads(path.read_bytes())
        if header.pop("header_sha256", None) != _header_hash(header):
            raise _DamagedError("its header does not match its hash")
        if header["format"] != _FORMAT:
            raise StateError(f"{path} has format {header['format']} and this version reads {_FORMAT}")
        data = path.with_suffix(".safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != header["sha256"]:
            raise _DamagedError("its bytes do not match its hash")
        return header, safetensors.torch.load(data)
    except FileNotFoundError:
        raise _DamagedError("its arrays are missing") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _DamagedError(f"it cannot be read: {error}") from None


def _header_hash(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _image(step: int, arrays: Mapping[str, Tensor], empty: Image) -> Image:
    live = {name: arrays.get(f"live/{name}", values) for name, values in empty.arrays.items()}
    best: dict[str, Tensor] = {}
    if any(name.startswith("best/") for name in arrays):  # those without elements were not written
        best = {name: arrays.get(f"best/{name}", empty.arrays[name]) for name in MODEL_ARRAYS}
    for name, values in live.items():
        assert values.shape == empty.arrays[name].shape, name  # the numerics hold the model's shapes
    decided = empty.decided.clone()
    decided[: len(arrays["decided"])] = arrays["decided"]  # older ones have fewer
    return Image(step, live, arrays.get("scalars", empty.scalars), decided, best)
