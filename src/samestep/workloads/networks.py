"""Networks for data alone: the family suits the kind of data, the schema decides its ends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from samestep.data.pack.manifest import TRAIN
from samestep.data.pack.reader import Pack
from samestep.data.pictures import schema as pictures
from samestep.data.table import series
from samestep.data.table.schema import Classes, Schema, Value
from samestep.data.tensors import schema as tensors
from samestep.data.text import schema as texts
from samestep.errors import DataError, UsageError
from samestep.host import files
from samestep.workloads.convolutional import plain_cnn
from samestep.workloads.feed_forward import TableNet, layers
from samestep.workloads.recurrent import RowReader, RowsOfPixels, SymbolReader
from samestep.workloads.transformer import language_model

Model = Literal["mlp", "cnn", "lstm", "transformer"]

_MODELS: Mapping[str, tuple[Model, ...]] = {
    "table": ("mlp",),
    "arrays": ("mlp", "cnn", "lstm"),
    "pictures": ("cnn", "mlp", "lstm"),
    "series": ("lstm", "mlp"),
    "text": ("transformer", "lstm"),
}
"""By kind of data; the first is the default."""

_BY_DIMENSIONS: Mapping[int, tuple[Model, ...]] = {2: ("lstm", "mlp"), 3: ("cnn", "mlp")}
"""Of arrays: by the dimensions of a sample."""

FILENAME = "network.json"
"""In a run's folder: what was trained, so that it can answer for new samples."""

_READING = ("delimiter", "header", "missing", "encoding")


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
        if self.kind == "arrays":
            return _array_net(tensors.Schema.from_dict(self.schema), self)
        if self.kind == "series":
            return _series_net(series.Schema.from_dict(self.schema), self)
        if self.kind == "pictures":
            return _picture_net(pictures.Schema.from_dict(self.schema), self)
        return _table_net(Schema.from_dict(self.schema), self)


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
    if kind == "arrays":
        num_dims = len(tensors.Schema.from_dict(pack.manifest.schema).shape)
        fitting = _BY_DIMENSIONS.get(num_dims, ("mlp",))
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


def target_of(network: Network) -> Classes | Value:
    """What is learned, of all but texts."""
    if network.kind == "arrays":
        return tensors.Schema.from_dict(network.schema).target
    if network.kind == "series":
        return series.Schema.from_dict(network.schema).target
    if network.kind == "pictures":
        found = pictures.Schema.from_dict(network.schema)
        return Classes(name=found.target, values=found.classes, is_numeric=False)
    return Schema.from_dict(network.schema).target


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


def _array_net(schema: tensors.Schema, network: Network) -> nn.Module:
    num_outputs, sizes = _num_outputs(schema.target), {"width": network.width, "depth": network.depth}
    if network.model == "cnn":
        channels, height, width = schema.shape
        return plain_cnn(sides=(height, width), channels=channels, kernel=3, num_classes=num_outputs, **sizes)
    if network.model == "lstm":
        return RowReader(row_size=schema.shape[1], num_classes=num_outputs, **sizes)
    return nn.Sequential(nn.Flatten(), *layers(math.prod(schema.shape), num_classes=num_outputs, **sizes))


def _num_outputs(target: Classes | Value) -> int:
    return len(target.values) if isinstance(target, Classes) else 1


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
    num_outputs = _num_outputs(schema.target)
    build: Callable[..., nn.Module] = partial(layers, schema.columns.num_inputs)
    if schema.columns.categories:
        cardinalities = [category.num_codes for category in schema.columns.categories]
        build = partial(TableNet, num_numeric=schema.columns.num_inputs, cardinalities=cardinalities)
    return build(width=network.width, depth=network.depth, num_classes=num_outputs)
