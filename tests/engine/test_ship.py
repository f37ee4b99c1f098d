"""Shipping: large tensors once, ties and values kept, code by value; what cannot be sent is said."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from samestep.engine import memory, ship
from samestep.engine.flat import trainable
from samestep.errors import UsageError
from samestep.host import anonymous
from tests.helpers import Tied, generator

LARGE = 5000


@dataclass
class Parts:
    """What is sent is always a dataclass, so that the part that cannot be sent has a name."""

    thing: Any
    model: Any = None


class Sent:
    """Packs and unpacks in this process, through two mappings."""

    def __init__(self) -> None:
        self.handles: list[int] = []
        self.parcel: ship.Parcel | None = None

    def __call__(self, thing: Any, placeholders: list[nn.Parameter] | None = None) -> Any:
        handle = anonymous.reserve()
        self.handles.append(handle)
        self.parcel = ship.pack(Parts(thing), placeholders or [], handle)
        return ship.unpack(self.parcel.code, memory.attach(handle, self.parcel.constants.num_bytes)).thing


@pytest.fixture
def sent() -> Iterator[Sent]:
    found = Sent()
    yield found
    for handle in found.handles:
        os.close(handle)


def values(seed: int = 0, *shape: int) -> torch.Tensor:
    return torch.randn(shape or (LARGE,), generator=generator(seed))


def test_large_tensors_travel_once_and_beside_the_pickle(sent: Sent) -> None:
    large = values()
    found = sent({"a": large, "b": large, "c": [large.view(50, 100)]})
    assert sent.parcel is not None
    assert sent.parcel.code[1] < 2000
    assert sent.parcel.constants.num_bytes < 3 * large.nbytes
    assert found["a"] is found["b"]
    assert torch.equal(found["a"], large)
    assert torch.equal(found["c"][0], large.view(50, 100))
    assert found["a"].data_ptr() % 64 == 0


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float16, torch.bfloat16]
)
def test_every_dtype_arrives(dtype: torch.dtype, sent: Sent) -> None:
    large = (torch.arange(LARGE * 4) % 2).to(dtype)
    found = sent(large)
    assert found.dtype == dtype
    assert torch.equal(found, large)


@pytest.mark.parametrize("kind", ["strided", "expanded", "reversed columns", "small", "empty", "scalar"])
def test_every_layout_arrives(kind: str, sent: Sent) -> None:
    tensors = {
        "strided": values()[::2], "expanded": values(0, 1, 100).expand(50, 100),
        "reversed columns": values(0, 70, 80).t(),
        "small": values()[7:12], "empty": torch.zeros(0, 3), "scalar": torch.tensor(3.5),
    }  # fmt: skip
    assert torch.equal(sent(tensors[kind]), tensors[kind])


def test_a_square_matrix_beside_its_transpose(sent: Sent) -> None:
    """The same memory, shape and dtype; only the strides tell them apart."""
    square = values(0, 64, 64)
    found = sent((square, square.t()))
    assert torch.equal(found[0], square)
    assert torch.equal(found[1], square.t())


def test_tied_frozen_and_trainable_parameters_stay_tied(sent: Sent) -> None:
    model = Tied()
    model.frozen = nn.Linear(100, 100).requires_grad_(requires_grad=False)
    model.frozen_again = nn.Linear(100, 100)
    model.frozen_again.weight = model.frozen.weight
    found = sent(model, list(trainable(model).values()))
    assert found.second.weight is found.first.weight
    assert found.frozen_again.weight is found.frozen.weight
    assert isinstance(found.frozen.weight, nn.Parameter)
    assert not found.frozen.weight.requires_grad
    assert torch.equal(found.frozen.weight, model.frozen.weight)
    assert found.first.weight.numel() == 0  # its values lie in the flat vector
    assert list(found.state_dict()) == list(model.state_dict())


def test_trainable_values_do_not_travel(sent: Sent) -> None:
    model = nn.Linear(300, 300)
    sent(model, list(trainable(model).values()))
    assert sent.parcel is not None
    assert sent.parcel.code[0] <= 4096
    assert sent.parcel.code[1] < 3000


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint8", "bool", "uint16"])
def test_arrays_arrive(dtype: str, sent: Sent) -> None:
    large = (np.arange(LARGE * 4) % 2).astype(dtype)
    found = sent({"a": large, "b": large[::2], "c": large.reshape(2, -1).T, "small": large[:3]})
    assert sent.parcel is not None
    assert sent.parcel.code[1] < 4000
    assert found["a"].dtype == large.dtype
    assert (found["a"] == large).all()
    assert (found["b"] == large[::2]).all()
    assert (found["c"] == large.reshape(2, -1).T).all()
    assert (found["small"] == large[:3]).all()
    assert (found["a"].flags.c_contiguous, found["c"].flags.f_contiguous) == (True, True)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(LARGE).astype(">i4"), np.array(["text"] * LARGE), np.array([{"a": 1}] * LARGE),
        np.arange(LARGE).astype("datetime64[s]"), np.arange(LARGE) + 1j,
    ],
    ids=["big-endian", "text", "objects", "dates", "complex"],
)  # fmt: skip
def test_arrays_of_other_kinds_arrive_by_value(array: Any, sent: Sent) -> None:
    found = sent(array)
    assert found.dtype == array.dtype
    assert (found == array).all()


def test_a_read_only_array_stays_read_only(sent: Sent) -> None:
    array = np.arange(LARGE)
    array.flags.writeable = False
    assert not sent(array).flags.writeable


def test_a_masked_array_keeps_its_mask(sent: Sent) -> None:
    array = np.ma.masked_array(np.arange(LARGE), mask=np.arange(LARGE) % 2 == 0)
    found = sent(array)
    assert isinstance(found, np.ma.MaskedArray)
    assert found.sum() == array.sum()


def test_lambdas_and_local_classes_travel_by_value(sent: Sent) -> None:
    offset = 3

    class Local(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + offset

    model, function = sent((Local(), lambda x: x * offset))
    assert model(torch.tensor(1)) == 4
    assert function(2) == 6


@pytest.mark.processes
def test_classes_of_main_travel_to_another_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pickle, subprocess, sys\n"
        "import torch\n"
        "from dataclasses import dataclass\n"
        "from torch import nn\n"
        "from samestep.engine import ship\n"
        "from samestep.host import anonymous\n"
        "@dataclass\n"
        "class Parts:\n"
        "    model: object\n"
        "    after: object\n"
        "SCALE = 2.0\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.register_buffer('table', torch.ones(5000))\n"
        "    def forward(self, x):\n"
        "        return SCALE * x * self.table.sum()\n"
        "print('script', flush=True)\n"
        "handle = anonymous.reserve()\n"
        "parcel = ship.pack(Parts(Net(), lambda x: x + 1), [], handle)\n"
        "child = '''\n"
        "import pickle, sys\n"
        "from samestep.engine import memory, ship\n"
        "handle, size, code = pickle.load(sys.stdin.buffer)\n"
        "parts = ship.unpack(code, memory.attach(handle, size))\n"
        "print(float(parts.after(parts.model(1.0))))\n"
        "'''\n"
        "message = pickle.dumps((handle, parcel.constants.num_bytes, parcel.code))\n"
        "subprocess.run([sys.executable, '-c', child], input=message, pass_fds=(handle,), check=True)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "script\n10001.0\n", done.stderr


class _Holder(nn.Module):
    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.thing = thing
        self.out = nn.Linear(2, 2)


def generator_function() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("kind", ["lock", "file", "generator"])
def test_what_cannot_be_sent_is_said(kind: str, tmp_path: Path) -> None:
    handle = anonymous.reserve()
    with open(tmp_path / "file", "wb") as file:
        things = {"lock": threading.Lock(), "file": file, "generator": generator_function()}
        with pytest.raises(UsageError, match=r"the model \(_Holder\) cannot be sent to workers: .*workers=1") as error:
            ship.pack(Parts(3, _Holder(things[kind])), [], handle)
    os.close(handle)
    assert "\n" not in str(error.value)


def test_an_object_that_refuses_to_be_pickled(sent: Sent) -> None:
    class Refusing:
        def __reduce__(self) -> Any:
            raise pickle.PicklingError("not me")

    with pytest.raises(UsageError, match=r"the thing \(Refusing\) cannot be sent to workers: not me"):
        sent(Refusing())


@pytest.mark.parametrize("error", [OSError("not now"), KeyError("gone"), AssertionError("no")])
def test_whatever_an_object_raises_when_it_is_pickled(sent: Sent, error: Exception) -> None:
    class Refusing:
        def __reduce__(self) -> Any:
            raise error

    with pytest.raises(UsageError, match=r"the thing \(Refusing\) cannot be sent to workers: "):
        sent(Refusing())


def fail_here() -> Any:
    raise LookupError("no such device")


def test_an_object_that_cannot_be_put_together_again(sent: Sent) -> None:
    class OneWay:
        def __reduce__(self) -> Any:
            return fail_here, ()

    with pytest.raises(
        UsageError, match=r"cannot be put together again there \(LookupError: no such device\).*workers=1"
    ):
        sent(OneWay())
