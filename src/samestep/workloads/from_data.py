"""A workload from data alone: the pack's schema decides the task, the network's ends, the loss and the metric."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from samestep.data import making
from samestep.data.columns import Column, Dataset, Rows, Samples, Scale, Stretches, Windows
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.pack.mapped import Mapped
from samestep.data.pack.reader import Pack
from samestep.data.pictures import schema as pictures
from samestep.data.settings import DataSettings
from samestep.data.table import series
from samestep.data.table.schema import Classes, Schema, Value
from samestep.data.text import schema as texts
from samestep.data.text.making import num_windows
from samestep.errors import DataError, UsageError
from samestep.host import files
from samestep.run.metrics import accuracy
from samestep.run.workload import Metric, Workload
from samestep.workloads.convolutional import plain_cnn
from samestep.workloads.feed_forward import TableNet, layers
from samestep.workloads.recurrent import RowReader, RowsOfPixels, SymbolReader
from samestep.workloads.transformer import language_model, token_loss

Model = Literal["mlp", "cnn", "lstm", "transformer"]

_MODELS: Mapping[str, tuple[Model, ...]] = {
    "table": ("mlp",),
    "pictures": ("cnn", "mlp", "lstm"),
    "series": ("lstm", "mlp"),
    "text": ("transformer", "lstm"),
}
"""By kind of data; the first is the default."""

FILENAME = "network.json"
"""In a run's folder: what was trained, so that it can answer for new samples."""

_READING = ("delimiter", "header", "missing", "encoding")

_CODES = Scale(dtype=torch.int64)
_PIXELS = Scale(factor=1 / 255)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network for data of some kind; with trained weights all that is needed to answer for new samples.

    Args:
        kind: Of the data, as the pack says.
        schema: What its columns mean, as the pack says.
        model: The family.
        width: Units of a hidden layer, or filters of the first block.
        depth: Hidden layers, or blocks.
        reading: How new samples are read: settings of the data by name.
    """

    kind: str
    schema: Mapping[str, Any]
    model: Model
    width: int
    depth: int
    reading: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write it into a run's folder."""
        files.make_folder(folder, "the run")
        files.write_atomically(folder / FILENAME, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Network:
        """The network that was saved in a run's folder.

        Raises:
            DataError: There is none, or it is damaged.
        """
        path = folder / FILENAME
        try:
            return cls(**json.loads(path.read_bytes()))
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); is {folder} a run of train --data?") from None
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error})") from None

    def build(self) -> nn.Module:
        """The module, with new weights."""
        if self.kind == "text":
            return _text_net(texts.Schema.from_dict(self.schema), self)
        if self.kind == "series":
            return _series_net(series.Schema.from_dict(self.schema), self)
        if self.kind == "pictures":
            return _picture_net(pictures.Schema.from_dict(self.schema), self)
        return _table_net(Schema.from_dict(self.schema), self)


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
        source: A path (a table, an archive, a folder of pictures, a text, a pack), a data frame, a mapping of columns
            or an array.
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
    return workload(packed, choose(packed, model=model, width=width, depth=depth))


def _from_memory(
    source: Any, model: Model | None, width: int | None, depth: int | None, about: DataSettings
) -> Workload:
    """The pack lies in a temporary folder, which is there as long as the workload."""
    place = Path(tempfile.mkdtemp(prefix="samestep-"))
    try:
        packed = making.of_memory(source, place / "memory", about, _silent)
        found = workload(packed, choose(packed, model=model, width=width, depth=depth))
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


def choose(pack: Pack, *, model: Model | None = None, width: int | None = None, depth: int | None = None) -> Network:
    """A network that suits a pack.

    Args:
        pack: The data.
        model: The family; None: what suits the data.
        width: None: by the number of samples.
        depth: None: 2, for an LSTM 1.

    Raises:
        UsageError: There is no network of that family for such data.
    """
    kind = pack.manifest.kind
    fitting = _MODELS[kind]
    if model is not None and model not in fitting:
        raise UsageError(f"model {model} does not go with {kind}; take {' or '.join(fitting)}")
    chosen = model or fitting[0]
    usual = 64 if pack.manifest.num_samples(TRAIN) < 5_000 else 128
    usual_width, usual_depth = {"cnn": (16, 2), "lstm": (128, 1)}.get(chosen, (usual, 2))
    settings = pack.manifest.made_of["settings"]
    return Network(
        kind=kind,
        schema=pack.manifest.schema,
        model=chosen,
        width=width or usual_width,
        depth=depth or usual_depth,
        reading={name: settings[name] for name in _READING if name in settings},
    )


def workload(pack: Pack, network: Network) -> Workload:
    """A loss, a metric and a recipe for a pack and a network.

    Raises:
        DataError: The pack holds no samples to train on.
    """
    if TRAIN not in pack.parts:
        raise DataError(f"{pack.folder} holds no samples to train on")
    if network.kind == "text":
        return _text_workload(pack, network)
    target = target_of(network)
    metrics: dict[str, Metric] = {"accuracy": accuracy}
    if isinstance(target, Value):
        metrics = {"mae": AbsoluteError(target.deviation)}
    return Workload(
        name=f"{pack.folder.name} → {target.name}",
        model=network.build,
        data=partial(_dataset, pack, network),
        loss=nn.CrossEntropyLoss() if isinstance(target, Classes) else nn.MSELoss(),
        metrics=metrics,
        class_names=target.values if isinstance(target, Classes) else (),
        recipe=recipe(pack.manifest.num_samples(TRAIN)),
    )


def _text_workload(pack: Pack, network: Network) -> Workload:
    window = texts.Schema.from_dict(network.schema).window
    num_samples = num_windows(pack.manifest.num_samples(TRAIN), window)
    return Workload(
        name=f"{pack.folder.name} → next symbol",
        model=network.build,
        data=partial(_dataset, pack, network),
        loss=token_loss,
        metrics={"accuracy": accuracy},
        recipe={**recipe(num_samples), "global_batch": 64, "lr": 4e-3, "weight_decay": 0.1, "clip_norm": 1.0},
    )


def target_of(network: Network) -> Classes | Value:
    """What is learned, of all but texts."""
    if network.kind == "series":
        return series.Schema.from_dict(network.schema).target
    if network.kind == "pictures":
        found = pictures.Schema.from_dict(network.schema)
        return Classes(name=found.target, values=found.classes, is_numeric=False)
    return Schema.from_dict(network.schema).target


def recipe(num_samples: int) -> dict[str, Any]:
    """Settings that suit a number of samples: about 2,000 steps, at least three epochs and at most fifty.

    Example:
        >>> recipe(800)["epochs"], recipe(1_000_000)["epochs"]
        (50.0, 4.0)
    """
    global_batch = next(batch for batch, limit in _BATCHES if num_samples < limit)
    epochs = min(50.0, max(3.0, float(round(2000 * global_batch / num_samples))))
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


def _picture_net(schema: pictures.Schema, network: Network) -> nn.Module:
    num_classes, sides = len(schema.classes), (schema.height, schema.width)
    if network.model == "cnn":
        return plain_cnn(
            sides=sides,
            kernel=3,
            width=network.width,
            depth=network.depth,
            num_classes=num_classes,
            channels=schema.channels,
        )
    if network.model == "lstm":
        row_size = schema.channels * schema.width
        reader = RowReader(row_size=row_size, width=network.width, depth=network.depth, num_classes=num_classes)
        return nn.Sequential(RowsOfPixels(), reader)
    num_inputs = schema.channels * schema.height * schema.width
    hidden = layers(num_inputs, width=network.width, depth=network.depth, num_classes=num_classes)
    return nn.Sequential(nn.Flatten(), *hidden)


def _series_net(schema: series.Schema, network: Network) -> nn.Module:
    if network.model == "lstm":
        return RowReader(row_size=schema.row_size, width=network.width, depth=network.depth, num_classes=1)
    hidden = layers(schema.window * schema.row_size, width=network.width, depth=network.depth, num_classes=1)
    return nn.Sequential(nn.Flatten(), *hidden)


def _text_net(schema: texts.Schema, network: Network) -> nn.Module:
    num_symbols = len(schema.symbols)
    if network.model == "lstm":
        return SymbolReader(num_symbols=num_symbols, width=network.width, depth=network.depth)
    return language_model(
        num_symbols=num_symbols, context=schema.window, width=network.width, depth=network.depth, dropout=0.1
    )


def _table_net(schema: Schema, network: Network) -> nn.Module:
    num_outputs = len(schema.target.values) if isinstance(schema.target, Classes) else 1
    build: Callable[..., nn.Module] = partial(layers, schema.columns.num_inputs)
    if schema.columns.categories:
        cardinalities = [category.num_codes for category in schema.columns.categories]
        build = partial(TableNet, num_numeric=schema.columns.num_inputs, cardinalities=cardinalities)
    return build(width=network.width, depth=network.depth, num_classes=num_outputs)


def _dataset(pack: Pack, network: Network) -> Dataset:
    evaluation = pack.parts.get(EVALUATION)
    if network.kind == "series":
        schema, rows = series.Schema.from_dict(network.schema), pack.parts[series.ROWS]
        train = _stretches(schema, rows, pack.parts[TRAIN][series.STARTS])
        return Dataset(train, _stretches(schema, rows, evaluation[series.STARTS]) if evaluation else None)
    if evaluation and network.kind == "text":
        window = texts.Schema.from_dict(network.schema).window
        if not num_windows(evaluation["codes"].shape[0], window):
            evaluation = None  # shorter than a window
    return Dataset(_samples(pack.parts[TRAIN], network), _samples(evaluation, network) if evaluation else None)


def _samples(columns: Mapping[str, Mapped], network: Network) -> Samples:
    if network.kind == "text":
        return _windows(columns["codes"], texts.Schema.from_dict(network.schema).window)
    inputs = tuple(
        input_column(name, columns[name]) for name in ("numbers", "categories", "pictures") if name in columns
    )
    return Samples(inputs, Rows(values=columns["target"]))


def _stretches(schema: series.Schema, rows: Mapping[str, Mapped], starts: Mapped) -> Samples:
    inputs = Stretches(values=rows[series.VALUES], starts=starts, length=schema.window)
    goal = schema.window - 1 + schema.horizon
    return Samples((inputs,), Stretches(values=rows[series.TARGET], starts=starts, length=None, offset=goal))


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


def input_column(name: str, values: Tensor | Mapped) -> Column:
    """A packed column as the network takes it."""
    transforms = {"categories": _CODES, "pictures": _PIXELS}
    return Rows(values=values, transform=transforms.get(name))
