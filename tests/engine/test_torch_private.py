"""Each private interface of torch that we touch works as we take it to."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch._C._distributed_c10d import HashStore, TCPStore
from torch.overrides import TorchFunctionMode

from samestep import torch_private


def test_kernels_in_bf16_are_known_where_the_instructions_are() -> None:
    """What torch says agrees with what the processor says of itself."""
    found = torch_private.has_bf16_kernels()
    assert isinstance(found, bool)
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        assert not found
    if torch.cpu._is_avx512_bf16_supported():
        assert found


def test_being_in_backward_is_known_on_this_thread_only() -> None:
    seen: list[bool] = []

    def look(gradient: Tensor) -> None:
        seen.append(torch_private.is_in_backward())
        other = threading.Thread(target=lambda: seen.append(torch_private.is_in_backward()))
        other.start()
        other.join()

    x = torch.ones(2, requires_grad=True)
    x.register_hook(look)  # type: ignore[no-untyped-call]
    assert not torch_private.is_in_backward()
    (x * 2).sum().backward()  # type: ignore[no-untyped-call]
    assert seen == [True, False]
    assert not torch_private.is_in_backward()


def test_norms_are_those_of_vector_norm_whatever_lies_how_in_memory() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(8, 3, 5, 5, generator=generator).contiguous(memory_format=torch.channels_last)
    tensors = [torch.randn(999, 130, generator=generator), torch.zeros(0), torch.tensor(-2.0), picture]
    found = torch_private.norms(tensors)
    assert [norm.shape for norm in found] == [torch.Size([])] * 4
    assert [float(norm) for norm in found] == [float(torch.linalg.vector_norm(tensor)) for tensor in tensors]


def test_hooks_on_what_is_saved_are_known() -> None:
    assert not torch_private.has_saved_tensors_hooks()
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda kept: kept):
        assert torch_private.has_saved_tensors_hooks()
    assert not torch_private.has_saved_tensors_hooks()


def test_hooks_on_a_parameter_are_known() -> None:
    early, late = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    assert not torch_private.has_hooks(early)
    early.register_hook(lambda gradient: gradient)  # type: ignore[no-untyped-call]
    late.register_post_accumulate_grad_hook(lambda parameter: None)  # type: ignore[no-untyped-call]
    assert torch_private.has_hooks(early)
    assert torch_private.has_hooks(late)


def test_a_mode_sees_into_an_opened_function() -> None:
    class Seen(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(func.__name__)
            return func(*args, **(kwargs or {}))

    attention = nn.MultiheadAttention(4, 2)
    x = torch.randn(3, 1, 4)
    projections = (attention.in_proj_weight, attention.in_proj_bias)
    out = (attention.out_proj.weight, attention.out_proj.bias)
    arguments: Any = (x, x, x, 4, 2, *projections, None, None, False, 0.0, *out)
    whole = nn.functional.multi_head_attention_forward
    expected = whole(*arguments)[0]
    for function, num_seen in ((whole, 0), (torch_private.open_to_modes(whole), 2)):
        with Seen() as seen:
            found = function(*arguments)[0]
        assert torch.equal(found, expected)
        assert seen.names.count("linear") == num_seen


def test_a_failed_backward_is_over_too() -> None:
    def fail(gradient: Tensor) -> None:
        raise RuntimeError("no luck")

    x = torch.ones(2, requires_grad=True)
    x.register_hook(fail)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="no luck"):
        (x * 2).sum().backward()  # type: ignore[no-untyped-call]
    assert not torch_private.is_in_backward()


def test_backward_from_a_gradient() -> None:
    x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    (x.square().sum() * 3).backward(torch.tensor(0.25))  # type: ignore[no-untyped-call]
    torch_private.backward([y.square().sum() * 3], [torch.tensor(0.25)])
    assert x.grad is not None
    assert y.grad is not None
    assert y.grad.tolist() == x.grad.tolist() == [1.5] * 3
    with pytest.raises(RuntimeError, match="does not require grad"):
        torch_private.backward([torch.ones(())], [torch.ones(())])


def test_backward_imports_nothing() -> None:
    words = (
        "import sys, torch; from samestep import torch_private; x = torch.ones(2, requires_grad=True); "
        "torch_private.backward([x.sum()], [torch.ones(())]); sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", words], check=False).returncode == 0


@pytest.mark.parametrize("is_added", [False, True])
def test_copying_and_adding_many(is_added: bool) -> None:
    flat = torch.arange(24.0)
    targets = [flat[:6].view(2, 3), flat[6:7].view(()), flat[16:20], flat[20:20]]
    sources = [torch.randn(3, 2).t(), torch.tensor(-0.0), torch.full((4,), 1e-8), torch.zeros(0)]
    wanted = [t + s if is_added else s.clone() for t, s in zip(targets, sources, strict=True)]
    outside = flat[7:16].clone(), flat[20:].clone()
    (torch_private.add_all if is_added else torch_private.copy_all)(targets, sources)
    for target, values in zip(targets, wanted, strict=True):
        assert torch.equal(target, values)
        assert torch.equal(target.signbit(), values.signbit())
    assert torch.equal(flat[7:16], outside[0])
    assert torch.equal(flat[20:], outside[1])


def optimizer(kind: type[torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
    parameter = nn.Parameter(torch.ones(3, 3))
    parameter.grad = torch.full((3, 3), 0.5)
    return kind([parameter], lr=0.1, **options)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adafactor, torch.optim.Muon])
def test_the_plain_step_does_what_the_step_does(kind: type[torch.optim.Optimizer]) -> None:
    one, other = optimizer(kind), optimizer(kind)
    step = torch_private.plain_step(one)
    for _ in range(3):
        step()
        other.step()
    assert torch.equal(one.param_groups[0]["params"][0], other.param_groups[0]["params"][0])
    assert torch.is_grad_enabled()


def test_hooks_and_classes_of_others_keep_their_step() -> None:
    heard: list[int] = []
    hooked = optimizer(torch.optim.SGD)
    hooked.register_step_post_hook(lambda *arguments: heard.append(1))
    torch_private.plain_step(hooked)()
    assert heard == [1]

    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            heard.append(2)

    torch_private.plain_step(optimizer(Own))()
    assert heard == [1, 2]


@pytest.mark.processes
def test_optimisers_are_built_without_torchs_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from samestep import torch_private\n"
        "torch_private.without_compiler_import()\n"
        "p = torch.nn.Parameter(torch.ones(2)); p.grad = torch.ones(2)\n"
        "for kind in (torch.optim.SGD, torch.optim.AdamW):\n"
        "    torch_private.plain_step(kind([p], lr=0.5))()\n"
        "print('torch._dynamo' in sys.modules, p.tolist() != [1.0, 1.0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "False True\n", done.stderr


def test_a_store_is_told_from_another_program() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with socket.create_connection(("127.0.0.1", store.port), timeout=10) as connection:
        assert torch_private.is_store(connection)
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"HTTP/1.1 400 Bad Request")
        assert not torch_private.is_store(near)
    near, far = socket.socketpair()
    with near:
        far.shutdown(socket.SHUT_WR)
        with far:
            assert not torch_private.is_store(near)


def test_the_store_of_the_default_process_group_is_found() -> None:
    assert torch_private.default_store() is None
    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        store = torch_private.default_store()
        assert store is not None
        torch_private.store_below(store, "a").set("key", "1")
        assert store.check(["a/key"])
    finally:
        distributed.destroy_process_group()
    assert torch_private.default_store() is None
