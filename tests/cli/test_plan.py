"""samestep train --print-plan: how a run would be carried out, and that it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.command import Finished

Call = Callable[..., Finished]
WORDS = ("train", "digits-mlp", "--global-batch", "64", "--microbatch", "8", "--steps", "6")


def test_for_people(call: Call, tmp_path: Path) -> None:
    words = ("--width", "512", "--workers", "2", "--backprop", "concurrent", "--out", tmp_path / "out", "--print-plan")
    finished = call(*WORDS, *words)
    assert (finished.code, finished.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in finished.stdout.splitlines()]
    assert lines[0].startswith("digits-mlp: 6 steps, 2 workers on ")
    assert lines[1] == "a step: 64 samples in 8 microbatches of at most 8, 1 round"
    assert any(line.startswith("0 0-3 32 0 ") for line in lines)
    assert any(line.startswith("1 4-7 32 1-2 ") for line in lines)
    assert "back-propagation: concurrent, 1 helper beside each worker" in lines
    assert "3 linear 1 2,097,152 concurrent" in lines
    assert "left to torch: 0, 6: too small to be worth the handing over" in lines
    assert lines[-1] == "concurrent: 1 of 3 operations with weights"
    assert not (tmp_path / "out").exists()


def test_as_json(call: Call) -> None:
    finished = call(*WORDS, "--width", "512", "--workers", "2", "--sam-radius", "0.1", "--print-plan", "--json")
    assert finished.code == 0, finished.stderr
    answer = json.loads(finished.stdout)
    assert (answer["num_steps"], answer["num_rounds"], answer["most_rounds"]) == (6, 2, 2)
    assert answer["backprop"] == "ordinary"
    assert answer["layers"] is None
    assert [worker["microbatches"] for worker in answer["workers"]] == [[0, 4], [4, 8]]
    slices = [piece for worker in answer["workers"] for piece in worker["slices"]]
    assert sum(piece["stop"] - piece["start"] for piece in slices) == answer["num_elements"]
    answer = json.loads(call(*WORDS, "--workers", "1", "--backprop", "concurrent", "--print-plan", "--json").stdout)
    assert {layer["is_concurrent"] for layer in answer["layers"]} == {False}


def test_rounds_that_depend_on_what_they_find(call: Call) -> None:
    lines = call(*WORDS, "--optimizer", "kfac", "--workers", "1", "--print-plan").stdout.splitlines()
    assert lines[1] == "a step: 64 samples in 8 microbatches of at most 8, 3 to 8 rounds"


def test_the_memory_of_factors(call: Call) -> None:
    """Of digits-mlp with width 16: 65² + 16², then layers of 17² + 16² and 17² + 10², in single precision."""
    words = (*WORDS, "--width", "16", "--optimizer", "kfac", "--workers", "1", "--print-plan")
    answer = json.loads(call(*words, "--json").stdout)
    sides = [(65, 16), (17, 16), (17, 10)]
    least = 4 * sum(a * a + b * b for a, b in sides)
    assert least <= answer["factors_bytes"] < least + 6 * 64 + 4096, "on boundaries"
    assert answer["inverses_bytes"] == 3 * answer["factors_bytes"]
    lines = call(*words).stdout.splitlines()
    megabytes = f"{answer['factors_bytes'] / 2**20:.3g} MB"
    assert lines[2].startswith(f"factors: {megabytes}; their inverses ")
    assert json.loads(call(*WORDS, "--workers", "1", "--print-plan", "--json").stdout)["factors_bytes"] is None


def test_the_share_of_every_stage(call: Call) -> None:
    words = (*WORDS, "--workers", "2", "--stages", "2", "--cut", "3", "--print-plan")
    lines = call(*words).stdout.splitlines()
    answer = json.loads(call(*words, "--json").stdout)
    for text, name in (("parameters by stage: ", "stage_shares"), ("time by stage: ", "stage_times")):
        assert any(line.startswith(text) for line in lines)
        assert len(answer[name]) == 2
        assert abs(sum(answer[name]) - 1) < 1e-9


def test_what_could_not_be_trained_is_one_line(call: Call) -> None:
    finished = call(*WORDS, "--workers", "9", "--print-plan")
    assert finished.code == 2
    assert finished.complaint.startswith("workers=9 is more than the 8 microbatches of a step")


def test_a_batch_of_all_samples_and_one_of_more(call: Call) -> None:
    words = ("train", "digits-mlp", "--steps", "6", "--workers", "2", "--print-plan")
    more, full = (call(*words, "--global-batch", batch).stdout.splitlines() for batch in ("99999", "full"))
    assert more[1] == full[1] == "a step: 1,618 samples in 8 microbatches of at most 203, 1 round"
    assert more[2] == (
        "global_batch 99,999 is more than the 1,618 training samples: every step is a whole epoch of them"
    )
    assert not any("is more than" in line for line in full)


@pytest.mark.parametrize("what", ["--print-plan", "--print-config"])
def test_of_several_ranks_the_first_prints(call: Call, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    outs = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        outs.append(call(*WORDS, what).stdout)
    assert outs[0] != ""
    assert outs[1] == ""
