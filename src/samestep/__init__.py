"""Trains a neural network in parallel: the same network, bit for bit, on any number of workers.

The public names are below; they are imported when first used, so that ``import samestep`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from samestep.version import __version__

if TYPE_CHECKING:
    from samestep.data.columns import Dataset, Rows, Samples, Scale, Windows
    from samestep.errors import (
        DataError,
        Interrupted,
        NonFiniteError,
        SamestepError,
        StateError,
        UsageError,
        WorkerError,
    )
    from samestep.measure.auto import train
    from samestep.run.fit import fit
    from samestep.run.predict import predict
    from samestep.run.session import Result
    from samestep.run.weights import digest
    from samestep.run.workload import Target, Workload
    from samestep.workloads.from_data import from_data

_HOMES = {
    "Dataset": "samestep.data.columns",
    "Rows": "samestep.data.columns",
    "Samples": "samestep.data.columns",
    "Scale": "samestep.data.columns",
    "Windows": "samestep.data.columns",
    "DataError": "samestep.errors",
    "Interrupted": "samestep.errors",
    "NonFiniteError": "samestep.errors",
    "SamestepError": "samestep.errors",
    "StateError": "samestep.errors",
    "UsageError": "samestep.errors",
    "WorkerError": "samestep.errors",
    "fit": "samestep.run.fit",
    "predict": "samestep.run.predict",
    "Result": "samestep.run.session",
    "train": "samestep.measure.auto",
    "digest": "samestep.run.weights",
    "Target": "samestep.run.workload",
    "Workload": "samestep.run.workload",
    "from_data": "samestep.workloads.from_data",
}

__all__ = [
    "DataError",
    "Dataset",
    "Interrupted",
    "NonFiniteError",
    "Result",
    "Rows",
    "SamestepError",
    "Samples",
    "Scale",
    "StateError",
    "Target",
    "UsageError",
    "Windows",
    "WorkerError",
    "Workload",
    "__version__",
    "digest",
    "fit",
    "from_data",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'samestep' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
