"""Networks for data alone: the family suits the kind of data, the schema decides its ends."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from samestep.data import schemas
from samestep.data.pack.manifest import TRAIN
from samestep.data.pack.reader import Pack
from samestep.data.pictures import schema as pictures
from samestep.data.series import schema as series
from samestep.data.settings import READING
from samestep.data.table import schema as tables
from samestep.data.tensors import schema as tensors
from samestep.data.text import schema as texts
from samestep.errors import DataError, UsageError
from samestep.host import files
from samestep.workloads.convolutional import plain_cnn
from samestep.workloads.feed_forward import layers
from samestep.workloads.recurrent import Change, RowReader, RowsOfPixels, SymbolReader
from samestep.workloads.tables import TableNet
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

_READING = (*READING, "picture_size")


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
        base_width: The width that the learning rate was chosen for; None: this one.
        base_depth: The depth that it was chosen for; None: this one.
        has_waves: Of a table: whether its numbers are given as waves, too (see `workloads.tables.Waves`).
        dropout: Of a table: share of the hidden units left out in training.
        gives_change: Of a time series: whether the answer is added to the last known value of the target.
    """

    kind: str
    schema: Mapping[str, Any]
    model: Model
    width: int
    depth: int
    reading: Mapping[str, Any]
    base_width: int | None = None
    base_depth: int | None = None
    has_waves: bool = False
    dropout: float = 0.0
    gives_change: bool = False

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

    @property
    def base(self) -> Network | None:
        """The network of the same depth that the learning rate was chosen for; None where that is not said."""
        if self.base_width is None and self.base_depth is None:
            return None
        return replace(self, width=self.base_width or self.width)

    @property
    def about(self) -> schemas.Schema:
        """What the data are."""
        return schemas.read(self.kind, self.schema)

    def build(self) -> nn.Module:
        """The module, with new weights."""
        about, sizes = self.about, Sizes(self.width, self.depth)
        if isinstance(about, texts.Schema):
            return _text_net(about, self.model, sizes, self.base_width)
        if isinstance(about, tables.Schema):
            return _table_net(about, sizes, has_waves=self.has_waves, dropout=self.dropout)
        net = _array_net(shape_of(about), about.target.num_outputs, self.model, sizes)
        if isinstance(about, series.Schema) and self.gives_change:
            return Change(net, *_places(about))
        return net


class Sizes(NamedTuple):
    """Of a network: see `Network`."""

    width: int
    depth: int


def shape_of(about: pictures.Schema | series.Schema | tensors.Schema) -> tuple[int, ...]:
    """The shape of a sample's input: (channels, height, width), (rows, numbers of a row), or anything else."""
    if isinstance(about, pictures.Schema):
        return (about.channels, about.height, about.width)
    return (about.window, about.row_size) if isinstance(about, series.Schema) else about.shape


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
        num_dims = len(pack.manifest.schema["shape"])
        fitting = _BY_DIMENSIONS.get(num_dims, ("mlp",))
    if model is not None and model not in fitting:
        raise UsageError(f"model {model} does not go with {kind}; take {' or '.join(fitting)}")
    chosen = model or fitting[0]
    num_samples = pack.manifest.num_samples(TRAIN)
    usual = 64 if num_samples < 5_000 else 256 if kind == "table" and num_samples >= 50_000 else 128
    usual_width, usual_depth = {"cnn": (16, 2), "lstm": (128, 1)}.get(chosen, (usual, 2))
    settings = pack.manifest.made_of["settings"]
    return Network(
        kind=kind,
        schema=pack.manifest.schema,
        model=chosen,
        width=width or usual_width,
        depth=depth or usual_depth,
        reading={name: settings[name] for name in _READING if name in settings},
        has_waves=kind == "table",
        dropout=0.2 if kind == "table" else 0.0,
        gives_change=kind == "series",
    )


def _array_net(shape: tuple[int, ...], num_outputs: int, model: Model, sizes: Sizes) -> nn.Module:
    """For samples that are one array; an LSTM reads pictures row by row."""
    if model == "cnn":
        channels, height, width = shape
        return plain_cnn(sides=(height, width), channels=channels, kernel=3, num_classes=num_outputs, **sizes._asdict())
    if model == "lstm" and len(shape) == 3:
        reader = RowReader(row_size=shape[0] * shape[2], num_classes=num_outputs, **sizes._asdict())
        return nn.Sequential(RowsOfPixels(), reader)
    if model == "lstm":
        return RowReader(row_size=shape[1], num_classes=num_outputs, **sizes._asdict())
    return nn.Sequential(nn.Flatten(), *layers(math.prod(shape), num_classes=num_outputs, **sizes._asdict()))


def _places(about: series.Schema) -> tuple[int, int | None]:
    """Where a row holds the target's value, and whether that is missing (None: it never is)."""
    numbers = about.columns.numbers
    place = [number.name for number in numbers].index(about.target.name)
    mark = len(numbers) + sum(number.has_missing for number in numbers[:place])
    return place, mark if numbers[place].has_missing else None


def _text_net(about: texts.Schema, model: Model, sizes: Sizes, base_width: int | None) -> nn.Module:
    num_symbols = len(about.numbers)
    if model == "lstm":
        return SymbolReader(num_symbols=num_symbols, **sizes._asdict())
    return language_model(
        num_symbols=num_symbols, context=about.window, dropout=0.1, base_width=base_width, **sizes._asdict()
    )


def _table_net(about: tables.Schema, sizes: Sizes, *, has_waves: bool, dropout: float) -> nn.Module:
    columns = about.columns
    cardinalities = [category.num_codes for category in columns.categories]
    in_waves = [place for place, number in enumerate(columns.numbers) if has_waves and not number.is_flag]
    width, depth, num_outputs = *sizes, about.target.num_outputs
    if not cardinalities and not in_waves:  # the parameters' names are those of networks saved before there were waves
        return layers(columns.num_inputs, width=width, depth=depth, num_classes=num_outputs, dropout=dropout)
    return TableNet(
        num_numeric=columns.num_inputs,
        cardinalities=cardinalities,
        width=width,
        depth=depth,
        num_classes=num_outputs,
        in_waves=in_waves,
        dropout=dropout,
    )
