"""What is installed is whole: every import is a declared dependency, every file of the source is in the wheel."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import samestep

SOURCE = Path(samestep.__file__).parent
ROOT = SOURCE.parents[1]
PROJECT = ROOT / "pyproject.toml"

pytestmark = pytest.mark.skipif(not PROJECT.is_file(), reason="the sources are not here")


def normalised(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    """Distributions that the project says it needs, extras included."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    return {normalised(re.split(r"[<>=!~\[; ]", line)[0]) for line in lines}


def imported() -> dict[str, set[str]]:
    """Packages of others that the sources import, and by which modules."""
    found: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                root = name.split(".")[0]
                if root != "samestep" and root not in sys.stdlib_module_names:
                    found.setdefault(root, set()).add(path.name)
    return found


def test_every_import_is_declared() -> None:
    distributions = packages_distributions()
    for root, modules in imported().items():
        names = {normalised(name) for name in distributions.get(root, [root])}
        assert names & declared(), f"{root} is imported by {', '.join(sorted(modules))} and is no dependency"


def test_every_dependency_has_its_reason() -> None:
    text = normalised((ROOT / "docs" / "dependencies.md").read_text())
    assert [name for name in declared() if name not in text] == []


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_the_wheel_holds_every_file_of_the_source(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("the build backend cannot be fetched here")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if name.startswith("samestep/")}
        others = {Path(name).name for name in archive.namelist() if name.endswith(("/entry_points.txt", "/LICENSE"))}
    files = (path for path in SOURCE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert found == {path.relative_to(SOURCE.parent).as_posix() for path in files}
    assert others == {"entry_points.txt", "LICENSE"}
