"""Every mistake of a person's gets one line with a way out and exit code 2: no traceback, no hang, nothing left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import samestep
from samestep.errors import DataError, NonFiniteError, UsageError
from samestep.plan.order import Order
from tests.cli.command import SCRIPT, Command, Finished, refused

NETS = Path(__file__).with_name("nets.py")
NUM_SAMPLES, POISONED, GLOBAL_BATCH, MICROBATCH = 96, 37, 16, 4  # as in nets.py
DIGITS = ("train", "digits-mlp", "--width", "8", "--depth", "1", "--steps", "3", "--workers", "1")

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")

Call = Callable[..., Finished]

FACTORIES = """import torch
from samestep import Dataset, Rows, Samples, Workload
rows = Rows(values=torch.ones(4, 2))
def net():
  def model():
    return {model}
  def data():
    return {data}
  return Workload(name="mine", model=model, data=data, loss=print, recipe=dict(epochs=1))
"""


IN_WORKERS = pytest.param("2", marks=[pytest.mark.processes, pytest.mark.soak])
"""What is found in the caller's process is found there whatever the workers; once for every change is enough."""


class TestCommandLine:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ("train nosuch", "no workload is called 'nosuch'"),
            ("train digit-mlp", "nearest: digits-mlp"),
            ("train", "give a WORKLOAD (see samestep workloads), or data"),
            ("trian digits-mlp", "did you mean train?"),
            ("train digits-mlp --stpes 3", "unknown option --stpes; did you mean --steps?"),
            ("train digits-mlp --batch-size 3", "unknown option --batch-size"),
            ("train digits-mlp extra", 'unexpected argument "extra"'),
            ("train digits-mlp --steps", "--steps: needs a value"),
            ("train digits-mlp --steps many", '--steps: invalid value "many" for int'),
            ("train digits-mlp --steps 1.5", '--steps: invalid value "1.5" for int'),
            ("train digits-mlp --steps 1 --steps 2", "--steps: given more than once"),
            ("train digits-mlp --steps 1 --epochs 2", "contradict each other"),
            ("train digits-mlp --steps 0", "steps=0 is below 1"),
            ("train digits-mlp --steps -3", "steps=-3 is below 1"),
            ("train digits-mlp --epochs 0", "epochs=0 is not a finite number above 0"),
            ("train digits-mlp --epochs nan", "epochs=nan is not"),
            ("train digits-mlp --epochs inf", "epochs=inf is not"),
            ("train digits-mlp --global-batch 0", "global_batch=0 is below 1"),
            ("train digits-mlp --microbatch 0", "microbatch=0 is below 1"),
            ("train digits-mlp --microbatch -1", "microbatch=-1 is below 1"),
            ("train digits-mlp --global-batch 8 --microbatch 9", "microbatch=9"),
            ("train digits-mlp --workers 0", "workers=0 is below 1"),
            ("train digits-mlp --workers some", '--workers: invalid value "some" for int or auto'),
            ("train digits-mlp --workers 3 --global-batch 8 --microbatch 4", "workers=3 is more than the 2"),
            ("train digits-mlp --threads-per-worker 0", "threads_per_worker=0 is below 1"),
            ("train digits-mlp --optimizer sdg", "did you mean sgd?"),
            ("train digits-mlp --optimizer lbfgs", "optimizer 'lbfgs' cannot be used: it evaluates the loss"),
            ("train digits-mlp --optimizer adam --momentum 0.5", "optimizer 'adam' has no option 'momentum'"),
            ("train digits-mlp --lr -1", "lr=-1"),
            ("train digits-mlp --lr nan", "lr=nan"),
            ("train digits-mlp --clip-norm 0", "clip_norm"),
            ("train digits-mlp --clip-norm -1", "clip_norm"),
            ("train digits-mlp --sam-radius -1", "radius"),
            ("train digits-mlp --lr-warmup 2", "warmup"),
            ("train digits-mlp --momentum -3", "momentum"),
            ("train digits-mlp --lr-schedule step", "--lr-schedule"),
            ("train digits-mlp --checkpoint-every-s 0", "checkpoint_every_s=0"),
            ("train digits-mlp --width 0", "width=0 is below 1"),
            ("train digits-mlp --seed 99999999999999999999", "seed=99999999999999999999"),
            ("train digits-mlp --resume", "resume needs the folder"),
            ("train digits-mlp --weights absent.safetensors", "no weights file absent.safetensors"),
            ("train digits-mlp --device cuda --parallel auto", "device='cuda' and parallel='auto' do not go together"),
            (
                "scale digits-mlp --device cuda --workers 1 --out study",
                "device='cuda' and a scaling study do not go together",
            ),
            ("train absent.py:net", "there is no file absent.py"),
            ("train digits-mlp --device gpu", '--device: invalid value "gpu" for cpu or cuda'),
            pytest.param("train digits-mlp --device cuda", "device='cuda': torch", marks=WITHOUT_GPU),
            ("train digits-mlp --device cuda --workers 2", "device='cuda' and workers=2: workers that share memory"),
            ("verify digits-mlp --workers 0", "workers=0 is below 1"),
            ("verify digits-mlp --workers 1,x", '--workers: invalid value "1,x"'),
            ("predict digits-mlp", "--weights is missing: which weights of digits-mlp"),
            ("predict digits-mlp --weights absent.safetensors", "no weights file absent.safetensors"),
        ],
    )
    def test_mistake(self, call: Call, words: str, expected: str) -> None:
        assert expected in refused(call(*words.split()))

    def test_from_a_shell(self, command: Command) -> None:
        assert "no workload is called 'nosuch'" in refused(command.run("train", "nosuch"))
        assert "unknown option --stpes" in refused(command.run("train", "digits-mlp", "--stpes", "3"))


class TestConfigFile:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("steps = ", "not valid TOML"),
            ("stpes = 3", "unknown key stpes; did you mean steps?"),
            ("batch_size = 3", "unknown key batch_size"),
            ('steps = "3"', "steps: expected int, got str '3'"),
            ("steps = 1.5", "steps: expected int, got float 1.5"),
            ("steps = true", "steps: expected int, got bool True"),
            ('lr_schedule = "step"', "lr_schedule: expected"),
            ("steps = 0", "steps=0 is below 1"),
            ("steps = 3\nepochs = 2", "contradict each other"),
            ("checkpoint-every-s = 1\ncheckpoint_every_s = 2", "given more than once"),
            ("[train]\nsteps = 3", "unknown key train"),
        ],
    )
    def test_mistake(self, call: Call, tmp_path: Path, text: str, expected: str) -> None:
        path = tmp_path / "run.toml"
        path.write_text(text)
        assert expected in refused(call("train", "digits-mlp", "--config", path))

    def test_absent_or_not_text(self, call: Call, tmp_path: Path) -> None:
        assert "cannot read absent.toml" in refused(call("train", "digits-mlp", "--config", "absent.toml"))
        (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
        assert "not valid TOML" in refused(call("train", "digits-mlp", "--config", "run.toml"))
        assert "cannot read" in refused(call("train", "digits-mlp", "--config", tmp_path))


class TestData:
    def test_missing(self, tmp_path: Path) -> None:
        command = Command(tmp_path, {"SAMESTEP_DATA": None})
        complaint = refused(command.run("train", "fashion-mlp", "--workers", "2"))
        assert "fashion-mnist: train-images-idx3-ubyte.gz not found" in complaint
        assert str(tmp_path / "cache") in complaint
        command.check_nothing_left()

    @pytest.mark.parametrize("workers", ["1", IN_WORKERS])
    @pytest.mark.parametrize(
        ("function", "expected"),
        [
            ("label_too_large", "a label is 3 and the model answers for 3 classes"),
            ("label_negative", "a label is -1 and the model answers for 3 classes"),
            ("label_too_large_for_a_function", "the loss does not take these targets (torch.int64, 0 to 3): Target 3"),
            ("nan_in_data", "input 0 of the training data holds NaN or infinity (first in sample 7)"),
        ],
    )
    def test_unusable(self, call: Call, function: str, expected: str, workers: str) -> None:
        assert expected in refused(call("train", f"{NETS}:{function}", "--workers", workers))

    @pytest.mark.parametrize(
        ("part", "workers"),
        [
            ("training", 1),
            ("validation", 1),
            pytest.param("training", 2, marks=pytest.mark.processes),
            pytest.param("validation", 2, marks=[pytest.mark.processes, pytest.mark.soak]),
        ],
    )
    def test_a_label_is_found_before_the_first_step(self, part: str, workers: int) -> None:
        inputs, targets = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 2
        wrong = targets.clone()
        wrong[-1] = 2
        model = nn.Linear(4, 2)
        before = samestep.digest(model)
        with pytest.raises(DataError, match="a label is 2 and the model answers for 2 classes"):
            samestep.fit(
                model,
                inputs,
                wrong if part == "training" else targets,
                validation=(inputs, wrong),
                workers=workers,
                global_batch=4,
                microbatch=2,
            )
        assert samestep.digest(model) == before

    @pytest.mark.parametrize("workers", ["1", IN_WORKERS])
    @pytest.mark.parametrize("function", ["garbage_loss", "wrong_shape_loss", "three_losses"])
    def test_losses_that_are_none(self, call: Call, function: str, workers: str) -> None:
        assert "the loss returned" in refused(call("train", f"{NETS}:{function}", "--workers", workers))


class TestUserFile:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("def net(:\n  pass\n", "line 1: invalid syntax"),
            ("import nosuchmodule\n", "cannot be imported: No module named 'nosuchmodule'"),
            ("def other():\n  pass\n", "has no function 'net'; it has other"),
            ("def net():\n  return 3\n", "returned int, not a samestep.Workload"),
            ("def net(size):\n  return size\n", "mine.py: TypeError: net() missing"),
            ("1 / 0\n", "mine.py line 1: ZeroDivisionError: division by zero"),
            ("def net():\n  raise ValueError('no data today')\n", "mine.py line 2: ValueError: no data today"),
            (
                FACTORIES.format(model="1 / 0", data="Dataset(Samples((rows,), rows))"),
                "mine.py line 6: ZeroDivisionError",
            ),
            (FACTORIES.format(model="None", data="open('absent')"), "mine.py line 8: FileNotFoundError: "),
        ],
    )
    def test_mistake(self, call: Call, tmp_path: Path, text: str, expected: str) -> None:
        (tmp_path / "mine.py").write_text(text)
        assert expected in refused(call("train", "mine.py:net"))

    @pytest.mark.parametrize(
        ("function", "expected"),
        [
            ("model_is_no_module", "the model factory returned str"),
            ("data_is_no_dataset", "the data function returned list"),
            ("unknown_recipe", "the recipe sets learning_rate"),
        ],
    )
    def test_workload_of_wrong_parts(self, call: Call, function: str, expected: str) -> None:
        assert expected in refused(call("train", f"{NETS}:{function}", "--workers", "1"))

    @pytest.mark.processes
    def test_model_that_cannot_be_sent(self, call: Call) -> None:
        complaint = refused(call("train", f"{NETS}:locked", "--workers", "2"))
        assert "the model (Locked) cannot be sent to workers" in complaint
        assert "workers=1" in complaint
        assert call("train", f"{NETS}:locked", "--workers", "1").code == 0

    @pytest.mark.processes
    def test_model_that_cannot_be_put_together_in_a_worker(self, call: Call) -> None:
        complaint = refused(call("train", f"{NETS}:one_way", "--workers", "2"))
        assert "cannot be put together again there (LookupError: no such device)" in complaint
        assert "workers=1" in complaint
        assert call("train", f"{NETS}:one_way", "--workers", "1").code == 0


class TestNonFinite:
    def expected(self) -> str:
        order = Order(num_samples=NUM_SAMPLES, seed=0).indices(epoch=0, start=0, stop=NUM_SAMPLES).tolist()
        step, place = divmod(order.index(POISONED), GLOBAL_BATCH)
        return f"step {step}: the loss of microbatch {place // MICROBATCH} is not finite"

    @pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.processes)])
    def test_step_microbatch_and_tensor_are_named(self, call: Call, workers: str) -> None:
        complaint = refused(call("train", f"{NETS}:overflows", "--workers", workers, "--lr", "0.001"))
        assert complaint.startswith(self.expected())

    @pytest.mark.processes
    @pytest.mark.parametrize("workers", [1, 2])
    def test_parameters_are_as_before_the_step(self, workers: int) -> None:
        inputs = torch.randn(NUM_SAMPLES, 6, generator=torch.Generator().manual_seed(0))
        targets = inputs[:, :3].clone()
        inputs[POISONED] = 1e30
        step = int(self.expected().split()[1].rstrip(":"))
        assert step > 0, "a step that is not the first"

        def fit(**settings: Any) -> nn.Module:
            net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
            for parameter in net.parameters():
                nn.init.constant_(parameter, 0.1)
            common: dict[str, Any] = {"global_batch": GLOBAL_BATCH, "microbatch": MICROBATCH, "optimizer": "sgd"}
            try:
                samestep.fit(net, inputs, targets, lr=0.01, **common, **settings)
            except NonFiniteError as error:
                assert str(error).startswith(self.expected())  # noqa: PT017
            else:
                assert "steps" in settings
            return net

        stopped, undisturbed = fit(workers=workers, epochs=1), fit(workers=1, steps=step)
        assert samestep.digest(stopped) == samestep.digest(undisturbed)


class Failing(torch.optim.SGD):
    """Fails in its second step, which is a trial before the run."""

    last_step = 1

    def step(self, closure: Any = None) -> Any:
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps > self.last_step:
            raise RuntimeError("no more steps")
        return super().step(closure)


class FailingLater(Failing):
    """Fails in the run."""

    last_step = 9


def unbuildable(groups: Any) -> torch.optim.Optimizer:
    raise RuntimeError("cannot be built")


@pytest.mark.processes
@pytest.mark.parametrize("workers", [1, 2])
class TestFromPython:
    def fit(self, workers: int, **settings: Any) -> None:
        inputs = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
        samestep.fit(nn.Linear(4, 2), inputs, torch.arange(32) % 2, workers=workers, microbatch=4, **settings)

    def test_batch_size(self, workers: int) -> None:
        with pytest.raises(UsageError, match=r"say global_batch .* or microbatch"):
            self.fit(workers, batch_size=8)

    def test_unknown_setting(self, workers: int) -> None:
        with pytest.raises(UsageError, match="'stpes' is not a setting"):
            self.fit(workers, stpes=8)

    def test_optimizer_that_fails_in_a_step(self, workers: int) -> None:
        with pytest.raises(UsageError, match=r"^optimizer Failing failed on its first steps: no more steps$"):
            self.fit(workers, global_batch=8, optimizer=Failing)

    def test_optimizer_that_fails_in_the_run(self, workers: int) -> None:
        with pytest.raises(UsageError, match=r"^optimizer FailingLater failed: no more steps$"):
            self.fit(workers, global_batch=8, optimizer=FailingLater, epochs=10)

    def test_optimizer_that_cannot_be_built(self, workers: int) -> None:
        with pytest.raises(UsageError, match=r"the optimizer cannot be built: .*cannot be built"):
            self.fit(workers, global_batch=8, optimizer=unbuildable)

    def test_optimizer_that_is_none(self, workers: int) -> None:
        with pytest.raises(UsageError, match="returned int, not a torch"):
            self.fit(workers, global_batch=8, optimizer=lambda groups: 3)

    def test_optimizer_that_is_refused(self, workers: int) -> None:
        with pytest.raises(UsageError, match="optimizer LBFGS cannot be used"):
            self.fit(workers, global_batch=8, optimizer=torch.optim.LBFGS)

    def test_labels_as_texts(self, workers: int) -> None:
        with pytest.raises(DataError, match="turn texts and categories into numbers"):
            samestep.fit(nn.Linear(1, 2), np.zeros((2, 1)), np.array(["a", "b"]), workers=workers)

    def test_lengths_that_differ(self, workers: int) -> None:
        with pytest.raises(DataError, match="X has 3 samples and y has 2"):
            samestep.fit(nn.Linear(1, 2), np.zeros((3, 1)), np.array([0, 1]), workers=workers)

    def test_no_samples(self, workers: int) -> None:
        with pytest.raises(DataError, match="empty"):
            samestep.fit(nn.Linear(1, 2), np.zeros((0, 1)), np.zeros(0, dtype=int), workers=workers)


class TestState:
    def checkpointed(self, call: Call, *words: str | Path) -> Finished:
        return call(*DIGITS, "--lr-schedule", "constant", "--lr-warmup", "0", "--checkpoint", "state", *words)

    def test_folder_that_is_used(self, call: Call) -> None:
        assert self.checkpointed(call).code == 0
        assert "go on from them with resume" in refused(self.checkpointed(call))
        assert self.checkpointed(call, "--resume").code == 0

    @pytest.mark.parametrize(
        ("words", "field"),
        [
            ("--width 9", "model="),
            ("--seed 1", "seed="),
            ("--microbatch 4", "microbatch="),
            ("--global-batch 32 --microbatch 8", "global_batch="),
            ("--optimizer adam", "optimizer="),
            ("--lr 0.2", "optimizer="),
            ("--threads-per-worker 2", "intra_op_threads="),
            ("--precision bf16", "precision="),
            ("--last-batch drop", "last_batch="),
            ("--clip-norm 1", "rule="),
            ("--lr-schedule linear", "lr_schedule="),
            ("--shuffle-block 4", "shuffle_block="),
        ],
    )
    def test_state_of_another_run(self, call: Call, words: str, field: str) -> None:
        assert self.checkpointed(call).code == 0
        changed = dict(zip(words.split()[::2], words.split()[1::2], strict=True))
        kept = {"--width": "8", "--depth": "1", "--steps": "5", "--lr-schedule": "constant", "--lr-warmup": "0"}
        flags = [word for pair in {**kept, **changed}.items() for word in pair]
        complaint = refused(call("train", "digits-mlp", *flags, "--workers", "1", "--checkpoint", "state", "--resume"))
        assert f"is of a run with {field}" in complaint
        assert "start anew in another folder" in complaint

    def test_state_of_another_workload(self, call: Call) -> None:
        assert self.checkpointed(call).code == 0
        words = ("--workers", "1", "--checkpoint", "state", "--resume")
        assert "is of a run with model=" in refused(call("train", f"{NETS}:tiny", *words))

    def test_no_whole_checkpoint(self, call: Call, tmp_path: Path) -> None:
        assert self.checkpointed(call).code == 0
        (path,) = (tmp_path / "state").glob("*.safetensors")
        path.unlink()
        finished = self.checkpointed(call, "--resume")
        assert "none of the 1 checkpoints in state is whole" in refused(finished)

    @pytest.mark.processes
    def test_two_runs_on_one_folder(self, command: Command) -> None:
        words = ("train", f"{NETS}:stalls", "--workers", "1", "--checkpoint", "state", "--checkpoint-every-s", "0.1")
        first = command.start(*words, "--steps", "100000")
        try:
            state = command.folder / "state"
            while not list(state.glob("*.json")):
                assert first.poll() is None
                os.sched_yield()
            assert "another run is writing to state" in refused(command.run(*words, "--resume"))
        finally:
            first.kill()
            command.wait(first, 5.0)

    def test_folders_that_cannot_be_made(self, call: Call, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for flag in ("--checkpoint", "--out"):
            assert "cannot be made" in refused(call(*DIGITS, flag, "file/folder"))
            assert "cannot be made" in refused(call(*DIGITS, flag, "file"))

    def test_other_weights(self, call: Call, tmp_path: Path) -> None:
        assert call(*DIGITS, "--out", "run").code == 0
        weights = tmp_path / "run" / "weights.safetensors"
        wider = ("digits-mlp", "--depth", "1", "--width", "9", "--weights", weights)
        assert "has shape (8, 64) and the model needs (9, 64)" in refused(call("train", *wider, "--workers", "1"))
        assert "has shape (8, 64) and the model needs (9, 64)" in refused(call("predict", *wider))
        assert "0.weight has shape" in refused(call("predict", "digits-cnn", "--weights", weights))
        assert "another model's weights" in refused(call("predict", f"{NETS}:locked", "--weights", weights))
        weights.write_bytes(weights.read_bytes()[:-7])
        words = ("digits-mlp", "--depth", "1", "--width", "8", "--weights", weights)
        assert "is not a readable safetensors file" in refused(call("predict", *words))
        weights.write_bytes(b"")
        assert "is not a readable safetensors file" in refused(call("predict", *words))


class TestFullDisk:
    def test_at_a_checkpoint(self, call: Call, small_disk: Path) -> None:
        complaint = refused(call(*DIGITS[:3], "256", *DIGITS[4:], "--checkpoint", small_disk))
        assert "the disk is full" in complaint
        assert "make room or name another folder" in complaint
        assert not list(small_disk.glob("step-*")) + list(small_disk.glob("*.part"))

    def test_at_the_end(self, call: Call, small_disk: Path) -> None:
        complaint = refused(call(*DIGITS[:3], "256", *DIGITS[4:], "--out", small_disk))
        assert "the disk is full" in complaint

    @pytest.mark.processes
    def test_at_a_checkpoint_in_between(self, command: Command, small_disk: Path) -> None:
        words = ("--workers", "2", "--steps", "100000", "--width", "256", "--checkpoint-every-s", "0.2")
        finished = command.run("train", "digits-mlp", *words, "--checkpoint", small_disk)
        assert "the disk is full" in refused(finished)


@pytest.mark.processes
def test_memory_is_not_enough(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samestep.host.cores.cgroup_free_bytes", lambda: 2**10)
    complaint = refused(call(*DIGITS[:-1], "2"))
    assert "MB of shared memory and 0 MB are free; take fewer workers" in complaint


@pytest.mark.processes
def test_the_system_gives_no_memory_to_share(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(name: str) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuses, raising=False)
    assert "(Too many open files); take workers=1, which needs none" in refused(call(*DIGITS[:-1], "2"))


@pytest.mark.processes
def test_shared_memory_device_may_be_tiny(command: Command) -> None:
    script = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$0" "$@"'
    program = ("unshare", "-m", "sh", "-c", script)
    if os.geteuid() != 0 or command.run("true", program=program).code:
        pytest.skip("needs root and the right to mount")
    words = ("--workers", "2", "--steps", "3", "--width", "256", "--json")
    finished = command.run(SCRIPT, "train", "digits-mlp", *words, program=program)
    assert finished.code == 0, finished.stderr
