"""Kaggle as a source: ``kaggle:owner/data-set`` and ``kaggle:competition/name``, fetched by the package kagglehub."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samestep.errors import DataError, SamestepError, UsageError

PREFIX = "kaggle:"
"""Of the sources that are Kaggle's."""

_SITE = "https://www.kaggle.com"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_VERSION = re.compile(r"[1-9][0-9]*")
_IN_ADDRESSES = ("competitions", "datasets", "c")
"""What stands before the names in Kaggle's addresses, and not in a source."""

_LONGEST_REASON = 200
_TOKEN = (
    f"get one at {_SITE}/settings, and put it into the environment variable KAGGLE_API_TOKEN or the file "
    "~/.kaggle/access_token (a kaggle.json: into ~/.kaggle)"
)


@dataclass(frozen=True)
class Wanted:
    """What a source asks of Kaggle.

    Args:
        source: As it was given.
        owner: Whose data set it is. None: it is a competition.
        name: Of the data set or competition.
        version: Of the data set. None: the newest.
        path: A file (of a data set also a folder) in it. None: everything.
    """

    source: str
    owner: str | None
    name: str
    version: int | None = None
    path: str | None = None

    @property
    def page(self) -> str:
        """The address where a person finds the files."""
        if self.owner is None:
            return f"{_SITE}/competitions/{self.name}/data"
        return f"{_SITE}/datasets/{self.owner}/{self.name}"

    @property
    def by_hand(self) -> str:
        """The way without kagglehub."""
        return f"download it by hand from {self.page}, and give the file or folder with --data"


def is_kaggle(source: str) -> bool:
    """Whether a source is Kaggle's.

    Example:
        >>> is_kaggle("kaggle:competition/titanic"), is_kaggle("titanic/train.csv")
        (True, False)
    """
    return source.startswith(PREFIX)


def fetch(source: str, notice: Callable[[str], None] | None = None) -> Path:
    """The file or folder behind a source of Kaggle's, downloaded where it is not in kagglehub's cache yet.

    Of a data set the newest version is taken (``kaggle:owner/data-set/versions/3`` names another one); without network
    the newest of those that were fetched before. While kagglehub works, ``sys.stdout`` is ``sys.stderr`` for the whole
    process, and kagglehub logs warnings only.

    Args:
        source: ``kaggle:owner/data-set`` or ``kaggle:competition/name``, perhaps with a path behind it:
            ``kaggle:competition/titanic/train.csv``.
        notice: Told in one line where not the newest version is taken.

    Returns:
        Where it lies; it is in kagglehub's cache, and not to be changed.

    Raises:
        UsageError: The source is malformed or not known to Kaggle, kagglehub is not installed, or Kaggle wants a token
            or rules accepted; the one line says what to do.
        DataError: Kaggle cannot be reached, or what came is damaged or has no place on the disk.

    Example:
        >>> fetch("kaggle:titanic")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        samestep.errors.UsageError: 'kaggle:titanic' does not name anything of Kaggle's; write kaggle:OWNER/DATA-SET ...
    """
    wanted = parse(source)
    hub = _kagglehub(wanted)
    with _off_stdout():
        _check_token(hub, wanted)
        with _explained(hub, wanted), _no_half_file(hub, wanted):
            path, kept = _fetched(hub, wanted)
    if kept is not None and notice is not None:
        notice(f"{source}: Kaggle cannot be reached; version {kept} is taken, which was fetched before")
    return path


def parse(source: str) -> Wanted:
    """What a source asks of Kaggle.

    Raises:
        UsageError: It is malformed.

    Example:
        >>> parse("kaggle:uciml/iris/Iris.csv").path
        'Iris.csv'
    """
    first, *others = source.removeprefix(PREFIX).split("/")
    name, *rest = others or [""]
    if not _NAME.fullmatch(first) or not _NAME.fullmatch(name) or first in _IN_ADDRESSES or not _is_inside(rest):
        raise UsageError(
            f"{source!r} does not name anything of Kaggle's; write {PREFIX}OWNER/DATA-SET or {PREFIX}competition/NAME, "
            f"perhaps with a file of it: {PREFIX}competition/titanic/train.csv"
        )
    if first == "competition":
        return Wanted(source, None, name, path="/".join(rest) or None)
    version = None
    if len(rest) > 1 and rest[0] == "versions" and _VERSION.fullmatch(rest[1]):
        version, rest = int(rest[1]), rest[2:]
    return Wanted(source, first, name, version, "/".join(rest) or None)


def _is_inside(parts: list[str]) -> bool:
    """Whether a path stays below its start (kagglehub does not ask, for competitions), on every system."""
    return all(part not in ("", ".", "..") and "\\" not in part and part.isprintable() for part in parts)


def _kagglehub(wanted: Wanted) -> Any:
    try:
        return importlib.import_module("kagglehub")
    except ImportError as error:
        raise UsageError(
            f"{wanted.source} needs kagglehub ({error}): pip install samestep[kaggle]; or {wanted.by_hand}"
        ) from error


def _check_token(hub: Any, wanted: Wanted) -> None:
    """A token may be missing here, but not be one that cannot be read."""
    try:
        hub.config.get_kaggle_credentials()
    except (OSError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error  # not the file's name: it may be the token
        raise UsageError(f"{wanted.source}: the token cannot be read ({reason}); {_TOKEN}") from error


# That names from the network do not lead out of the cache is kagglehub's doing: zipfile leaves out what goes upwards
# and makes no links, tarfile is called with filter="data" (since kagglehub 1.0.2), and names in listings are checked.
def _fetched(hub: Any, wanted: Wanted) -> tuple[Path, int | None]:
    """Where it lies; and which version it is, where nobody could say which one is the newest."""
    if wanted.owner is None:
        return _of_competition(hub, wanted), None
    handle = f"{wanted.owner}/{wanted.name}"
    if wanted.version is not None:
        return Path(hub.dataset_download(f"{handle}/versions/{wanted.version}", wanted.path)), None
    try:
        return Path(hub.dataset_download(handle, wanted.path)), None
    except _requests().ConnectionError:
        # kagglehub asks for the newest version and gives up here; of a competition it takes what it has
        kept = _kept(hub, wanted)
        if kept is None:
            raise
        return kept


def _of_competition(hub: Any, wanted: Wanted) -> Path:
    try:
        return Path(hub.competition_download(wanted.name, wanted.path))
    except FileNotFoundError:
        # where there is a newer file, kagglehub removes the folder with the older one, and then misses the folder
        return Path(hub.competition_download(wanted.name, wanted.path))


def _kept(hub: Any, wanted: Wanted) -> tuple[Path, int] | None:
    """The newest version of a data set that was fetched before, and its number."""
    cache, handle = hub.cache.Cache(), hub.handle.DatasetHandle(wanted.owner, wanted.name)
    folders = Path(cache.get_path(handle), "versions").glob("*")
    versions = sorted((int(folder.name) for folder in folders if _VERSION.fullmatch(folder.name)), reverse=True)
    for version in versions:
        path = cache.load_from_cache(handle.with_version(version), wanted.path)
        if path is not None:
            return Path(path), version
    return None


@contextmanager
def _off_stdout() -> Iterator[None]:
    """What kagglehub prints and logs stays off stdout, where others may read a JSON object."""
    logger = logging.getLogger("kagglehub")
    # its own handler holds the stdout of the moment when kagglehub was imported; without it warnings go to stderr
    handlers = [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]
    for handler in handlers:
        logger.removeHandler(handler)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for handler in handlers:
            logger.addHandler(handler)


@contextmanager
def _no_half_file(hub: Any, wanted: Wanted) -> Iterator[None]:
    """Where a newer file of a competition does not come to its end, what there is of it is removed.

    kagglehub writes it in the place of the older one, whose mark of being complete it leaves standing.
    """
    if wanted.owner is not None or wanted.path is None:
        yield
        return
    path = Path(hub.cache.Cache().get_path(hub.handle.CompetitionHandle(wanted.name), wanted.path))
    before = _stamp(path)
    try:
        yield
    except BaseException:
        if before is not None and _stamp(path) not in (before, None):
            path.unlink()
        raise


def _stamp(path: Path) -> tuple[int, int] | None:
    status = path.stat() if path.is_file() else None
    return None if status is None else (status.st_size, status.st_mtime_ns)


@contextmanager
def _explained(hub: Any, wanted: Wanted) -> Iterator[None]:
    """Whatever goes wrong becomes one line that says what to do."""
    requests = _requests()
    try:
        yield
    except hub.exceptions.UnauthenticatedError as error:
        raise UsageError(f"{wanted.source}: Kaggle gives the data of competitions to a token only; {_TOKEN}") from error
    except requests.HTTPError as error:
        raise _refused(wanted, _status(error.response)) from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise DataError(f"{wanted.source}: Kaggle cannot be reached ({_reason(error)}); {wanted.by_hand}") from error
    except requests.RequestException as error:
        raise DataError(
            f"{wanted.source}: the download broke off ({_reason(error)}); run it again, or {wanted.by_hand}"
        ) from error
    except Exception as error:  # zipfile's, tarfile's and kagglehub's own have no base in common
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(
                f"{wanted.source} cannot be kept in {hub.config.get_cache_folder()} ({error.strerror}: "
                f"{error.filename}); the environment variable KAGGLEHUB_CACHE names another folder"
            ) from error
        _remove_archives(hub, wanted)
        raise DataError(
            f"{wanted.source}: what came from Kaggle is damaged, or not what was asked for ({_reason(error)}); "
            f"run it again, or {wanted.by_hand}"
        ) from error


def _refused(wanted: Wanted, status: int) -> SamestepError:
    """Why Kaggle does not give what was asked for."""
    is_competition = wanted.owner is None
    if status == 401:
        return UsageError(f"{wanted.source}: Kaggle wants a token that is valid (HTTP 401); {_TOKEN}")
    if status == 403 and is_competition:
        return UsageError(
            f"{wanted.source}: Kaggle refuses (HTTP 403) until the rules are accepted: sign in, accept them at "
            f"{_SITE}/competitions/{wanted.name}/rules, and run it again"
        )
    if status == 403:
        return UsageError(
            f"{wanted.source}: Kaggle refuses (HTTP 403): there is no such data set (check the spelling at "
            f"{wanted.page}), or it is private or asks for consent, and needs a token; {_TOKEN}"
        )
    if status == 404:
        return UsageError(f"{wanted.source}: Kaggle has none (HTTP 404); check the spelling at {wanted.page}")
    return DataError(f"{wanted.source}: Kaggle answers with HTTP {status}; run it again later, or {wanted.by_hand}")


def _status(response: Any) -> int:
    """The code of a refusal, which an answer that is called good may hold in its content."""
    return int(response.status_code if response.status_code >= 400 else response.json()["code"])


def _remove_archives(hub: Any, wanted: Wanted) -> None:
    """Forget what did not unpack: kagglehub would take an archive of the right size for one that it need not fetch."""
    cache = hub.cache.Cache()
    if wanted.owner is None:
        archives = [Path(cache.get_archive_path(hub.handle.CompetitionHandle(wanted.name)))]
    else:
        folder = Path(cache.get_path(hub.handle.DatasetHandle(wanted.owner, wanted.name)))
        archives = list(folder.glob("*.archive"))
    for archive in archives:
        archive.unlink(missing_ok=True)


def _requests() -> Any:
    """The package that kagglehub asks with."""
    return importlib.import_module("requests")


def _reason(error: BaseException) -> str:
    """What is at the bottom of an exception, in one line and not an endless one."""
    below = error.__cause__ or error.__context__
    while below is not None and not hasattr(below, "response"):  # one of requests': an answer before this one
        error, below = below, below.__cause__ or below.__context__
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]} ..."
