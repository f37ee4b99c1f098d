"""Shared memory without a name: other processes map it by its inherited descriptor, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from samestep.engine import memory
from samestep.errors import UsageError
from samestep.host import anonymous
from samestep.plan.regions import lay_out

REGIONS = lay_out([("a", "uint8", (3,)), ("b", "float64", (2, 3)), ("c", "int64", (0, 4)), ("d", "float32", (5,))])

CHILD = """
import os, sys, time
from samestep.engine import memory
handle = int(sys.argv[1])
values = memory.attach(handle, 8192).tensor("float64", 64, (3,))
values.mul_(2)
print("done", flush=True)
if sys.argv[2] == "stay":
    time.sleep(60)
"""


def names() -> set[str]:
    folder = Path("/dev/shm")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


@pytest.mark.processes
@pytest.mark.parametrize("end", ["leave", "stay"])
def test_a_child_shares_it_and_no_death_leaves_anything(end: str) -> None:
    before = names()
    handle = anonymous.reserve()
    values = memory.create(handle, 8192).tensor("float64", 64, (3,))
    values.copy_(torch.tensor([1.0, 2.0, 3.0]))
    command = [sys.executable, "-c", CHILD, str(handle), end]
    with subprocess.Popen(command, pass_fds=(handle,), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"done\n"
        assert values.tolist() == [2.0, 4.0, 6.0]
        if end == "stay":
            child.send_signal(signal.SIGKILL)
    assert names() == before
    os.close(handle)
    assert values.tolist() == [2.0, 4.0, 6.0]  # the mapping outlives the descriptor


@pytest.mark.processes
def test_who_does_not_inherit_the_descriptor_cannot_map_it() -> None:
    handle = anonymous.reserve()
    memory.create(handle, 8192)
    command = [sys.executable, "-c", CHILD, str(handle), "leave"]
    done = subprocess.run(command, capture_output=True, check=False)
    os.close(handle)
    assert done.returncode != 0
    assert b"Bad file descriptor" in done.stderr


@pytest.mark.parametrize("is_private", [True, False])
def test_regions_are_aligned_zeroed_and_apart(is_private: bool) -> None:
    handle = None if is_private else anonymous.reserve()
    found = memory.private(REGIONS.num_bytes) if handle is None else memory.create(handle, REGIONS.num_bytes)
    tensors = found.tensors(REGIONS)
    assert {name: tuple(values.shape) for name, values in tensors.items()} == {
        "a": (3,), "b": (2, 3), "c": (0, 4), "d": (5,),
    }  # fmt: skip
    for number, values in enumerate(tensors.values(), start=1):
        assert not bool(values.any())
        assert values.data_ptr() % 64 == 0
        values.fill_(number)
    assert [sorted(set(values.flatten().tolist())) for values in tensors.values()] == [[1], [2], [], [4]]
    if handle is not None:
        os.close(handle)


def test_nothing_has_a_size_of_its_own() -> None:
    assert memory.private(0).tensors(lay_out([])) == {}
    handle = anonymous.reserve()
    memory.create(handle, 0)
    os.close(handle)


def test_two_mappings_are_one_memory() -> None:
    handle = anonymous.reserve()
    first = memory.create(handle, 4096).tensor("int64", 128, (2,))
    second = memory.attach(handle, 4096).tensor("int64", 128, (2,))
    first[1] = 5
    os.close(handle)
    assert second.tolist() == [0, 5]


def test_more_than_there_is_is_refused() -> None:
    handle = anonymous.reserve()
    with pytest.raises(
        UsageError, match=r"the run needs [\d,]+ MB of shared memory and [\d,]+ MB are free; take fewer"
    ):
        memory.create(handle, 1 << 50)
    os.close(handle)


def test_a_system_without_memfd_gets_an_unlinked_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handle = anonymous.reserve()
    assert list(tmp_path.iterdir()) == []
    values = memory.create(handle, 8192).tensor("float32", 0, (4,))
    values.fill_(2.0)
    os.close(handle)
    assert values.tolist() == [2.0] * 4
