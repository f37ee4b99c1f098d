"""Files as Hugging Face's packages write them: data sets on disk, with or without splits, and Parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from samestep.data.pack.manifest import EVALUATION, TRAIN
from samestep.data.settings import EVALUATION_NAMES, PARQUET_ENDINGS
from samestep.errors import DataError

INFO, _STATE, _SPLITS = "dataset_info.json", "state.json", "dataset_dict.json"


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a data set that ``datasets.Dataset.save_to_disk`` has written."""
    return (folder / _STATE).is_file() and (folder / INFO).is_file()


def is_saved(folder: Path) -> bool:
    """Whether a folder is a data set, or several splits of one (``datasets.DatasetDict.save_to_disk``)."""
    return is_dataset(folder) or (folder / _SPLITS).is_file()


def origins(folder: Path) -> tuple[Path, ...]:
    """The files of what was saved."""
    return tuple(sorted(each for each in folder.rglob("*") if each.is_file()))


def splits(folder: Path) -> Mapping[str, Path]:
    """The data set of each part; a folder without splits is the training part.

    Raises:
        DataError: There are splits, but none to train on.
    """
    if is_dataset(folder):
        return {TRAIN: folder}
    found = {part: paths[0] for part, paths in _by_part(each for each in folder.iterdir() if is_dataset(each)).items()}
    if TRAIN not in found:
        raise DataError(f"{folder} holds no split train; name one of its folders")
    return found


def tables(folder: Path) -> tuple[Path, ...]:
    """The Arrow files of a data set.

    Raises:
        DataError: It is damaged.
    """
    try:
        state = json.loads((folder / _STATE).read_text())
        return tuple(folder / each["filename"] for each in state["_data_files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / _STATE} is damaged ({error})") from None


def tables_by_part(path: Path) -> Mapping[str, Sequence[Path]] | None:
    """The tables that may hold pictures: of a data set, or Parquet files (``train-00000-of-00002.parquet``).

    Returns:
        The files of each part, of which there is at least the training part; None: this is no such source.
    """
    if is_saved(path):
        return {part: tables(folder) for part, folder in splits(path).items()}
    if path.is_file():
        return {TRAIN: (path,)} if path.suffix in PARQUET_ENDINGS else None
    if not path.is_dir():
        return None
    found = sorted(each for each in path.iterdir() if each.suffix in PARQUET_ENDINGS)
    parts = _by_part(found)
    return parts if TRAIN in parts else {TRAIN: tuple(found)} if found else None


def _by_part(paths: Iterable[Path]) -> Mapping[str, Sequence[Path]]:
    """By what a name begins with; of several splits to evaluate on, the first of the usual names counts."""
    named: dict[str, list[Path]] = {}
    for path in sorted(paths):
        named.setdefault(path.stem.split("-")[0].lower(), []).append(path)
    chosen = {TRAIN: named.get(TRAIN, [])}
    chosen[EVALUATION] = next((named[name] for name in EVALUATION_NAMES if name in named), [])
    return {part: found for part, found in chosen.items() if found}
