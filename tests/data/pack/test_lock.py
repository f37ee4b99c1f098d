"""Of several processes that ask for the same pack, one makes it and the others wait for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from samestep.data.pack import lock, reader
from tests.marks import soak

pytestmark = pytest.mark.processes

ASKING = """
import sys
from pathlib import Path
from samestep.data import making
from samestep.data.settings import DataSettings
from tests.marks import soak

def tell(what, done, total):
    if what == "reading rows":
        print("packing", flush=True)
        sys.stdin.readline()

source, folder = sys.argv[1:]
settings = DataSettings(target="y")
pack = making.ensure(source, Path(folder), settings, tell)[0] if folder else making.in_cache(source, settings, tell)
print(pack.folder, pack.parts["train"]["target"].tensor.shape[0], flush=True)
"""
"""Says when it packs, and goes on once it is told to, or where nobody could tell it."""

Ask = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """Starts a process that asks for a pack of t.csv: in a folder, or in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = "".join(f"{number * 37 % 101 / 8},{number % 2}\n" for number in range(60))
    (tmp_path / "t.csv").write_text(f"x,y\n{rows}")
    with ExitStack() as stack:

        def start(folder: str, stdin: int = subprocess.PIPE) -> subprocess.Popen[str]:
            words = [sys.executable, "-c", ASKING, str(tmp_path / "t.csv"), folder and str(tmp_path / folder)]
            pipe = subprocess.PIPE
            process = stack.enter_context(subprocess.Popen(words, stdin=stdin, stdout=pipe, stderr=pipe, text=True))
            stack.callback(process.kill)
            return process

        yield start


def line_of(stream: IO[str] | None) -> str:
    """The next line of a process's stream."""
    assert stream is not None
    return stream.readline().strip()


@pytest.mark.parametrize("folder", [soak("out"), ""])
def test_one_packs_and_the_other_waits(tmp_path: Path, ask: Ask, folder: str) -> None:
    first = ask(folder)
    assert line_of(first.stdout) == "packing"
    second = ask(folder, subprocess.DEVNULL)
    said = line_of(second.stderr)
    assert said.endswith(": another process is packing it; waiting for its end")
    first_out, _ = first.communicate("\n", timeout=60)
    second_out, second_err = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), second_err
    assert first_out == second_out
    packed = Path(first_out.split()[0])
    assert said.startswith(f"{packed}: ")
    assert (packed == tmp_path / "out") == bool(folder)
    assert reader.open_pack(packed).manifest.source.endswith("t.csv")
    beside = {path.name for path in packed.parent.iterdir()}
    assert beside == ({"t.csv", "cache", "out"} if folder else {packed.name})
    (left,) = (tmp_path / "cache" / "samestep" / "locks").iterdir()
    assert left.name.startswith(f"{packed.name}-") and left.stat().st_size == 0


def test_who_waits_for_a_process_that_is_killed_packs_itself(tmp_path: Path, ask: Ask) -> None:
    first = ask("out")
    assert line_of(first.stdout) == "packing"
    second = ask("out", subprocess.DEVNULL)
    assert "waiting for its end" in line_of(second.stderr)
    first.kill()
    first.wait()
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert out.splitlines()[0] == "packing"
    reader.open_pack(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"t.csv", "cache", "out"}


def notices(folder: Path) -> list[str]:
    said: list[str] = []
    with lock.held(folder, said.append):
        pass
    return said


def test_where_there_is_no_cache_the_lock_lies_beside_the_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert notices(tmp_path / "new" / "pack") == []
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".pack.lock"]


def test_a_lock_that_cannot_be_had_is_said_and_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / ".pack.lock").mkdir()
    (said,) = notices(tmp_path / "pack")
    assert said.startswith(f"{tmp_path / 'pack'}: {tmp_path / '.pack.lock'} cannot be locked (")
    assert said.endswith("; let no other process pack into the same folder meanwhile")
