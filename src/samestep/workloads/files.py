"""Workloads from a file of the user's: ``FILE.py:FUNCTION``."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import TypeVar

import cloudpickle

from samestep.errors import SamestepError, UsageError
from samestep.run.workload import Workload

Made = TypeVar("Made")


def load(name: str) -> Workload:
    """Run a Python file and call the function in it that returns a workload.

    Args:
        name: ``path/to/file.py:function``.

    Raises:
        UsageError: There is no such file or function, or it returns something else.
    """
    path_text, _, function_name = name.rpartition(":")
    path = Path(path_text).resolve()
    if not path.is_file():
        raise UsageError(f"there is no file {path_text}; a workload of yours is FILE.py:FUNCTION")
    module_name = f"samestep_workload_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    sys.path.insert(0, str(path.parent))  # as if the file were run: its neighbours can be imported
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{path_text} line {error.lineno}: {error.msg}") from None
    except ImportError as error:
        raise UsageError(f"{path_text} cannot be imported: {error}") from None
    except Exception as error:
        raise _failure(path, error) from error
    cloudpickle.register_pickle_by_value(module)  # workers cannot import it by name
    function = getattr(module, function_name, None)
    if not callable(function):
        found = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{path_text} has no function {function_name!r}; it has {', '.join(found) or 'none'}")
    explained = partial(_explained, path)
    workload = explained(function)()
    if not isinstance(workload, Workload):
        raise UsageError(f"{name} returned {type(workload).__name__}, not a samestep.Workload")
    base_model = None if workload.base_model is None else explained(workload.base_model)
    return replace(workload, model=explained(workload.model), data=explained(workload.data), base_model=base_model)


def _explained(path: Path, make: Callable[..., Made]) -> Callable[[], Made]:
    """A function of the file's; what it raises is said in one line."""

    @wraps(make)
    def explained() -> Made:
        try:
            return make()
        except SamestepError:
            raise
        except Exception as error:
            raise _failure(path, error) from error

    return explained


def _failure(path: Path, error: Exception) -> UsageError:
    """What the file raised, with the last line of it that took part."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"{path.name} line {lines[-1]}" if lines else path.name
    return UsageError(f"{where}: {type(error).__name__}: {error}")
