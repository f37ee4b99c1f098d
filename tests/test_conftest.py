"""The fixture that fails leaking tests does fail them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LEAKS = """
import tests.conftest
tests.conftest._GRACE_S = 0.3

import os, subprocess, sys, threading
from pathlib import Path
import torch

def test_process():
    globals()["child"] = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

def test_thread():
    globals()["event"] = threading.Event()
    threading.Thread(target=event.wait).start()

def test_thread_ends():
    event.set()

def test_variable():
    os.environ["SAMESTEP_LEAK"] = "1"

def test_shared_memory():
    Path("/dev/shm/samestep-leak-test").touch()

def test_threads_of_torch():
    torch.set_num_threads(torch.get_num_threads() + 1)

def test_nothing():
    Path("/dev/shm/samestep-leak-test").unlink()
"""


@pytest.mark.processes
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs /dev/shm")
def test_every_kind_of_leak_fails_its_test(tmp_path: Path) -> None:
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider", "-o",
         "addopts=", "-o", "testpaths=.", f"--rootdir={tmp_path}", "test_leaks.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip
    leaks = sorted({line.split("the test leaks ")[1] for line in done.stdout.splitlines() if "E   " in line})
    assert [leak.split(" [")[0] for leak in leaks] == [
        "/dev/shm names", "child processes", "environment variables", "threads", "torch's switches",
    ], done.stdout  # fmt: skip
    assert "7 passed" in done.stdout
