"""Steps on a GPU: samestep beside plain torch on the same one, with and without graphs, bf16 and deterministic kernels.

One short call for whoever has a GPU (a few minutes)::

    python -m benchmarks.gpu

prints a table and writes benchmarks/GPU.md; the raw values go to benchmarks/results/gpu.json. Every program computes
the same microbatches of the same data, which lie on the GPU. Programs take turns, so a clock that drifts slows all
alike.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import results
from samestep.data.columns import Dataset, Rows, Samples
from samestep.run.config import Settings
from samestep.run.prepare import Choices
from samestep.run.progress import Silent
from samestep.run.train import run
from samestep.run.workload import Workload

PAGE = results.ROOT / "benchmarks" / "GPU.md"
ROUNDS, STEPS, LEFT_OUT = 5, 30, 8
CLASSES = 10


class Transformer(nn.Module):
    """Four encoder layers over 64 tokens of 32 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 256)
        layer = nn.TransformerEncoderLayer(256, 8, 1024, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.out = nn.Linear(256, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.layers(self.first(x)).mean(1))
        return scores


def mlp() -> nn.Module:
    """784-1024-1024-1024-10."""
    sizes = [784, 1024, 1024, 1024]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(1024, CLASSES))


def cnn() -> nn.Module:
    """Six convolutions with batch norm over 3 × 32 × 32."""
    sizes = [3, 64, 64, 128, 128, 256, 256]
    layers: list[nn.Module] = []
    for number, (a, b) in enumerate(pairwise(sizes)):
        layers += [
            nn.Conv2d(a, b, 3, padding=1, stride=1 + (number in (2, 4)), bias=False),
            nn.BatchNorm2d(b),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, CLASSES))


@dataclass(frozen=True)
class Case:
    """A network, the shape of a sample, and how a step is cut."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    global_batch: int
    microbatch: int


CASES = (
    Case("mlp, 8 microbatches of 64", mlp, (784,), 512, 64),
    Case("mlp, 8 microbatches of 1024", mlp, (784,), 8192, 1024),
    Case("cnn, 8 microbatches of 64", cnn, (3, 32, 32), 512, 64),
    Case("cnn, 4 microbatches of 512", cnn, (3, 32, 32), 2048, 512),
    Case("transformer, 8 microbatches of 32", Transformer, (64, 32), 256, 32),
    Case("transformer, 32 microbatches of 32", Transformer, (64, 32), 1024, 32),
)

Measured = tuple[float, int]
"""Seconds a step, and the most bytes that tensors took up."""


def data(case: Case) -> Samples:
    """Noise and its classes: only times are of interest."""
    generator = torch.Generator().manual_seed(0)
    num_samples = case.global_batch * 4
    inputs = torch.randn(num_samples, *case.shape, generator=generator)
    return Samples((Rows(values=inputs),), Rows(values=torch.randint(0, CLASSES, (num_samples,), generator=generator)))


def samestep_run(case: Case, samples: Samples, **settings: Any) -> Measured:
    """A run on the GPU, without what its first steps pay for."""
    work = Workload(
        name=case.name, model=case.build, data=lambda: Dataset(samples), loss=nn.CrossEntropyLoss(), metrics={}
    )
    wanted = Settings(
        device="cuda",
        workers=1,
        steps=STEPS,
        global_batch=case.global_batch,
        microbatch=case.microbatch,
        optimizer="adamw",
        noise_scale="off",
        **settings,
    )
    record = run(work, wanted, choices=Choices(), progress=Silent()).record
    assert record.device is not None
    if settings.get("graphs") != "off" and record.device["not_captured"]:
        sys.exit(f"{case.name}: not captured: {record.device['not_captured']}")
    return float(np.mean([step.duration_s for step in record.steps][LEFT_OUT:])), record.device["peak_bytes"]


def torch_run(case: Case, samples: Samples, *, is_bf16: bool, is_deterministic: bool, is_graph: bool) -> Measured:
    """Plain torch: gradients accumulated over the same microbatches, fused AdamW."""
    torch.use_deterministic_algorithms(is_deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = case.build().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x, y = samples.inputs[0].tensor.cuda(), samples.target.tensor.cuda()  # type: ignore[attr-defined]
    loss = nn.CrossEntropyLoss(reduction="sum")
    places = [torch.empty_like(x[: case.microbatch]), torch.empty_like(y[: case.microbatch])]

    def compute(inputs: Tensor, target: Tensor) -> None:
        with torch.autocast("cuda", torch.bfloat16) if is_bf16 else nullcontext():
            total = loss(model(inputs), target) / case.global_batch
        total.backward()

    replay = _captured(lambda: compute(*places), model) if is_graph else None
    times = []
    for step in range(STEPS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=replay is None)
        at = step % 4 * case.global_batch
        for first in range(at, at + case.global_batch, case.microbatch):
            indices = torch.arange(first, first + case.microbatch, device=x.device)
            if replay is None:
                compute(x[indices], y[indices])
            else:
                torch.index_select(x, 0, indices, out=places[0])
                torch.index_select(y, 0, indices, out=places[1])
                replay()
        optimizer.step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    torch.use_deterministic_algorithms(mode=False)
    return float(np.mean(times[LEFT_OUT:])), torch.cuda.max_memory_allocated()


def _captured(compute: Callable[[], None], model: nn.Module) -> Callable[[], None]:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            compute()
    torch.cuda.current_stream().wait_stream(side)
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compute()
    return graph.replay


PROGRAMS: dict[str, Callable[[Case, Samples], Measured]] = {
    "torch": lambda c, s: torch_run(c, s, is_bf16=False, is_deterministic=False, is_graph=False),
    "torch, deterministic": lambda c, s: torch_run(c, s, is_bf16=False, is_deterministic=True, is_graph=False),
    "torch, graph": lambda c, s: torch_run(c, s, is_bf16=False, is_deterministic=False, is_graph=True),
    "torch, bf16": lambda c, s: torch_run(c, s, is_bf16=True, is_deterministic=False, is_graph=False),
    "torch, bf16, graph": lambda c, s: torch_run(c, s, is_bf16=True, is_deterministic=False, is_graph=True),
    "samestep, graphs off": lambda c, s: samestep_run(c, s, graphs="off"),
    "samestep": samestep_run,
    "samestep, bf16": lambda c, s: samestep_run(c, s, precision="bf16"),
    "samestep, bf16, graphs off": lambda c, s: samestep_run(c, s, precision="bf16", graphs="off"),
}


def measure() -> results.Result:
    """Every program of every case, in turns."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for case in CASES:
        samples = data(case)
        table: dict[str, dict[str, Any]] = {name: {"step_s": [], "peak_bytes": 0} for name in PROGRAMS}
        order = np.random.default_rng(0)
        for _ in range(ROUNDS):
            for name in order.permutation(list(PROGRAMS)):
                step_s, peak_bytes = PROGRAMS[name](case, samples)
                table[name]["step_s"].append(step_s)
                table[name]["peak_bytes"] = max(peak_bytes, table[name]["peak_bytes"])
        found[case.name] = table
        print(f"{case.name}: done", file=sys.stderr)
    return {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "cases": found}


def page(result: results.Result) -> str:
    """The table, in Markdown."""
    what = f"{ROUNDS} rounds of {STEPS} steps ({LEFT_OUT} left out) a program, in turns; medians, least and most"
    lines = ["# Steps on a GPU", "", *results.header([result], what=what)]
    lines += [f"- GPU: {result['gpu']}, CUDA {result['cuda']}", ""]
    lines += ["`torch, deterministic` over `torch` is the price of kernels that give the same bits each time.", ""]
    for name, table in result["cases"].items():
        lines += [f"## {name}", "", "| program | step ms | over torch | memory GiB |", "|---|---|---|---|"]
        base = np.median(table["torch"]["step_s"])
        for program, seen in table.items():
            ms = np.array(seen["step_s"]) * 1e3
            times = f"{np.median(ms):.2f} [{ms.min():.2f}, {ms.max():.2f}]"
            ratio, memory = np.median(seen["step_s"]) / base, seen["peak_bytes"] / 2**30
            lines.append(f"| {program} | {times} | {ratio:.2f} | {memory:.2f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, and write the page."""
    options = results.parser("benchmarks.gpu", __doc__, PAGE).parse_args()
    path = results.FOLDER / "gpu.json"
    if not torch.cuda.is_available() and not options.page:
        print("benchmarks.gpu: no GPU here: torch.cuda.is_available() is false", file=sys.stderr)
        return 2
    if not options.page:
        from samestep.engine.device import opening  # noqa: PLC0415

        opening.open_device("cuda")  # cuBLAS's workspace is settled before CUDA starts
    settings = {"rounds": ROUNDS, "steps": STEPS, "cases": [case.name for case in CASES]}
    found = results.read(path) if options.page else None
    if options.page and found is None:
        print(f"benchmarks.gpu: there is no {path.name} to write the page from", file=sys.stderr)
        return 2
    found = found or results.kept(path, settings, measure, module="benchmarks.gpu", is_forced=options.force)
    text = page(found)
    print(text)
    options.to.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
