"""Benchmarks: pages are what their results say, and parts of them that decide something decide right."""

from __future__ import annotations

import doctest
import runpy
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import batches_page, results, widths
from samestep.measure.sweep.result import analyse
from tests.report import made

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
    "noise_cost": "NOISE_COST",
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


def findings(**steps: dict[int, float | None]) -> Any:
    """Of a sweep: by optimiser, how many steps it takes at a batch."""
    curves = [
        SimpleNamespace(
            optimizer=name,
            cells=[
                SimpleNamespace(batch=batch, steps=None if number is None else SimpleNamespace(value=number))
                for batch, number in each.items()
            ],
            noise_scale=None,
        )
        for name, each in steps.items()
    ]
    batches = sorted({batch for each in steps.values() for batch in each})
    return SimpleNamespace(curves=curves, record={"study": {"batches": batches, "budgets": [320, 640]}})


@pytest.mark.parametrize(
    ("ours", "rivals", "texts"),
    [
        (8, {"sgd": 200, "adamw": 96, "soap": 24}, ["96: 12 times fewer", "**met** by 2", "24: 3 times", "**met**"]),
        (8, {"sgd": 64, "soap": 16}, ["64: 8 times fewer", "**missed** by 2", "16: 2 times fewer", "**missed** by 1"]),
        (None, {"sgd": 64, "soap": 16}, ["kfac did not reach", "**missed**", "kfac did not reach", "**missed**"]),
        (
            8,
            {"sgd": None, "soap": None},
            ["none of sgd reached", "than 80 times", "none of soap", "**met** by 77"],
        ),
        (
            8,
            {"lamb": 96, "adamw": None, "muon": 40},
            ["of adamw, lamb 96", "12 times", "of muon 40", "5 times"],
        ),
    ],
)
def test_steps_at_the_full_batch_are_held_against_the_best_rival(
    ours: float | None, rivals: dict[str, float | None], texts: list[str]
) -> None:
    first, second = batches_page._verdicts(findings(kfac={5000: ours}, **{k: {5000: v} for k, v in rivals.items()}))
    assert all(text in first for text in texts[:2]), first
    assert all(text in second for text in texts[2:]), second


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (
            {256: 100, 2048: 15, 8192: 7},
            ["2,048, over that at 256: 1.20, at most 1.25: **met**", "2.24", "**missed**"],
        ),
        (
            {256: 100, 2048: 20, 8192: 5},
            ["1.60, at most 1.25: **missed** by 0.35", "8,192", "1.60", "**met** by 0.4"],
        ),
        ({256: None, 2048: 20, 8192: 5}, ["from 256 to 2,048: not known", "from 256 to 8,192: not known", "not known"]),
    ],
)
def test_the_proportion_of_steps_and_batch_is_that_of_the_best_at_each(
    steps: dict[int, float | None], said: list[str]
) -> None:
    found = list(batches_page._verdicts(findings(adamw=steps, sgd=dict.fromkeys(steps))))
    assert len(found) == 2
    assert said[0] in found[0]
    assert all(text in found[1] for text in said[1:]), found[1]


def test_how_well_the_noise_scale_tells_the_bend_is_said() -> None:
    def of(scale: float, bend: float) -> Any:
        return SimpleNamespace(noise_scale=scale, fit=SimpleNamespace(critical_batch=SimpleNamespace(value=bend)))

    exact: Any = [SimpleNamespace(curves=[of(2.0**n, 3 * 2.0**n) for n in range(5)])]
    text = batches_page._correlation(exact)
    assert text.startswith("Over 5 optimisers and families: correlation of the logarithms 1.00 [")
    assert "The bend is 3 times the noise scale in the median, 3 to 3 between" in text
    useless: Any = [SimpleNamespace(curves=[of(2.0 ** (n % 2), 2.0 ** (n // 2 % 2)) for n in range(8)])]
    assert "**missed** by 0.8" in batches_page._correlation(useless)
    assert "four are needed" in batches_page._correlation(exact[:0])


def test_a_page_of_batches_is_written_from_sweeps() -> None:
    host = {"system": "Linux", "packages": {"torch": "2.13.0"}, "samestep": "0.1.0", "python": "3.11.7"}
    text = batches_page.page({"mlp": analyse(made.sweep(environment=made.environment(**host)))})
    assert "## mlp: fashion-mlp to error <= 0.1" in text
    assert "| adamw | " in text and "| sgd | " in text
    assert "steps x batch of the best recipe at 4,096" in text


def test_a_verdict_says_by_how_much() -> None:
    assert results.verdict(1.2, 1.0, is_least=True) == "**met** by 0.2"
    assert results.verdict(1.2, 1.0, is_least=False) == "**missed** by 0.2"
