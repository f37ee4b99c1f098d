"""Records on disk: raw values and all that belongs to them; those that cannot be compared refuse to be mixed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from samestep.errors import UsageError
from samestep.host import facts, files, peaks, provenance

FORMAT = 1

_OWN = ("format", "kind", "not_finite")
"""Fields of the record itself, beside those of its body."""

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


# ---------------------------------------------------------------- pure: what a record is


def to_json(kind: str, body: Mapping[str, Any]) -> bytes:
    """A record as JSON that any reader takes.

    JSON has no word for a float that is not finite: null stands in its place, and the field `not_finite` says, by
    place (a JSON pointer, RFC 6901), which it was. `parse` puts it back. The field is left out where it would be empty.

    >>> to_json("run", {"losses": [0.5, math.inf]}).decode().rstrip()
    '{"format": 1, "kind": "run", "losses": [0.5, null], "not_finite": {"/losses/1": "Infinity"}}'
    """
    assert not set(_OWN) & body.keys(), f"a body holds none of {_OWN}"
    return plain_json({"format": FORMAT, "kind": kind, **body}).encode() + b"\n"


def plain_json(values: Mapping[str, Any]) -> str:
    """JSON that any reader takes: what is not finite is null, and the field `not_finite` says what it was.

    >>> plain_json({"loss": math.nan})
    '{"loss": null, "not_finite": {"/loss": "NaN"}}'
    """
    try:
        return json.dumps(values, allow_nan=False)
    except ValueError:  # something is not finite: look for it, which takes longer
        found: dict[str, str] = {}
        plain = _without_not_finite(dict(values), "", found)
        return json.dumps({**plain, "not_finite": found}, allow_nan=False)


def parse(data: bytes, name: str, kind: str | None = None) -> dict[str, Any]:
    """What a record holds, its format and kind included.

    Args:
        data: What `to_json` made.
        name: What messages call it: the file's path.
        kind: Which kind it has to be; None takes any.

    Raises:
        UsageError: It is no record, or of another format or kind.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON ({error or 'nested too deeply'}); {_way_out(kind)}") from None
    if not isinstance(content, dict) or "format" not in content:
        raise UsageError(f"{name} is no record: it has no field 'format'; {_way_out(kind)}")
    found_format, found_kind = content["format"], content.get("kind")
    if type(found_format) is not int or found_format != FORMAT:
        raise UsageError(
            f"{name}: format is {found_format!r}, and this samestep reads format {FORMAT}; {_way_out(kind)}, "
            "or read it with the samestep that wrote it"
        )
    if not isinstance(found_kind, str) or (kind is not None and found_kind != kind):
        wanted = "must be a text" if kind is None else f"must be {kind!r}"
        raise UsageError(f"{name}: kind is {found_kind!r}, and it {wanted}; {_way_out(kind)}")
    for place, word in _entries(content.pop("not_finite", {}), name):
        _put_back(content, place, word, name)
    return content


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same for numbers of two records to be compared, in the order in which it is looked at.

    What a record does not tell is None.
    """
    environment = _mapping(record, "environment")
    host, versions = _mapping(environment, "host"), _mapping(environment, "versions")
    python, variables = versions.get("python"), _mapping(host, "variables")
    memory_mb, gpus = host.get("memory_mb"), host.get("gpus")
    return {
        "processor": host.get("processor"),
        "cores": host.get("cores"),
        "quota_cores": host.get("quota_cores"),
        "instruction_set": host.get("instruction_set"),
        "memory_gb": None if memory_mb is None else round(memory_mb / 1024),  # to the byte it differs from boot to boot
        "memory_limit_mb": host.get("memory_limit_mb"),
        "gpus": None if gpus is None else ", ".join(gpu["name"] for gpu in gpus) or "none",
        "os": host.get("os"),
        "torch": versions.get("torch"),
        "python": None if python is None else ".".join(str(python).split(".")[:2]),
        "source_sha256": environment.get("source_sha256"),
        **{name: variables.get(name) for name in facts.THREAD_VARIABLES},
    }


def check_mixable(
    records: Sequence[Mapping[str, Any]],
    *,
    names: Sequence[str] = (),
    without: Sequence[str] = (),
    way_out: str = "measure both again in one place, or leave one out",
) -> None:
    """Refuse to mix records of different machines, versions, sources or settings of threads.

    What no record tells does not keep them apart; what only some tell does.

    Args:
        records: As `read` gives them.
        names: What messages call each of them, for example the files' paths; default: their numbers.
        without: Fields of `comparable` that may differ.
        way_out: What can be done about a difference.

    Raises:
        UsageError: With the first field that differs, and both values.
    """
    called = list(names) or [f"record {number} of {len(records)}" for number in range(1, len(records) + 1)]
    for name, record in zip(called, records, strict=True):
        if not isinstance(record.get("environment"), Mapping):
            raise UsageError(
                f"{name} does not say on what it was measured: it has no field 'environment'; measure again, "
                "or leave it out"
            )
    told = [comparable(record) for record in records]
    for name, other in zip(called[1:], told[1:], strict=True):
        compared = [field for field in other if field not in without]
        field = next((field for field in compared if told[0][field] != other[field]), None)
        if field is not None:
            raise UsageError(
                f"{called[0]} and {name} cannot be mixed: {field} is {_text(told[0][field])} in one and "
                f"{_text(other[field])} in the other; only numbers of one machine, version and setting of threads "
                f"can be compared: {way_out}"
            )


def as_plain(value: Any) -> Any:
    """Values as a record gives them back: tuples become lists.

    >>> as_plain({"workers": (1, 2)})
    {'workers': [1, 2]}
    """
    return json.loads(json.dumps(value))


def difference(found: Any, wanted: Any, place: str) -> str | None:
    """The first field that two plain values do not share, in words; None where they are equal.

    >>> difference({"seed": 0, "sizes": [1, 2]}, {"seed": 0, "sizes": [1, 3]}, "study")
    "its study.sizes[1] is 2 and this one's is 3"
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        pairs = ((found.get(name), wanted.get(name), f"{place}.{name}") for name in {**found, **wanted})
        return next((text for pair in pairs if (text := difference(*pair))), None)
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        entries = ((a, b, f"{place}[{at}]") for at, (a, b) in enumerate(zip(found, wanted, strict=True)))
        return next((text for pair in entries if (text := difference(*pair))), None)
    return None if found == wanted else f"its {place} is {found!r} and this one's is {wanted!r}"


def _without_not_finite(value: Any, place: str, found: dict[str, str]) -> Any:
    """The same values with null for floats that are not finite; `found` gets their places."""
    if isinstance(value, float) and not math.isfinite(value):
        found[place] = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return None
    if isinstance(value, dict):
        return {key: _without_not_finite(item, f"{place}/{_escaped(key)}", found) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_not_finite(item, f"{place}/{index}", found) for index, item in enumerate(value)]
    return value


def _entries(places: Any, name: str) -> list[tuple[str, str]]:
    if not isinstance(places, dict) or not all(word in _NOT_FINITE for word in map(str, places.values())):
        raise UsageError(f"{name}: not_finite must give a word of {', '.join(_NOT_FINITE)} by place; measure again")
    return list(places.items())


def _put_back(content: Any, place: str, word: str, name: str) -> None:
    try:
        *path, last = [part.replace("~1", "/").replace("~0", "~") for part in place.split("/")[1:]]
        for part in path:
            content = content[int(part) if isinstance(content, list) else part]
        key = int(last) if isinstance(content, list) else last
        is_null = content[key] is None
        content[key] = _NOT_FINITE[word]
    except (ValueError, LookupError, TypeError):
        is_null = False
    if not is_null:
        raise UsageError(f"{name}: not_finite names the place {place!r}, and no null is there; measure again")


def _escaped(key: Any) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _text(value: Any) -> str:
    return "not set, or not told," if value is None else repr(value)


def _way_out(kind: str | None) -> str:
    return "name a file that samestep has written" + (f" as a {kind!r} record" if kind else "")


# ---------------------------------------------------------------- acting: this machine, these files


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a machine was like when something began.

    Args:
        created: When that was, in UTC.
        load: Processes that ran or wanted to, the mean over the minute before; None where the system does not tell.
    """

    created: str
    load: float | None

    @classmethod
    def now(cls) -> Start:
        return cls(created=datetime.now(UTC).isoformat(timespec="seconds"), load=facts.load())


def environment(start: Start | None = None, measured: peaks.Peaks | None = None) -> dict[str, Any]:
    """Where and when numbers are taken, as plain values. Nothing is measured here.

    `host` may hold paths of whoever runs it (`variables`, `executable`).

    Args:
        start: As it was when they began to be taken; None: now.
        measured: The machine's peaks; None: those of the cache, or unknown.
    """
    known, start = measured or peaks.cached(), start or Start.now()
    return {
        "created": start.created,
        "host": {**facts.describe(), "load": start.load},
        "peaks": None if known is None else asdict(known),
        "versions": provenance.versions(),
        "source_sha256": provenance.source_sha256(),
        "git_commit": _commit_here(),
    }


def write(path: Path, kind: str, body: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all.

    Args:
        path: The file; its folder has to be there.
        kind: "run", "scale", ...
        body: Everything else, as plain values; floats that are not finite are kept as `to_json` says.

    Raises:
        StateError: The disk is full, or the folder cannot be written.
    """
    files.write_atomically(path, to_json(kind, body))


def read(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Read a record.

    Args:
        path: The file.
        kind: Which kind it has to be; None takes any.

    Raises:
        UsageError: It cannot be read, is no record, or is of another format or kind.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} is not there; {_way_out(kind)}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; {_way_out(kind)}") from None
    return parse(data, str(path), kind)


def _commit_here() -> str | None:
    try:
        folder = Path.cwd()
    except OSError:  # it was deleted
        return None
    return provenance.git_commit(folder)
