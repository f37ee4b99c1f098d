"""Process-wide switches: read, set in a fresh process, and given back."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from samestep.engine import numerics
from samestep.engine.numerics import Switches
from tests import helpers


@pytest.fixture
def restored() -> Iterator[None]:
    before = numerics.read(torch.get_num_threads())
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    numerics.apply(before)
    torch.use_deterministic_algorithms(before.is_deterministic, warn_only=warns)


CHANGES: dict[str, tuple[Callable[[], object], str, Any]] = {
    "default dtype": (lambda: torch.set_default_dtype(torch.float64), "default_dtype", "float64"),
    "oneDNN": (lambda: setattr(torch.backends.mkldnn, "enabled", False), "has_onednn", False),
    "matmul": (lambda: torch.set_float32_matmul_precision("medium"), "matmul_precision", "medium"),
    "deterministic": (lambda: torch.use_deterministic_algorithms(mode=True), "is_deterministic", True),
    "denormals": (lambda: torch.set_flush_denormal(True), "flushes_denormals", True),
}

CHILD = """
import pickle, sys
import torch
from samestep.engine import numerics
switches = pickle.load(sys.stdin.buffer)
numerics.apply(switches)
sys.stdout.buffer.write(pickle.dumps(numerics.read(torch.get_num_threads())))
"""


def in_a_fresh_process(switches: Switches) -> Switches:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=pickle.dumps(switches), capture_output=True, timeout=60, check=True
    )
    found: Switches = pickle.loads(done.stdout)
    return found


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("name", CHANGES)
def test_a_switch_is_read(name: str) -> None:
    change, field, value = CHANGES[name]
    before = numerics.read(1)
    assert getattr(before, field) != value
    change()
    assert getattr(numerics.read(1), field) == value
    numerics.apply(before)
    assert numerics.read(1) == before


@pytest.mark.processes
@pytest.mark.usefixtures("restored")
def test_all_switches_reach_a_fresh_process() -> None:
    for change, _, _ in CHANGES.values():
        change()
    wanted = numerics.read(3)
    torch.set_flush_denormal(False)
    assert in_a_fresh_process(wanted) == wanted


@pytest.mark.usefixtures("restored")
def test_threads_are_given_back_however_it_ends() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with numerics.applied(numerics.read(before + 1)):
            assert torch.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("name", ["default dtype", "denormals"])
def test_switches_are_part_of_what_decides_the_bits(name: str) -> None:
    before = helpers.prepared(helpers.workload(), steps=1).numerics()
    CHANGES[name][0]()
    work = helpers.workload(lambda: helpers.Mlp().float())
    after = helpers.prepared(work, steps=1).numerics()
    assert [key for key in before if before[key] != after[key]] == [CHANGES[name][1]]


@pytest.mark.usefixtures("restored")
def test_deterministic_algorithms_that_only_warn_are_left_so() -> None:
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    helpers.run(helpers.prepared(helpers.workload(), steps=1))
    assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_as_plain_values() -> None:
    switches = numerics.read(2)
    assert switches.as_dict()["intra_op_threads"] == 2
    assert switches.as_dict()["torch_version"] == torch.__version__
