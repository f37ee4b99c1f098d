"""What a GPU has to show: the same bits again, for other groupings, after a resume, as graphs; near the CPU's result.

One short call, for whoever has a GPU: ``python -m pytest tests/gpu -q``. What it shows belongs into docs/gpus.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.data.columns import Rows, Samples
from samestep.engine.device import opening
from samestep.engine.device.seam import mapped
from samestep.engine.loading import Loading
from samestep.errors import StateError, UsageError
from samestep.run.config import Settings
from samestep.run.outline import outline
from samestep.run.prepare import Choices, prepare
from samestep.run.progress import Silent
from samestep.run.session import Result
from samestep.run.train import run
from samestep.run.workload import Workload
from tests import helpers
from tests.helpers import Cnn, Encoder, Everything, Gated, Lstm, Mlp

COMMON: dict[str, Any] = {"global_batch": 32, "microbatch": 8, "steps": 7, "optimizer": "adamw", "evaluate_every": 4}


class WithDropout(nn.Module):
    """An encoder layer with dropout in three modules and in attention."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Encoder(dropout=0.2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        return scores


MODELS = [Mlp, Cnn, Lstm, Encoder, WithDropout, Everything]


def trained(build: Any, work: Workload | None = None, **settings: Any) -> Result:
    wanted = Settings(**{"workers": 1, "device": "cuda", **COMMON, **settings})
    work = work or helpers.workload(build, evaluation=helpers.samples(20))
    return run(work, wanted, choices=Choices(), progress=Silent())


def sha(build: Any, **settings: Any) -> str:
    return trained(build, **settings).record.weights_sha256


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_again_and_as_graphs(build: Any, precision: str) -> None:
    captured = trained(build, precision=precision)
    device = captured.record.device
    assert device is not None
    assert device["not_captured"] is None, device
    assert device["graphs"] == 3
    assert sha(build, precision=precision) == captured.record.weights_sha256
    assert sha(build, precision=precision, graphs="off") == captured.record.weights_sha256


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad", "muon", "lamb", "lion", "soap"])
def test_optimisers_again(optimizer: str) -> None:
    assert sha(Everything, optimizer=optimizer) == sha(Everything, optimizer=optimizer)


@pytest.mark.parametrize("build", [Mlp, Everything])
def test_resume(build: Any, tmp_path: Path) -> None:
    trained(build, steps=3, checkpoint=tmp_path)
    assert sha(build, checkpoint=tmp_path, resume=True) == sha(build)
    with pytest.raises(StateError, match="with device=cuda and this one has device=cpu"):
        trained(build, checkpoint=tmp_path, resume=True, device="cpu")


@pytest.mark.parametrize("build", [Mlp, Everything])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_same_microbatches_grouped_for_other_numbers_of_workers(build: Any, world_size: int) -> None:
    """More workers than GPUs share them."""
    assert sha(build, engine="group", workers=world_size) == sha(build)


def config() -> Any:
    from samestep.run.config import resolve

    return resolve(Settings(**{"workers": 1, "device": "cuda", **COMMON}), {})


@pytest.mark.parametrize("build", [Mlp, Cnn, Lstm, Encoder])
def test_near_the_cpus_result(build: Any) -> None:
    precision: Any = torch.backends.cudnn
    before, precision.conv.fp32_precision = precision.conv.fp32_precision, "ieee"
    try:
        on_gpu, on_cpu = trained(build, optimizer="sgd", lr=0.1), trained(build, optimizer="sgd", lr=0.1, device="cpu")
    finally:
        precision.conv.fp32_precision = before
    for (name, one), other in zip(on_gpu.model.named_parameters(), on_cpu.model.parameters(), strict=True):
        assert helpers.relative(one, other) < 1e-4, name
    assert {each.device.type for each in on_gpu.model.parameters()} == {"cpu"}


def test_batches_sent_ahead_are_those_of_the_host() -> None:
    work = helpers.workload()
    job = prepare(work, config(), Choices(), has_callbacks=False).job
    device = opening.open_device("cuda")
    sent, plain = Loading(job, 1, 0, device=Crowded(device)), Loading(job, 1, 0)
    assert not sent.is_resident
    try:
        for step in (0, 1, 2, 3, 0):
            for one, other in zip(sent.batches(step, 0), plain.batches(step, 0), strict=True):
                assert one.target.is_cuda
                assert torch.equal(mapped(one, Tensor.cpu).inputs[0], other.inputs[0])
    finally:
        sent.close()
        plain.close()


class Crowded:
    """A device that has no memory left for data."""

    def __init__(self, device: Any) -> None:
        self._device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def free_bytes(self) -> int:
        return 0


def test_compiled() -> None:
    assert sha(Mlp, compile="inductor") == sha(Mlp, compile="inductor", graphs="off")


def test_a_model_that_waits_runs_plainly() -> None:
    found = trained(Gated)
    assert found.record.device is not None
    assert found.record.device["graphs"] == 0
    assert sha(Gated) == found.record.weights_sha256  # and what failed to be captured has broken nothing
    assert outline(helpers.workload(Gated), Settings(workers=1, device="cuda", **COMMON), Choices()).device is not None


class Greedy(nn.Module):
    """Needs an eighth of the GPU's memory for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            room = torch.cuda.get_device_properties(x.device).total_memory // 8
            scores: Tensor = self.net(x) + torch.zeros(len(x), room // 4, device=x.device)[:, :1]
            return scores
        answer: Tensor = self.net(x)
        return answer


def test_out_of_memory_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"microbatch=16 does not fit the memory of cuda:0 .*microbatch=[1-4] does"):
        trained(Greedy, global_batch=32, microbatch=16)


def test_an_operation_without_a_deterministic_kernel_is_one_line() -> None:
    class Learnt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.net = nn.Linear(12, 12), Mlp()

        def forward(self, x: Tensor) -> Tensor:
            picture = self.first(x).view(-1, 1, 3, 4)
            larger = nn.functional.interpolate(picture, size=(6, 8), mode="bicubic")
            scores: Tensor = self.net(larger.flatten(1)[:, :12])
            return scores

    with pytest.raises(UsageError, match="has no deterministic kernel"):
        trained(Learnt)


def test_targets_outside_of_the_classes_are_one_line() -> None:
    inputs = torch.randn(75, 12, generator=helpers.generator())
    train = Samples((Rows(values=inputs),), Rows(values=torch.full((75,), 7)))
    with pytest.raises(ValueError, match="a label is 7"):
        trained(Mlp, helpers.workload(Mlp, train=train))
