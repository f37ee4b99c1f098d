"""torch's process-wide switches that decide bits: read in the parent, set alike in every worker, given back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Switches:
    """Process-wide settings that change the bits of a result, and the machine's part in them.

    Args:
        intra_op_threads: Threads inside one operation.
        default_dtype: Name of torch's default dtype.
        has_onednn: Whether oneDNN kernels may be used.
        matmul_precision: `torch.get_float32_matmul_precision()`.
        is_deterministic: `torch.are_deterministic_algorithms_enabled()`.
        flushes_denormals: Whether numbers below the normal range count as zero (`torch.set_flush_denormal`).
        attention: Which attention kernels may be used, in the order flash, memory-efficient, math.
        has_attention_fastpath: Whether torch's attention layers may take their short cut in evaluation mode.
        instruction_set: The CPU capability that torch's kernels use.
        torch_version: Version of torch.
    """

    intra_op_threads: int
    default_dtype: str
    has_onednn: bool
    matmul_precision: str
    is_deterministic: bool
    flushes_denormals: bool
    attention: tuple[bool, bool, bool]
    has_attention_fastpath: bool
    instruction_set: str
    torch_version: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read(intra_op_threads: int) -> Switches:
    """The switches as they are now, with the number of threads that the run asks for."""
    return Switches(
        intra_op_threads=intra_op_threads,
        default_dtype=str(torch.get_default_dtype()).removeprefix("torch."),
        has_onednn=bool(torch.backends.mkldnn.enabled),
        matmul_precision=torch.get_float32_matmul_precision(),
        is_deterministic=torch.are_deterministic_algorithms_enabled(),
        flushes_denormals=_flushes_denormals(),
        attention=(
            torch.backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
            torch.backends.cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
            torch.backends.cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
        ),
        has_attention_fastpath=torch.backends.mha.get_fastpath_enabled(),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        torch_version=torch.__version__,
    )


def apply(switches: Switches) -> None:
    """Set those of this process's switches that differ (some setters import torch's compiler: most of a second)."""
    if torch.get_num_threads() != switches.intra_op_threads:
        torch.set_num_threads(switches.intra_op_threads)
    now = read(switches.intra_op_threads)
    if now.default_dtype != switches.default_dtype:
        torch.set_default_dtype(getattr(torch, switches.default_dtype))
    if now.has_onednn != switches.has_onednn:
        torch.backends.mkldnn.enabled = switches.has_onednn  # type: ignore[assignment]
    if now.matmul_precision != switches.matmul_precision:
        torch.set_float32_matmul_precision(switches.matmul_precision)
    if now.is_deterministic != switches.is_deterministic:
        torch.use_deterministic_algorithms(switches.is_deterministic)
    if now.attention != switches.attention:
        flash, memory_efficient, math = switches.attention
        torch.backends.cuda.enable_flash_sdp(flash)
        torch.backends.cuda.enable_mem_efficient_sdp(memory_efficient)
        torch.backends.cuda.enable_math_sdp(math)
    if now.has_attention_fastpath != switches.has_attention_fastpath:
        torch.backends.mha.set_fastpath_enabled(switches.has_attention_fastpath)
    if now.flushes_denormals != switches.flushes_denormals:
        torch.set_flush_denormal(switches.flushes_denormals)


@contextmanager
def applied(switches: Switches) -> Iterator[None]:
    """Set this process's switches for a while; threads are the only ones that differ from the caller's."""
    threads = torch.get_num_threads()
    apply(switches)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _flushes_denormals() -> bool:
    """torch has no getter: ask the processor by halving the smallest normal number."""
    smallest = torch.tensor([torch.finfo(torch.float32).tiny], dtype=torch.float32)
    return bool((smallest * 0.5 == 0).item())
