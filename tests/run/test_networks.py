"""Runs whose network follows a base network: the same bits on any number of workers, said and recorded."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.errors import StateError, UsageError
from samestep.measure.plain import PlainTorch
from samestep.run import networks
from samestep.run.config import Settings, resolve
from samestep.run.train import train
from samestep.run.workload import Workload
from samestep.workloads import catalog
from samestep.workloads.transformer import Attention, language_model
from tests import helpers

COMMON: dict[str, Any] = {"global_batch": 27, "microbatch": 4, "steps": 5, "workers": 1}


class Net(nn.Module):
    """12-WIDTH-WIDTH-5 with a residual branch."""

    branch_ends = ("branch.2",)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(12, width)
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.last = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        scores: Tensor = self.last(x + self.branch(x))
        return scores


def work(width: int = 48, base: int | None = 12, **options: Any) -> Workload:
    base_model = None if base is None else partial(Net, base)
    return helpers.workload(partial(Net, width), base_model=base_model, **options)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("optimizer", "others"),
    [
        ("muon", (3,)),
        *(pytest.param(name, (2, 3), marks=pytest.mark.soak) for name in ("sgd", "adamw", "muon")),
    ],
)
def test_the_same_bits_on_any_number_of_workers(optimizer: str, others: tuple[int, ...]) -> None:
    settings = {**COMMON, "optimizer": optimizer, "lr": 0.01, "weight_decay": 0.01}
    found = [train(work(depth_ratio=4.0), **{**settings, "workers": workers}).record for workers in (1, *others)]
    assert len({record.weights_sha256 for record in found}) == 1
    standard = train(work(base=None), **settings).record
    assert found[0].weights_sha256 != standard.weights_sha256


def test_at_the_base_width_the_bits_are_the_standard_ones() -> None:
    settings = {**COMMON, "optimizer": "adamw", "weight_decay": 0.01}
    assert (
        train(work(12, base=12), **settings).record.weights_sha256
        == train(work(12, base=None), **settings).record.weights_sha256
    )


def test_it_is_said_and_recorded(tmp_path: Path) -> None:
    record = train(work(), **COMMON, optimizer="sgd", lr=0.1, out=tmp_path / "run").record
    assert record.notices[0] == (
        "μP, width × 4, depth × 1 of the base network: learning rate of input weights × 4, hidden weights × 1, output "
        "weights × 0.25, weights that do not grow × 1; initial values to match"
    )
    written = json.loads((tmp_path / "run" / "record.json").read_text())["numerics"]["parametrisation"]
    assert written["last.weight"] == ["output", pytest.approx(0.5, rel=0.3), 0.25]
    assert set(written) == {name for name, _ in Net(1).named_parameters()}
    assert "parametrisation" not in helpers.prepared(work(base=None)).numerics()


def test_batch_and_width_go_together() -> None:
    common: dict[str, Any] = {**COMMON, "optimizer": "sgd"}
    ruled = train(work(), **common, lr=0.01, base_batch=9).record
    assert ruled.weights_sha256 == train(work(), **common, lr=0.03).record.weights_sha256
    assert ["global_batch 9 → 27" in ruled.notices[0], ruled.notices[-1][:2]] == [True, "μP"]


def test_a_run_goes_on_with_its_own_base_only(tmp_path: Path) -> None:
    wanted = train(work(), **COMMON).record.weights_sha256
    folder = tmp_path / "states"
    train(work(), **{**COMMON, "steps": 3}, checkpoint=folder)
    with pytest.raises((StateError, UsageError), match="parametrisation"):
        train(work(base=24), **COMMON, checkpoint=folder, resume=True)
    assert train(work(), **COMMON, checkpoint=folder, resume=True).record.weights_sha256 == wanted


def test_plain_torch_trains_the_same_network() -> None:
    config = resolve(Settings(**COMMON, optimizer="sgd", lr=0.1), {})
    plain, job = PlainTorch(work(), config), helpers.prepared(work(), **COMMON, lr=0.1).job
    for ours, its in zip(job.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, its)
    assert sorted({group["lr"] for part in job.update.parts for group in part.groups}) == [0.025, 0.1, 0.4]


@pytest.mark.parametrize(
    ("workload", "settings", "text"),
    [
        (work(base=None), {"base_width": 8}, "test does not say how: give the workload a base_model"),
        (work(base=None, depth_ratio=2.0), {}, "depth_ratio=2 needs a base_model"),
        (work(), {"optimizer": torch.optim.SGD}, "the base network changes the rates of an optimizer by name"),
        (work(), {"optimizer": "soap"}, "'soap' follows the width of a network is not known"),
    ],
)
def test_what_is_refused(workload: Workload, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as error:
        train(workload, **COMMON, **settings)
    assert "\n" not in str(error.value)


# The built-in networks.


def scales_of(workload: Workload) -> dict[str, list[Any]]:
    """What Adam does with a workload's network."""
    model, scaled = networks.network(workload, resolve(Settings(optimizer="adam", workers=1), {}))
    assert scaled is not None
    return scaled.as_dict(model)


@pytest.mark.parametrize("name", catalog.names())
def test_every_built_in_network_has_a_base(name: str) -> None:
    wide = catalog.build(name, width=16, base_width=8)
    assert wide.base_model is not None
    scales = scales_of(wide)
    assert {"hidden", "input", "output"} <= {role for role, _, _ in scales.values()}
    kinds = {"output": 0.5, "hidden": 0.5, "input": 1.0, "fixed": 1.0}
    assert all(rate == kinds[role] for role, _, rate in scales.values())


def test_depth_is_for_residual_networks() -> None:
    deep = catalog.build("fashion-resnet", width=4, depth=4, base_depth=1)
    scales = scales_of(deep)
    assert scales["3.residual.4.weight"] == ["fixed", 0.5, 0.25]  # the norm at the branch's end
    assert scales["3.residual.0.weight"] == ["fixed", 1.0, 0.5]
    assert scales["0.weight"] == ["fixed", 1.0, 1.0]
    with pytest.raises(UsageError, match="Sequential has no residual branches"):
        scales_of(catalog.build("digits-mlp", depth=4, base_depth=2))


def test_scores_of_attention_follow_the_width() -> None:
    """1 / √(size of a head) at the base width, and on from there 1 / size: their size does not grow with the width."""
    torch.manual_seed(0)
    wide, standard = Attention(64, num_heads=4, base_width=16), Attention(64, num_heads=4)
    standard.load_state_dict(wide.state_dict())
    assert wide.score_scale == pytest.approx(1 / 4 * (16 / 64) ** 0.5)
    with torch.no_grad():  # queries that are half as long do the same
        standard.inputs.weight[:64] /= 2
        standard.inputs.bias[:64] /= 2
    inputs = torch.randn(2, 5, 64)
    assert torch.allclose(wide(inputs), standard(inputs), atol=1e-6)
    assert Attention(64, num_heads=4, base_width=64).score_scale is None
    built = language_model(num_symbols=5, context=8, width=32, depth=1, dropout=0.0, base_width=16)
    assert next(m for m in built.modules() if isinstance(m, Attention)).score_scale is not None
