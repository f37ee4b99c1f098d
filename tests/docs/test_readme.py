"""Every code block of the README runs, and every one in Python of the other pages."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from samestep.cli.main import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [README, *(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))]
PYTHON = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
CONSOLE = [
    line.split("#")[0].strip()
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "SAMESTEP_DATA"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@pytest.mark.processes
@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_blocks_run_as_unguarded_scripts(number: int, tmp_path: Path) -> None:
    (tmp_path / "block.py").write_text(PYTHON[number])
    run([sys.executable, "block.py"], tmp_path)


@pytest.mark.processes
@pytest.mark.timeout(600)
@pytest.mark.parametrize("left_out", [("verify", "scale"), pytest.param((), marks=pytest.mark.soak)])
def test_samestep_commands_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: tuple[str, ...]
) -> None:
    """In this process, which has imported what they need; two that take long, and have tests of their own, seldom."""
    commands = [shlex.split(line) for line in CONSOLE if line.startswith("samestep ")]
    commands = [words for words in commands if words[1] not in left_out]
    assert len(commands) >= 5
    people = "".join(f"{n % 2},{n % 3},{'female' if n % 2 else 'male'},{20 + n % 40}\n" for n in range(200))
    (tmp_path / "titanic.csv").write_text(f"Survived,Pclass,Sex,Age\n{people}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAMESTEP_DATA", raising=False)
    for words in commands:
        assert main(words[1:]) == 0, words


def test_the_first_two_commands_are_demo_and_test() -> None:
    assert CONSOLE[:2] == ["make demo", "make test"]
