"""From what a person points to, to plain files: folders looked into, archives and compressed files unpacked."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from samestep.errors import DataError

_GZIP = b"\x1f\x8b"
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_COPIED_AT_ONCE = 1 << 20


def fingerprint(paths: Sequence[Path]) -> str:
    """What tells that files have not changed: a digest of their names, sizes and times of the last change."""
    sha = hashlib.sha256()
    for path in paths:
        status = path.stat()
        sha.update(repr((str(path.resolve()), status.st_size, status.st_mtime_ns)).encode())
    return sha.hexdigest()


def origins(source: Path, endings: Sequence[str]) -> tuple[Path, ...]:
    """The user's files behind a source: itself, the archive that it is in, or those in a folder.

    Raises:
        DataError: There is nothing of the kind.
    """
    if source.is_file():
        return (source,)
    if source.is_dir():
        found = tuple(sorted(path for path in source.iterdir() if _ending(path.name) in endings and path.is_file()))
        if not found:
            raise DataError(f"{source} holds no file that ends in {', '.join(endings)}")
        named = tuple(path for path in found if path.name.split(".")[0] == "train")
        return named or found  # the test part of a competition has no target
    archive = _archive_above(source)
    if archive is None:
        raise DataError(f"there is no file or folder {source}")
    return (archive,)


def unpack(source: Path, endings: Sequence[str], scratch: Path) -> list[Path]:
    """The plain files behind a source.

    Args:
        source: A file, perhaps compressed; an archive, or a member of one (``data.zip/train.csv``); a folder.
        endings: Of the files that are meant, such as ".csv".
        scratch: Where unpacked files go.

    Raises:
        DataError: There is nothing of the kind, or it is damaged.
    """
    found = origins(source, endings)
    paths: list[Path] = []
    for number, path in enumerate(found):
        place = scratch / f"unpacked-{number}"
        member = None if path == source or source.is_dir() else source.relative_to(path).as_posix()
        with _damage(path):
            paths += _plain(path, member, endings, place)
    return paths


def _plain(path: Path, member: str | None, endings: Sequence[str], place: Path) -> list[Path]:
    if path.name.lower().endswith(_ARCHIVES):
        members = _zip_members(path) if zipfile.is_zipfile(path) else _tar_members(path)
        return _unpacked(path, members, member, endings, place)
    with open(path, "rb") as file:
        if file.read(2) != _GZIP:
            return [path]
    place.mkdir()
    target = place / path.name.removesuffix(".gz")
    with gzip.open(path) as content:
        _copy(content, target)
    return [target]


Members = Iterator[tuple[str, Callable[[], IO[bytes]]]]


def _unpacked(path: Path, members: Members, chosen: str | None, endings: Sequence[str], place: Path) -> list[Path]:
    place.mkdir()
    found: list[Path] = []
    names: list[str] = []
    for name, opened in members:
        names.append(name)
        if name == chosen if chosen is not None else _ending(name) in endings:
            target = place / f"{len(found)}-{PurePosixPath(name).name}"
            with opened() as content:
                _copy(content, target)
            found.append(target)
    if not found:
        wanted = f"{chosen}" if chosen is not None else f"file that ends in {', '.join(endings)}"
        raise DataError(f"{path} holds no {wanted}; it holds {', '.join(names[:10])}{', ...' if names[10:] else ''}")
    training = [target for target in found if target.name.split("-", 1)[1].split(".")[0] == "train"]
    return sorted(training or found, key=lambda target: target.name.split("-", 1)[1])


def _zip_members(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if not entry.is_dir():
                yield entry.filename, lambda entry=entry: archive.open(entry)  # type: ignore[misc]


def _tar_members(path: Path) -> Members:
    with tarfile.open(path) as archive:
        for entry in archive:
            content = archive.extractfile(entry) if entry.isfile() else None
            if content is not None:
                yield entry.name, lambda content=content: content  # type: ignore[misc]


def _archive_above(source: Path) -> Path | None:
    return next((path for path in source.parents if path.is_file()), None)


def transcoded(paths: Sequence[Path], scratch: Path, encoding: str) -> list[Path]:
    """Text files in UTF-8: themselves where they are, copies otherwise.

    Raises:
        DataError: The encoding is not known, or not that of a file.
    """
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        return list(paths)
    return [_transcoded(path, scratch / f"{number}-{path.name}", encoding) for number, path in enumerate(paths)]


@contextmanager
def decoding(path: Path, encoding: str) -> Iterator[None]:
    """Say in our words what goes wrong where a file's characters are read.

    Raises:
        DataError: The encoding is not known, or not that of the file.
    """
    try:
        yield
    except LookupError:
        raise DataError(f"encoding {encoding!r} is not known; take utf-8, latin-1, cp1252, utf-16, ...") from None
    except UnicodeError as error:
        raise DataError(f"{path.name} is not {encoding} ({error}); say what it is, such as encoding latin-1") from None


def _transcoded(path: Path, target: Path, encoding: str) -> Path:
    with (
        decoding(path, encoding),
        open(path, encoding=encoding, newline="") as old,
        open(target, "w", encoding="utf-8", newline="") as new,
    ):
        shutil.copyfileobj(old, new, _COPIED_AT_ONCE)
    return target


def _copy(content: IO[bytes] | gzip.GzipFile, target: Path) -> None:
    with open(target, "wb") as file:
        shutil.copyfileobj(content, file, _COPIED_AT_ONCE)


def _ending(name: str) -> str:
    return PurePosixPath(name.lower().removesuffix(".gz")).suffix


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or cut short ({error}); fetch it again") from error
