"""The digest as the design defines it, written a second time; and weights files."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import samestep
from samestep.errors import StateError, UsageError
from samestep.run import weights
from tests.helpers import Cnn, Mlp, Tied, workload

FORMATS = {
    torch.float32: "<f", torch.float64: "<d", torch.int64: "<q", torch.int32: "<i", torch.uint8: "<B",
    torch.bool: "<?", torch.float16: "<e",
}  # fmt: skip


def digest(state: dict[str, Tensor]) -> str:
    """Element by element, through `struct`: little-endian and in row-major order whatever the strides."""
    found = hashlib.sha256()
    for name, tensor in state.items():
        found.update(name.encode() + b"\0" + str(tensor.dtype).split(".")[1].encode() + b"\0")
        found.update(str(tuple(tensor.shape)).encode() + b"\0")
        for value in tensor.detach().flatten().tolist():
            found.update(struct.pack(FORMATS[tensor.dtype], value))
    return found.hexdigest()


@pytest.mark.parametrize("build", [Mlp, Cnn, Tied, lambda: Mlp().double()])
def test_the_digest_is_the_designs(build: type[nn.Module]) -> None:
    model = build()
    assert weights.digest(model) == digest(model.state_dict())
    assert weights.digest(model.state_dict()) == weights.digest(model)


def test_the_digest_of_every_dtype_shape_and_stride() -> None:
    state = {str(dtype): torch.arange(6).view(2, 3).to(dtype).t() for dtype in FORMATS}
    state |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "strided": torch.arange(10.0)[::3]}
    assert weights.digest(state) == digest(state)


def test_the_digest_sees_names_dtypes_shapes_order_and_single_bits() -> None:
    values = torch.arange(6.0)
    last_bit = values.clone()
    last_bit[5] = torch.nextafter(last_bit[5], torch.tensor(10.0))
    minus_zero = values.clone()
    minus_zero[0] = -0.0
    states: list[dict[str, Tensor]] = [
        {"a": values}, {"b": values}, {"a": values.view(2, 3)}, {"a": values.view(3, 2)},
        {"a": values.view(torch.int32)},
        {"a": last_bit}, {"a": minus_zero}, {"a": values, "b": last_bit}, {"b": last_bit, "a": values},
    ]  # fmt: skip
    assert len({weights.digest(state) for state in states}) == len(states)


def test_the_digest_is_the_same_in_every_process() -> None:
    state = {"weight": torch.tensor([[1.0, -2.0]]), "count": torch.tensor(3)}
    wanted = hashlib.sha256(
        b"weight\0float32\0(1, 2)\0" + struct.pack("<ff", 1.0, -2.0) + b"count\0int64\0()\0" + struct.pack("<q", 3)
    )
    assert weights.digest(state) == wanted.hexdigest()


def test_weights_come_back(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    weights.save(model.state_dict(), tmp_path / "w.safetensors", {"workload": "test"})
    weights.load_into(other, tmp_path / "w.safetensors")
    assert weights.digest(other) == weights.digest(model)
    assert other.second.weight is other.first.weight


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no weights file"):
        weights.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    with pytest.raises(StateError, match="is not a readable safetensors file"):
        weights.load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Cnn(), r"has no entry 'convolution\.weight'"),
        (nn.Sequential(nn.Linear(12, 32)), r"has no entry '0\.weight'"),
        (nn.ModuleDict({"hidden": nn.Linear(12, 31)}), r"hidden\.weight has shape \(32, 12\) and the model needs"),
        (nn.ModuleDict({"hidden": nn.Linear(12, 32)}), r"has an entry 'out\.bias' that the model does not know"),
    ],
)
def test_another_models_weights(model: nn.Module, text: str, tmp_path: Path) -> None:
    weights.save(Mlp().state_dict(), tmp_path / "w.safetensors", {})
    before = weights.digest(model)
    with pytest.raises(UsageError, match=text):
        weights.load_into(model, tmp_path / "w.safetensors")
    assert weights.digest(model) == before


@pytest.mark.processes
def test_training_starts_from_given_weights_on_any_number_of_workers(tmp_path: Path) -> None:
    torch.manual_seed(5)
    weights.save(Mlp().state_dict(), tmp_path / "given.safetensors", {})

    def trained(workers: int, given: Path | None, lr: float = 0.1) -> dict[str, Tensor]:
        settings: dict[str, Any] = {"workers": workers, "global_batch": 24, "microbatch": 6, "steps": 3, "lr": lr}
        return samestep.train(workload(Mlp), optimizer="sgd", weights=given, **settings).model.state_dict()

    given = tmp_path / "given.safetensors"
    one, two = (weights.digest(trained(workers, given)) for workers in (1, 2))
    assert one == two != weights.digest(trained(1, None))
    for name, values in trained(2, given, lr=0.0).items():
        assert values.equal(safetensors.torch.load_file(given)[name])
