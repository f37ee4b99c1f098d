"""How much of the machine this process may use: its cores, and what the container allows. Imports no torch."""

from __future__ import annotations

import math
import os
import re
from functools import cache
from pathlib import Path, PurePosixPath

_ROOT = Path("/")
_NO_LIMIT_BYTES = 2**62
"""Version 1 writes "no limit" as the largest number of whole pages below 2**63."""


def num_cores() -> int:
    """Cores that this process may use: of those that it may run on, as many as its control group is given time for."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _own_quota()
    return found if quota is None else max(1, min(found, math.ceil(quota)))


@cache
def _own_quota() -> float | None:
    return quota_cores()


def quota_cores(root: Path = _ROOT) -> float | None:
    """Core-seconds per second that the control group allows (Linux, versions 1 and 2).

    A group obeys the limits of all groups that hold it, so the smallest counts.

    Args:
        root: Where /proc and /sys are looked for.

    Returns:
        1.5 where one and a half cores may be used; None where there is no limit, or none is told.
    """
    limits = [_cpu_limit(folder) for folder in _groups("cpu", root)]
    return min((limit for limit in limits if limit is not None), default=None)


def cgroup_memory_bytes(root: Path = _ROOT) -> int | None:
    """Memory that the control group allows; None where there is no limit, or none is told."""
    limits = [_memory_limit(folder) for folder in _groups("memory", root)]
    return min((limit for limit in limits if limit is not None), default=None)


def cgroup_free_bytes(root: Path = _ROOT) -> int | None:
    """Memory that the control group still gives, without what it can take back; None where there is no limit."""
    limits = [(group, _memory_limit(group)) for group in _groups("memory", root)]
    return min((max(0, limit - _used_bytes(group)) for group, limit in limits if limit is not None), default=None)


def text_of(path: Path) -> str:
    """What a small file says; nothing where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _cpu_limit(group: Path) -> float | None:
    words = text_of(group / "cpu.max").split()  # version 2: "150000 100000" or "max 100000"
    if not words:
        words = [text_of(group / "cpu.cfs_quota_us"), text_of(group / "cpu.cfs_period_us")]  # version 1; -1 is no limit
    try:
        quota, period = (int(word) for word in words)
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _memory_limit(group: Path) -> int | None:
    try:
        limit = int(text_of(group / "memory.max") or text_of(group / "memory.limit_in_bytes"))
    except ValueError:  # "max", or no such file
        return None
    return limit if limit < _NO_LIMIT_BYTES else None


def _used_bytes(group: Path) -> int:
    """What counts against a group's limit, but for files that were read once and can be read again."""
    used = text_of(group / "memory.current") or text_of(group / "memory.usage_in_bytes")
    again = re.findall(r"^(?:total_)?inactive_file (\d+)$", text_of(group / "memory.stat"), re.MULTILINE)
    return max(0, (int(used) if used.isdigit() else 0) - max(map(int, again), default=0))


def _groups(controller: str, root: Path) -> list[Path]:
    """The folder of this process's control group and of those that hold it, innermost first.

    A machine may have both versions at once; a controller that version 1 has taken is not in version 2's tree.
    """
    paths, mounts = _paths(root), _mounts(root)
    name = controller if controller in paths and controller in mounts else ""
    if name not in paths or name not in mounts:
        return []
    top, mount_point = mounts[name]
    folder = root / mount_point.lstrip("/")
    own = PurePosixPath(paths[name])
    is_below = own.is_relative_to(top) and ".." not in own.parts  # outside of what the container sees otherwise
    parts = own.relative_to(top).parts if is_below else ()
    return [folder.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]


def _paths(root: Path) -> dict[str, str]:
    """The group of this process by controller; version 2's single tree has the name ""."""
    found: dict[str, str] = {}
    for line in text_of(root / "proc/self/cgroup").splitlines():  # 4:cpu,cpuacct:/docker/12ab
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def _mounts(root: Path) -> dict[str, tuple[str, str]]:
    """By controller: which group is at the top of the mounted tree, and where it is mounted."""
    found: dict[str, tuple[str, str]] = {}
    for line in text_of(root / "proc/self/mountinfo").splitlines():
        # 33 31 0:30 /docker/12ab /sys/fs/cgroup/cpu ro,nosuid shared:5 - cgroup cgroup rw,cpu,cpuacct
        place, _, kind = line.partition(" - ")
        places, kinds = place.split(" "), kind.split(" ")
        if len(places) < 5 or len(kinds) < 3:
            continue
        at = (_unescaped(places[3]), _unescaped(places[4]))
        if kinds[0] == "cgroup2":
            found.setdefault("", at)
        elif kinds[0] == "cgroup":
            for option in kinds[2].split(","):
                found.setdefault(option, at)
    return found


def _unescaped(path: str) -> str:
    r"""A path of the kernel's tables.

    >>> _unescaped(r"/a\040b")
    '/a b'
    """
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)
