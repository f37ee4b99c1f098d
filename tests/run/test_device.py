"""Runs on a device from end to end, by its twin on the CPU; compiled runs; and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from samestep.errors import StateError, UsageError
from samestep.run.config import Settings
from samestep.run.outline import outline
from samestep.run.prepare import Choices
from samestep.run.progress import Silent
from samestep.run.session import Result
from samestep.run.train import run
from tests import helpers
from tests.helpers import Everything, Gated, Mlp

TWIN = Choices(device="twin")
COMMON: dict[str, Any] = {"global_batch": 32, "microbatch": 8, "optimizer": "adamw", "evaluate_every": 3}
IN_ONE_PROCESS = torch.cuda.is_available()


def trained(build: Any = Everything, choices: Choices = TWIN, **settings: Any) -> Result:
    work = helpers.workload(build, evaluation=helpers.samples(20))
    wanted = Settings(**{"workers": 1, "steps": 6, **COMMON, **settings})
    return run(work, wanted, choices=choices, progress=Silent())


def test_the_record_says_how_the_device_was_used(tmp_path: Path) -> None:
    found = trained(out=tmp_path / "out").record
    assert found.device is not None
    assert found.device["name"] == "a GPU's twin on the CPU"
    assert (found.device["graphs"], found.device["not_captured"]) == (3, None)
    assert found.numerics["device"] == "twin"
    assert found.breakdown is None
    assert trained(choices=Choices()).record.device is None


def test_what_is_not_captured_is_said() -> None:
    record = trained(Gated, steps=1).record
    assert any("are no graphs: it waits for a result" in text for text in record.notices)
    assert not any("are no graphs" in text for text in trained(Gated, steps=1, graphs="off").record.notices)


def test_resume_and_another_device(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    whole = trained(lr_schedule="constant").record.weights_sha256
    trained(steps=3, checkpoint=folder)
    assert trained(checkpoint=folder, resume=True).record.weights_sha256 == whole
    with pytest.raises(StateError, match="with device=twin and this one has device=cpu"):
        trained(checkpoint=folder, resume=True, choices=Choices())


def test_the_module_has_its_own_parameters_afterwards() -> None:
    model = trained().model
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    pointers = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert len(pointers) == len(list(model.parameters()))


@pytest.mark.processes
@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_a_rank_on_each_of_several_devices(world_size: int, tmp_path: Path) -> None:
    """What lies on a device travels by way of the host."""
    more: dict[str, Any] = {"noise_scale": 2}
    one = trained(**more)
    several = trained(engine="group", workers=world_size, checkpoint=tmp_path / "c", **more)
    assert several.record.weights_sha256 == one.record.weights_sha256
    assert several.record.evaluations[-1].means == one.record.evaluations[-1].means
    assert several.record.device is not None


def test_the_plan_says_what_is_captured() -> None:
    work = helpers.workload(Everything)
    before = {name: values.clone() for name, values in work.model().state_dict().items()}
    found = outline(work, Settings(workers=1, steps=6, **COMMON), TWIN)
    assert found.device is not None
    assert found.device["graphs"] == 1
    plain = outline(helpers.workload(Gated), Settings(workers=1, steps=6, **COMMON), TWIN)
    assert plain.device is not None
    assert "waits for a result" in plain.device["not_captured"]
    assert outline(work, Settings(workers=1, steps=6, **COMMON), Choices()).device is None
    assert before.keys() == work.model().state_dict().keys()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_steps_are_near_and_the_same_each_time(precision: Any) -> None:
    plain = trained(Mlp, Choices(), precision=precision)
    compiled = [trained(Mlp, Choices(), precision=precision, compile="aot_eager") for _ in range(2)]
    assert compiled[0].record.weights_sha256 == compiled[1].record.weights_sha256
    for (name, one), (_, other) in zip(
        plain.model.named_parameters(), compiled[0].model.named_parameters(), strict=True
    ):
        assert helpers.relative(one, other) < (1e-4 if precision == "fp32" else 5e-2), name


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"device": "cuda", "workers": 2}, "workers that share memory compute on CPUs"),
        ({"device": "cuda", "stages": 2, "workers": 2, "engine": "shared"}, "workers that share memory"),
        ({"device": "cuda", "backprop": "concurrent"}, "device='cuda' and backprop='concurrent' do not go together"),
        ({"device": "cuda", "optimizer": "kfac"}, "device='cuda' and optimizer='kfac' do not go together"),
        ({"compile": "inductor", "stages": 2, "workers": 2}, "compile='inductor' and stages=2 do not go together"),
        ({"compile": "inductor", "backprop": "concurrent"}, "compile='inductor' and backprop='concurrent'"),
    ],
)
def test_what_does_not_go_together(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        trained(choices=Choices(), **settings)


@pytest.mark.skipif(IN_ONE_PROCESS, reason="there is a GPU")
@pytest.mark.parametrize("more", [{}, {"engine": "group", "workers": 1}])
def test_without_a_gpu(more: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"device='cuda': torch \S+ (is built without CUDA|finds no GPU)"):
        trained(choices=Choices(), device="cuda", **more)


def test_a_graph_follows_the_growth_of_the_batch() -> None:
    """The backward pass starts from the samples of the step, which become more while the microbatch stays."""
    work = helpers.workload(Everything, train=helpers.samples(330))
    grows: dict[str, Any] = {
        "global_batch": "auto", "initial_batch": 8, "microbatch": 2, "noise_scale": 1, "lr": 0.003, "epochs": 1.5,
        "seed": 1, "workers": 1,
    }  # fmt: skip
    captured, plain = (
        run(work, Settings(graphs=graphs, **grows), choices=TWIN, progress=Silent()).record
        for graphs in ("auto", "off")
    )
    assert len(captured.growths) >= 1
    assert captured.device is not None
    assert captured.device["graphs"] > 0
    assert captured.weights_sha256 == plain.weights_sha256
