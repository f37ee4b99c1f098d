"""What a machine is: what belongs in a bug report."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from samestep.run.config import num_cores
from samestep.version import __version__

_PACKAGES = ("torch", "numpy", "safetensors", "cloudpickle", "cyclopts", "rich", "filelock", "psutil")
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "SAMESTEP_DATA", "TMPDIR", "CUDA_VISIBLE_DEVICES")


def describe() -> dict[str, Any]:
    """Versions, processor, memory and settings, as plain values; what cannot be told is None."""
    shm = Path("/dev/shm")
    return {
        "samestep": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "system": platform.platform(),
        "processor": _processor(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": num_cores(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "memory_mb": psutil.virtual_memory().total // 2**20,
        "memory_free_mb": psutil.virtual_memory().available // 2**20,
        "dev_shm_free_mb": shutil.disk_usage(shm).free // 2**20 if shm.is_dir() else None,
        "torch_threads": torch.get_num_threads(),
        "onednn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        "mkl": torch.backends.mkl.is_available(),  # type: ignore[no-untyped-call]
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "executable": sys.executable,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
