"""The one place where torch's private or unstable interfaces are touched; each has a test of its own."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import FunctionType
from typing import Any

import torch
from torch import Tensor


def has_bf16_kernels() -> bool:
    """Whether products in bfloat16 have kernels of their own on this CPU; where torch does not tell, they may."""
    asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return asked is None or bool(asked())


def is_in_backward() -> bool:
    """Whether this thread is inside of a backward pass."""
    return torch._C._current_graph_task_id() != -1


def has_saved_tensors_hooks() -> bool:
    """Whether what the forward pass saves is taken by hooks: activation checkpointing, or moving it elsewhere."""
    ignores_tracing = True
    return torch._C._autograd._top_saved_tensors_default_hooks(ignores_tracing) is not None


def has_hooks(parameter: Tensor) -> bool:
    """Whether somebody waits for a parameter's gradient to come from autograd."""
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def open_to_modes(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a Python function of torch's, of which a function mode sees the calls inside.

    The function itself hands itself over to a mode as a whole, and the mode would see nothing more.
    """
    names = {name: _never for name in function.__globals__ if name.startswith("has_torch_function")}
    kept: Any = function
    copy = FunctionType(
        kept.__code__, {**kept.__globals__, **names}, kept.__name__, kept.__defaults__, kept.__closure__
    )
    copy.__kwdefaults__ = kept.__kwdefaults__
    return copy


def _never(*arguments: object) -> bool:
    return False


def backward(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """``torch.autograd.backward``, which would import torch's symbolic shapes: most of a second of start-up.

    Args:
        outputs: Tensors with graphs.
        gradients: One each, of the same shape, dtype and device.
    """
    keeps_graph = makes_graph = False
    torch.autograd.graph._engine_run_backward(
        tuple(outputs), tuple(gradients), keeps_graph, makes_graph, (), allow_unreachable=True, accumulate_grad=True
    )


def copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """``target.copy_(source)`` for each pair, without a Python call per pair."""
    torch._foreach_copy_(targets, sources)


def add_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """``target.add_(source)`` for each pair, without a Python call per pair."""
    torch._foreach_add_(targets, sources)


def norms(tensors: list[Tensor]) -> list[Tensor]:
    """``torch.linalg.vector_norm(tensor)`` for each, without a Python call per tensor."""
    return list(torch._foreach_norm(tensors))


def without_compiler_import() -> None:
    """Let this process build optimisers without importing torch's compiler, which takes most of a second.

    `Optimizer.add_param_group` imports it to mark itself as not to be compiled. Only for processes of our own.
    """
    wrapped = getattr(torch.optim.Optimizer.add_param_group, "__wrapped__", None)
    if wrapped is not None and "torch._dynamo" not in sys.modules:
        wrapped.__dynamo_disable = wrapped


def plain_step(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """``optimizer.step`` without the wrappers that torch puts around the steps of its own classes.

    They serve its compiler (which they import), its profiler and hooks; an optimiser with hooks, and classes that are
    not torch's, keep their step as it is.
    """
    step: Any = type(optimizer).step
    if not type(optimizer).__module__.startswith("torch.optim.") or _has_hooks(optimizer):
        return optimizer.step
    while hasattr(step, "__wrapped__"):
        step = step.__wrapped__

    def run() -> object:
        with torch.no_grad():
            return step(optimizer)

    return run


def _has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return any(getattr(optimizer, name, None) for name in hooks)


def gloo(store: Any, rank: int, world_size: int, *, address: str, timeout_s: float) -> Any:
    """Ranks that talk through Gloo, without torch's process-wide default group: ``send`` and ``recv`` of tensors.

    Args:
        store: Where they find each other; of this group alone.
        rank: Which one this is.
        world_size: How many.
        address: Of this rank; it listens there and nowhere else.
        timeout_s: For them to connect.

    Raises:
        RuntimeError: Somebody cannot be reached.
    """
    from torch import distributed  # noqa: PLC0415 (only where there are several)

    kind: Any = distributed.ProcessGroupGloo
    options = kind._Options()
    options._timeout = timedelta(seconds=timeout_s)
    options._devices = [kind.create_device(hostname=address)]
    return kind(store, rank, world_size, options)


def default_store() -> Any | None:
    """The store in which the ranks of torch's default process group have met; None where there is no such group."""
    from torch import distributed  # noqa: PLC0415 (only where there are several ranks)

    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return distributed.distributed_c10d._get_default_store()


def store_below(store: Any, prefix: str) -> Any:
    """A store's part whose keys begin so."""
    from torch import distributed  # noqa: PLC0415 (only where there are several ranks)

    return distributed.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def is_store(connection: socket.socket) -> bool:
    """Whether who answers on a new connection is a TCPStore; its client prints pages where another program is.

    Raises:
        OSError: Nobody answers, or the connection breaks.
    """
    validate, magic, ping, nonce = 0, 0x3C85F7CE, 13, os.getpid()
    connection.sendall(struct.pack("=BIBI", validate, magic, ping, nonce))
    wanted, found = struct.pack("=I", nonce), b""
    while len(found) < len(wanted) and (data := connection.recv(len(wanted) - len(found))):
        found += data
    return found == wanted
