"""An NVIDIA GPU. No GPU has run this yet: docs/gpus.md says what is confirmed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from samestep.data.columns import Batch
from samestep.engine.device.seam import CannotCapture, Kind, Passed, laid_out, mapped, one_ahead
from samestep.errors import UsageError
from samestep.plan.regions import Regions

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_WORKSPACES = (":4096:8", ":16:8")
"""With these, cuBLAS gives the same bits each time (NVIDIA's documentation, "Results reproducibility")."""

_WARM_UPS = 3
"""Passes before a capture: libraries choose their kernels and take their memory in the first ones."""


def check_there() -> None:
    """Raise UsageError, in one line, where torch finds no GPU."""
    if torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} is built without CUDA; install a build with it, or take device='cpu'"
    else:
        why = f"torch {torch.__version__} finds no GPU on this machine; take device='cpu'"
    raise UsageError(f"device='cuda': {why}")


def open_gpu(number: int) -> Cuda:
    """A GPU of this machine; more ranks than it has share them.

    Raises:
        UsageError: There is none, or CUDA was started in a way that gives other bits each time.
    """
    check_there()
    _settle_workspace()
    return Cuda(number % torch.cuda.device_count())


def _settle_workspace() -> None:
    """cuBLAS reads this when it starts, so it has to be there before."""
    given = os.environ.get(WORKSPACE)
    if given is None and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        os.environ[WORKSPACE] = _WORKSPACES[0]
    elif given not in _WORKSPACES:
        found = f"{WORKSPACE}={given}" if given else f"CUDA was started without {WORKSPACE}"
        raise UsageError(
            f"device='cuda': {found}, so products may have other bits each time; set {WORKSPACE}={_WORKSPACES[0]} "
            "before Python starts"
        )


class Cuda:
    """See `seam.Device`.

    Args:
        number: Of the GPUs that this process sees.
    """

    kind: Kind = "cuda"
    is_host = False

    def __init__(self, number: int) -> None:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        self.where = torch.device("cuda", number)
        self.generators: Sequence[torch.Generator] = (torch.cuda.default_generators[number], torch.default_generator)
        self._copies = torch.cuda.Stream(self.where)  # type: ignore[no-untyped-call]
        self._capturing = torch.cuda.Stream(self.where)  # type: ignore[no-untyped-call]
        self._events: dict[int, torch.cuda.Event] = {}
        self._pool: Any = None

    @property
    def name(self) -> str:
        return f"{self.where} ({torch.cuda.get_device_name(self.where)})"

    @contextmanager
    def settled(self) -> Iterator[None]:
        deterministic: Any = torch.utils.deterministic
        cudnn: Any = torch.backends.cudnn
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        kept = cudnn.benchmark, cudnn.deterministic, deterministic.fill_uninitialized_memory
        torch.use_deterministic_algorithms(mode=True)
        cudnn.benchmark, cudnn.deterministic, deterministic.fill_uninitialized_memory = False, True, False
        try:
            with torch.cuda.device(self.where):
                torch.cuda.reset_peak_memory_stats(self.where)
                yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            cudnn.benchmark, cudnn.deterministic, deterministic.fill_uninitialized_memory = kept

    def numerics(self) -> dict[str, Any]:
        major, minor = torch.cuda.get_device_capability(self.where)
        matmul: Any = torch.backends.cuda.matmul
        cudnn: Any = torch.backends.cudnn
        return {
            "device": "cuda",
            "gpu": torch.cuda.get_device_name(self.where),
            "gpu_capability": f"{major}.{minor}",
            "cuda_version": torch.version.cuda,
            "cudnn_version": cudnn.version(),
            "matmul_fp32_precision": matmul.fp32_precision,
            "convolution_fp32_precision": cudnn.conv.fp32_precision,
            "bf16_reduced_precision_reduction": matmul.allow_bf16_reduced_precision_reduction,
            "cublas_workspace": os.environ.get(WORKSPACE),
        }

    def memory(self, regions: Regions) -> Mapping[str, Tensor]:
        try:
            return laid_out(regions, self.where)[0]
        except torch.OutOfMemoryError:
            raise UsageError(
                f"parameters, optimizer state and sums need {regions.num_bytes / 2**30:.1f} GiB of memory, and "
                f"{self.name} has {self.free_bytes() / 2**30:.1f} GiB left; take a smaller network, or fewer "
                "microbatches (a larger microbatch)"
            ) from None

    def autocast(self, *, enabled: bool) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", dtype=torch.bfloat16, enabled=enabled)

    def staged(self, batch: Batch) -> Batch:
        return mapped(batch, Tensor.pin_memory)

    def ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return one_ahead(batches, self._send, self._receive)

    def placed(self, batch: Batch) -> Batch:
        return mapped(batch, lambda values: values.to(self.where))

    def capture(self, restart: Callable[[], None], run: Callable[[], Passed]) -> tuple[Passed, Callable[[], None]]:
        main = torch.cuda.current_stream(self.where)
        self._capturing.wait_stream(main)
        with torch.cuda.stream(self._capturing):
            for _ in range(_WARM_UPS):
                restart()
                run()
            restart()
            _run_without_waiting(run)
        main.wait_stream(self._capturing)
        restart()
        graph = torch.cuda.CUDAGraph()
        try:  # other threads may take memory meanwhile: they load data
            with torch.cuda.graph(graph, self._pool, self._capturing, capture_error_mode="thread_local"):
                found = run()
        except RuntimeError as error:
            raise CannotCapture(_first_line(error)) from None
        self._pool = graph.pool()
        return found, graph.replay

    def free_bytes(self) -> int:
        kept = torch.cuda.memory_reserved(self.where) - torch.cuda.memory_allocated(self.where)
        return int(torch.cuda.mem_get_info(self.where)[0]) + kept

    def peak_bytes(self) -> int | None:
        return int(torch.cuda.max_memory_allocated(self.where))

    def release(self) -> None:
        torch.cuda.empty_cache()

    def synchronise(self) -> None:
        torch.cuda.synchronize(self.where)

    def holds(self, values: Tensor) -> bool:
        return values.is_cuda

    def _send(self, batch: Batch) -> Batch:
        with torch.cuda.stream(self._copies):
            sent = mapped(batch, lambda values: values.to(self.where, non_blocking=True))
            self._events[id(sent)] = self._copies.record_event()
        return sent

    def _receive(self, batch: Batch) -> Batch:
        main = torch.cuda.current_stream(self.where)
        main.wait_event(self._events.pop(id(batch)))
        for values in (*batch.inputs, batch.target):
            values.record_stream(main)  # its memory is the other stream's
        return batch


def _run_without_waiting(run: Callable[[], Passed]) -> None:
    """A pass in which torch refuses what makes the host wait: a capture that fails leaves the generator unusable."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise CannotCapture(_first_line(error)) from None
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
