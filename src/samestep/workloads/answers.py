"""What a network that was trained on data alone answers for new samples."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samestep.data.arrays import read_numpy
from samestep.data.columns import Rows, Samples
from samestep.data.pictures import schema as pictures
from samestep.data.table import series
from samestep.data.table.raw import Raw
from samestep.data.table.schema import Classes, Columns, Schema, encode_columns
from samestep.data.tensors import schema as tensors
from samestep.data.text import schema as texts
from samestep.errors import DataError, UsageError
from samestep.run import weights
from samestep.run.predict import predict
from samestep.workloads import from_data, networks
from samestep.workloads.networks import Network


def answer(folder: Path, source: Path) -> str:
    """Answers as CSV, one line per new sample, in their order.

    Args:
        folder: The run: its network and weights.
        source: A table with the columns that were learned from (the target may be left out); a folder of pictures; or a
            text, of which every line is to be continued by one symbol.

    Raises:
        DataError: A column is not there, or a picture is broken.
    """
    network = Network.load(folder)
    model = network.build()
    weights.load_into(model, folder / "weights.safetensors")
    stream = io.StringIO()
    answers = csv.writer(stream, lineterminator="\n")
    if network.kind == "text":
        answers.writerows(_next_symbols(texts.Schema.from_dict(network.schema), model, source))
        return stream.getvalue()
    read = {"pictures": _pictures, "series": _series, "arrays": _arrays, "table": _table}[network.kind]
    names, inputs = read(network, source)
    columns = tuple(from_data.input_column(name, values) for name, values in inputs.items())
    outputs = predict(model, Samples(columns, Rows(values=next(iter(inputs.values())))))
    answers.writerows(_lines(network, names, outputs))
    return stream.getvalue()


def _lines(network: Network, names: Sequence[str], outputs: Tensor) -> Iterator[Sequence[Any]]:
    target = networks.target_of(network)
    if isinstance(target, Classes):
        yield ("sample", target.name, "probability")
        probabilities, classes = outputs.softmax(dim=1).max(dim=1)
        for name, code, probability in zip(names, classes.tolist(), probabilities.tolist(), strict=True):
            yield (name, target.values[code], f"{probability:.6f}")
    else:
        yield ("sample", target.name)
        for name, value in zip(names, outputs.flatten().tolist(), strict=True):
            yield (name, f"{value * target.deviation + target.mean:.6g}")


def _next_symbols(schema: texts.Schema, model: nn.Module, source: Path) -> Iterator[Sequence[Any]]:
    """For every line of a text the symbol that follows most likely."""
    encoding = "latin-1" if schema.are_bytes else "utf-8"
    model.eval()
    yield ("sample", "symbol", "probability")
    for number, line in enumerate(source.read_text(encoding).splitlines()):
        codes = torch.from_numpy(schema.codes(line[-schema.window :]))
        if not len(codes):
            raise DataError(f"{source.name}: line {number + 1} is empty: there is nothing to continue")
        with torch.no_grad():
            probability, code = model(codes.unsqueeze(0))[0, -1].softmax(dim=0).max(dim=0)
        yield (number, schema.symbols[int(code)], f"{float(probability):.6f}")


def _table(network: Network, source: Path) -> tuple[list[str], dict[str, Tensor]]:
    columns = Schema.from_dict(network.schema).columns
    raw = _raw(network, columns, source)
    rows = encode_columns(columns, raw, slice(None))
    inputs = {"numbers": torch.from_numpy(rows.numbers), "categories": torch.from_numpy(rows.codes)}
    kept = {name: values for name, values in inputs.items() if values.shape[1]}
    return [str(number) for number in range(raw.num_rows)], kept


def _arrays(network: Network, source: Path) -> tuple[list[str], dict[str, Tensor]]:
    """An array of inputs in a .npy file."""
    shape = tensors.Schema.from_dict(network.schema).shape
    inputs = read_numpy(source, None)["train"].inputs if source.suffix == ".npy" else None
    if inputs is None or inputs.shape[1:] != shape:
        given = source.suffix or "no ending" if inputs is None else f"shape {inputs.shape}"
        wanted = f"a .npy file of shape (samples, {', '.join(map(str, shape))})"
        raise DataError(f"{source.name}: the network takes {wanted}, not {given}")
    return [str(number) for number in range(len(inputs))], {"inputs": torch.from_numpy(inputs.astype(np.float32))}


def _series(network: Network, source: Path) -> tuple[list[str], dict[str, Tensor]]:
    """What follows the last rows of a table that holds one series."""
    schema = series.Schema.from_dict(network.schema)
    raw = _raw(network, schema.columns, source)
    if raw.num_rows < schema.window:
        raise DataError(f"{source.name} has {raw.num_rows:,} rows, and a sample is {schema.window:,} rows")
    rows = schema.rows(raw, slice(raw.num_rows - schema.window, raw.num_rows))
    return [str(raw.num_rows - 1 + schema.horizon)], {"values": torch.from_numpy(rows).unsqueeze(0)}


def _raw(network: Network, columns: Columns, source: Path) -> Raw:
    """The rows of a table that is to be answered for."""
    from samestep.data.settings import DataSettings  # noqa: PLC0415
    from samestep.data.table import gather, reading  # noqa: PLC0415 (polars)

    numbers = [column.name for column in columns.numbers]
    categories = [column.name for column in columns.categories]
    with tempfile.TemporaryDirectory(prefix="samestep-") as scratch:
        table = reading.table(source, DataSettings(**network.reading), Path(scratch), columns.kinds)
        lacking = [name for name in columns.names if name not in table.names]
        if lacking:
            raise DataError(f"{source} lacks the columns {', '.join(lacking)}; it has {', '.join(table.names)}")
        return gather.in_memory(table.chunks(columns.names), numbers, categories)


def _pictures(network: Network, source: Path) -> tuple[list[str], dict[str, Tensor]]:
    from samestep.data.pictures import decode, found  # noqa: PLC0415 (Pillow)

    schema = pictures.Schema.from_dict(network.schema)
    paths = [source] if source.is_file() else list(found.files(source))
    if not paths:
        raise UsageError(f"{source} holds no pictures ({', '.join(found.ENDINGS)})")
    shape = decode.Shape(height=schema.height, width=schema.width, channels=schema.channels, is_resized=True)
    pixels = np.empty((len(paths), schema.channels, schema.height, schema.width), np.uint8)
    for number, path in enumerate(paths):
        try:
            pixels[number] = decode.decode(path, shape).transpose(2, 0, 1)
        except DataError as error:
            raise DataError(f"{path} {error}") from None
    return [str(path) for path in paths], {"pictures": torch.from_numpy(pixels)}
