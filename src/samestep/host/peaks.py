"""What this machine can do at most, measured: copying memory and multiplying matrices.

The figures are taken once, in about two seconds, and kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import psutil
import torch

from samestep.errors import StateError, UsageError
from samestep.host import cores, facts, files

VARIABLE = "SAMESTEP_PEAKS"
"""Set to "off" it leaves the measurement out where nobody has asked for it: at the end of a run."""

_FORMAT = 1
_FEWEST_RUNS = 2
_SHORTEST_COPY_BYTES = 128 * 2**20
_LONGEST_COPY_BYTES = 1024 * 2**20
_SIDE, _LONGEST_SIDE = 768, 4096


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """The best of repeated short runs; "all cores" is `num_cores` threads at once.

    A copy counts the bytes that are read and those that are written: 2 × the size of what is copied. It is torch's own
    copy, with ordinary stores, as training has them: the processor also reads what it is about to overwrite, which
    is not counted. A product of matrices of n × n counts 2 n³ floating-point operations.
    """

    num_cores: int
    copy_bytes_per_s_one_core: float
    copy_bytes_per_s_all_cores: float
    matmul_flop_per_s_one_core: float
    """float32."""

    matmul_flop_per_s_all_cores: float
    """float32."""

    matmul_float64_flop_per_s_one_core: float

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 < value < math.inf:
                raise UsageError(f"{name}={value} is not a finite number above 0; measure again")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large and how long the short runs are.

    Args:
        num_cores: Threads of the figures for all cores.
        copy_bytes_one_core: Size of what one core copies; far above the cache that it can use.
        copy_bytes_all_cores: Size of what all cores copy together; above all their caches.
        side_one_core: Rows and columns of the matrices that one core multiplies.
        side_all_cores: Likewise for all cores.
        run_s: How long each of the five figures is repeated.
    """

    num_cores: int
    copy_bytes_one_core: int
    copy_bytes_all_cores: int
    side_one_core: int
    side_all_cores: int
    run_s: float


def cached() -> Peaks | None:
    """The figures kept for this processor, these cores and this torch; None where they were never measured.

    A damaged file, or one about another machine, is no figure.
    """
    folder = files.cache_folder()
    if folder is None:
        return None
    machine = _machine()
    try:
        return _parsed((folder / _file_name(machine)).read_bytes(), machine)
    except (OSError, ValueError, RecursionError):
        return None


def are_wanted() -> bool:
    """Whether a run may measure them by itself: not where the environment says `SAMESTEP_PEAKS=off`."""
    return os.environ.get(VARIABLE) != "off"


def measure(*, refresh: bool = False) -> Peaks:
    """The figures kept, or new ones, which takes about two seconds on an otherwise idle machine.

    Args:
        refresh: Measure again, whatever is kept.
    """
    known = None if refresh else cached()
    if known is None:
        known = take(usual_sizes())
        _keep(known)
    return known


def take(sizes: Sizes) -> Peaks:
    """Measure, without a look at what is kept; torch's threads are given back as they were."""
    most = sizes.num_cores
    with _torch_given_back(), torch.inference_mode(), torch.autocast("cpu", enabled=False):
        return Peaks(
            num_cores=most,
            copy_bytes_per_s_one_core=_copy_bytes_per_s(sizes.copy_bytes_one_core, 1, sizes.run_s),
            copy_bytes_per_s_all_cores=_copy_bytes_per_s(sizes.copy_bytes_all_cores, most, sizes.run_s),
            matmul_flop_per_s_one_core=_flop_per_s(sizes.side_one_core, torch.float32, 1, sizes.run_s),
            matmul_flop_per_s_all_cores=_flop_per_s(sizes.side_all_cores, torch.float32, most, sizes.run_s),
            matmul_float64_flop_per_s_one_core=_flop_per_s(sizes.side_one_core, torch.float64, 1, sizes.run_s),
        )


def usual_sizes() -> Sizes:
    """What fits this machine."""
    num_cores = _usable_cores()
    known = facts.caches() or {}
    last = known.get("L3_bytes", known.get("L2_bytes", 0))
    together = known.get("L3_total_bytes", num_cores * known.get("L2_bytes", 0))
    free = min(psutil.virtual_memory().available, cores.cgroup_memory_bytes() or math.inf)
    return Sizes(
        num_cores=num_cores,
        copy_bytes_one_core=copy_bytes(last, free),
        copy_bytes_all_cores=copy_bytes(together, free),
        side_one_core=_SIDE,
        side_all_cores=side(num_cores),
        run_s=0.3,
    )


def copy_bytes(cache_bytes: int, free_bytes: float) -> int:
    """Size of what is copied: four times the cache, from 128 MB to 1 GB, and never more than an eighth of the memory.

    >>> copy_bytes(64 * 2**20, 16 * 2**30) // 2**20
    256
    """
    wanted = min(max(4 * cache_bytes, _SHORTEST_COPY_BYTES), _LONGEST_COPY_BYTES)
    return int(min(wanted, free_bytes / 8))


def side(num_cores: int) -> int:
    """Rows and columns of the matrices that several cores multiply: the work of a core stays about the same.

    >>> side(1), side(4), side(256)
    (768, 1536, 4096)
    """
    return min(_SIDE * math.isqrt(max(1, num_cores)), _LONGEST_SIDE)


def _usable_cores() -> int:
    """Whole cores: more threads than a quota pays for would run for moments only, and then stand still."""
    quota = cores.quota_cores()
    return cores.num_cores() if quota is None else max(1, min(cores.num_cores(), int(quota)))


def _copy_bytes_per_s(num_bytes: int, threads: int, run_s: float) -> float:
    torch.set_num_threads(threads)
    # written, not just asked for: memory that was never written is one page of zeros, which stays in the cache
    source = torch.ones(max(1, num_bytes // 4), dtype=torch.float32)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / _fastest_s(lambda: target.copy_(source), run_s)


def _flop_per_s(length: int, dtype: torch.dtype, threads: int, run_s: float) -> float:
    torch.set_num_threads(threads)
    own = torch.Generator().manual_seed(0)  # the caller's stays where it is
    left, right = (torch.rand(length, length, dtype=dtype, generator=own) for _ in range(2))
    product = torch.empty_like(left)
    return 2 * length**3 / _fastest_s(lambda: torch.mm(left, right, out=product), run_s)


def _fastest_s(run: Callable[[], Any], run_s: float) -> float:
    """Seconds of the fastest run; the first one, which finds memory and threads not ready, does not count."""
    run()
    stop, fastest, num_runs = time.perf_counter() + run_s, math.inf, 0
    while num_runs < _FEWEST_RUNS or time.perf_counter() < stop:
        start = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - start)
        num_runs += 1
    return fastest


@contextmanager
def _torch_given_back() -> Iterator[None]:
    """Products in full float32 precision for a while; threads and precision as they were afterwards."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        if precision != "highest":
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.set_num_threads(threads)
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)


def _machine() -> dict[str, Any]:
    """What the figures are about."""
    return {
        "processor": facts.processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": _usable_cores(),
        "torch": torch.__version__,
    }


def _file_name(machine: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()
    return f"peaks-{digest[:16]}.json"


def _keep(peaks: Peaks) -> None:
    folder, machine = files.cache_folder(), _machine()
    content = {"format": _FORMAT, "machine": machine, "peaks": asdict(peaks)}
    try:
        if folder is None:
            raise StateError("the user has no home; name a folder with the environment variable XDG_CACHE_HOME")
        files.make_folder(folder, "measured peaks")
        files.write_atomically(folder / _file_name(machine), json.dumps(content, indent=1).encode())
    except StateError as error:
        text = f"the machine's peaks were measured, and cannot be kept for the next time: {error}"
        warnings.warn(text, RuntimeWarning, stacklevel=3)


def _parsed(data: bytes, machine: dict[str, Any]) -> Peaks | None:
    """What a file holds, where it is about this machine.

    Raises:
        ValueError: It is damaged.
    """
    content = json.loads(data)
    if not isinstance(content, dict) or content.get("format") != _FORMAT or content.get("machine") != machine:
        return None
    values = content.get("peaks")
    names = {field.name for field in fields(Peaks)}
    if not isinstance(values, dict) or values.keys() != names:
        return None
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values()):
        return None
    return Peaks(**values)
