"""What a study prints fits a line of 120 characters, however wide its intervals are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samestep.cli.tables import findings_as_dict, print_findings
from samestep.measure.scale import analyse
from tests.report import made


def with_noise(factor: float, rounds: int) -> dict[str, Any]:
    """A made study of a few rounds, of which every second is slower."""
    record = made.study()
    for slots in record["slots"].values():
        del slots[rounds:]
        for slot in slots[::2]:
            slot["step_s"] *= factor
    return record


@pytest.mark.parametrize(("factor", "rounds"), [(1.0, 10), (3.0, 2), (1e6, 2), (1.0, 1)])
def test_tables_fit_a_line(capsys: pytest.CaptureFixture[str], factor: float, rounds: int) -> None:
    print_findings(analyse(with_noise(factor, rounds)), Path("page.html"))
    text = capsys.readouterr().out
    assert "…" not in text
    assert "inf" not in text
    tables = [line for line in text.splitlines() if line.startswith(" ")]
    assert len(tables) > 10
    assert max(map(len, tables)) <= 120


def test_what_is_said_below_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    found = analyse(with_noise(1.2, 10))
    print_findings(found, Path("page.html"))
    lines = capsys.readouterr().out.splitlines()
    wide = [line for line in lines if line.startswith("unstable: ") and " % wide" in line]
    assert len(wide) == 1
    assert lines[-1] == "page: page.html"
    assert [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")] == list(found.hints)


def test_findings_are_plain_values() -> None:
    text = json.dumps(findings_as_dict(analyse(with_noise(1e6, 1)), Path("page.html")), allow_nan=False)
    assert set(json.loads(text)) == {"workload", "page", "axes", "losses", "warnings", "hints"}
