"""Benchmarks: pages are what their results say, and parts of them that decide something decide right."""

from __future__ import annotations

import doctest
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results, widths

FOLDER = Path(__file__).parent.parent / "benchmarks"
PAGES = {
    "accuracy": "ACCURACY",
    "auto": "AUTO",
    "backprop": "BACKPROP",
    "batches": "BATCHES",
    "beyond_memory": "BEYOND_MEMORY",
    "data_accuracy": "DATA_ACCURACY",
    "feed": "FEED",
    "footprint": "FOOTPRINT",
    "group": "GROUP",
    "kfac": "KFAC",
    "kinds": "KINDS",
    "links": "LINKS",
    "local_sync": "LOCAL_SYNC",
    "machinery": "MACHINERY",
    "packing": "PACKING",
    "peers": "PEERS",
    "recorder": "RECORDER",
    "seek": "SEEK",
    "soak": "SOAK",
    "stage_memory": "STAGE_MEMORY",
    "stages": "STAGES",
    "step_time": "STEP_TIME",
    "study_time": "STUDY_TIME",
    "waiting": "WAITING",
    "widths": "WIDTHS",
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_results_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, made = FOLDER / f"{PAGES[name]}.md", tmp_path / "page.md"
    if not page.exists():
        pytest.skip(f"{name} has not been measured")
    monkeypatch.setattr("sys.argv", ["", "--page", "--to", str(made)])
    with suppress(SystemExit):
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert made.read_text() == page.read_text()


def test_every_page_has_a_benchmark() -> None:
    named = {path.stem for path in FOLDER.glob("*.md")}
    assert named <= {*PAGES.values()}


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"counts": [50, 10], "num_train": 200}, "200 rows to train on, of which the peers had 50; 10 to evaluate on."),
        ({"counts": [200, 10], "num_train": 200}, "200 rows to train on; 10 to evaluate on."),
        ({"counts": [50, 10]}, "50 rows to train the peers on (all, or every n-th of more than 100,000; ours had all)"),
    ],
)
def test_the_rows_that_the_peers_had_are_said(result: dict[str, Any], text: str) -> None:
    from benchmarks import data_accuracy

    sys.modules.pop(data_accuracy.__name__, None)  # a page is made by a module that is not yet imported
    assert data_accuracy._rows_in_words(data_accuracy.CASES["adult"], result).startswith(text)


def test_examples() -> None:
    assert doctest.testmod(widths).failed == 0


@pytest.mark.parametrize(
    ("losses", "flaw"), [((3.0, 2.0, 1.0), "edge"), ((2.0, 1.0, None), "grid"), ((2.0, 1.0, 2.0), "")]
)
def test_a_best_rate_says_what_is_wrong_with_it(losses: tuple[float | None, ...], flaw: str) -> None:
    runs = [{"lr": 2.0**n, "loss": loss, "noise_scale": None} for n, loss in enumerate(losses)]
    found = widths.best({"runs": runs})
    assert found is not None and found.flaw == flaw


def test_a_verdict_says_by_how_much() -> None:
    assert results.verdict(1.2, 1.0, is_least=True) == "**met** by 0.2"
    assert results.verdict(1.2, 1.0, is_least=False) == "**missed** by 0.2"
