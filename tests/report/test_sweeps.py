"""A sweep on the page: the numbers are those of `measure.sweep.result`, and nothing is hidden."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from samestep.errors import UsageError
from samestep.report import page, records, sweeps, text
from samestep.report.records import read_sweep
from samestep.report.sweeps import Swept
from tests.report import made


@pytest.fixture
def swept(tmp_path: Path) -> Swept:
    return sweeps.analyse(read_sweep(made.write_sweep(tmp_path), "one"))


def test_the_table_has_every_cell(swept: Swept) -> None:
    (part,) = sweeps.section(swept, 1).parts
    cells = [cell for curve in swept.findings.curves for cell in curve.cells]
    rows = part.tables[0].rows
    assert [row[0] for row in rows] == [f"{cell.optimizer}, {cell.batch:,}" for cell in cells]
    for row, cell in zip(rows, cells, strict=True):
        assert row[1] == (text.estimate(cell.steps) if cell.steps else text.UNKNOWN)
        assert row[-1] == (f"{cell.num_reached} of 5 seeds" if cell.values else "not reached")
    bends = part.tables[1].rows
    assert bends[0][0] == "adamw" and bends[0][1] == "64"
    assert bends[1][2] == "not known: needs three batches that reach the target, and 2 did"


def test_the_charts_show_what_was_reached(swept: Swept) -> None:
    (part,) = sweeps.section(swept, 1).parts
    assert [figure.title for figure in part.figures] == ["Steps to the target", "Samples to the target"]
    reached = [cell for curve in swept.findings.curves for cell in curve.cells if cell.steps]
    for figure in part.figures:
        assert figure.drawing.count('role="img"') == len(reached) == 6
    assert f"adamw at 256: {text.estimate(reached[1].steps)} steps" in part.figures[0].drawing  # type: ignore[arg-type]
    assert [entry.name for entry in part.legend][:2] == ["adamw", "sgd"]


def test_nothing_reached_gives_no_chart_and_says_so(tmp_path: Path) -> None:
    body = made.sweep()
    for run in body["runs"]:
        run["reached_step"] = None
    found = sweeps.analyse(read_sweep(made.write_sweep(tmp_path, body), "one"))
    (part,) = sweeps.section(found, 1).parts
    assert part.figures == []
    assert "adamw: the target was reached at no batch" in sweeps.verdict(found).sentence
    assert len(sweeps.caveats(found)) >= 8


def test_a_page_with_all_kinds(tmp_path: Path) -> None:
    made.fill(tmp_path)
    made.write_sweep(tmp_path / "scale")
    html = page.write(tmp_path).read_text()
    assert "1 scaling study, 1 sweep, 2 runs" in html
    assert "Sweep of fashion-mlp (scale)" in html
    assert 'data-kind="sweep"' in html
    assert "scale (sweep)" in html, "told apart from the study in the same folder"
    assert page.html(records.find(tmp_path), tmp_path.name) == html


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("study", None, "the field study is missing"),
        ("runs", 3, "the field runs is a whole number, and it must be a list"),
        ("runs", [{}], "the record of a sweep lacks something"),
    ],
)
def test_a_record_that_is_none(tmp_path: Path, field: str, value: object, message: str) -> None:
    body = made.sweep()
    if value is None:
        del body[field]
    else:
        body[field] = value
    path = made.write_sweep(tmp_path, json.loads(json.dumps(body)))
    with pytest.raises(UsageError, match=message) as error:
        sweeps.analyse(read_sweep(path, "one"))
    assert str(path) in str(error.value)
