"""Records come back as they were written, and those that cannot be compared refuse to be mixed."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.errors import StateError, UsageError
from samestep.host import facts, peaks, provenance, records

floats = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
leaves = st.none() | st.booleans() | st.integers() | floats | st.text()
names = st.text(st.sampled_from('ab/~01" é')) | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=15)
bodies = st.dictionaries(names.filter(lambda name: name not in ("format", "kind", "not_finite")), values)


def refuse_constant(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def strictly(data: bytes) -> Any:
    return json.loads(data, parse_constant=refuse_constant)


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@settings(deadline=None, derandomize=True, max_examples=60)
@given(bodies)
def test_records_come_back_as_they_were(body: dict[str, Any]) -> None:
    """Also floats that are not finite, in JSON that any reader takes."""
    data = records.to_json("run", body)
    strictly(data)
    expected = {"format": 1, "kind": "run", **body}
    assert repr(records.parse(data, "x", "run")) == repr(expected)


def test_the_oracles_see_a_planted_error() -> None:
    with pytest.raises(AssertionError, match="NaN is no JSON"):
        strictly(json.dumps({"x": math.nan}).encode())
    lost = records.to_json("run", {"x": [math.nan]}).replace(b'"NaN"', b'"Infinity"')
    assert repr(records.parse(lost, "x")) != repr({"format": 1, "kind": "run", "x": [math.nan]})


def test_a_reader_of_plain_json_sees_null() -> None:
    data = records.to_json("run", {"a/b": {"~": (0.5, math.inf)}, "loss": -math.inf, "last": math.nan})
    assert strictly(data) == {
        "format": 1,
        "kind": "run",
        "not_finite": {"/a~1b/~0/1": "Infinity", "/loss": "-Infinity", "/last": "NaN"},
        "a/b": {"~": [0.5, None]},
        "loss": None,
        "last": None,
    }
    assert "not_finite" not in strictly(records.to_json("run", {"loss": 0.5}))


def test_a_body_may_not_use_our_fields() -> None:
    for name in ("format", "kind", "not_finite"):
        with pytest.raises(AssertionError, match="a body holds none of"):
            records.to_json("run", {name: 1})


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    records.write(path, "run", {"x": 1})
    records.write(path, "run", {"x": [2.5, math.inf]})
    assert records.read(path) == records.read(path, "run") == {"format": 1, "kind": "run", "x": [2.5, math.inf]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be written"):
        records.write(tmp_path / "none" / "record.json", "run", {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"is not JSON \(Expecting value: line 1 column 1"),
        ('{"format": 1,', r"is not JSON \(.*line 1 column"),
        (b"\xff\xff", r"is not JSON \(.*utf-8"),
        ("[" * 100_000, r"is not JSON \("),
        ("[1]", "is no record: it has no field 'format'"),
        ("{}", "is no record: it has no field 'format'"),
        ('{"format": 2, "kind": "scale"}', "format is 2, and this samestep reads format 1"),
        ('{"format": true, "kind": "scale"}', "format is True, and this samestep reads format 1"),
        ('{"format": "1", "kind": "scale"}', "format is '1', and this samestep reads format 1"),
        ('{"format": 1}', "kind is None, and it must be 'scale'"),
        ('{"format": 1, "kind": "run"}', "kind is 'run', and it must be 'scale'"),
        ('{"format": 1, "kind": 3}', "kind is 3, and it must be 'scale'"),
        ('{"format": 1, "kind": "scale", "not_finite": 3}', "not_finite must give a word of NaN, Infinity"),
        ('{"format": 1, "kind": "scale", "not_finite": {"/x": "nan"}, "x": null}', "not_finite must give a word"),
        ('{"format": 1, "kind": "scale", "not_finite": {"/x": "NaN"}}', "names the place '/x', and no null is there"),
        ('{"format": 1, "kind": "scale", "not_finite": {"": "NaN"}}', "names the place '', and no null is there"),
        ('{"format": 1, "kind": "scale", "not_finite": {"/x": "NaN"}, "x": 1}', "names the place '/x'"),
        ('{"format": 1, "kind": "scale", "not_finite": {"/x/5": "NaN"}, "x": [null]}', "names the place '/x/5'"),
        ('{"format": 1, "kind": "scale", "not_finite": {"/x/y": "NaN"}, "x": 3}', "names the place '/x/y'"),
    ],
)
def test_files_that_are_no_such_record(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scale.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError, match=message) as caught:
        records.read(path, "scale")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_any_kind_will_do_where_none_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"format": 1, "kind": "new"}')
    assert records.read(path)["kind"] == "new"
    path.write_text('{"format": 1, "kind": null}')
    with pytest.raises(UsageError, match="kind is None, and it must be a text"):
        records.read(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json is not there; name a file that samestep has written as a 'run'"):
        records.read(tmp_path / "none.json", "run")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        records.read(tmp_path)


def test_the_environment_here(cache_folder: Path) -> None:
    found = records.environment()
    assert list(found) == ["created", "host", "peaks", "versions", "source_sha256", "git_commit"]
    assert records.parse(records.to_json("run", {"environment": found}), "x")["environment"] == found
    age = datetime.now(UTC) - datetime.fromisoformat(found["created"])
    assert timedelta(0) <= age < timedelta(minutes=2)
    assert found["source_sha256"] == provenance.source_sha256()
    assert found["host"].keys() == facts.describe().keys()
    assert found["peaks"] is None, "never measured, and not measured on the way"
    assert not cache_folder.exists()


def test_the_environment_knows_peaks_that_are_kept(cache_folder: Path) -> None:
    tiny = peaks.Sizes(
        num_cores=1, copy_bytes_one_core=64, copy_bytes_all_cores=64, side_one_core=2, side_all_cores=2, run_s=0.0
    )
    known = peaks.take(tiny)
    peaks._keep(known)
    assert records.environment()["peaks"] == vars(known)


def test_the_commit_is_that_of_the_working_folder(
    cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "git_commit", lambda folder: f"commit of {folder.name}")
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert records.environment()["git_commit"] == "commit of here"
    if os.name == "posix":
        folder.rmdir()
        assert records.environment()["git_commit"] is None, "the working folder is gone"


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """A record of a machine that tells everything."""
    host = {**facts.describe(), "processor": "A Chip", "cores": 8, "quota_cores": 2.5}
    host["variables"] = {"OMP_NUM_THREADS": "1", "TMPDIR": "/tmp"}
    environment = {
        "created": "2026-01-01T00:00:00+00:00",
        "host": host,
        "peaks": None,
        "versions": {**provenance.versions(), "python": "3.11.7", "torch": "2.13.0+cpu"},
        "source_sha256": "ab" * 32,
        "git_commit": None,
    }
    return {"format": 1, "kind": "scale", "environment": environment}


def changed(measured: Mapping[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    other = copy.deepcopy(dict(measured))
    change(other["environment"])
    return other


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str, str]] = {
    "processor": (lambda e: e["host"].update(processor="B Chip"), "'A Chip'", "'B Chip'"),
    "cores": (lambda e: e["host"].update(cores=4), "8", "4"),
    "quota_cores": (lambda e: e["host"].update(quota_cores=None), "2.5", "not set, or not told,"),
    "instruction_set": (lambda e: e["host"].update(instruction_set="OLD"), ".*", "'OLD'"),
    "memory_gb": (lambda e: e["host"].update(memory_mb=2**24), ".*", "16384"),
    "memory_limit_mb": (lambda e: e["host"].update(memory_limit_mb=77), ".*", "77"),
    "gpus": (lambda e: e["host"].update(gpus=[{"name": "A GPU", "memory_mb": 1}]), ".*", "'A GPU'"),
    "os": (lambda e: e["host"].update(os="Another 1.0"), ".*", "'Another 1.0'"),
    "torch": (lambda e: e["versions"].update(torch="2.14.0+cpu"), r"'2\.13\.0\+cpu'", r"'2\.14\.0\+cpu'"),
    "python": (lambda e: e["versions"].update(python="3.12.7"), r"'3\.11'", r"'3\.12'"),
    "source_sha256": (lambda e: e.update(source_sha256="cd" * 32), "'abab.*'", "'cdcd.*'"),
    "OMP_NUM_THREADS": (lambda e: e["host"]["variables"].update(OMP_NUM_THREADS="2"), "'1'", "'2'"),
    "KMP_AFFINITY": (
        lambda e: e["host"]["variables"].update(KMP_AFFINITY="compact"),
        "not set, or not told,",
        "'compact'",
    ),
}


@pytest.mark.parametrize("field", CHANGES)
def test_records_that_differ_refuse_to_mix(field: str, measured: dict[str, Any]) -> None:
    change, value, other_value = CHANGES[field]
    other = changed(measured, change)
    message = rf"record 1 of 3 and record 3 of 3 cannot be mixed: {field} is {value} in one and {other_value} in the"
    with pytest.raises(UsageError, match=message):
        records.check_mixable([measured, measured, other])
    with pytest.raises(UsageError, match=r"^a\.json and b\.json cannot be mixed"):
        records.check_mixable([other, measured], names=["a.json", "b.json"])


def test_every_field_that_counts_is_tried(measured: dict[str, Any]) -> None:
    assert set(records.comparable(measured)) - set(facts.THREAD_VARIABLES) <= set(CHANGES)


def test_the_first_field_that_differs_is_named(measured: dict[str, Any]) -> None:
    def change(environment: dict[str, Any]) -> None:
        for each, _, _ in CHANGES.values():
            each(environment)

    with pytest.raises(UsageError, match="cannot be mixed: processor is"):
        records.check_mixable([measured, changed(measured, change)])


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.update(created="2026-02-02T00:00:00+00:00", git_commit="1234", peaks={"num_cores": 2}),
        lambda e: e["host"].update(load=3.0, memory_free_mb=1, executable="/usr/bin/python", torch_threads=3),
        lambda e: e["host"]["variables"].update(TMPDIR="/elsewhere"),
        lambda e: e["versions"].update(python="3.11.9", rich="1.0"),
    ],
)
def test_what_may_differ(change: Callable[[dict[str, Any]], object], measured: dict[str, Any]) -> None:
    records.check_mixable([measured, changed(measured, change)])


def test_what_nobody_tells_does_not_keep_apart() -> None:
    untold: dict[str, Any] = {"environment": {"host": {}, "versions": {}}}
    assert set(records.comparable(untold).values()) == {None}
    records.check_mixable([untold, untold])
    records.check_mixable([])


@pytest.mark.parametrize("untold", [{}, {"environment": None}])
def test_a_record_without_its_environment(untold: dict[str, Any], measured: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"record 2 of 2 does not say on what it was measured: .*'environment'"):
        records.check_mixable([measured, untold])
