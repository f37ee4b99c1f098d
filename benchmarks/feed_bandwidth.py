"""Two looks at samestep's feed alone: bytes a second beside the machine's copy, and where the time of a batch goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks import feed_loaders
from benchmarks.feed_loaders import BATCH, BY_STEP, OURS, Loader
from samestep.data.columns import Column, Samples, Scale
from samestep.data.feed import GATHERED_BYTES
from samestep.host import peaks
from samestep.plan.order import Order

TABLE_BYTES = 512 * 2**20
_CHUNK = 8192
"""Positions whose order the feed computes at once."""

_COPY_RUN_S = 0.1
_SEED = 1


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Rows of a table of 512 MB.

    Args:
        name: What it is called in records.
        label: What it is called on the page.
        width: Values a row.
        dtype: Of the table; a batch is float32.
    """

    name: str
    label: str
    width: int
    dtype: torch.dtype

    @property
    def num_rows(self) -> int:
        return TABLE_BYTES // (self.width * self.dtype.itemsize)

    @property
    def moved_bytes(self) -> int:
        """Read and written in an epoch: a row is read once, and written once as float32."""
        return self.num_rows * self.width * (self.dtype.itemsize + torch.float32.itemsize)

    @property
    def scale(self) -> Scale | None:
        return None if self.dtype == torch.float32 else Scale(factor=1 / 255, shift=-0.5)


SHAPES = (
    Shape(name="float32-256", label="float32, rows of 1 KB", width=256, dtype=torch.float32),
    Shape(name="float32-1024", label="float32, rows of 4 KB", width=1024, dtype=torch.float32),
    Shape(name="float32-4096", label="float32, rows of 16 KB", width=4096, dtype=torch.float32),
    Shape(name="uint8-1024", label="uint8 to float32, 1,024 values a row", width=1024, dtype=torch.uint8),
    Shape(name="uint8-4096", label="uint8 to float32, 4,096 values a row", width=4096, dtype=torch.uint8),
)

Runs = Mapping[str, Callable[[int], object]]


class Copies:
    """The machine's copy, measured whenever it is run.

    Args:
        sizes: How long and how large.
    """

    def __init__(self) -> None:
        self._sizes = replace(peaks.usual_sizes(), run_s=_COPY_RUN_S)
        self.bytes_per_s: list[float] = []

    def run(self, number: int) -> None:
        self.bytes_per_s.append(peaks.take(self._sizes).copy_bytes_per_s_one_core)


def bandwidth_runs(copies: Copies) -> Runs:
    """The copy, and for every shape an epoch of the feed, and of gathering alone."""
    numbers = torch.rand(TABLE_BYTES // 4, generator=torch.Generator().manual_seed(_SEED))
    octets = torch.randint(256, (TABLE_BYTES,), dtype=torch.uint8, generator=torch.Generator().manual_seed(_SEED))
    found: dict[str, Callable[[int], object]] = {"copy": copies.run}
    for shape in SHAPES:
        values = (numbers if shape.dtype == torch.float32 else octets).view(shape.num_rows, shape.width)
        source = feed_loaders.Source(inputs=(values,), target=torch.arange(shape.num_rows), scale=shape.scale)
        found[f"{shape.name}/feed"] = feed_loaders.ours(source)[0].run
        found[f"{shape.name}/gather"] = gathering([source.samples().inputs[0]], BATCH)
    return found


def time_runs() -> Runs:
    """The feed of a table of 60,000 × 20, asked for a stream and for each step; order and gathering alone."""
    source = feed_loaders.table()
    samples = source.samples()
    columns = [*samples.inputs, samples.target]
    loaders: dict[str, Loader] = {loader.name: loader for loader in feed_loaders.ours(source)}
    return {
        OURS: loaders[OURS].run,
        BY_STEP: loaders[BY_STEP].run,
        "order": lambda number: ordering(number, samples),
        f"{OURS}/gather": gathering(columns, BATCH * num_together(samples)),
        f"{BY_STEP}/gather": gathering(columns, BATCH),
    }


def num_together(samples: Samples) -> int:
    """How many microbatches the feed gathers at once."""
    num_bytes = sum(
        column.gather(torch.zeros(1, dtype=torch.int64)).nbytes for column in (*samples.inputs, samples.target)
    )
    return max(1, GATHERED_BYTES // (BATCH * num_bytes))


def ordering(epoch: int, samples: Samples) -> None:
    """Compute the order of an epoch as the feed does."""
    order = Order(num_samples=samples.num_samples, seed=_SEED)
    for start in range(0, samples.num_samples, _CHUNK):
        torch.from_numpy(order.indices(epoch=epoch, start=start, stop=min(start + _CHUNK, samples.num_samples)))


def gathering(columns: Sequence[Column], batch: int) -> Callable[[int], object]:
    """Gather, cast and normalise every row once, in an order that is known."""
    order = Order(num_samples=columns[0].num_samples, seed=_SEED)
    indices = torch.from_numpy(order.indices(epoch=0, start=0, stop=order.num_samples))
    parts: Sequence[Tensor] = torch.split(indices, batch)

    def run(number: int) -> None:
        for part in parts:
            for column in columns:
                column.gather(part)

    return run
