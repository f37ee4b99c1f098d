"""Versions, the digest of sources, and commits of real checkouts."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from samestep.host import provenance
from samestep.version import __version__

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
SLOW_GIT = "#!/bin/sh\necho $$ > {pid}\nexec sleep 60\n"
BROKEN_GIT = "#!/bin/sh\nexit 1\n"


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *settings, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in no checkout, whatever holds the folder of temporary files."""
    for name in provenance._NAME_A_CHECKOUT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


def checkout_of(folder: Path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder.mkdir(exist_ok=True)
    git(folder, "init", "-q")
    (folder / "sub").mkdir()
    (folder / "a.py").write_text(f"# {folder.name}\n")
    (folder / "sub" / "b.py").write_text("2\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "first")
    return folder


@pytest.fixture
def checkout(alone: Path) -> Path:
    return checkout_of(alone)


def planted(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another git, first on the search path."""
    folder.mkdir()
    (folder / "git").write_text(script)
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_packages() -> None:
    versions = provenance.versions()
    assert versions["samestep"] == __version__
    assert versions["numpy"] == np.__version__
    assert list(versions) == ["samestep", "python", *provenance.PACKAGES]


def test_every_dependency_is_listed_and_installed() -> None:
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    names = {re.split(r"[^\w.-]", text)[0].lower() for text in declared}
    versions = {name.lower(): version for name, version in provenance.packages().items()}
    assert {name for name in names if versions.get(name) is None} == set()


def imported_packages() -> set[str]:
    """Top-level names of other people's packages that our code imports anywhere."""
    trees = [ast.parse(path.read_text()) for path in (PYPROJECT.parent / "src").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"samestep"}


def test_every_import_is_a_dependency_or_an_extra() -> None:
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    declared = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    names = {re.split(r"[^\w.-]", text)[0].lower().replace("-", "_") for text in declared}
    called = {"PIL": "pillow", "vl_convert": "vl_convert_python"}
    assert {name for name in imported_packages() if called.get(name, name).lower() not in names} == set()


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package-of-ours"))
    assert provenance.packages() == {"numpy": np.__version__, "no-such-package-of-ours": None}


def sources(folder: Path) -> Path:
    for name, text in {"a.py": "1\n", "sub/b.py": "2\n", "sub/style.css": "x"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_the_digest_does_not_know_where_the_folder_is(tmp_path: Path) -> None:
    first, second = provenance.digest_of(sources(tmp_path / "x")), provenance.digest_of(sources(tmp_path / "y" / "z"))
    assert first == second
    assert first is not None
    assert re.fullmatch("[0-9a-f]{64}", first)


@pytest.mark.parametrize(
    ("is_same", "name", "text"),
    [
        (False, "a.py", "10\n"),
        (False, "a.py", "1"),
        (False, "new.py", ""),
        (False, "sub/a.py", "1\n"),
        (True, "a.py", "1\r\n"),
        (True, "sub/style.css", "y"),
        (True, "sub/a.txt", "1\n"),
    ],
)
def test_what_the_digest_sees(is_same: bool, name: str, text: str, tmp_path: Path) -> None:
    folder = sources(tmp_path)
    before = provenance.digest_of(folder)
    (folder / name).write_bytes(text.encode())
    assert (provenance.digest_of(folder) == before) == is_same


def test_a_renamed_and_a_moved_border(tmp_path: Path) -> None:
    """Neither a new name nor text that moves from one file to the next goes unseen."""
    before = provenance.digest_of(sources(tmp_path))
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    assert provenance.digest_of(tmp_path) != before
    (tmp_path / "c.py").rename(tmp_path / "a.py")
    assert provenance.digest_of(tmp_path) == before
    (tmp_path / "a.py").write_text("1\n2\n")
    (tmp_path / "sub" / "b.py").write_text("")
    assert provenance.digest_of(tmp_path) != before


def test_no_sources(tmp_path: Path) -> None:
    assert provenance.digest_of(tmp_path) is None


def test_our_own_sources_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []
    digest_of = provenance.digest_of

    def counted(folder: Path, parts: tuple[str, ...]) -> str | None:
        folders.append(folder)
        return digest_of(folder, parts)

    monkeypatch.setattr(provenance, "digest_of", counted)
    provenance.source_sha256.cache_clear()
    assert provenance.source_sha256() == provenance.source_sha256() is not None
    assert [folder.name for folder in folders] == ["samestep"]
    assert (folders[0] / "version.py").is_file()


def test_a_clean_checkout_from_any_of_its_folders(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{40}", commit)
    (checkout / "not tracked.py").write_text("")
    assert provenance.git_commit(checkout) == commit
    assert provenance.git_commit(checkout / "sub") == commit


def test_a_checkout_whose_files_differ(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "a.py").write_text("other\n")
    assert provenance.git_commit(checkout / "sub") == f"{commit}+", "outside of the folder too"
    git(checkout, "add", ".")
    assert provenance.git_commit(checkout) == f"{commit}+"
    git(checkout, "reset", "-q", "--hard")
    assert provenance.git_commit(checkout) == commit
    (checkout / "a.py").unlink()
    assert provenance.git_commit(checkout) == f"{commit}+"


def test_the_checkout_is_not_written_to(checkout: Path) -> None:
    index = checkout / ".git" / "index"
    before = index.read_bytes()
    os.utime(checkout / "a.py", (1, 1))  # a plain `git status` would note that in the index
    provenance.git_commit(checkout)
    assert index.read_bytes() == before
    git(checkout, "status")
    assert index.read_bytes() != before, "the oracle sees a write"


def test_variables_of_a_hook_do_not_lead_elsewhere(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = checkout_of(checkout.parent / "other")
    mine, others = git(checkout, "rev-parse", "HEAD"), git(other, "rev-parse", "HEAD")
    assert mine != others
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert git(checkout, "rev-parse", "HEAD") == others, "git itself goes there"
    assert provenance.git_commit(checkout) == mine


def test_no_checkout(alone: Path) -> None:
    assert provenance.git_commit(alone) is None


def test_a_checkout_without_a_commit(alone: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    git(alone, "init", "-q")
    assert provenance.git_commit(alone) is None


@pytest.mark.parametrize("name", ["none", "file", "nul\0byte"])
def test_no_folder(name: str, alone: Path) -> None:
    (alone / "file").write_text("")
    assert provenance.git_commit(alone / name) is None


def test_no_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout / "sub"))
    assert provenance.git_commit(checkout) is None


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for git is a shell script")
def test_a_broken_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(checkout.parent / "bin", BROKEN_GIT, monkeypatch)
    assert provenance.git_commit(checkout) is None


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for git is a shell script")
def test_a_git_that_hangs_is_ended(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = checkout.parent / "pid"
    planted(checkout.parent / "bin", SLOW_GIT.format(pid=pid), monkeypatch)
    assert provenance.git_commit(checkout, limit_s=0.5) is None
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_code_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    paths = [tmp_path / "some_net.py", tmp_path / "its_layers.py", tmp_path / "another.py"]
    for path in paths:
        path.write_text("def build(width):\n    return width\n")

    def digest() -> str | None:
        net, _ = (load(path) for path in paths[:2])
        return provenance.code_sha256([partial(net.build, 3), np.zeros])

    first = digest()
    assert first is not None
    assert digest() == first
    paths[2].write_text("# nobody has imported it\n")
    assert digest() == first
    found: set[str | None] = {first}
    for path in paths[:2]:
        path.write_text(path.read_text() + "# changed\n")
        found.add(digest())
    assert len(found) == 3
    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    assert digest() in found


class Lazy(ModuleType):
    """A module that imports what it needs when it is asked for anything, and cannot."""

    def __getattr__(self, name: str) -> Any:
        raise ImportError(name)


def test_what_is_installed_is_not_the_users() -> None:
    assert provenance.code_sha256([np.zeros, partial(np.zeros, 3), partial, provenance.versions, 7, len]) is None


def test_the_digest_of_some_parts_is_that_of_their_files(tmp_path: Path) -> None:
    for name in ("a/one.py", "b/two.py", "three.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    whole, some = provenance.digest_of(tmp_path), provenance.digest_of(tmp_path, ("a", "three.py"))
    (tmp_path / "b/two.py").write_text("other")
    assert provenance.digest_of(tmp_path) != whole
    assert provenance.digest_of(tmp_path, ("a", "three.py")) == some != whole
    (tmp_path / "three.py").write_text("other")
    assert provenance.digest_of(tmp_path, ("a", "three.py")) != some
