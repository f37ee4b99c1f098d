"""Trained weights as plain `state_dict` files, and the digest that says whether two models are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from samestep.errors import StateError, UsageError
from samestep.host.files import write_atomically


def digest(model: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over a `state_dict` in order: for each entry its name, dtype, shape and little-endian contiguous bytes.

    Example:
        >>> digest(nn.Linear(1, 1)) == digest(nn.Linear(1, 1))
        False
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    sha = hashlib.sha256()
    for name, tensor in state.items():
        values = tensor.detach().cpu().contiguous()
        dtype = str(values.dtype).removeprefix("torch.")
        sha.update(f"{name}\0{dtype}\0{tuple(values.shape)}\0".encode())
        sha.update(to_bytes(values))
    return sha.hexdigest()


def to_bytes(values: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, least significant first as on every machine that torch runs on."""
    return memoryview(values.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def save(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a `state_dict`; tied entries are written under each of their names."""
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    write_atomically(path, safetensors.torch.save(tensors, dict(metadata)))


def load(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UsageError: There is no such file, or it is not a safetensors file.
    """
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UsageError(f"there is no weights file {path}") from None
    except (SafetensorError, OSError) as error:
        raise StateError(f"{path} is not a readable safetensors file: {error}") from None


def load_into(model: nn.Module, path: Path) -> None:
    """Load weights into a model whose entries they must match.

    Raises:
        UsageError: An entry is missing, unknown, or has another shape; the first one is named.
    """
    state, own = load(path), model.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise UsageError(f"{path} has no entry {name!r}, which the model needs: these are another model's weights")
        if state[name].shape != tensor.shape:
            raise UsageError(
                f"{path}: {name} has shape {tuple(state[name].shape)} and the model needs {tuple(tensor.shape)}; "
                "give the model the same width and depth"
            )
    unknown = [name for name in state if name not in own]
    if unknown:
        raise UsageError(f"{path} has an entry {unknown[0]!r} that the model does not know: another model's weights")
    model.load_state_dict(state)
