"""Shipping a job to workers: code as bytes, tensors once per machine in shared memory.

Functions and classes of the caller's script travel by value (cloudpickle), so unguarded scripts, lambdas and notebook
cells work. Tensors and arrays of a page or more are laid into one shared memory that every worker maps; the trainable
parameters travel as empty placeholders, for they live in the flat vector.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import Tensor, nn

from samestep.engine import memory
from samestep.engine.memory import Memory
from samestep.errors import UsageError
from samestep.plan.layout import ALIGNMENT_BYTES, round_up

_SMALLEST_SHARED_BYTES = 4096


@dataclass(frozen=True)
class Parcel:
    """A pickled object in shared memory, with its large tensors.

    What goes through a pipe has to be small: who starts a process must not wait until that has imported torch.

    Args:
        constants: The memory.
        code: Where in it the pickle lies: first byte, number of bytes.
    """

    constants: Memory
    code: tuple[int, int]


def pack(thing: Any, placeholders: list[nn.Parameter], handle: int) -> Parcel:
    """Pickle a dataclass for the workers.

    Args:
        thing: What to send.
        placeholders: Parameters whose values the workers find elsewhere.
        handle: Reserved memory for the large tensors.

    Raises:
        UsageError: It holds something that cannot be sent.
    """
    stream = io.BytesIO()
    pickler = _Pickler(stream, {id(parameter) for parameter in placeholders})
    try:
        pickler.dump(thing)
    except Exception as error:  # the caller's own classes may raise anything
        raise UsageError(
            f"the {_unsendable_part(thing)} cannot be sent to workers: {error}. Make such things inside of the "
            "functions that use them, or take workers=1"
        ) from None
    code = (pickler.num_bytes, len(stream.getbuffer()))
    constants = memory.create(handle, sum(code))
    constants.tensor("uint8", code[0], code[1:]).copy_(torch.frombuffer(stream.getbuffer(), dtype=torch.uint8))
    for tensor, start in pickler.tensors:
        size = tensor.numel() * tensor.element_size()
        constants.tensor("uint8", start, (size,)).copy_(tensor.contiguous().view(-1).view(torch.uint8))
    return Parcel(constants, code)


def _unsendable_part(thing: Any) -> str:
    """The first field that cannot be pickled by itself."""
    for field in dataclasses.fields(thing):
        try:
            cloudpickle.dumps(getattr(thing, field.name))
        except Exception:
            return f"{field.name} ({type(getattr(thing, field.name)).__name__})"
    return type(thing).__name__.lower()


def unpack(code: tuple[int, int], constants: Memory) -> Any:
    """The object again, its large tensors as views of the shared memory.

    Args:
        code: Where its pickle lies.
        constants: The memory.

    Raises:
        UsageError: A class of the caller's cannot be put together again in this process.
    """
    try:
        data = constants.tensor("uint8", code[0], code[1:]).numpy().tobytes()
        return _Unpickler(io.BytesIO(data), constants).load()
    except Exception as error:
        raise UsageError(
            f"what was sent to a worker cannot be put together again there ({type(error).__name__}: {error}). Make "
            "such things inside of the functions that use them, or take workers=1"
        ) from error


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, stream: io.BytesIO, placeholders: set[int]) -> None:
        super().__init__(stream, protocol=5)
        self._placeholders = placeholders
        self._known: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self.tensors: list[tuple[Tensor, int]] = []
        self.num_bytes = 0
        self._kept: list[Any] = []  # ids stay unique while the objects live

    def persistent_id(self, thing: Any) -> tuple[Any, ...] | None:
        if isinstance(thing, nn.Parameter) and id(thing) in self._placeholders:
            return ("placeholder", id(thing), thing.dtype)
        if type(thing) is np.ndarray and thing.nbytes >= _SMALLEST_SHARED_BYTES and not thing.dtype.hasobject:
            if thing.dtype.kind in "fiub" and thing.dtype.isnative and thing.flags.writeable:
                if thing.flags.f_contiguous and not thing.flags.c_contiguous:  # products may have other bits by order
                    return ("transposed", *self._place(torch.from_numpy(thing.T))[1:])
                return ("array", *self._place(torch.from_numpy(np.ascontiguousarray(thing)))[1:])
            return None
        if type(thing) not in (Tensor, nn.Parameter) or thing.layout != torch.strided or thing.requires_grad:
            return None
        if thing.numel() * thing.element_size() < _SMALLEST_SHARED_BYTES or thing.device.type != "cpu":
            return None
        if not thing.is_contiguous():  # a transposed or strided view keeps its layout only when pickled as it is
            return None
        tag = "parameter" if isinstance(thing, nn.Parameter) else "tensor"
        return (tag, *self._place(thing.detach())[1:], id(thing))

    def _place(self, tensor: Tensor) -> tuple[Any, ...]:
        known = (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype)
        found = self._known.get(known)
        if found is None:
            found = ("", str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), self.num_bytes)
            self._known[known] = found
            self.tensors.append((tensor, self.num_bytes))
            self._kept.append(tensor)
            self.num_bytes = round_up(self.num_bytes + tensor.numel() * tensor.element_size(), ALIGNMENT_BYTES)
        return found


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, constants: Memory) -> None:
        super().__init__(stream)
        self._constants = constants
        self._made: dict[Any, Any] = {}

    def persistent_load(self, pid: Any) -> Any:
        made = self._made.get(pid)
        if made is None:
            make: Callable[..., Any] = getattr(self, f"_make_{pid[0]}")
            made = self._made[pid] = make(*pid[1:])
        return made

    def _make_placeholder(self, key: int, dtype: torch.dtype) -> nn.Parameter:
        return nn.Parameter(torch.empty(0, dtype=dtype))

    def _make_tensor(self, dtype: str, shape: tuple[int, ...], start: int, key: int) -> Tensor:
        kind: torch.dtype = getattr(torch, dtype)
        size = int(np.prod(shape)) * kind.itemsize
        return self._constants.tensor("uint8", start, (size,)).view(kind).view(shape)

    def _make_parameter(self, dtype: str, shape: tuple[int, ...], start: int, key: int) -> nn.Parameter:
        return nn.Parameter(self._make_tensor(dtype, shape, start, key), requires_grad=False)

    def _make_array(self, dtype: str, shape: tuple[int, ...], start: int) -> Any:
        return self._make_tensor(dtype, shape, start, 0).numpy()

    def _make_transposed(self, dtype: str, shape: tuple[int, ...], start: int) -> Any:
        return self._make_array(dtype, shape, start).T
