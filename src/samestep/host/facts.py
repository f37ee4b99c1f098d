"""What a machine is: what belongs in a bug report and beside a measured number."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from samestep.host import cores, provenance
from samestep.host.cores import text_of
from samestep.version import __version__

T = TypeVar("T")

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_THREAD_LIMIT",
    "OMP_DYNAMIC",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "OMP_WAIT_POLICY",
    "GOMP_CPU_AFFINITY",
    "GOMP_SPINCOUNT",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "MKL_DYNAMIC",
    "OPENBLAS_NUM_THREADS",
)
"""Environment variables that decide how many threads compute, and where."""

_VARIABLES = (*THREAD_VARIABLES, "SAMESTEP_DATA", "TMPDIR", "CUDA_VISIBLE_DEVICES")
_ROOT = Path("/")
_LIMIT_S = 2.0
_CANNOT_TELL = (OSError, ValueError, RuntimeError, psutil.Error, subprocess.SubprocessError)


def describe() -> dict[str, Any]:
    """Versions, processor, memory, limits and settings as they are now, as plain values for JSON.

    What cannot be told is None. The variables and the executable may hold paths of whoever runs it.
    """
    shm, memory = Path("/dev/shm"), _told(psutil.virtual_memory)
    return {
        "samestep": __version__,
        "python": platform.python_version(),
        "packages": provenance.packages(),
        "system": platform.platform(),
        "os": _told(_os_name),
        "processor": processor(),
        "architecture": platform.machine() or None,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": cores.num_cores(),
        "physical_cores": _told(lambda: psutil.cpu_count(logical=False)),
        "logical_cores": _told(psutil.cpu_count),
        "quota_cores": cores.quota_cores(),
        "caches": caches(),
        "load": load(),
        "memory_mb": memory.total // 2**20 if memory else None,
        "memory_free_mb": memory.available // 2**20 if memory else None,
        "memory_limit_mb": _as_mb(cores.cgroup_memory_bytes()),
        "dev_shm_free_mb": _as_mb(_told(lambda: shutil.disk_usage(shm).free)) if shm.is_dir() else None,
        "gpus": _told(_gpus),
        "gpu_driver": gpu_driver(),
        "torch_threads": torch.get_num_threads(),
        "onednn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        "mkl": torch.backends.mkl.is_available(),  # type: ignore[no-untyped-call]
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "executable": sys.executable,
    }


def load() -> float | None:
    """Processes that ran or wanted to, the mean over the last minute; None where the system does not tell."""
    return _told(lambda: os.getloadavg()[0]) if hasattr(os, "getloadavg") else None


def processor(root: Path = _ROOT) -> str | None:
    """The processor's model.

    Args:
        root: Where /proc is looked for.
    """
    if sys.platform == "darwin":
        return _told(_processor_of_a_mac)
    lines = (line.partition(":") for line in text_of(root / "proc/cpuinfo").splitlines())
    told = {name.strip(): value.strip() for name, _, value in lines}
    if told.get("model name"):
        return told["model name"]
    if "CPU part" in told:  # ARM gives numbers: the implementer's, and the implementer's for the part
        return f"implementer {told.get('CPU implementer', '?')}, part {told['CPU part']}"
    return _told(platform.processor) or None


def caches(root: Path = _ROOT) -> dict[str, int] | None:
    """Bytes of the data caches of the cores that this process may use.

    Returns:
        For example ``{"L1d_bytes": 32768, "L2_bytes": 524288, "L3_bytes": 33554432, "L3_total_bytes": 67108864}``: of
        one cache, the largest where cores differ; and all caches of the third level together. None where the system
        does not tell (Linux does).
    """
    found: dict[str, dict[str, int]] = {}
    for folder in (folder for core in _usable() for folder in _cache_folders(root, core)):
        kind, size = text_of(folder / "type"), _bytes_of(text_of(folder / "size"))
        if kind in ("Data", "Unified") and size is not None:
            name = f"L{text_of(folder / 'level')}{'d' if kind == 'Data' else ''}"
            # cores that share a cache each have a folder for it
            found.setdefault(name, {})[text_of(folder / "shared_cpu_list") or str(folder)] = size
    sizes = {f"{name}_bytes": max(each.values()) for name, each in sorted(found.items())}
    totals = {"L3_total_bytes": sum(found["L3"].values())} if "L3" in found else {}
    return {**sizes, **totals} or None


def gpu_driver(root: Path = _ROOT) -> str | None:
    """The version of NVIDIA's driver; None where there is none, or the system does not tell (Linux does)."""
    # NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023
    found = re.search(r"^NVRM version:.*?\s(\d+\.\d+[.\d]*)\s", text_of(root / "proc/driver/nvidia/version"))
    return found[1] if found else None


def _gpus() -> list[dict[str, Any]]:
    """The devices that torch can compute on."""
    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [{"name": each.name, "memory_mb": each.total_memory // 2**20} for each in found]


def _os_name() -> str | None:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    if sys.platform == "win32":
        return f"Windows {platform.release()}"
    return platform.freedesktop_os_release().get("PRETTY_NAME")


def _processor_of_a_mac() -> str | None:
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=_LIMIT_S).stdout.strip() or None


def _usable() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _cache_folders(root: Path, core: int) -> list[Path]:
    return sorted((root / f"sys/devices/system/cpu/cpu{core}/cache").glob("index[0-9]*"))


def _bytes_of(text: str) -> int | None:
    """The kernel's size of a cache.

    >>> _bytes_of("32K"), _bytes_of("1M"), _bytes_of("")
    (32768, 1048576, None)
    """
    found = re.fullmatch(r"(\d+)([KM]?)", text)
    return int(found[1]) * {"": 1, "K": 2**10, "M": 2**20}[found[2]] if found else None


def _as_mb(num_bytes: int | None) -> int | None:
    return None if num_bytes is None else num_bytes // 2**20


def _told(ask: Callable[[], T]) -> T | None:
    """An answer of the system's; None where it refuses."""
    try:
        return ask()
    except _CANNOT_TELL:
        return None
