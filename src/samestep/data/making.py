"""From a source to a pack: what kind of data it is, who reads it, and whether it was packed before."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from samestep.data import arrays, hub, kaggle, schemas, unpacked
from samestep.data import target as targets
from samestep.data.pack import lock, manifest, reader, writer
from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.pack.reader import Pack
from samestep.data.pack.writer import Tell, Writer
from samestep.data.pictures import found
from samestep.data.settings import READING, TABLE_ENDINGS, TEXT_ENDINGS, DataSettings
from samestep.data.target import Classes
from samestep.data.text import schema as texts
from samestep.errors import DataError, UsageError
from samestep.host import files
from samestep.version import __version__

if TYPE_CHECKING:
    from samestep.data.table.making import Reader

How = TypeVar("How")

Made = tuple[str, schemas.Schema, dict[str, Any]]
"""Kind, schema and statistics."""


def ensure(source: str, folder: Path, settings: DataSettings, tell: Tell) -> tuple[Pack, bool]:
    """The pack of a source in a folder, made where it is not there yet or the source has changed.

    Returns:
        The pack, and whether it had to be made.

    Raises:
        DataError: The source cannot be read.
        UsageError: Something cannot be done as asked.
    """
    return _ensure(source, _located(source), folder, settings, tell)


def _ensure(source: str, path: Path, folder: Path, settings: DataSettings, tell: Tell) -> tuple[Pack, bool]:
    evaluation = None if settings.evaluation is None else _located(settings.evaluation)
    tokenizer = None if settings.tokenizer is None else Path(settings.tokenizer)
    sources = (path, evaluation, tokenizer)
    made_of = {
        "files": [unpacked.fingerprint(_origins(each, settings)) for each in sources if each is not None],
        "settings": settings.given(),
        "samestep": __version__,
    }
    whole = _whole(folder, made_of)
    if whole is not None:
        return whole, False
    with lock.held(folder, _notice):
        whole = _whole(folder, made_of)  # somebody may have made it meanwhile
        if whole is not None:
            return whole, False
        with writer.writing(folder) as place:
            kind, schema, statistics = _checked(_make(path, evaluation, settings, place, tell))
            place.finish(kind=kind, schema=schema.as_dict(), statistics=statistics, source=source, made_of=made_of)
        return reader.open_pack(folder, is_checked=False), True


def _checked(made: Made) -> Made:
    """What was made, if there is something to learn from its training part.

    Raises:
        DataError: All of its samples are of one class.
    """
    _, schema, statistics = made
    if not isinstance(schema, texts.Schema) and isinstance(schema.target, Classes):
        targets.check_training(schema.target, statistics["classes"].get(TRAIN, []))
    return made


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
    return _ensure(source, path, cache / "packs" / name, settings, tell)[0]


def _located(source: str) -> Path:
    """Where a source is on this machine; what is Kaggle's is fetched."""
    return kaggle.fetch(source, _notice) if kaggle.is_kaggle(source) else Path(source)


def _notice(text: str) -> None:
    print(text, file=sys.stderr)


def _whole(folder: Path, made_of: Mapping[str, Any]) -> Pack | None:
    """The pack in a folder; None where there is none, or it is of something else or damaged: it has to be made anew.

    So it is where another process puts a new one in its place just now.
    """
    try:
        if not manifest.is_pack(folder) or manifest.read(folder).made_of != made_of:
            return None
        return reader.open_pack(folder)  # reads it through, for packing again is what mends a damaged one
    except (DataError, FileNotFoundError):
        return None


def of_memory(data: Any, folder: Path, settings: DataSettings, tell: Tell, *, is_private: bool = False) -> Pack:
    """The pack of a data frame, a mapping of columns, an array or a map-style data set, in a folder.

    What is in memory has no name and no time of change, so its pack is made anew whenever it is asked for.

    Args:
        data: What is packed.
        folder: Where the pack goes.
        settings: What was said of the data.
        tell: Told how far it is.
        is_private: Whether no other process knows the folder, so that none has to be kept out.

    Raises:
        DataError: It is no table, or cannot be learned from.
        UsageError: Something cannot be done as asked.
    """
    with nullcontext() if is_private else lock.held(folder, _notice):
        return _of_memory(data, folder, settings, tell)


def _of_memory(data: Any, folder: Path, settings: DataSettings, tell: Tell) -> Pack:
    from samestep.data.tensors import making as tensors  # noqa: PLC0415

    with writer.writing(folder) as place:
        if arrays.are_tokens(data):
            made: Made = _make_tokens(np.asarray(data), settings, place, tell)
        elif tensors.is_dataset(data):
            how = _how(tensors.Making, settings, "a data set of torch", "evaluation")
            made = ("arrays", *tensors.make(data, settings.evaluation, how, place, tell))
        elif arrays.is_pair(data):
            made = _make_pair(data, settings, place, tell)
        else:
            made = _make_frame(data, settings, place, tell)
        said = {name: value for name, value in settings.given().items() if name != "evaluation"}
        made_of, source = {"settings": said, "samestep": __version__}, type(data).__name__
        kind, schema, statistics = _checked(made)
        place.finish(kind=kind, schema=schema.as_dict(), statistics=statistics, source=source, made_of=made_of)
    return reader.open_pack(folder, is_checked=False)


def _check_same(pack: Pack, settings: DataSettings) -> None:
    """A pack was made as it was made; what is said again must agree."""
    made = pack.manifest.made_of["settings"]
    for name, value in settings.given().items():
        if made.get(name) != value:
            raise UsageError(
                f"{pack.folder} was packed with {name} {made.get(name, 'found out')!r} and not {value!r}; "
                "leave it out, or pack the source again"
            )


def _how(kind: type[How], settings: DataSettings, what: str, *also: str) -> How:
    """What was said, as one of the dataclasses that say how something is packed.

    Raises:
        UsageError: Something was said that does not go with such data.
    """
    given, names = settings.given(), _names(kind)
    unused = [name for name in given if name not in names and name not in also]
    if unused:
        goes, them = ("does not go", "it") if len(unused) == 1 else ("do not go", "them")
        raise UsageError(f"{' and '.join(unused)} {goes} with {what}; leave {them} out")
    return kind(**{name: value for name, value in given.items() if name in names})


def _names(kind: type[Any]) -> set[str]:
    return {field.name for field in fields(kind)}


def _make(path: Path, evaluation: Path | None, settings: DataSettings, place: Writer, tell: Tell) -> Made:
    arrays.refuse_single_idx(path)
    if _is_text(path, settings):
        return _make_text(path, settings, place, tell)
    if found.is_source(path, delimiter=settings.delimiter, encoding=settings.encoding):
        labelled = found.find(path, settings.target, delimiter=settings.delimiter, encoding=settings.encoding)
        return _make_pictures(labelled, settings, place, tell, "delimiter", "encoding")
    if arrays.is_idx(path) or path.suffix in arrays.ENDINGS:
        return _make_arrays(path, settings, place, tell)
    made = _make_embedded(path, settings, place, tell)
    return made or _make_table(path, evaluation, settings, place, tell)


def _origins(path: Path, settings: DataSettings) -> tuple[Path, ...]:
    """The user's files behind a source."""
    if _is_text(path, settings):
        return unpacked.origins(path, (path.suffix, *TEXT_ENDINGS))
    if found.is_source(path, delimiter=settings.delimiter, encoding=settings.encoding):
        return (*found.files(path), *sorted(path.glob("*.csv")))
    if arrays.is_idx(path):
        return tuple(arrays.idx_files(path))
    if hub.is_saved(path):
        return hub.origins(path)
    return unpacked.origins(path, TABLE_ENDINGS)


def _is_text(path: Path, settings: DataSettings) -> bool:
    """Whether a source is a text to be learned symbol by symbol."""
    is_named_so = path.name.removesuffix(".gz").endswith(".txt")
    return bool(settings.text or settings.tokenizer) or (is_named_so and settings.target is None)


def _make_table(path: Path, evaluation: Path | None, settings: DataSettings, place: Writer, tell: Tell) -> Made:
    # polars is imported when there is a table to read
    from samestep.data.table import reading  # noqa: PLC0415

    if settings.target is None:
        _refuse_prose(path)
    if hub.is_saved(path):
        parts = hub.splits(path)
        path, evaluation = parts[TRAIN], evaluation or parts.get(EVALUATION)
    training, other = reading.table(path, settings, place.scratch / "train"), None
    if evaluation is not None:
        other = reading.table(evaluation, settings, place.scratch / "evaluation", training.kinds)
    return _pack_table(training, other, settings, place, tell, "evaluation")


def _refuse_prose(folder: Path) -> None:
    """Texts in a folder may be tables; nobody has said that they are, nor that they are none."""
    found = unpacked.origins(folder, TABLE_ENDINGS) if folder.is_dir() and not hub.is_saved(folder) else ()
    if found and all(path.name.removesuffix(".gz").endswith(".txt") for path in found):
        raise UsageError(
            f"{folder} holds {found[0].name}{', ...' if found[1:] else ''}: learn it symbol by symbol with text "
            "characters; or, of a table, name the column that is to be learned with target"
        )


def _make_frame(data: Any, settings: DataSettings, place: Writer, tell: Tell) -> Made:
    from samestep.data.table import frames, kinds  # noqa: PLC0415

    table = frames.of_memory(data, kinds.parse_given(settings.kinds or ""))
    evaluation = None
    if settings.evaluation is not None:
        evaluation = frames.of_memory(settings.evaluation, {}, table.kinds)
    return _pack_table(table, evaluation, settings, place, tell, "evaluation")


def _pack_table(
    training: Reader, evaluation: Reader | None, settings: DataSettings, place: Writer, tell: Tell, *also: str
) -> Made:
    from samestep.data.series import making as series  # noqa: PLC0415
    from samestep.data.table import making, reading  # noqa: PLC0415

    if settings.target is None:
        raise UsageError(f"which column is to be learned? Name it with target; there are {', '.join(training.names)}")
    is_text = reading.is_text(training)
    known = ("kinds", *(READING if is_text else ()))
    if settings.horizon is not None:
        what = "a time series, the end of which is kept for evaluation"
        return "series", *series.make(training, _how(series.Making, settings, what, *known), place, tell)
    what = "a table in text files" if is_text else "a table whose columns have types"
    how = _how(making.Making, settings, what, *known, *also)
    if evaluation is not None:
        for name in ("evaluation_frac", "split_by", "split_seed"):
            if getattr(settings, name) is not None:
                raise UsageError(f"{name} does not go with evaluation, which is a table of its own; leave one out")
    return "table", *making.make(training, evaluation, how, place, tell)


def _make_pictures(pictures: found.Labelled, settings: DataSettings, place: Writer, tell: Tell, *also: str) -> Made:
    from samestep.data.pictures import making  # noqa: PLC0415 (needs Pillow)

    how = _how(making.Making, settings, "pictures", "target", "picture_size", *also)
    if settings.picture_size is not None:
        how = replace(how, size=making.parse_size(settings.picture_size))
    return "pictures", *making.make(pictures, how, place, tell)


def _make_embedded(path: Path, settings: DataSettings, place: Writer, tell: Tell) -> Made | None:
    """Of pictures in a column of tables; None where there are none."""
    parts = hub.tables_by_part(path)
    if parts is None:
        return None
    from samestep.data.pictures import embedded  # noqa: PLC0415 (needs polars)

    tables = embedded.look(parts)
    if tables is None:
        return None
    pictures = embedded.unpack(tables, settings.target, place.scratch / "embedded", tell)
    return _make_pictures(pictures, settings, place, tell)


def _make_text(path: Path, settings: DataSettings, place: Writer, tell: Tell) -> Made:
    from samestep.data.text import making  # noqa: PLC0415

    paths = unpacked.unpack(path, (path.suffix, *TEXT_ENDINGS), place.scratch)
    reading = _how(making.Reading, settings, "text", *_names(making.Cut))
    cut = _how(making.Cut, settings, "text", *_names(making.Reading))
    return "text", *making.make(paths, reading, cut, place, tell)


def _make_tokens(numbers: Any, settings: DataSettings, place: Writer, tell: Tell) -> Made:
    from samestep.data.text import making  # noqa: PLC0415

    cut = _how(making.Cut, settings, "numbers of tokens")
    return "text", *making.make_of_numbers(numbers, cut, place, tell)


def _make_arrays(path: Path, settings: DataSettings, place: Writer, tell: Tell) -> Made:
    parts = arrays.read_idx(path) if path.is_dir() else arrays.read_numpy(path, settings.target, place.scratch)
    return _make_parts(parts, settings, place, tell)


def _make_pair(data: Any, settings: DataSettings, place: Writer, tell: Tell) -> Made:
    parts = {TRAIN: arrays.of_pair(data, "the data")}
    if settings.evaluation is not None:
        parts[EVALUATION] = arrays.of_pair(settings.evaluation, "evaluation")
    return _make_parts(parts, replace(settings, evaluation=None), place, tell)


def _make_parts(parts: dict[str, arrays.Part], settings: DataSettings, place: Writer, tell: Tell) -> Made:
    from samestep.data.pictures import making  # noqa: PLC0415
    from samestep.data.table import frames, kinds  # noqa: PLC0415

    if arrays.are_tokens(parts[TRAIN].inputs) and parts[TRAIN].target is None:
        return _make_tokens(parts[TRAIN].inputs, settings, place, tell)
    if all(part.are_pictures for part in parts.values()):
        pixels = arrays.joined([part.pixels for part in parts.values()], place.scratch / "pixels.raw")
        labels = [str(label) for part in parts.values() for label in np.asarray(part.target).tolist()]
        names = [name for name, part in parts.items() for _ in range(len(part.inputs))] if len(parts) > 1 else None
        how = _how(making.Making, settings, "pictures in arrays", "target")
        return "pictures", *making.write(pixels, labels, names, how, place)
    if all(part.are_samples for part in parts.values()):
        from samestep.data.tensors import making as tensors  # noqa: PLC0415 (needs torch)

        how_kept = _how(tensors.Making, settings, "arrays of samples", "target")
        pairs = {name: list(zip(part.inputs, np.asarray(part.target), strict=True)) for name, part in parts.items()}
        return "arrays", *tensors.make(pairs[TRAIN], pairs.get(EVALUATION), how_kept, place, tell)
    given = kinds.parse_given(settings.kinds or "")
    target = settings.target or "target"
    tables = {name: frames.of_arrays(part.columns(target), given) for name, part in parts.items()}
    named = settings if parts[TRAIN].target is None else replace(settings, target=target)
    return _pack_table(tables[TRAIN], tables.get(EVALUATION), named, place, tell)
