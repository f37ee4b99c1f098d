"""From a source to a pack: what kind of data it is, who reads it, and whether it was packed before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from samestep.data import arrays, kaggle, unpacked
from samestep.data import settings as settings_of
from samestep.data.pack import manifest, reader, writer
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.pack.reader import Pack
from samestep.data.pictures import found
from samestep.data.settings import DataSettings
from samestep.errors import DataError, UsageError
from samestep.host import files
from samestep.version import __version__

Tell = Callable[[str, int, int], None]
"""tell(what, done, in all): how far packing is."""


def ensure(source: str, folder: Path, settings: DataSettings, tell: Tell) -> tuple[Pack, bool]:
    """The pack of a source in a folder, made where it is not there yet or the source has changed.

    Returns:
        The pack, and whether it had to be made.

    Raises:
        DataError: The source cannot be read.
        UsageError: Something cannot be done as asked.
    """
    path = _located(source)
    evaluation = None if settings.evaluation is None else _located(settings.evaluation)
    made_of = {
        "files": [unpacked.fingerprint(_origins(each)) for each in (path, evaluation) if each is not None],
        "settings": settings.given(),
        "samestep": __version__,
    }
    whole = _whole(folder)
    if whole is not None and whole.manifest.made_of == made_of:
        return whole, False
    with writer.writing(folder) as place:
        kind, schema, statistics = _make(path, evaluation, settings, place, tell)
        place.finish(kind=kind, schema=schema, statistics=statistics, source=source, made_of=made_of)
    return reader.open_pack(folder, is_checked=False), True


def in_cache(source: str, settings: DataSettings, tell: Tell) -> Pack:
    """The pack of a source, in the user's cache; a source that is a pack is opened as it is.

    Raises:
        DataError: The source cannot be read.
        UsageError: Something cannot be done as asked; or a pack is asked for another target than its own.
    """
    path = _located(source)
    if manifest.is_pack(path):
        pack = reader.open_pack(path)
        _check_same(pack, settings)
        return pack
    cache = files.cache_folder()
    if cache is None:
        raise UsageError("there is no folder for caches (no home); pack the source first: samestep pack SOURCE FOLDER")
    words = json.dumps([str(path.resolve()), settings.given()], sort_keys=True)
    name = f"{path.name.split('.')[0]}-{hashlib.sha256(words.encode()).hexdigest()[:12]}"
    return ensure(source, cache / "packs" / name, settings, tell)[0]


def _located(source: str) -> Path:
    """Where a source is on this machine; what is Kaggle's is fetched."""
    return kaggle.fetch(source) if kaggle.is_kaggle(source) else Path(source)


def _whole(folder: Path) -> Pack | None:
    """The pack in a folder; None where there is none, or it is damaged and has to be made anew."""
    try:
        return reader.open_pack(folder) if manifest.is_pack(folder) else None
    except DataError:
        return None


def of_memory(data: Any, folder: Path, settings: DataSettings, tell: Tell) -> Pack:
    """The pack of a data frame, a mapping of columns, an array or a map-style data set, in a folder.

    Raises:
        DataError: It is no table, or cannot be learned from.
    """
    from samestep.data.table import frames, kinds  # noqa: PLC0415
    from samestep.data.tensors import making as tensors  # noqa: PLC0415

    if tensors.is_dataset(data):
        return _of_dataset(data, folder, settings, tell)
    table = frames.of_memory(data, kinds.parse_given(settings.kinds or ""))
    evaluation = None if settings.evaluation is None else frames.of_memory(settings.evaluation, table.kinds)
    with writer.writing(folder) as place:
        kind, schema, statistics = _pack_table(table, evaluation, settings, place, tell)
        _finish(place, data, kind, schema, statistics, settings)
    return reader.open_pack(folder, is_checked=False)


def _of_dataset(data: Any, folder: Path, settings: DataSettings, tell: Tell) -> Pack:
    from samestep.data.tensors import making  # noqa: PLC0415

    how = making.Making(**_chosen(settings, making.Making))
    with writer.writing(folder) as place:
        schema, statistics = making.make(data, settings.evaluation, how, place, tell)
        _finish(place, data, "arrays", schema.as_dict(), statistics, settings)
    return reader.open_pack(folder, is_checked=False)


def _finish(
    place: writer.Writer, data: Any, kind: str, schema: Mapping[str, Any], statistics: Mapping[str, Any],
    settings: DataSettings,
) -> None:  # fmt: skip
    """What is in memory has no name and no time of change: its pack is made anew whenever it is asked for."""
    made_of = {"settings": {name: str(value) for name, value in settings.given().items()}}
    place.finish(kind=kind, schema=schema, statistics=statistics, source=type(data).__name__, made_of=made_of)


def _check_same(pack: Pack, settings: DataSettings) -> None:
    """A pack was made as it was made; what is said again must agree."""
    made = pack.manifest.made_of["settings"]
    for name, value in settings.given().items():
        if made.get(name) != value:
            raise UsageError(
                f"{pack.folder} was packed with {name} {made.get(name, 'found out')!r} and not {value!r}; "
                "leave it out, or pack the source again"
            )


Made = tuple[str, dict[str, Any], dict[str, Any]]
"""Kind, schema and statistics."""


def _make(path: Path, evaluation: Path | None, settings: DataSettings, place: writer.Writer, tell: Tell) -> Made:
    if _is_text(path, settings):
        return _make_text(path, settings, place, tell)
    if _is_pictures(path):
        return _make_pictures(path, settings, place, tell)
    if arrays.is_idx(path) or path.suffix in arrays.ENDINGS:
        return _make_arrays(path, settings, place, tell)
    return _make_table(path, evaluation, settings, place, tell)


def _origins(path: Path) -> tuple[Path, ...]:
    """The user's files behind a source."""
    if _is_pictures(path):
        return (*found.files(path), *sorted(path.glob("*.csv")))
    if arrays.is_idx(path):
        return tuple(arrays.idx_files(path))
    if settings_of.is_hugging_face(path):
        return tuple(sorted(each for each in path.iterdir() if each.is_file()))
    return unpacked.origins(path, settings_of.TABLE_ENDINGS)


def _is_text(path: Path, settings: DataSettings) -> bool:
    """Whether a source is a text to be learned symbol by symbol."""
    is_named_so = path.name.removesuffix(".gz").endswith(".txt")
    return settings.text is not None or (is_named_so and settings.target is None)


def _is_pictures(path: Path) -> bool:
    """Whether a source is a folder of pictures."""
    return path.is_dir() and next(found.files(path), None) is not None


def _make_table(path: Path, evaluation: Path | None, settings: DataSettings, place: writer.Writer, tell: Tell) -> Made:
    # polars is imported when there is a table to read
    from samestep.data.table import reading  # noqa: PLC0415

    training, other = reading.table(path, settings, place.scratch / "train"), None
    if evaluation is not None:
        other = reading.table(evaluation, settings, place.scratch / "evaluation", training.kinds)
    return _pack_table(training, other, settings, place, tell)


def _pack_table(training: Any, evaluation: Any, settings: DataSettings, place: writer.Writer, tell: Tell) -> Made:
    from samestep.data.table import making  # noqa: PLC0415

    if settings.target is None:
        raise UsageError(f"which column is to be learned? Name it with target; there are {', '.join(training.names)}")
    if settings.horizon is not None:
        return _pack_series(training, settings, place, tell)
    how = making.Making(**_chosen(settings, making.Making))
    made = making.make(training, evaluation, how, place, tell)
    return "table", {**made.schema.as_dict(), "left_out": dict(made.left_out)}, made.as_dict()


def _pack_series(table: Any, settings: DataSettings, place: writer.Writer, tell: Tell) -> Made:
    from samestep.data.table import series  # noqa: PLC0415

    for name in ("split_by", "evaluation", "task"):
        if getattr(settings, name) is not None:
            raise UsageError(f"{name} does not go with horizon: the end of every series is kept for evaluation")
    schema, statistics = series.make(table, series.Making(**_chosen(settings, series.Making)), place, tell)
    return "series", schema.as_dict(), statistics


def _make_pictures(path: Path, settings: DataSettings, place: writer.Writer, tell: Tell) -> Made:
    from samestep.data.pictures import making  # noqa: PLC0415 (needs Pillow)

    size = None if settings.picture_size is None else making.parse_size(settings.picture_size)
    how = making.Making(size=size, **_chosen(settings, making.Making))
    schema, statistics = making.make(found.find(path, settings.target), how, place, tell)
    return "pictures", schema.as_dict(), statistics


def _make_text(path: Path, settings: DataSettings, place: writer.Writer, tell: Tell) -> Made:
    from samestep.data.text import making  # noqa: PLC0415

    paths = unpacked.unpack(path, (path.suffix, *settings_of.TEXT_ENDINGS), place.scratch)
    schema, statistics = making.make(paths, making.Making(**_chosen(settings, making.Making)), place, tell)
    return "text", schema.as_dict(), statistics


def _make_arrays(path: Path, settings: DataSettings, place: writer.Writer, tell: Tell) -> Made:
    from samestep.data.pictures import making  # noqa: PLC0415
    from samestep.data.table import frames, kinds  # noqa: PLC0415

    parts = arrays.read_idx(path) if path.is_dir() else arrays.read_numpy(path, settings.target)
    if all(part.are_pictures for part in parts.values()):
        pixels = np.concatenate([part.pixels for part in parts.values()])
        labels = [str(label) for part in parts.values() for label in np.asarray(part.target).tolist()]
        names = [name for name, part in parts.items() for _ in range(len(part.inputs))] if len(parts) > 1 else None
        how = making.Making(**_chosen(settings, making.Making))
        schema, statistics = making.write(pixels, labels, names, how, place)
        return "pictures", schema.as_dict(), statistics
    given = kinds.parse_given(settings.kinds or "")
    target = settings.target or "target"
    tables = {name: frames.of_memory(part.columns(target), given) for name, part in parts.items()}
    named = settings if parts[TRAIN].target is None else replace(settings, target=target)
    return _pack_table(tables[TRAIN], tables.get(EVALUATION), named, place, tell)


def _chosen(settings: DataSettings, kind: type[Any]) -> dict[str, Any]:
    """What was said of the fields of a dataclass."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in settings.given().items() if name in names}
