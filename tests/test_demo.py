"""The demonstration, shortened: rows, the same bits, a page about what was run."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from samestep import demo
from samestep.cli import tables
from samestep.cli.main import main
from samestep.demo import Row, _verdict, demonstrate
from samestep.host import records
from samestep.host.cores import num_cores
from samestep.run.progress import Progress, Silent
from samestep.run.workload import Workload
from samestep.workloads import catalog


@pytest.mark.processes
def test_a_short_demonstration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    outcome = demonstrate(partial(catalog.build, "digits-mlp", width=16), Silent(), tmp_path / "demo", epochs=2)
    assert outcome.is_same
    names = [row.program for row in outcome.rows]
    assert names[0] == "torch, 1 thread"
    assert names[-1] == (f"samestep, {num_cores()} workers" if num_cores() > 1 else "samestep, 1 worker")
    assert len({row.weights_sha256 for row in outcome.rows if row.program.startswith("samestep")}) == 1
    kept = {path.parent.name: records.read(path, "run") for path in (tmp_path / "demo").glob("*/record.json")}
    assert len(kept) == len(outcome.rows)
    assert {record["weights_sha256"] for record in kept.values()} == {row.weights_sha256 for row in outcome.rows}
    assert kept["torch-1"]["engine"] == "torch"
    assert all(record["environment"]["peaks"]["copy_bytes_per_s_all_cores"] > 0 for record in kept.values())
    assert len(kept["torch-1"]["step_table"]["loss"]) == len(kept["samestep-1"]["step_table"]["loss"])
    page = outcome.page.read_text()
    assert outcome.verdict.split(":")[0] in page
    tables.print_outcome(outcome)
    printed = capsys.readouterr().out.splitlines()
    assert "same bits: yes" in printed
    assert outcome.verdict in printed
    titles = ["program", "time", "samples/s", "speed-up", "test accuracy", "weights sha256"]
    at = next(number for number, line in enumerate(printed) if line.split("  ")[0].strip() == "program")
    assert [title for title in re.split(r" {2,}", printed[at].strip()) if title] == titles
    for row, line in zip(outcome.rows, printed[at + 2 :], strict=False):
        cells = re.split(r" {2,}", line.strip())
        expected = [row.program, f"{row.wall_s:.1f} s", f"{row.samples_per_s:,.0f}", f"{row.speed_up:.2f}"]
        assert cells[:4] == expected
        assert float(cells[4]) == pytest.approx(row.accuracy, abs=1e-3)
        assert cells[5] == row.weights_sha256[:16]


@pytest.mark.parametrize("is_same", [True, False])
def test_the_command(is_same: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It trains the workload that its table is about, and says by its exit code whether the bits were the same."""
    asked: list[tuple[str, Path]] = []

    def show(build: Callable[[], Workload], progress: Progress, folder: Path) -> demo.Outcome:
        asked.append((build().name, folder))
        return demo.Outcome((row("a", 1.0),), is_same, "a verdict", folder / "report.html")

    monkeypatch.setattr(demo, "demonstrate", show)
    assert main(["demo", "--out", "there"]) == (0 if is_same else 1)
    assert asked == [(demo.WORKLOAD, Path("there"))]
    printed = capsys.readouterr().out.splitlines()
    assert f"same bits: {'yes' if is_same else 'no'}" in printed
    assert printed[-2:] == ["a verdict", f"page: {Path('there', 'report.html')}"]


def row(program: str, speed_up: float) -> Row:
    return Row(program, 1.0, 100.0 * speed_up, speed_up, None, "")


@pytest.mark.parametrize(
    ("speed_up", "words"),
    [
        (1.5, "parallel training paid here: two was 1.50 × the best single process (b)"),
        (1.0, "parallel training made no clear difference here"),
        (0.5, "parallel training did not pay here: two was 0.50 ×"),
    ],
)
def test_the_verdict(speed_up: float, words: str) -> None:
    assert _verdict([row("a", 0.7), row("b", 1.0)], [row("one", 0.9), row("two", speed_up)]).startswith(words)


def test_one_core_cannot_tell() -> None:
    assert "has one core" in _verdict([row("a", 1.0)], [row("one", 0.9)])
