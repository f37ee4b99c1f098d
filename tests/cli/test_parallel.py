"""samestep train --parallel auto: a choice is measured, told, remembered, and leaves the bits alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from samestep.measure import choosing, interleave
from tests.cli.command import Finished

NETS = Path(__file__).with_name("nets.py")
SHORT = ("train", "digits-mlp", "--global-batch", "32", "--microbatch", "4", "--steps", "6")
WAYS = ["2 workers", "2 workers, concurrent", "2 workers, 2 stages"]

Call = Callable[..., Finished]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short slots, and a cache of the test's own, in which is kept also what a busy machine has measured."""
    monkeypatch.setattr(choosing, "_DEAL", replace(choosing._DEAL, slot_s=0.02, slot_steps=1))
    monkeypatch.setattr(choosing, "_MOST_TURNS", 3)
    monkeypatch.setattr(choosing, "_OTHERS_FRAC", 1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.processes
@pytest.mark.timeout(200)
@pytest.mark.usefixtures("quick")
def test_it_measures_once_and_leaves_the_bits_alone(call: Call) -> None:
    plain = json.loads(call(*SHORT, "--workers", "1", "--json").stdout)
    auto = (*SHORT, "--workers", "2", "--parallel", "auto")
    first = call(*auto, "--json")
    assert first.code == 0, first.stderr
    answer = json.loads(first.stdout)
    assert answer["weights_sha256"] == plain["weights_sha256"]
    assert answer["workers"] == 2
    assert answer["parallel"]["chosen"] in WAYS
    assert [one["program"] for one in answer["parallel"]["measured"]] == WAYS
    assert [one["failure"] for one in answer["parallel"]["measured"]] == [None, None, None]
    assert all(min(one["step_s"]) > 0 for one in answer["parallel"]["measured"])
    said = first.stderr.splitlines()
    assert said[0] == "parallel: measuring 3 ways to train digits-mlp here"
    assert f"parallel: {answer['parallel']['reason']}" in said
    assert any(line.split()[:2] == ["2", "workers"] for line in said)

    again = call(*auto, "--seed", "7", "--print-plan", "--json")  # the seed decides bits, not times
    assert again.code == 0, again.stderr
    assert again.stderr.startswith("parallel: as measured on 20")
    is_concurrent = answer["parallel"]["chosen"] == WAYS[1]
    assert json.loads(again.stdout)["backprop"] == ("concurrent" if is_concurrent else "ordinary")


@pytest.mark.processes
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("quick")
@pytest.mark.soak
def test_a_way_that_fails_is_listed_and_the_others_go_on(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """This model cannot be sent to worker processes, and one worker needs none."""
    monkeypatch.setattr(choosing, "num_cores", lambda: 2)
    words = ("train", f"{NETS}:locked", "--steps", "3", "--parallel", "auto", "--backprop", "ordinary", "--json")
    finished = call(*words)
    assert finished.code == 0, finished.stderr
    answer = json.loads(finished.stdout)
    assert answer["parallel"]["chosen"] == "1 worker"
    one, two, _ = answer["parallel"]["measured"]
    assert one["failure"] is None
    assert two["failure"].startswith("2 workers: ended with exit code 2: ")
    assert f"failed: {two['failure']}" in finished.stderr
    assert "nothing else could be measured" in answer["parallel"]["reason"]


@pytest.mark.processes
@pytest.mark.timeout(120)
@pytest.mark.usefixtures("quick")
def test_where_no_way_works_the_users_own_error_is_told(call: Call) -> None:
    finished = call("train", f"{NETS}:garbage_loss", "--parallel", "auto", "--workers", "1")
    assert finished.code == 1
    assert finished.stdout == ""
    assert finished.stderr.splitlines()[-1].startswith("samestep: 1 worker: ended with exit code 2: ")


def test_one_core_leaves_nothing_to_measure(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "num_cores", lambda: 1)
    monkeypatch.setattr(interleave, "stage", None)
    finished = call(*SHORT, "--parallel", "auto", "--json")
    assert finished.code == 0, finished.stderr
    answer = json.loads(finished.stdout)
    assert answer["workers"] == 1
    assert answer["parallel"]["reason"] == "1 worker: there is no other way on 1 core"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--parallel", "auto", "--workers", "9"), "workers=9 is more than the 8 microbatches of a step"),
        (("--parallel", "auto", "--workers", "2", "--backprop", "ordinary"), "leave nothing for parallel='auto'"),
        (("--parallel", "auto", "--allow-threads", "--threads-per-worker", "2"), "threads_per_worker=2 is set"),
        (("--allow-threads",), "allow_threads goes with parallel='auto'"),
        (("--measure-again",), "measure_again goes with parallel='auto'"),
        (("--parallel", "fast"), '--parallel: invalid value "fast" for auto'),
    ],
)
def test_what_cannot_be_is_one_line(call: Call, words: tuple[str, ...], text: str) -> None:
    finished = call(*SHORT, *words)
    assert finished.code == 2
    assert text in finished.complaint
