"""The other commands: predict, env, workloads, verify; scripts and notebook cells that call us."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from samestep.version import __version__
from samestep.workloads import catalog
from tests.cli.command import Command, Finished
from tests.marks import soak

NETS = Path(__file__).with_name("nets.py")

Call = Callable[..., Finished]


class TestSmallCommands:
    def test_version(self, command: Command) -> None:
        finished = command.run("--version")
        assert (finished.code, finished.stdout.strip(), finished.stderr) == (0, __version__, "")

    def test_as_a_module(self) -> None:
        words = [sys.executable, "-m", "samestep", "--version"]
        assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == __version__

    def test_workloads(self, call: Call) -> None:
        finished = call("workloads")
        assert finished.code == 0
        assert tuple(line.split()[0] for line in finished.stdout.splitlines()) == catalog.names()

    def test_env(self, call: Call) -> None:
        facts = json.loads(call("env", "--json").stdout)
        assert facts["samestep"] == __version__
        lines = call("env").stdout.splitlines()
        assert [line.split()[0] for line in lines] == list(facts)

    def test_without_a_command_help_is_shown(self, call: Call) -> None:
        finished = call()
        assert finished.code == 0
        assert "Usage: samestep" in finished.stdout


class TestPredict:
    SIZES = ("--width", "24", "--depth", "1")

    @pytest.fixture
    def weights(self, call: Call, tmp_path: Path) -> Path:
        """Trained weights of a small net."""
        words = ("--steps", "60", "--workers", "1", "--out", tmp_path / "run")
        assert call("train", "digits-mlp", *self.SIZES, *words).code == 0
        return tmp_path / "run" / "weights.safetensors"

    def rows(self, text: str) -> list[dict[str, str]]:
        return list(csv.DictReader(text.splitlines()))

    def test_evaluation_part(self, call: Call, weights: Path, tmp_path: Path) -> None:
        words = ("predict", "digits-mlp", *self.SIZES, "--weights", weights)
        finished = call(*words)
        assert finished.code == 0
        rows = self.rows(finished.stdout)
        data = catalog.build("digits-mlp").data().evaluation
        assert data is not None
        labels = data.target.gather(torch.arange(data.num_samples)).tolist()
        assert [int(row["sample"]) for row in rows] == list(range(len(labels)))
        right = sum(int(row["class"]) == label for row, label in zip(rows, labels, strict=True))
        record = json.loads((weights.parent / "record.json").read_bytes())
        assert right / len(labels) == pytest.approx(record["eval"]["accuracy"])
        assert all(0 < float(row["probability"]) <= 1 and row["name"] == row["class"] for row in rows)
        filed = call(*words, "--out", tmp_path / "answers.csv")
        assert (filed.code, filed.stdout) == (0, "")
        assert self.rows((tmp_path / "answers.csv").read_text()) == rows

    def test_own_input(self, call: Call, weights: Path, tmp_path: Path) -> None:
        path = tmp_path / "x.npy"
        np.save(path, np.zeros((3, 64), dtype=np.float32))
        finished = call("predict", "digits-mlp", *self.SIZES, "--weights", weights, "--input", path)
        assert finished.code == 0
        assert len({row["probability"] for row in self.rows(finished.stdout)}) == 1
        assert len(self.rows(finished.stdout)) == 3

    def test_values_instead_of_classes(self, call: Call, tmp_path: Path) -> None:
        (tmp_path / "line.py").write_text(
            "import torch\nfrom torch import nn\nfrom samestep import Dataset, Rows, Samples, Workload\n"
            "def line():\n"
            "    x = torch.arange(32.0).view(-1, 1) / 32\n"
            "    part = Samples((Rows(values=x),), Rows(values=2 * x))\n"
            "    return Workload(name='line', model=lambda: nn.Linear(1, 1), data=lambda: Dataset(part, part),\n"
            "                    loss=nn.MSELoss(), recipe={'epochs': 200, 'optimizer': 'sgd', 'lr': 0.1})\n"
        )
        words = ("train", "line.py:line", "--global-batch", "32", "--workers", "1", "--out", tmp_path / "run")
        assert call(*words).code == 0
        finished = call("predict", "line.py:line", "--weights", tmp_path / "run" / "weights.safetensors")
        rows = self.rows(finished.stdout)
        assert [float(row["output0"]) for row in rows] == pytest.approx([2 * i / 32 for i in range(32)], abs=0.05)

    def test_bad_input_files(self, call: Call, weights: Path, tmp_path: Path) -> None:
        words = ("predict", "digits-mlp", *self.SIZES, "--weights", weights, "--input")
        assert "no file" in self.refused(call(*words, "absent.npy"))
        (tmp_path / "text.npy").write_text("hello")
        assert "text.npy is not a .npy file" in self.refused(call(*words, "text.npy"))
        (tmp_path / "folder.npy").mkdir()
        assert "folder.npy cannot be read: Is a directory" in self.refused(call(*words, "folder.npy"))
        (tmp_path / "cut.npy").write_bytes(b"PK\x03\x04" + b"cut short")
        assert "cut.npy cannot be read: File is not a zip file" in self.refused(call(*words, "cut.npy"))
        np.save(tmp_path / "narrow.npy", np.zeros((3, 5), dtype=np.float32))
        assert "narrow.npy" in self.refused(call(*words, "narrow.npy"))
        np.save(tmp_path / "double.npy", np.zeros((3, 64)))
        assert call(*words, "double.npy").code == 0, "float64 is what NumPy makes by default"

    def refused(self, finished: Finished) -> str:
        assert finished.code == 2
        return finished.complaint


@pytest.mark.processes
class TestVerify:
    def test_same_bits(self, command: Command) -> None:
        words = ("digits-mlp", "--width", "24", "--workers", "1,2,3", "--steps", "5")
        finished = command.run("verify", *words)
        assert finished.code == 0, finished.stderr
        assert "same bits: yes" in finished.stdout
        rows = [line.split() for line in finished.stdout.splitlines()]
        assert [row[0] for row in rows if len(row) > 1 and len(row[1]) == 16] == ["1", "2", "3"]

    @pytest.mark.parametrize(
        ("function", "cause"),
        [
            ("draws_python", "Python's random"),
            soak("draws_numpy", "numpy.random"),
            ("draws_pid", ""),  # nothing that can be told from one process
        ],
    )
    def test_planted_difference(self, call: Call, function: str, cause: str) -> None:
        finished = call("verify", f"{NETS}:{function}", "--workers", "1,2", "--steps", "3", "--json")
        assert finished.code == 1, finished.stderr
        verdict = json.loads(finished.stdout)
        assert not verdict["is_same"]
        assert verdict["differences"]["2"][0]["tensor"] == "net.0.weight"
        assert cause in "; ".join(verdict["cause"])

    @pytest.mark.soak
    def test_difference_for_people(self, call: Call) -> None:
        finished = call("verify", f"{NETS}:draws_python", "--workers", "1,2", "--steps", "3")
        assert finished.code == 1
        assert "same bits: no" in finished.stdout
        assert "first difference: net.0.weight with 2 workers" in finished.stdout
        assert "cause: the forward pass draws from Python's random" in finished.stdout


SCRIPT = """
import torch
from torch import nn
import samestep
print("the script runs")
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
    def forward(self, x):
        return self.layer(x)
torch.manual_seed(0)
x = torch.randn(64, 4)
"""
FIT = """
def one():
    torch.manual_seed(1)
    return Net()
digests = {
    samestep.fit(one(), x, (x.sum(1) > 0).long(), workers=w, global_batch=16, microbatch=4, epochs=2, lr=0.1)
    .record.weights_sha256
    for w in (1, 2)
}
print(len(digests))
"""
TRAIN = """
part = samestep.Samples((samestep.Rows(values=x),), samestep.Rows(values=(x.sum(1) > 0).long()))
workload = samestep.Workload(
    name="mine", model=lambda: Net(), data=lambda: samestep.Dataset(part, part), loss=nn.CrossEntropyLoss(),
    metrics={"right": lambda output, target: (output.argmax(1) == target).float()},
)
results = [
    samestep.train(workload, workers=w, global_batch=16, microbatch=4, steps=6,
                   optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1), lr_schedule=lambda progress: 1 - progress)
    for w in (1, 2)
]
print(len({result.record.weights_sha256 for result in results}))
print(results[1].model(x).shape)
"""


@pytest.mark.processes
class TestFromPython:
    @pytest.mark.soak
    def test_unguarded_script(self, command: Command) -> None:
        finished = command.python(SCRIPT + FIT)
        assert (finished.code, finished.stdout) == (0, "the script runs\n1\n"), finished.stderr

    def test_notebook_cells(self, command: Command) -> None:
        """A notebook runs cells with exec in a __main__ that has no file."""
        runner = f"""
import sys, types
cells = {[SCRIPT, TRAIN]!r}
sys.modules["__main__"] = main = types.ModuleType("__main__")
for number, cell in enumerate(cells):
    exec(compile(cell, f"<ipython-input-{{number}}>", "exec"), main.__dict__)
"""
        finished = command.python(runner)
        expected = "the script runs\n1\ntorch.Size([64, 2])\n"
        assert (finished.code, finished.stdout) == (0, expected), finished.stderr

    @pytest.mark.soak
    def test_interactive_interpreter(self, command: Command) -> None:
        process = command.run("-c", SCRIPT + TRAIN, program=(sys.executable,))
        assert process.stdout == "the script runs\n1\ntorch.Size([64, 2])\n", process.stderr


@pytest.mark.parametrize("command", ["verify", "scale", "sweep", "demo"])
def test_a_command_that_starts_processes_refuses_to_be_ranks(
    call: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    more = {
        "scale": ["--out", "a"],
        "sweep": ["--out", "a", "--batches", "8", "--optimizers", "sgd", "--target", "x<=1"],
    }
    words = [command, *([] if command == "demo" else ["digits-mlp"]), *more.get(command, [])]
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "0")
    first = call(*words)
    monkeypatch.setenv("RANK", "1")
    second = call(*words)
    assert (first.code, first.stdout) == (2, "")
    assert first.stderr.startswith(f"samestep: {command} starts the processes that it needs itself, and 2 ranks were")
    assert (second.code, second.stdout, second.stderr) == (0, "", "")
