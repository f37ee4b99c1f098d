"""Limits of made-up control groups, of both versions, and of the real ones of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from samestep.host import cores

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_CPU = "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "35 31 0:32 / /sys/fs/cgroup/memory rw shared:11 - cgroup cgroup rw,memory"
NO_LIMIT = 9223372036854771712


def made_up(root: Path, *, groups: str, mounts: str, files: Mapping[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture(autouse=True)
def no_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine of these tests allows."""
    monkeypatch.setattr(cores, "_own_quota", lambda: None)


def limits(root: Path) -> tuple[float | None, int | None]:
    return cores.quota_cores(root), cores.cgroup_memory_bytes(root)


def test_cores_are_those_of_the_affinity() -> None:
    expected = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert cores.num_cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no process to cores")
def test_a_process_that_is_bound_to_one_core_and_needs_no_torch() -> None:
    program = (
        "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from samestep.host import cores\n"
        "print(cores.num_cores(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["1", "False"]


def test_without_an_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cores.num_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.num_cores() == 1


@pytest.mark.parametrize(("quota", "expected"), [(None, 6), (8.0, 6), (2.0, 2), (1.5, 2), (0.25, 1)])
def test_a_quota_counts_as_so_many_cores(monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setattr(cores, "_own_quota", lambda: quota)
    assert cores.num_cores() == expected


def test_the_real_limits() -> None:
    quota, memory = limits(Path("/"))
    assert quota is None or quota > 0
    assert memory is None or memory > 2**20


def test_version_2_in_a_container(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/cpu.max": "150000 100000", "sys/fs/cgroup/memory.max": "1073741824"}
    assert limits(made_up(tmp_path, groups="0::/", mounts=V2, files=files)) == (1.5, 2**30)


def test_version_2_without_limits(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/a/cpu.max": "max 100000", "sys/fs/cgroup/a/memory.max": "max"}
    assert limits(made_up(tmp_path, groups="0::/a", mounts=V2, files=files)) == (None, None)


@pytest.mark.parametrize(("own", "outer", "expected"), [(1, 4, 1), (4, 1, 1), (None, 3, 3), (2, None, 2)])
def test_the_smallest_limit_on_the_way_counts(
    own: int | None, outer: int | None, expected: int, tmp_path: Path
) -> None:
    def text(limit: int | None, unit: int) -> str:
        return "max" if limit is None else str(limit * unit)

    files = {
        "sys/fs/cgroup/a.slice/b.scope/cpu.max": f"{text(own, 50000)} 50000",
        "sys/fs/cgroup/a.slice/cpu.max": f"{text(outer, 100000)} 100000",
        "sys/fs/cgroup/a.slice/b.scope/memory.max": text(own, 2**30),
        "sys/fs/cgroup/a.slice/memory.max": text(outer, 2**30),
        "sys/fs/cgroup/other/cpu.max": "10000 100000",  # not on the way
    }
    root = made_up(tmp_path, groups="0::/a.slice/b.scope", mounts=V2, files=files)
    assert limits(root) == (expected, expected * 2**30)


def test_version_1(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "250000",
        "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "536870912",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(NO_LIMIT),
    }
    groups = "4:memory:/a\n2:cpu,cpuacct:/a\n1:name=systemd:/a"
    assert limits(made_up(tmp_path, groups=groups, mounts=f"{V1_CPU}\n{V1_MEMORY}", files=files)) == (2.5, 2**29)


def test_what_a_group_still_gives(tmp_path: Path) -> None:
    """Files that were read are given up where memory is asked for; the group with least left counts."""
    files = {
        "sys/fs/cgroup/a/b/memory.max": "1000",
        "sys/fs/cgroup/a/b/memory.current": "700",
        "sys/fs/cgroup/a/b/memory.stat": "anon 300\ninactive_file 400\nactive_file 0",
        "sys/fs/cgroup/a/memory.max": "2000",
        "sys/fs/cgroup/a/memory.current": "1800",
        "sys/fs/cgroup/memory.max": "max",
    }
    assert cores.cgroup_free_bytes(made_up(tmp_path, groups="0::/a/b", mounts=V2, files=files)) == 200
    (tmp_path / "sys/fs/cgroup/a/memory.current").write_text("1100\n")
    assert cores.cgroup_free_bytes(tmp_path) == 700
    (tmp_path / "sys/fs/cgroup/a/memory.current").write_text("2100\n")
    assert cores.cgroup_free_bytes(tmp_path) == 0
    assert cores.cgroup_free_bytes(tmp_path / "absent") is None


def test_version_1_without_limits(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": str(NO_LIMIT),
    }
    groups = "4:memory:/\n2:cpu,cpuacct:/"
    assert limits(made_up(tmp_path, groups=groups, mounts=f"{V1_CPU}\n{V1_MEMORY}", files=files)) == (None, None)


def test_version_1_in_a_container_that_sees_the_machines_names(tmp_path: Path) -> None:
    """The group's name is the machine's, and the container's group is at the top of what is mounted."""
    mounts = "35 31 0:32 /docker/12ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory"
    files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": "1048576"}
    assert limits(made_up(tmp_path, groups="4:memory:/docker/12ab", mounts=mounts, files=files)) == (None, 2**20)


def test_both_versions_at_once(tmp_path: Path) -> None:
    """Each controller is where one of the versions has it."""
    unified = V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
    files = {
        "sys/fs/cgroup/memory/m/memory.limit_in_bytes": "2097152",
        "sys/fs/cgroup/unified/u/cpu.max": "300000 100000",
        "sys/fs/cgroup/unified/u/memory.max": "1",  # nobody reads this one
    }
    root = made_up(tmp_path, groups="4:memory:/m\n0::/u", mounts=f"{V1_MEMORY}\n{unified}", files=files)
    assert limits(root) == (3.0, 2**21)


def test_a_group_outside_of_what_the_container_sees(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/cpu.max": "200000 100000", "sys/x/cpu.max": "100000 100000"}
    assert limits(made_up(tmp_path, groups="0::/../../x", mounts=V2, files=files)) == (2.0, None)


def test_names_with_spaces_and_colons(tmp_path: Path) -> None:
    mounts = V2.replace("/sys/fs/cgroup ", r"/sys/my\040groups ")
    files = {"sys/my groups/a:b c/cpu.max": "200000 100000"}
    assert limits(made_up(tmp_path, groups="0::/a:b c", mounts=mounts, files=files)) == (2.0, None)


@pytest.mark.parametrize("damaged", ["", "max", "100000", "a b", "0 0", "-5 100000", "1 2 3"])
def test_damaged_files_tell_nothing(damaged: str, tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/cpu.max": damaged, "sys/fs/cgroup/memory.max": "?"}
    assert limits(made_up(tmp_path, groups="0::/\nnonsense", mounts=f"{V2}\nshort - x", files=files)) == (None, None)


def test_no_control_groups(tmp_path: Path) -> None:
    assert limits(tmp_path) == (None, None)
    assert limits(made_up(tmp_path / "mounts only", groups="", mounts=V2, files={})) == (None, None)
    assert limits(made_up(tmp_path / "groups only", groups="0::/a", mounts="", files={})) == (None, None)
