"""Read by every interpreter of a measured program before anything else (its folder comes first on PYTHONPATH).

Stamps each step from outside, so that the programs stay as their libraries' documentation writes them. Nothing is
imported for it: the hook is set when the program itself has imported the module that updates the weights.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER_VARIABLE, LIBRARY_VARIABLE = "SAMESTEP_PEERS_STAMPS", "SAMESTEP_PEERS_LIBRARY"

_PLACES = {
    "torch": "torch.optim.optimizer",
    "keras": "keras.src.optimizers.base_optimizer",
    "sklearn": "sklearn.neural_network._stochastic_optimizers",
    "samestep": "samestep.optim.owner",
}
"""Per library, the module that updates the weights."""

_METHODS = {
    "keras": ("BaseOptimizer", "apply"),
    "sklearn": ("BaseOptimizer", "update_params"),
    "samestep": ("OwnedUpdate", "step"),
}
"""Per library, the method in it that is called once a step; torch has a hook for all of its optimisers."""


_THREADS_AT_STEP = 3
"""Later than the first step, so that start-up does not count it."""


class _Finder(MetaPathFinder):
    """Finds one module as usual, and has `set_hook` called once it is there."""

    def __init__(self, library: str) -> None:
        self._library = library

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _PLACES[self._library]:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def run_and_set_hook(module: ModuleType) -> None:
            run(module)
            _set_hook(module, self._library)

        spec.loader.exec_module = run_and_set_hook  # type: ignore[method-assign]
        return spec


def _set_hook(module: Any, library: str) -> None:
    from benchmarks.peers.stamps import Stamper  # noqa: PLC0415 (imports NumPy, which the program has anyway)

    folder = Path(os.environ[FOLDER_VARIABLE])
    stamper, steps = Stamper(folder), count(1)

    def stamp() -> None:
        stamper()
        if next(steps) == _THREADS_AT_STEP:
            (folder / f"{os.getpid()}.threads").write_text(str(_num_threads(library)))

    if library == "torch":
        module.register_optimizer_step_post_hook(lambda *_: stamp())
        return
    owner, name = _METHODS[library]
    update = getattr(getattr(module, owner), name)

    def update_and_stamp(*words: Any, **named: Any) -> Any:
        result = update(*words, **named)
        stamp()
        return result

    setattr(getattr(module, owner), name, update_and_stamp)


def _num_threads(library: str) -> int:
    """Threads inside one operation, as the program has set them by now."""
    if library == "sklearn":
        from threadpoolctl import threadpool_info  # type: ignore[import-untyped]  # noqa: PLC0415

        return max(int(pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas")
    num_threads: int = sys.modules["torch"].get_num_threads()
    return num_threads


def _end_with_parent() -> None:
    """Be killed when the process that started this one ends, so that nothing is left of a measurement cut short."""
    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


if LIBRARY_VARIABLE in os.environ:
    _end_with_parent()
    sys.meta_path.insert(0, _Finder(os.environ[LIBRARY_VARIABLE]))
