"""`samestep train` as a user runs it: what it prints, what it writes, and that neither depends on the workers."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
from torch import Tensor, nn

from tests.cli.command import SCRIPT, Command, Finished
from tests.marks import soak

NETS = Path(__file__).with_name("nets.py")
SHORT = ("--global-batch", "32", "--microbatch", "4", "--steps", "6", "--width", "24", "--depth", "1")
KEYS = {
    "workload", "engine", "workers", "global_batch", "microbatch", "steps", "samples", "weights_sha256", "train_loss",
    "eval", "wall_s", "samples_per_s", "noise_scale", "critical_batch",
}  # fmt: skip

Call = Callable[..., Finished]


def digest_by_hand(state: dict[str, Tensor]) -> str:
    """The design's words, in NumPy: name, dtype, shape and little-endian contiguous bytes of each entry, in order."""
    sha = hashlib.sha256()
    for name, tensor in state.items():
        array = tensor.numpy()
        little = array.astype(array.dtype.newbyteorder("<"), order="C")
        sha.update(name.encode() + b"\0" + str(array.dtype).encode() + b"\0")
        sha.update(b"(" + ", ".join(map(str, array.shape)).encode() + (b",)" if array.ndim == 1 else b")") + b"\0")
        sha.update(little.tobytes())
    return sha.hexdigest()


class TestJson:
    @pytest.mark.processes
    def test_stdout_is_one_object_on_any_number_of_workers(self, command: Command) -> None:
        answers = {}
        for workers in ("1", "2"):
            finished = command.run("train", "digits-mlp", *SHORT, "--workers", workers, "--json")
            assert finished.code == 0, finished.stderr
            assert finished.stdout.count("\n") == 1
            answers[workers] = answer = json.loads(finished.stdout)
            assert answer.keys() >= KEYS
            assert (answer["workload"], answer["workers"]) == ("digits-mlp", int(workers))
            assert (answer["global_batch"], answer["microbatch"]) == (32, 4)
            assert (answer["steps"], answer["samples"]) == (6, 192)
            assert answer["eval"].keys() == {"loss", "accuracy"}
            assert 0 <= answer["eval"]["accuracy"] <= 1
            assert answer["wall_s"] > 0
            assert answer["samples_per_s"] > 0
            assert "digits-mlp: 6 steps of 32 samples" in finished.stderr
        assert (answers["1"]["engine"], answers["2"]["engine"]) == ("solo", "shared")
        for key in ("weights_sha256", "train_loss", "eval", "noise_scale", "critical_batch"):
            assert answers["1"][key] == answers["2"][key]

    def test_user_code_that_prints_does_not_disturb(self, command: Command) -> None:
        (command.folder / "chatty.py").write_text(
            "from dataclasses import replace\nfrom nets import tiny\nprint('at import')\n"
            "def noisy():\n    print('when called')\n    return tiny()\n"
        )
        (command.folder / "nets.py").write_text(NETS.read_text())
        finished = command.run("train", "chatty.py:noisy", "--workers", "1", "--steps", "2", "--json")
        assert finished.code == 0, finished.stderr
        assert json.loads(finished.stdout)["steps"] == 2
        assert "at import" in finished.stderr
        assert "when called" in finished.stderr

    @pytest.mark.processes
    @pytest.mark.parametrize("workers", [soak("1"), "2"])
    def test_a_model_that_prints_in_every_way_does_not_disturb(self, command: Command, workers: str) -> None:
        finished = command.run("train", f"{NETS}:talks", "--workers", workers, "--json")
        assert finished.code == 0, finished.stderr
        assert json.loads(finished.stdout)["steps"] == 2
        assert finished.stdout.count("\n") == 1
        for words in ("printed", "written", "from another process", "from C"):
            assert words in finished.stderr

    def test_what_is_not_finite_is_no_number_in_json(self, call: Call) -> None:
        """All targets of the evaluation are ignored, so that its loss is 0 / 0."""
        answer = call("train", f"{NETS}:ignores_all", "--workers", "1", "--json").stdout

        def refuse(word: str) -> None:
            raise AssertionError(word)

        values = json.loads(answer, parse_constant=refuse)
        assert values["eval"]["loss"] is None
        assert values["not_finite"]["/eval/loss"] == "NaN"

    def test_another_seed_gives_another_network(self, call: Call) -> None:
        found = [
            json.loads(call("train", "digits-mlp", *SHORT, "--workers", "1", "--seed", seed, "--json").stdout)
            for seed in ("0", "1")
        ]
        assert found[0]["weights_sha256"] != found[1]["weights_sha256"]


class TestSummary:
    def test_for_people(self, call: Call) -> None:
        finished = call("train", "digits-mlp", *SHORT, "--workers", "1")
        assert finished.code == 0
        assert "weights sha256" in finished.stdout
        assert "evaluation       loss " in finished.stdout
        assert "critical batch   not told: " in finished.stdout
        assert "after step 6: loss " in finished.stderr

    def test_the_critical_batch(self, call: Call) -> None:
        words = ("--global-batch", "32", "--steps", "40", "--noise-scale", "1")
        finished = call("train", "digits-mlp", *words, "--workers", "1")
        assert finished.code == 0
        assert re.search(r"^critical batch   about [\d.,]+ \[[\d.,]+, [\d.,?]+\]: .+$", finished.stdout, re.MULTILINE)
        off = call("train", "digits-mlp", *SHORT, "--workers", "1", "--noise-scale", "off")
        assert "critical batch   not told: noise_scale is off\n" in off.stdout


class TestConfiguration:
    def printed(self, call: Call, *words: str | Path) -> str:
        finished = call("train", "digits-mlp", *words, "--print-config")
        assert (finished.code, finished.stderr) == (0, "")
        return finished.stdout

    def test_printed_configuration_can_be_fed_back(self, call: Call, tmp_path: Path) -> None:
        words = (
            "--lr",
            "0.25",
            "--steps",
            "7",
            "--workers",
            "3",
            "--lr-schedule",
            "linear",
            "--checkpoint",
            'a "b" \\c',
        )
        text = self.printed(call, *words, "--channels-last", "--checkpoint-every-s", "3")
        values = tomllib.loads(text)
        assert (values["lr"], values["steps"], values["workers"]) == (0.25, 7, 3)
        assert (values["checkpoint"], values["channels_last"]) == ('a "b" \\c', True)
        assert "epochs" not in values
        path = tmp_path / "run.toml"
        path.write_text(text)
        assert tomllib.loads(self.printed(call, "--config", path)) == values

    def test_default_configuration_can_be_fed_back(self, call: Call, tmp_path: Path) -> None:
        text = self.printed(call)
        values = tomllib.loads(text)
        path = tmp_path / "run.toml"
        path.write_text(text)
        assert tomllib.loads(self.printed(call, "--config", path)) == values
        assert (values["global_batch"], values["microbatch"], values["seed"]) == (64, 8, 0)

    def test_flags_win(self, call: Call, tmp_path: Path) -> None:
        path = tmp_path / "run.toml"
        path.write_text("steps = 9\nseed = 4\nglobal-batch = 32\n")
        values = tomllib.loads(self.printed(call, "--config", path, "--seed", "5"))
        assert (values["steps"], values["seed"], values["global_batch"]) == (9, 5, 32)

    def test_auto_is_at_most_one_worker_per_microbatch(self, call: Call) -> None:
        values = tomllib.loads(self.printed(call, "--workers", "auto", "--global-batch", "8", "--microbatch", "8"))
        assert values["workers"] == 1


class TestOut:
    def test_files_are_readable_by_others(self, call: Call, tmp_path: Path) -> None:
        out = tmp_path / "deep" / "run"
        answer = json.loads(call("train", "digits-mlp", *SHORT, "--workers", "1", "--out", out, "--json").stdout)
        state = safetensors.torch.load_file(out / "weights.safetensors")
        plain = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 10))
        plain.load_state_dict(state)
        assert digest_by_hand(plain.state_dict()) == answer["weights_sha256"]
        record = json.loads((out / "record.json").read_bytes())
        assert record.keys() >= KEYS
        assert record["weights_sha256"] == answer["weights_sha256"]
        assert record["config"]["width"] == 24
        assert record["config"]["out"] == str(out)
        assert record["step_table"]["step"] == list(range(6))
        environment = record["environment"]
        assert environment.keys() == {"created", "host", "peaks", "versions", "source_sha256", "git_commit"}
        assert environment["versions"]["torch"].startswith("2.")
        assert {"processor", "cores", "quota_cores", "caches", "load", "memory_mb"} <= environment["host"].keys()
        assert environment["host"]["cores"] >= 1
        names = {"weights.safetensors", "best.safetensors", "record.json", "config.toml"}
        assert {path.name for path in out.iterdir()} == names

    def test_a_log_and_a_trace(self, call: Call, tmp_path: Path) -> None:
        words = ("--workers", "1", "--log", f"csv:{tmp_path}", "--profile", tmp_path / "trace.json")
        finished = call("train", "digits-mlp", *SHORT, *words)
        assert finished.code == 0, finished.stderr
        rows = json.loads((tmp_path / "trace.json").read_bytes())["traceEvents"]
        assert {row["args"]["step"] for row in rows if row["ph"] == "X"} >= set(range(6))
        assert [path.name for path in tmp_path.glob("*.csv")]
        with (tmp_path / "steps.csv").open() as file:
            assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(6))

    def test_stored_configuration_repeats_the_run(self, call: Call, tmp_path: Path) -> None:
        first = json.loads(
            call("train", "digits-mlp", *SHORT, "--workers", "1", "--out", tmp_path / "a", "--json").stdout
        )
        words = ("--config", tmp_path / "a" / "config.toml", "--out", tmp_path / "b", "--json")
        again = json.loads(call("train", "digits-mlp", *words).stdout)
        assert again["weights_sha256"] == first["weights_sha256"]

    def test_digest_of_other_dtypes_and_orders(self) -> None:
        import torch

        from samestep import digest

        state = {
            "w": torch.arange(6.0).view(2, 3).t(),
            "n": torch.tensor(3, dtype=torch.int64),
            "b": torch.tensor([True, False]),
            "d": torch.zeros(0, 4, dtype=torch.float64),
        }
        assert digest(state) == digest_by_hand(state)
        assert digest(state) != digest(dict(reversed(state.items())))

    def test_training_starts_from_given_weights(self, call: Call, tmp_path: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        sizes = ("--width", "24", "--depth", "1", "--workers", "1", "--lr", "0")
        call("train", "digits-mlp", *SHORT, "--workers", "1", "--out", first)
        trained = safetensors.torch.load_file(first / "weights.safetensors")
        weights = ("--weights", first / "weights.safetensors")
        assert call("train", "digits-mlp", *sizes, "--steps", "1", *weights, "--out", second).code == 0
        again = safetensors.torch.load_file(second / "weights.safetensors")
        assert all(trained[name].equal(again[name]) for name in trained)


@pytest.mark.processes
class TestUserFile:
    @pytest.mark.soak
    def test_lambdas_on_workers(self, command: Command) -> None:
        answers = []
        for workers in ("1", "2"):
            finished = command.run("train", f"{NETS}:tiny", "--workers", workers, "--json")
            assert finished.code == 0, finished.stderr
            answers.append(json.loads(finished.stdout))
        assert answers[0]["weights_sha256"] == answers[1]["weights_sha256"]
        assert answers[0]["steps"] == 8

    @pytest.mark.soak
    def test_more_workers_than_cores_is_a_warning(self, command: Command) -> None:
        words = ("train", f"{NETS}:tiny", "--json", "--steps", "3")
        few = command.run(*words, "--workers", "1", program=("taskset", "-c", "0", SCRIPT))
        many = command.run(*words, "--workers", "2", program=("taskset", "-c", "0", SCRIPT))
        assert few.code == many.code == 0, many.stderr
        assert "warning: 2 workers share 1 cores" in many.stderr
        assert json.loads(few.stdout)["weights_sha256"] == json.loads(many.stdout)["weights_sha256"]


def test_first_line_of_help_names_the_command(command: Command) -> None:
    for words in (("--help",), ("train", "--help")):
        finished = command.run(*words)
        assert finished.code == 0
        assert finished.stdout.startswith("Usage: samestep")
        assert finished.stderr == ""
