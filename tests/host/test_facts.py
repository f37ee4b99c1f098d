"""A machine is described; what it does not tell is None, on systems other than this one too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from samestep.cli.tables import as_text
from samestep.host import cores, facts

KEYS = {
    "samestep", "python", "packages", "system", "os", "processor", "architecture", "instruction_set", "cores",
    "physical_cores", "logical_cores", "quota_cores", "caches", "load", "memory_mb", "memory_free_mb",
    "memory_limit_mb", "dev_shm_free_mb", "gpus", "gpu_driver", "torch_threads", "onednn", "mkl", "cuda", "variables",
    "executable",
}  # fmt: skip
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells")


def written(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_machine() -> None:
    told = facts.describe()
    assert told.keys() == KEYS
    assert json.loads(json.dumps(told)) == told
    assert all(as_text(value) for value in told.values())
    assert torch.__version__.startswith(told["packages"]["torch"].split("+")[0])
    assert 0 < told["memory_free_mb"] <= told["memory_mb"]
    assert 1 <= told["cores"] <= told["logical_cores"]
    assert told["torch_threads"] == torch.get_num_threads()
    assert (told["gpus"] == []) == (not torch.cuda.is_available())


@on_linux
def test_linux_tells() -> None:
    told = facts.describe()
    assert told["processor"]
    assert told["os"]
    assert told["load"] >= 0
    assert told["caches"] is None or all(size > 0 for size in told["caches"].values())


def test_variables_are_those_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    variables = facts.describe()["variables"]
    assert variables["OMP_PROC_BIND"] == "close"
    assert variables["OMP_WAIT_POLICY"] == ""
    assert "MKL_NUM_THREADS" not in variables


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_a_system_that_tells_little(system: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither affinity nor load nor /proc, and every question is refused."""

    def refuse(*arguments: object, **options: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(sys, "platform", system)
    for name in ("sched_getaffinity", "getloadavg"):
        monkeypatch.delattr(os, name, raising=False)
    for name in ("cpu_count", "virtual_memory"):
        monkeypatch.setattr(psutil, name, refuse)
    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(cores, "text_of", lambda path: "")
    monkeypatch.setattr(facts, "text_of", lambda path: "")
    told = facts.describe()
    assert told.keys() == KEYS
    unknown = {"physical_cores", "logical_cores", "quota_cores", "caches", "load", "memory_mb", "memory_free_mb"}
    assert {name for name in unknown if told[name] is not None} == set()
    assert told["cores"] >= 1


def test_the_processor_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: SimpleNamespace(stdout="Apple M2\n"))
    assert facts.processor() == "Apple M2"


@on_linux
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nmodel name\t: A Chip @ 2: fast\n\nprocessor\t: 1\nmodel name\t: A Chip @ 2: fast\n", None),
        ("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n", "implementer 0x41, part 0xd0c"),
    ],
)
def test_the_processor_by_linux(text: str, expected: str | None, tmp_path: Path) -> None:
    assert facts.processor(written(tmp_path, {"proc/cpuinfo": text})) == (expected or "A Chip @ 2: fast")


def test_caches_that_cores_share_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores of two pairs, and one that we may not use."""
    monkeypatch.setattr(facts, "_usable", lambda: [0, 1, 2, 3])
    pairs = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", 4: "4"}
    files: dict[str, str] = {}
    for core, pair in pairs.items():
        third = (3, "Unified", "8192K" if core < 4 else "99M", pair)
        own = [(1, "Data", "48K", core), (1, "Instruction", "64K", core), (2, "Unified", "1M", core)]
        for index, (level, kind, size, shared) in enumerate([*own, third]):
            folder = f"sys/devices/system/cpu/cpu{core}/cache/index{index}"
            told = {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}
            files |= {f"{folder}/{name}": f"{value}\n" for name, value in told.items()}
    assert facts.caches(written(tmp_path, files)) == {
        "L1d_bytes": 48 * 2**10,
        "L2_bytes": 2**20,
        "L3_bytes": 8 * 2**20,
        "L3_total_bytes": 16 * 2**20,
    }


def test_caches_that_are_not_told(tmp_path: Path) -> None:
    assert facts.caches(tmp_path) is None
    folder = f"sys/devices/system/cpu/cpu{facts._usable()[0]}/cache/index0"
    assert facts.caches(written(tmp_path, {f"{folder}/type": "Data", f"{folder}/size": "?"})) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023", "535.129.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (x@y)", "570.86.15"),
        ("something else 1.2 ", None),
    ],
)
def test_the_driver(line: str, expected: str | None, tmp_path: Path) -> None:
    text = f"{line}\nGCC version:  gcc version 12.2.0 (12.2.0)\n"
    assert facts.gpu_driver(written(tmp_path, {"proc/driver/nvidia/version": text})) == expected


def test_no_driver(tmp_path: Path) -> None:
    assert facts.gpu_driver(tmp_path) is None


def test_gpus_by_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's answers are made up: this test needs no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    device = SimpleNamespace(name="A GPU", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: device)
    assert facts.describe()["gpus"] == [{"name": "A GPU", "memory_mb": 80 * 2**10}] * 2

    def refuse(number: int) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setattr(torch.cuda, "get_device_properties", refuse)
    assert facts.describe()["gpus"] is None
