"""The demonstration, shortened: rows, the same bits, a page about what was run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from samestep.cli import tables
from samestep.demo import Row, _verdict, demonstrate
from samestep.host import records
from samestep.host.cores import num_cores
from samestep.run.progress import Silent
from samestep.workloads import catalog


@pytest.mark.processes
def test_a_short_demonstration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert len(kept["torch-1"]["step_table"]["loss"]) == len(kept["samestep-1"]["step_table"]["loss"])
    page = outcome.page.read_text()
    assert outcome.verdict.split(":")[0] in page
    tables.print_outcome(outcome)
    printed = capsys.readouterr().out.splitlines()
    assert "same bits: yes" in printed
    assert outcome.verdict in printed


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
