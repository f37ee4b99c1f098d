"""What a network that was trained on data alone answers for new samples."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from samestep.data import arrays, unpacked
from samestep.data.columns import Rows, Samples
from samestep.data.pictures import schema as pictures
from samestep.data.series import schema as series
from samestep.data.settings import TEXT_ENDINGS
from samestep.data.table import schema as tables
from samestep.data.table import unseen
from samestep.data.table.raw import Raw
from samestep.data.target import Classes, Target
from samestep.data.tensors import schema as tensors
from samestep.data.text import schema as texts
from samestep.data.text.making import Reading, pieces
from samestep.errors import DataError, UsageError
from samestep.run import weights
from samestep.run.predict import predict
from samestep.workloads import from_data
from samestep.workloads.networks import Network

Notice = Callable[[str], None]


def answer(folder: Path, source: Path, notice: Notice) -> str:
    """Answers as CSV, one line per new sample, in their order.

    Args:
        folder: The run: its network and weights.
        source: A table with the columns that were learned from (the target may be left out), a folder of pictures, an
            array of either (.npy, .npz, IDX), or a text, of which every line is to be continued by one symbol.
        notice: Is told of categories that training has not seen.

    Raises:
        DataError: A column is not there, or a picture is broken.
    """
    network = Network.load(folder)
    about, model = network.about, network.build()
    weights.load_into(model, folder / "weights.safetensors")
    stream = io.StringIO()
    lines = csv.writer(stream, lineterminator="\n")
    if isinstance(about, texts.Schema):
        lines.writerows(_next_symbols(about, network, model, source))
    else:
        names, inputs = _inputs(about, network, source, notice)
        columns = tuple(from_data.input_column(name, values) for name, values in inputs.items())
        outputs = predict(model, Samples(columns, Rows(values=next(iter(inputs.values())))))
        lines.writerows(_lines(about.target, names, outputs))
    return stream.getvalue()


Answerable = tables.Schema | series.Schema | pictures.Schema | tensors.Schema
New = tuple[list[str], dict[str, Tensor]]
"""What new samples are called, and their columns."""


def _inputs(about: Answerable, network: Network, source: Path, notice: Notice) -> New:
    if isinstance(about, tables.Schema):
        return _table(about, network, source, notice)
    if isinstance(about, series.Schema):
        return _series(about, network, source, notice)
    return _pictures(about, network, source) if isinstance(about, pictures.Schema) else _arrays(about, source)


def _lines(target: Target, names: Sequence[str], outputs: Tensor) -> Iterator[Sequence[Any]]:
    if isinstance(target, Classes):
        yield ("sample", target.name, "probability")
        probabilities, classes = outputs.softmax(dim=1).max(dim=1)
        for name, code, probability in zip(names, classes.tolist(), probabilities.tolist(), strict=True):
            yield (name, target.values[code], f"{probability:.6f}")
    else:
        yield ("sample", target.name)
        for name, value in zip(names, outputs.flatten().tolist(), strict=True):
            yield (name, f"{value * target.deviation + target.mean:.6g}")


def _next_symbols(schema: texts.Schema, network: Network, model: nn.Module, source: Path) -> Iterator[Sequence[Any]]:
    """For every line of a text the symbol that follows most likely."""
    model.eval()
    yield ("sample", "symbol", "probability")
    for number, line in enumerate(_text(schema, network, source).splitlines()):
        codes = torch.from_numpy(schema.codes(line)[-schema.window :])
        if not len(codes):
            raise DataError(f"{source.name}: line {number + 1} is empty: there is nothing to continue")
        with torch.no_grad():
            probability, code = model(codes.unsqueeze(0))[0, -1].softmax(dim=0).max(dim=0)
        yield (number, schema.symbol(int(code)), f"{float(probability):.6f}")


def _text(schema: texts.Schema, network: Network, source: Path) -> str:
    """A text, read as the one that was learned from."""
    encoding = network.reading.get("encoding", "utf-8")
    reading = Reading(text="bytes" if schema.unit == "bytes" else None, encoding=encoding)
    with tempfile.TemporaryDirectory(prefix="samestep-") as scratch:
        return "".join(pieces(unpacked.unpack(source, TEXT_ENDINGS, Path(scratch)), reading))


def _table(about: tables.Schema, network: Network, source: Path, notice: Notice) -> New:
    raw = _raw(network, about.columns, about.target.name, source)
    _tell_unseen(about.columns, raw, source, notice)
    rows = tables.encode(about.columns, raw, raw.take(np.arange(raw.num_rows)))
    inputs = {"numbers": torch.from_numpy(rows.numbers), "categories": torch.from_numpy(rows.codes)}
    kept = {name: values for name, values in inputs.items() if values.shape[1]}
    return _numbered(raw.num_rows), kept


def _tell_unseen(columns: tables.Columns, raw: Raw, source: Path, notice: Notice) -> None:
    strange = unseen.look(columns, raw, np.ones(raw.num_rows, np.bool_))
    if strange:
        notice(f"{source.name}: categories that training has not seen: {unseen.in_words(strange)}")


def _arrays(about: tensors.Schema, source: Path) -> New:
    """An array of inputs in a file."""
    inputs = _new_inputs(source)
    if inputs is None or inputs.shape[1:] != about.shape:
        given = source.suffix or "no ending" if inputs is None else f"shape {inputs.shape}"
        wanted = f"a .npy or .npz file of shape (samples, {', '.join(map(str, about.shape))})"
        raise DataError(f"{source.name}: the network takes {wanted}, not {given}")
    return _numbered(len(inputs)), {"inputs": torch.from_numpy(inputs.astype(np.float32))}


def _new_inputs(source: Path) -> npt.NDArray[Any] | None:
    """The inputs of new samples in a file of arrays, in memory; None: it is none."""
    with tempfile.TemporaryDirectory(prefix="samestep-") as scratch:
        found = arrays.new_inputs(source, Path(scratch))
        return None if found is None else np.array(found)


def _numbered(count: int) -> list[str]:
    """What samples without a name are called."""
    return [str(number) for number in range(count)]


def _series(about: series.Schema, network: Network, source: Path, notice: Notice) -> New:
    """What follows the last rows of every series in a table."""
    raw = _raw(network, about.columns, about.target.name, source, about.series)
    _tell_unseen(about.columns, raw, source, notice)
    order, ends = series.in_series(raw, about.series)
    names, stretches, begin = [], [], 0
    for end in np.unique(ends).tolist():
        name = str(end - begin - 1 + about.horizon)
        if about.series is not None:
            codes, values = raw.coded(about.series)
            name = f"{[*values.codes][codes[order[begin]]]} {name}"
        if end - begin < about.window:
            raise DataError(f"{source.name}: {end - begin:,} rows before {name}, and a sample is {about.window:,} rows")
        names.append(name)
        stretches.append(about.rows(raw, order[end - about.window : end]))
        begin = end
    return names, {"values": torch.from_numpy(np.stack(stretches))}


def _raw(network: Network, columns: tables.Columns, target: str, source: Path, series_column: str | None = None) -> Raw:
    """The rows of a table that is to be answered for."""
    from samestep.data.settings import DataSettings  # noqa: PLC0415
    from samestep.data.table import frames, gather, reading  # noqa: PLC0415 (polars)

    numbers = [column.name for column in columns.numbers]
    categories = [column.name for column in columns.categories]
    if series_column is not None and series_column not in categories:
        categories.append(series_column)
    kinds = columns.kinds | dict.fromkeys(categories, "category")
    inputs = _new_inputs(source)
    with tempfile.TemporaryDirectory(prefix="samestep-") as scratch:
        if inputs is None:
            table = reading.table(source, DataSettings(**network.reading), Path(scratch), kinds)
        else:
            known = {*columns.names, *columns.left_out, target}
            given = arrays.columns_again(inputs, known, target, source.name)
            table = frames.of_arrays(given, {name: kind for name, kind in kinds.items() if name in given})
        lacking = [name for name in kinds if name not in table.names]
        if lacking:
            raise DataError(f"{source} lacks the columns {', '.join(lacking)}; it has {', '.join(table.names)}")
        return gather.in_memory(table.chunks([*numbers, *categories]), numbers, categories)


def _pictures(about: pictures.Schema, network: Network, source: Path) -> New:
    from samestep.data.pictures import decode, found  # noqa: PLC0415 (Pillow)

    inputs = _new_inputs(source)
    if inputs is not None:
        return _numbered(len(inputs)), {"pictures": _pixels(about, inputs, source)}
    paths = [source] if source.is_file() else list(found.files(source))
    if not paths:
        raise UsageError(f"{source} holds no pictures ({', '.join(found.ENDINGS)})")
    is_resized = "picture_size" in network.reading
    shape = decode.Shape(height=about.height, width=about.width, channels=about.channels, is_resized=is_resized)
    pixels = np.empty((len(paths), about.channels, about.height, about.width), np.uint8)
    for number, path in enumerate(paths):
        try:
            pixels[number] = decode.decode(path, shape).transpose(2, 0, 1)
        except DataError as error:
            raise DataError(f"{path} {error}") from None
    return [str(path) for path in paths], {"pictures": torch.from_numpy(pixels)}


def _pixels(about: pictures.Schema, inputs: npt.NDArray[Any], source: Path) -> Tensor:
    """Pictures in an array, shape (n, channels, height, width)."""
    wanted = (about.height, about.width, about.channels)
    is_fitting = inputs.dtype == np.uint8 and inputs.ndim in (3, 4)
    pixels = arrays.Part(inputs, None).pixels if is_fitting else inputs
    if not is_fitting or pixels.shape[1:] != wanted:
        raise DataError(
            f"{source.name}: the network takes bytes of shape (samples, {', '.join(map(str, wanted))}), not "
            f"{inputs.dtype} of shape {inputs.shape}"
        )
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
