"""What holds for every test: nothing leaks, and torch's process-wide state is as it was."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # so that test modules, and workers, can import `tests.helpers`
    sys.path.insert(0, str(ROOT))

os.environ.setdefault("SAMESTEP_PEAKS", "off")  # each command of the tests has a cache of its own: 2 s for every run

torch.set_num_threads(1)  # what is compared with runs on one thread must run on one too; and machines are shared

_SHARED_MEMORY = Path("/dev/shm")
_TASKS = Path("/proc/self/task")
_CHILDREN_OF_THREADS = bool(list(_TASKS.glob("*/children")))
_NOT_OURS = {
    "PYTEST_CURRENT_TEST",
    "COLUMNS",
    "LINES",
    "TORCHINDUCTOR_CACHE_DIR",
    "KMP_DUPLICATE_LIB_OK",
    "KMP_INIT_AT_FORK",
    "_RJEM_MALLOC_CONF",
}
"""Set by pytest, by torch when it imports its compiler, and by polars."""

_GRACE_S = 5.0
"""How long a process or a thread that is ending may take to be gone."""

# A shell ignores Ctrl-C in what it starts in the background, nohup the end of the terminal, and so would every program
# that the tests stop.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _NOT_OURS}


def pytest_collection_finish() -> None:
    """What is there by now stays: the collector need not look at it again, which takes a second each time."""
    gc.collect()
    gc.freeze()


def _children() -> set[int]:
    """All processes below this one; Linux lists the direct ones at once, and psutil reads every process there is."""
    with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended: look the long way
        if _CHILDREN_OF_THREADS and not any(path.read_bytes() for path in _TASKS.glob("*/children")):
            return set()
    return {child.pid for child in psutil.Process().children(recursive=True)}


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.daemon}


def _names() -> set[str]:
    return {path.name for path in _SHARED_MEMORY.iterdir()} if _SHARED_MEMORY.is_dir() else set()


def _switches() -> dict[str, object]:
    return {
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "oneDNN": torch.backends.mkldnn.enabled,
        "matmul precision": torch.get_float32_matmul_precision(),
    }


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Fail a test that leaves processes, threads, shared memory, variables or switches behind."""
    environment, children, threads = _environment(), _children(), _threads()
    names, switches, folder = _names(), _switches(), Path.cwd()
    yield
    deadline = time.monotonic() + _GRACE_S
    # Names may be another test's, of those that run at the same time.
    while (_children() - children or _threads() - threads or _names() - names) and time.monotonic() < deadline:
        time.sleep(0.02)
    found: list[str] = []
    if left := _children() - children:
        found.append(f"child processes {sorted(left)}")
        for pid in left:
            psutil.Process(pid).kill()
    if left_threads := _threads() - threads:
        found.append(f"threads {sorted(thread.name for thread in left_threads)}")
    if left_names := _names() - names:
        found.append(f"/dev/shm names {sorted(left_names)}")
    if (now := _environment()) != environment:
        changed = {name for name in {*now, *environment} if now.get(name) != environment.get(name)}
        found.append(f"environment variables {sorted(changed)}")
        os.environ.update(environment)
        for name in changed - set(environment):
            del os.environ[name]
    if (switched := _switches()) != switches:
        found.append(f"torch's switches {[name for name in switched if switched[name] != switches[name]]}")
        torch.set_num_threads(int(str(switches["threads"])))
    if Path.cwd() != folder:
        found.append("the working folder")
        os.chdir(folder)
    if found:
        pytest.fail(f"the test leaks {'; '.join(found)}")


@pytest.fixture
def data_folder() -> Path:
    """The folder of data sets; a test that needs one is skipped where there is none."""
    named = os.environ.get("SAMESTEP_DATA")
    if not named:
        pytest.skip("SAMESTEP_DATA is not set: name a folder of data sets to run this test")
    return Path(named)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with next to no space."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder))
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(("umount", str(folder)), check=True)
