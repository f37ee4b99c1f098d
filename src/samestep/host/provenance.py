"""What ran: versions, the digest of our sources, and the commit of the user's folder."""

from __future__ import annotations

import hashlib
import inspect
import os
import platform
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

from samestep.version import __version__

PACKAGES = (
    "torch",
    "numpy",
    "pytorch_optimizer",
    "scipy",
    "safetensors",
    "cloudpickle",
    "cyclopts",
    "rich",
    "filelock",
    "psutil",
    "jinja2",
    "markupsafe",
    "tensorboardX",
    "polars",
    "pillow",
    "vl-convert-python",
)
"""What samestep may use."""

_GIT_LIMIT_S = 2.0
_NAME_A_CHECKOUT = (
    "GIT_DIR",
    "GIT_COMMON_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
)
"""Set inside of git's hooks: git would look there instead of in the folder that we ask about."""


def packages() -> dict[str, str | None]:
    """Versions of what samestep uses, from the installed metadata: nothing is imported. None: not installed."""
    return {name: _version(name) for name in PACKAGES}


def versions() -> dict[str, str | None]:
    """samestep, Python, and the packages."""
    return {"samestep": __version__, "python": platform.python_version(), **packages()}


@cache
def source_sha256(parts: tuple[str, ...] = ("",)) -> str | None:
    """The digest of samestep's own sources, read once per process; None where they are not files on a disk.

    Args:
        parts: Folders and files of the package that count; all of it by default.
    """
    return digest_of(Path(__file__).resolve().parent.parent, parts)


def digest_of(folder: Path, parts: Iterable[str] = ("",)) -> str | None:
    """SHA-256 over the Python files in a folder and below; where the folder lies does not count.

    In order of their names in the folder, each file gives its name, a zero byte and the SHA-256 of its content; line
    ends count as "\\n", however a checkout has written them.

    Args:
        folder: Where the files are.
        parts: Which folders and files of it count.

    Returns:
        None where there is no Python file.
    """
    paths = [path for part in parts for path in (*(folder / part).rglob("*.py"), folder / part)]
    found = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}
    total = hashlib.sha256()
    for name in sorted(found):
        content = found[name].read_bytes().replace(b"\r\n", b"\n")
        total.update(name.encode("utf-8", "surrogateescape") + b"\0" + hashlib.sha256(content).digest())
    return total.hexdigest() if found else None


def code_sha256(things: Iterable[Any]) -> str | None:
    """The digest of the user's own code behind functions, classes and objects: their files, and the neighbours of these
    that were imported.

    Returns:
        None where there is none: all of it is samestep's or installed, or lies in no file (a notebook).
    """
    files = {path for thing in things if (path := _source_of(thing)) is not None}
    folders = {Path(path).resolve().parent for path in files if not _is_installed(path)}
    if not folders:
        return None
    loaded = {path for each in [*sys.modules.values()] if (path := getattr(each, "__dict__", {}).get("__file__"))}
    own = [Path(path).resolve() for path in loaded | files if path.endswith(".py") and not _is_installed(path)]
    found = {path for path in own if folders & {*path.parents}}
    digests = []
    for each in found:
        with suppress(OSError):
            digests.append(hashlib.sha256(each.read_bytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest() if digests else None


def _source_of(thing: Any) -> str | None:
    while isinstance(thing, partial) or hasattr(thing, "__wrapped__"):
        thing = thing.func if isinstance(thing, partial) else thing.__wrapped__
    try:
        return inspect.getsourcefile(thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing))
    except (TypeError, OSError):
        return None


@cache  # asked of every module that there is, thousands, in every run
def _is_installed(path: str) -> bool:
    if not {"site-packages", "dist-packages"}.isdisjoint(Path(path).parts):
        return True
    others = (Path(__file__).parent.parent, Path(sysconfig.get_paths()["stdlib"]))
    return any(Path(path).resolve().is_relative_to(each.resolve()) for each in others)


def git_commit(folder: Path, *, limit_s: float = _GIT_LIMIT_S) -> str | None:
    """The commit of the checkout that holds a folder, with a + where tracked files differ from it.

    Changes nothing in the checkout and never raises.

    Args:
        folder: For example the user's working folder.
        limit_s: Seconds that git may take.

    Returns:
        None where git is missing or too slow, there is no checkout, or it has no commit.
    """
    deadline = time.monotonic() + limit_s
    try:
        commit = _git(folder, deadline, "rev-parse", "--verify", "HEAD")
        changes = _git(
            folder, deadline, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=untracked"
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changes else "")


def _git(folder: Path, deadline: float, *words: str) -> str:
    """One command of git's that reads only and takes no lock."""
    done = subprocess.run(
        ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *words],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=max(0.0, deadline - time.monotonic()),
        env={name: value for name, value in os.environ.items() if name not in _NAME_A_CHECKOUT},
    )
    return done.stdout.decode(errors="replace").strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
