"""Freed memory is kept while it is wanted, and no longer."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

CHILD = """
import json, psutil, torch
from samestep.engine.allocator import freed_kept

def resident_mb():
    return psutil.Process().memory_info().rss / 2**20

def left_mb():
    \"\"\"Of 200 MB that were taken and freed, in blocks of 40.\"\"\"
    before = resident_mb()
    blocks = [torch.ones(10 * 2**20) for _ in range(5)]
    taken = resident_mb() - before
    del blocks
    return taken, resident_mb() - before

found = [left_mb()]
with freed_kept():
    found.append(left_mb())
    within = resident_mb()
found.append((within, resident_mb()))
print(json.dumps(found))
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of Linux's C library")
def test_freed_memory_is_kept_within_the_block_only() -> None:
    answer = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True, timeout=60)
    usual, kept, given_back = json.loads(answer.stdout)
    assert usual[0] > 190
    assert usual[1] < 20
    assert kept[0] > 190
    assert kept[1] > 190
    assert given_back[0] - given_back[1] > 150
