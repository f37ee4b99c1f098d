"""A workload from data alone: the pack's schema decides the task, the network's ends, the loss and the metric."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from samestep.data import making, schemas
from samestep.data.columns import Dataset, Rows, Samples, Scale, Stretches, Windows
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.pack.mapped import Mapped
from samestep.data.pack.reader import Pack
from samestep.data.pictures import schema as pictures
from samestep.data.series import schema as series
from samestep.data.series.schema import ROWS, STARTS, TARGET, VALUES
from samestep.data.settings import DataSettings
from samestep.data.table import schema as tables
from samestep.data.target import Classes, Value
from samestep.data.tensors import schema as tensors
from samestep.data.text import schema as texts
from samestep.data.text.schema import num_windows
from samestep.engine.losses import TokenLoss
from samestep.errors import DataError
from samestep.run.metrics import accuracy
from samestep.run.workload import Metric, Workload
from samestep.workloads import networks
from samestep.workloads.networks import Model, Network

_CODES = Scale(dtype=torch.int64)
_PIXELS = Scale(factor=1 / 255)


def from_data(
    source: Any,
    *,
    model: Model | None = None,
    width: int | None = None,
    depth: int | None = None,
    folder: Path | str | None = None,
    **settings: Any,
) -> Workload:
    """A workload from data alone; `samestep.train` trains it.

    Args:
        source: A path (a table, an archive, a folder of pictures, a text, a pack), a data frame, a mapping of columns,
            an array (of one dimension and whole numbers: the tokens of a text), or a map-style data set of torch, whose
            samples are read once.
        model: The family of the network; None: what suits the data.
        width: None: by the number of samples.
        depth: None: what suits the family.
        folder: Where the pack goes; None: the user's cache, and a temporary folder for data in memory.
        **settings: Any field of `DataSettings`: ``target``, ``kinds``, ``evaluation_frac``, ...

    Raises:
        DataError: The data cannot be learned from.
        UsageError: Something cannot be done as asked.

    Example:
        >>> import numpy as np
        >>> x = np.random.default_rng(0).normal(size=(100, 2))
        >>> from_data({"a": x[:, 0], "b": x[:, 1], "y": x[:, 0] > 0}, target="y").class_names
        ('0', '1')
    """
    about = DataSettings(**settings)
    if isinstance(source, str | Path):
        packed = _packed(str(source), folder, about)
    elif folder is None:
        return _from_memory(source, model, width, depth, about)
    else:
        packed = making.of_memory(source, Path(folder), about, _silent)
    return workload(packed, networks.choose(packed, model=model, width=width, depth=depth))


def _from_memory(
    source: Any, model: Model | None, width: int | None, depth: int | None, about: DataSettings
) -> Workload:
    """The pack lies in a temporary folder, which is there as long as the workload."""
    place = Path(tempfile.mkdtemp(prefix="samestep-"))
    try:
        packed = making.of_memory(source, place / "memory", about, _silent, is_private=True)
        for column in (column for columns in packed.parts.values() for column in columns.values()):
            assert len(column.tensor) >= 0  # mapped now: its file may be gone when somebody looks at the data later
        found = workload(packed, networks.choose(packed, model=model, width=width, depth=depth))
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    weakref.finalize(found, shutil.rmtree, place, ignore_errors=True)
    return found


def _packed(source: str, folder: Path | str | None, about: DataSettings) -> Pack:
    if folder is None:
        return making.in_cache(source, about, _silent)
    return making.ensure(source, Path(folder), about, _silent)[0]


def _silent(what: str, done: int, total: int) -> None:
    """Tells nobody how far it is."""


def workload(pack: Pack, network: Network) -> Workload:
    """A loss, a metric and a recipe for a pack and a network.

    Raises:
        DataError: The pack holds no samples to train on.
    """
    if TRAIN not in pack.parts:
        raise DataError(f"{pack.folder} holds no samples to train on")
    about = network.about
    made = _text_workload(pack, network, about) if isinstance(about, texts.Schema) else _workload(pack, network, about)
    if network.base is None:
        return made
    depth_ratio = network.depth / (network.base_depth or network.depth)
    return replace(made, base_model=network.base.build, depth_ratio=depth_ratio)


def _workload(
    pack: Pack, network: Network, about: pictures.Schema | series.Schema | tables.Schema | tensors.Schema
) -> Workload:
    target = about.target
    metrics: dict[str, Metric] = {"accuracy": accuracy}
    if isinstance(target, Value):
        metrics = {"mae": AbsoluteError(target.deviation)}
    return Workload(
        name=f"{pack.folder.name} → {target.name}",
        model=network.build,
        data=partial(_dataset, pack),
        loss=nn.CrossEntropyLoss() if isinstance(target, Classes) else _loss_of_values(about),
        metrics=metrics,
        class_names=target.values if isinstance(target, Classes) else (),
        recipe=recipe(pack.manifest.num_samples(TRAIN), kind=pack.manifest.kind),
    )


def _loss_of_values(about: schemas.Schema) -> nn.Module:
    """Of a time series the distance, for a few storms must not decide about all that is calm."""
    return nn.L1Loss() if isinstance(about, series.Schema) else nn.MSELoss()


def _text_workload(pack: Pack, network: Network, about: texts.Schema) -> Workload:
    num_samples = num_windows(pack.manifest.num_samples(TRAIN), about.window)
    return Workload(
        name=f"{pack.folder.name} → next symbol",
        model=network.build,
        data=partial(_dataset, pack),
        loss=TokenLoss(),
        metrics={"accuracy": accuracy},
        recipe={**recipe(num_samples), "global_batch": 64, "lr": 4e-3, "weight_decay": 0.1, "clip_norm": 1.0},
    )


def recipe(num_samples: int, *, kind: str = "") -> dict[str, Any]:
    """Settings that suit a number of samples: about 2,000 steps, at least three epochs and at most fifty.

    Rows of a table are cheap and are soon known by heart: 16 epochs, but 500 steps at least and 10,000 at most (chosen
    on Adult and Covertype). Samples of a time series are nearly equal to their neighbours, and an epoch reads every row
    as often as a sample has rows: one epoch, but about 200 steps at least (chosen on Beijing's air). Neither takes less
    than an epoch or more than fifty.

    Args:
        num_samples: To train on.
        kind: Of the data: "table", "series", ...

    Example:
        >>> recipe(800)["epochs"], recipe(1_000_000)["epochs"]
        (50.0, 4.0)
        >>> recipe(800, kind="table")["epochs"], recipe(1_000_000, kind="table")["epochs"]
        (38.0, 16.0)
        >>> recipe(800, kind="series")["epochs"], recipe(1_000_000, kind="series")["epochs"]
        (15.0, 1.0)
    """
    global_batch = next(batch for batch, limit in _BATCHES if num_samples < limit)
    of_epoch = -(-num_samples // global_batch)
    wanted, fewest = {
        "table": (min(10_000, max(500, 16 * of_epoch)), 1),
        "series": (max(200, of_epoch), 1),
    }.get(kind, (2000, 3))
    epochs = float(min(50, max(fewest, round(wanted / of_epoch))))
    return {
        "global_batch": global_batch, "epochs": epochs, "optimizer": "adamw", "lr": 2e-3, "weight_decay": 1e-2,
        "lr_schedule": "cosine", "lr_warmup": 0.05,
    }  # fmt: skip


_BATCHES = ((64, 4_096), (256, 32_768), (512, 262_144), (2048, float("inf")))
"""Global batches, and the number of samples below which they are taken."""


@dataclass(frozen=True)
class AbsoluteError:
    """A metric: the mean distance of a standardised answer from the target, in the target's own unit.

    Args:
        deviation: What the target was divided by.
    """

    deviation: float

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).abs().flatten() * self.deviation


def _dataset(pack: Pack) -> Dataset:
    """The samples of both parts; an evaluation part that holds none (a text shorter than a window) is left out."""
    about = schemas.read(pack.manifest.kind, pack.manifest.schema)
    train, evaluation = _samples(pack, TRAIN, about), None
    if EVALUATION in pack.parts and _num_samples(pack, EVALUATION, about):
        evaluation = _samples(pack, EVALUATION, about)
    return Dataset(train, evaluation)


def _num_samples(pack: Pack, part: str, about: schemas.Schema) -> int:
    count = pack.manifest.num_samples(part)
    return num_windows(count, about.window) if isinstance(about, texts.Schema) else count


def _samples(pack: Pack, part: str, about: schemas.Schema) -> Samples:
    columns = pack.parts[part]
    if isinstance(about, texts.Schema):
        return _windows(columns["codes"], about.window)
    if isinstance(about, series.Schema):
        return _stretches(about, pack.parts[ROWS], columns[STARTS])
    num_marks = about.columns.num_inputs - len(about.columns.numbers) if isinstance(about, tables.Schema) else 0
    inputs = tuple(
        replace(input_column(name, values), num_marks=num_marks if name == "numbers" else 0)
        for name, values in columns.items()
        if name != "target"
    )
    return Samples(inputs, Rows(values=columns["target"]))


def _stretches(schema: series.Schema, rows: Mapping[str, Mapped], starts: Mapped) -> Samples:
    inputs = Stretches(values=rows[VALUES], starts=starts, length=schema.window)
    goal = schema.window - 1 + schema.horizon
    return Samples((inputs,), Stretches(values=rows[TARGET], starts=starts, length=None, offset=goal))


def _windows(codes: Mapped, length: int) -> Samples:
    """Windows one after the other; the target is the window one symbol further."""
    window = partial(
        Windows,
        values=codes,
        length=length,
        stride=length,
        num_samples=num_windows(codes.shape[0], length),
        transform=_CODES,
    )
    return Samples((window(offset=0),), window(offset=1))


def input_column(name: str, values: Tensor | Mapped) -> Rows:
    """A packed column as the network takes it."""
    transforms = {"categories": _CODES, "pictures": _PIXELS}
    return Rows(values=values, transform=transforms.get(name))
