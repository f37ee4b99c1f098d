"""Loggers: real files and event files read back; MLflow and W&B against small fakes of their modules.

The packages mlflow and wandb are not installed for the tests: the fakes below hold what of them is used, and no more.
"""

from __future__ import annotations

import csv
import errno
import math
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2  # type: ignore[import-untyped, unused-ignore]
from tensorboardX.record_writer import masked_crc32c  # type: ignore[import-untyped, unused-ignore]

from samestep.engine.loop import EvaluationRecord, StepRecord
from samestep.errors import StateError, UsageError
from samestep.run.loggers import build, mlflow_log
from samestep.run.loggers.csv_log import STEP_COLUMNS, CsvLog
from samestep.run.loggers.logger import Guarded, Logger
from samestep.run.loggers.points import Point, Thinned
from samestep.run.loggers.sender import Sender
from samestep.run.loggers.tensorboard_log import TensorboardLog
from tests.host.test_files import mounted

NAMES = ["accuracy", "top 5, %", 'a "quoted" one', "two\nlines", "a\rb", "naïve 😀", "\ud800", "=1+1", "<b>&amp;", ""]
"""Metrics may be called anything."""


def step(number: int, duration_s: float = 0.01) -> StepRecord:
    return StepRecord(number, 1 / (number + 3), math.sqrt(number + 1), 32, duration_s, num_rounds=1, num_rows=32)


def evaluation(after: int, **means: float) -> EvaluationRecord:
    return EvaluationRecord(after, {"loss": 1 / (after + 7), **means}, is_best=after % 2 == 0, duration_s=0.125)


def opening(first_step: int = 0, **config: Any) -> dict[str, Any]:
    return {"name": "digits-mlp", "first_step": first_step, "config": {"lr": 0.1, "optimizer": "sgd", **config}}


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "tiny", "size=64k")


# Points.


def covers(points: list[Point], records: list[StepRecord]) -> bool:
    """Whether every step counts in exactly one point: in its mean loss, and in its rate."""
    start = 0
    for point in points:
        part = records[start : point.step]
        values = {
            "train/loss": sum(r.loss for r in part) / max(1, len(part)),
            "train/gradient_norm": sum(r.gradient_norm for r in part) / max(1, len(part)),
            "train/samples_per_s": sum(r.num_samples for r in part) / max(1e-9, sum(r.duration_s for r in part)),
        }
        if dict(point.values) != pytest.approx(values):
            return False
        start = point.step
    return start == len(records)


def points_of(thinned: Thinned, records: list[StepRecord]) -> list[Point]:
    made = [thinned.add(record) for record in records]
    return [point for point in (*made, thinned.rest()) if point is not None]


@given(st.lists(st.floats(1e-4, 0.2), min_size=1, max_size=60))
def test_every_step_counts_in_one_point(durations: list[float]) -> None:
    records = [step(number, duration_s) for number, duration_s in enumerate(durations)]
    points = points_of(Thinned(0.05), records)
    assert covers(points, records)
    assert len(points) <= sum(durations) / 0.05 + 1
    slow = [number for number, duration_s in enumerate(durations) if duration_s >= 0.05]
    assert {number + 1 for number in slow} <= {point.step for point in points}


def test_a_point_that_forgets_is_seen() -> None:
    class Forgetful(Thinned):
        def add(self, record: StepRecord) -> Point | None:
            return None if record.step == 3 else super().add(record)

    records = [step(number) for number in range(40)]
    assert not covers(points_of(Forgetful(0.05), records), records)


def test_points_are_even_however_steps_are_reported() -> None:
    points = points_of(Thinned(0.05), [step(number, 1 / 128) for number in range(70)])
    assert [point.step for point in points] == [7, 14, 21, 28, 35, 42, 49, 56, 63, 70]


def test_a_rate_without_time_is_unknown() -> None:
    thinned = Thinned(0.05)
    assert thinned.rest() is None
    assert thinned.add(step(0, 0.0)) is None
    point = thinned.rest()
    assert point is not None and "train/samples_per_s" not in point.values


# CSV.


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write_csv(folder: Path, steps: range, *, every: int = 10) -> None:
    """A session that makes these steps, with an evaluation after every tenth."""
    log = CsvLog(folder)
    log.start(opening(steps.start))
    for number in steps:
        log.step(step(number))
        log.flush()
        if (number + 1) % every == 0:
            log.evaluated(evaluation(number + 1, accuracy=0.5))
    log.close()


def num_batches_until_full(log: Logger, size: int) -> int:
    """How many batches of steps can be told until the disk is full; there must be an end to it."""
    for number in range(100_000 // size):
        try:
            for index in range(size):
                log.step(step(number * size + index, 1.0))
            log.flush()
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
            return number
    raise AssertionError("the disk was never full")


def test_csv_holds_every_digit(tmp_path: Path) -> None:
    write_csv(tmp_path / "new" / "log", range(25))
    head, *rows = rows_of(tmp_path / "new" / "log" / "steps.csv")
    assert tuple(head) == STEP_COLUMNS
    read = [
        StepRecord(int(r[0]), float(r[1]), float(r[2]), int(r[3]), float(r[4]), num_rounds=1, num_rows=32) for r in rows
    ]
    assert read == [step(number) for number in range(25)]
    assert rows_of(tmp_path / "new" / "log" / "evaluations.csv") == [
        ["step", "loss", "accuracy", "is_best", "duration_s"],
        ["10", repr(1 / 17), "0.5", "True", "0.125"],
        ["20", repr(1 / 27), "0.5", "True", "0.125"],
    ]


def test_csv_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    log = CsvLog(tmp_path)
    log.start(opening())
    assert rows_of(tmp_path / "steps.csv") == [[*STEP_COLUMNS]]
    assert not (tmp_path / "evaluations.csv").exists()
    log.step(step(0))
    log.flush()
    assert len(rows_of(tmp_path / "steps.csv")) == 2
    log.evaluated(evaluation(1))
    assert len(rows_of(tmp_path / "evaluations.csv")) == 2
    log.step(step(1))
    log.close()
    log.close()
    assert len(rows_of(tmp_path / "steps.csv")) == 3


@given(cut=st.integers(0, 900), lost=st.integers(0, 12))
def test_a_resumed_run_leaves_the_tables_of_one_that_never_stopped(cut: int, lost: int) -> None:
    """However the file was torn, and wherever the run goes on before that."""
    with tempfile.TemporaryDirectory() as folder:
        whole, torn = Path(folder, "whole"), Path(folder, "torn")
        write_csv(whole, range(30))
        write_csv(torn, range(20))
        steps = torn / "steps.csv"
        data = steps.read_bytes()[: max(cut, len(",".join(STEP_COLUMNS)) + 1)]
        steps.write_bytes(data)
        first_step = max(0, data.count(b"\n") - 1 - lost)
        write_csv(torn, range(first_step, 30))
        for name in ("steps.csv", "evaluations.csv"):
            assert (torn / name).read_bytes() == (whole / name).read_bytes()


def test_a_hole_is_seen(tmp_path: Path) -> None:
    """The oracle above, on a run that leaves a step out."""
    write_csv(tmp_path / "whole", range(30))
    write_csv(tmp_path / "torn", range(20))
    write_csv(tmp_path / "torn", range(21, 30))
    assert (tmp_path / "torn" / "steps.csv").read_bytes() != (tmp_path / "whole" / "steps.csv").read_bytes()


def test_an_evaluation_told_again_stands_there_once(tmp_path: Path) -> None:
    write_csv(tmp_path, range(20))
    log = CsvLog(tmp_path)
    log.start(opening(20))
    log.evaluated(evaluation(20, accuracy=0.5))
    log.step(step(20))
    log.step(step(20))
    log.close()
    assert [row[0] for row in rows_of(tmp_path / "evaluations.csv")[1:]] == ["10", "20"]
    assert [row[0] for row in rows_of(tmp_path / "steps.csv")[-2:]] == ["19", "20"]


def test_csv_of_a_run_from_the_beginning_replaces_an_older_one(tmp_path: Path) -> None:
    write_csv(tmp_path, range(20))
    write_csv(tmp_path, range(5))
    assert len(rows_of(tmp_path / "steps.csv")) == 6
    assert not (tmp_path / "evaluations.csv").exists()


def test_csv_takes_any_name(tmp_path: Path) -> None:
    for first_step in (0, 3):  # and knows it again
        log = CsvLog(tmp_path)
        log.start(opening(first_step))
        log.evaluated(evaluation(first_step + 3, **dict.fromkeys(NAMES, 0.5)))
        log.close()
    head, *rows = rows_of(tmp_path / "evaluations.csv")
    assert head == ["step", "loss", *(name.replace("\ud800", "?") for name in NAMES), "is_best", "duration_s"]
    assert [row[0] for row in rows] == ["3", "6"]


FOREIGN = [b"time,loss\n1,2\n", b"\n\nstep,loss\n", b"step,loss", b"\x00" * 200_000, b'"', b"\xff\xfe\n"]


@pytest.mark.parametrize("name", ["steps.csv", "evaluations.csv"])
@pytest.mark.parametrize("first_step", [0, 5])
@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, name: str, first_step: int, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    log = CsvLog(tmp_path)
    with pytest.raises(StateError, match=rf"{name} is not a log of samestep, and would be lost; name another folder"):
        log.start(opening(first_step))
    log.close()
    assert (tmp_path / name).read_bytes() == content


def test_other_columns_do_not_mix(tmp_path: Path) -> None:
    write_csv(tmp_path, range(20))
    log = CsvLog(tmp_path)
    log.start(opening(20))
    with pytest.raises(StateError, match=r"has the columns step, loss, accuracy, .*this run has step, loss, error"):
        log.evaluated(evaluation(30, error=0.5))
    log.close()


@pytest.mark.parametrize("tail", [b"7,0.5", b"7,0.5,1,32,0.01", b"7,0.5\n", b"x,0.5,1,32,0.01\n", b"\x00" * 200_000])
def test_a_damaged_end_is_cut(tmp_path: Path, tail: bytes) -> None:
    write_csv(tmp_path, range(7))
    path = tmp_path / "steps.csv"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    write_csv(tmp_path, range(9, 9))
    assert path.read_bytes() == whole


def test_a_full_disk_leaves_whole_rows(tiny_disk: Path) -> None:
    log = CsvLog(tiny_disk)
    log.start(opening())
    written = num_batches_until_full(log, 10)
    log.close()
    head, *rows = rows_of(tiny_disk / "steps.csv")
    assert len(rows) == 10 * written > 0
    assert {len(row) for row in rows} == {len(head)}


# TensorBoard.


def read_events(path: Path) -> list[Any]:
    """The events of a file, its checksums compared."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        content = data[12 : 12 + length]
        checksums = struct.pack("<II", masked_crc32c(data[:8]), masked_crc32c(content))
        assert data[8:12] + data[12 + length : 16 + length] == checksums, f"{path.name} is damaged"
        events.append(event_pb2.Event.FromString(content))
        data = data[16 + length :]
    return events


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: files by name; a session's start voids what came before and lies at or beyond it."""
    shown: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.iterdir()):
        first, *events = read_events(path)
        assert first.file_version == "brain.Event:2"
        for event in events:
            if event.HasField("session_log"):
                assert event.session_log.status == event_pb2.SessionLog.START
                shown = {name: [point for point in curve if point[0] < event.step] for name, curve in shown.items()}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown


def write_tensorboard(folder: Path, steps: range, *, duration_s: float = 0.05) -> None:
    log = TensorboardLog(folder)
    log.start(opening(steps.start))
    for number in steps:
        log.step(step(number, duration_s))
        if (number + 1) % 10 == 0:
            log.evaluated(evaluation(number + 1))
    log.close()


def test_tensorboard_curves(tmp_path: Path) -> None:
    write_tensorboard(tmp_path, range(15))
    shown = curves(tmp_path)
    assert set(shown) == {"train/loss", "train/gradient_norm", "train/samples_per_s", "eval/loss"}
    assert [number for number, _ in shown["train/loss"]] == list(range(1, 16))
    assert [value for _, value in shown["train/loss"]] == pytest.approx([1 / (n + 3) for n in range(15)])
    assert shown["train/gradient_norm"][3] == (4, 2.0)
    assert shown["train/samples_per_s"][0] == (1, 640.0)
    assert shown["eval/loss"] == [(10, float(np.float32(1 / 17)))]


def test_tensorboard_is_thinned(tmp_path: Path) -> None:
    write_tensorboard(tmp_path, range(25), duration_s=1 / 128)
    shown = curves(tmp_path)["train/loss"]
    assert [number for number, _ in shown] == [7, 10, 17, 20, 25]  # an evaluation closes a point, and so does the end
    assert shown[1][1] == pytest.approx((1 / 10 + 1 / 11 + 1 / 12) / 3)


def test_tensorboard_says_what_is_run(tmp_path: Path) -> None:
    log = TensorboardLog(tmp_path)
    log.start(opening(out="/a <b>\ud800", steps=None))
    log.close()
    (path,) = tmp_path.iterdir()
    (text,) = [v for event in read_events(path) for v in event.summary.value]
    assert text.metadata.plugin_data.plugin_name == "text"
    expected = 'digits-mlp\n\n    lr = 0.1\n    optimizer = "sgd"\n    out = "/a <b>?"'
    assert text.tensor.string_val[0].decode() == expected


def test_a_resumed_run_draws_every_step_once(tmp_path: Path) -> None:
    """All within a second or two: files are read in the order of their names."""
    for steps in (range(20), range(10, 14), range(12, 30)):
        write_tensorboard(tmp_path, steps)
    shown = curves(tmp_path)
    assert [number for number, _ in shown["train/loss"]] == list(range(1, 31))
    assert [number for number, _ in shown["eval/loss"]] == [10, 20, 30]


def test_a_double_step_is_seen(tmp_path: Path) -> None:
    """The oracle above, on two sessions one of which is read too late."""
    write_tensorboard(tmp_path, range(20))
    write_tensorboard(tmp_path, range(10, 30))
    _first, second = sorted(tmp_path.iterdir())
    second.rename(tmp_path / f"a.{second.name}")
    assert [number for number, _ in curves(tmp_path)["train/loss"]] != list(range(1, 31))


def test_a_damaged_event_is_seen(tmp_path: Path) -> None:
    write_tensorboard(tmp_path, range(5))
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(AssertionError, match="is damaged"):
        read_events(path)


def test_tensorboard_forgets_an_older_run_when_one_starts_from_the_beginning(tmp_path: Path) -> None:
    write_tensorboard(tmp_path, range(20))
    write_tensorboard(tmp_path, range(5))
    assert [number for number, _ in curves(tmp_path)["train/loss"]] == [1, 2, 3, 4, 5]


def test_tensorboard_takes_any_name_and_number(tmp_path: Path) -> None:
    log = TensorboardLog(tmp_path)
    log.start(opening())
    values = [math.nan, math.inf, 1e300, *range(len(NAMES) - 3)]
    log.evaluated(evaluation(1, **dict(zip(NAMES, map(float, values), strict=True))))
    assert set(curves(tmp_path)) == {"eval/loss", *(f"eval/{name}".replace("\ud800", "?") for name in NAMES)}
    log.close()
    log.close()


def test_tensorboard_on_a_full_disk(tiny_disk: Path) -> None:
    """It raises, where tensorboardX's own writer blocks for ever."""
    log = TensorboardLog(tiny_disk)
    log.start(opening())
    assert num_batches_until_full(log, 1)
    with pytest.raises(OSError, match="No space left"):
        log.close()
    log.close()


# One that breaks does not stop the run.


@dataclass
class Told:
    """A logger that keeps what it is told, and fails where it is asked to."""

    name: str = "told"
    fails_in: str = ""
    error: BaseException = field(default_factory=lambda: OSError(28, "No space left on device", "/x/steps.csv"))
    told: list[Any] = field(default_factory=list)

    def _take(self, method: str, what: Any) -> None:
        self.told.append(what)
        if method == self.fails_in:
            raise self.error

    def start(self, run: Mapping[str, Any]) -> None:
        self._take("start", "start")

    def step(self, record: StepRecord) -> None:
        self._take("step", record.step)

    def flush(self) -> None:
        self._take("flush", "flush")

    def evaluated(self, record: EvaluationRecord) -> None:
        self._take("evaluated", "evaluated")

    def close(self, error: BaseException | None = None) -> None:
        self._take("close", ("close", type(error)))


def tell_a_run(loggers: list[Told], notices: list[str]) -> None:
    with Guarded(loggers, notices.append) as guarded:
        guarded.start(opening())
        guarded.steps([step(0), step(1)])
        guarded.steps([])
        guarded.evaluated(evaluation(2))
        guarded.steps([step(2)])


REST = "it may lack what came since it was last written, and ends here; the run goes on"
WHOLE = ["start", 0, 1, "flush", "evaluated", 2, "flush", ("close", type(None))]


def test_all_are_told_everything() -> None:
    loggers, notices = [Told("a"), Told("b")], list[str]()
    tell_a_run(loggers, notices)
    assert [logger.told for logger in loggers] == [WHOLE, WHOLE]
    assert notices == []


@pytest.mark.parametrize(
    ("method", "told", "after"),
    [
        ("step", ["start", 0], 0),
        ("flush", ["start", 0, 1, "flush"], 0),
        ("evaluated", ["start", 0, 1, "flush", "evaluated"], 2),
        ("close", WHOLE, 3),
    ],
)
def test_one_that_fails_is_left_out_and_named_once(method: str, told: list[Any], after: int) -> None:
    broken, whole, notices = Told("csv:/x", method), Told(), list[str]()
    tell_a_run([broken, whole], notices)
    assert whole.told == WHOLE
    assert broken.told == [*told, ("close", OSError)]  # it can let go of what it holds
    assert notices == [
        f"warning: the log csv:/x failed after step {after}: No space left on device: /x/steps.csv; {REST}"
    ]


def test_a_reason_is_one_line_of_fair_length() -> None:
    notices: list[str] = []
    tell_a_run([Told("mlflow", "step", RuntimeError("no\n  answer\n" + "x" * 1000))], notices)
    assert "failed after step 0: RuntimeError: no answer xxx" in notices[0]
    assert len(notices[0]) < 500 and "\n" not in notices[0]


def test_one_that_cannot_start_stops_the_run() -> None:
    first, broken, notices = Told("a"), Told("wandb:x", "start", RuntimeError("no key")), list[str]()
    with pytest.raises(StateError, match=r"the log wandb:x cannot start: RuntimeError: no key; mend that, or leave"):
        tell_a_run([first, broken], notices)
    assert first.told == ["start", ("close", StateError)]
    assert broken.told == ["start", ("close", StateError)]


def test_its_own_words_are_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match=r"^the folder for the csv log, .*, cannot be made: Not a directory"):
        Guarded([CsvLog(tmp_path / "file" / "x")], print).start(opening())


def test_ctrl_c_is_no_failure_of_a_logger() -> None:
    notices: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        tell_a_run([Told("a", "step", KeyboardInterrupt())], notices)
    assert notices == []


def test_a_failed_run_is_written_down_to_its_end(tmp_path: Path) -> None:
    def run() -> None:
        with Guarded([CsvLog(tmp_path / "csv"), TensorboardLog(tmp_path / "tensorboard")], print) as guarded:
            guarded.start(opening())
            guarded.steps([step(number) for number in range(3)])
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        run()
    assert len(rows_of(tmp_path / "csv" / "steps.csv")) == 4
    assert [number for number, _ in curves(tmp_path / "tensorboard")["train/loss"]] == [3]


def test_a_run_outlives_a_full_disk(tiny_disk: Path, tmp_path: Path) -> None:
    notices: list[str] = []
    loggers: list[Logger] = [
        CsvLog(tiny_disk / "csv"),
        TensorboardLog(tiny_disk / "tensorboard"),
        CsvLog(tmp_path / "other"),
    ]
    with Guarded(loggers, notices.append) as guarded:
        guarded.start(opening())
        for number in range(5000):
            guarded.steps([step(number, 1.0)])
    assert len(notices) == 2
    assert {text.split(" failed after step")[0] for text in notices} == {
        f"warning: the log {name}:{tiny_disk / name}" for name in ("csv", "tensorboard")
    }
    assert all(": No space left on device" in text for text in notices)
    assert len(rows_of(tmp_path / "other" / "steps.csv")) == 5001


# What a person asks for.


def names_of(specs: list[str], out: Path | None = None) -> list[str]:
    return [logger.name for logger in build.build(specs, out)]


def test_places(tmp_path: Path, fake_mlflow: FakeMlflow, fake_wandb: list[FakeWandbRun]) -> None:
    assert build.build([], None) == ()
    assert names_of(["csv", " tensorboard", "mlflow", "wandb"], tmp_path) == [
        f"csv:{tmp_path}/csv", f"tensorboard:{tmp_path}/tensorboard", "mlflow", "wandb",
    ]  # fmt: skip
    assert names_of(["csv:C:/a b;ü", "csv:.", "mlflow:my: runs", "wandb:x"]) == [
        f"csv:{Path.cwd()}/C:/a b;ü", f"csv:{Path.cwd()}", "mlflow:my: runs", "wandb:x",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []  # nothing is written yet


@pytest.mark.parametrize(
    ("specs", "text"),
    [
        (["csv"], r"log 'csv' needs a folder: name it \(csv:DIR\), or give the run one with out"),
        (["tensorboard"], r"log 'tensorboard' needs a folder: name it \(tensorboard:DIR\)"),
        (["csv:"], "log 'csv:' names nothing after the colon; take csv, or one of csv:DIR"),
        (
            ["tensorbord:x"],
            r"log 'tensorbord:x' is not known; did you mean tensorboard\? take csv:DIR, tensorboard:DIR",
        ),
        ([""], "log '' is not known; take csv:DIR, tensorboard:DIR, mlflow:EXPERIMENT, wandb:PROJECT"),
        (["csv:a", "csv:a"], "log=csv:a,csv:a names csv:.*/a more than once"),
    ],
)
def test_mistakes(specs: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        build.build(specs, None)


def test_a_folder_by_two_names_is_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="more than once"):
        build.build(["csv", f"csv:{tmp_path}/csv"], tmp_path)


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"^this log needs {name} \(.*\): pip install samestep\[{name}\]$"):
        build.build([f"{name}:x"], None)


# Sending.


def divide_by_zero(_: object) -> None:
    raise ZeroDivisionError


def test_a_sender_keeps_the_order_and_gathers() -> None:
    gate, sent, ends = threading.Event(), list[list[int]](), list[Exception | None]()

    def send(items: list[int]) -> None:
        gate.wait(10)
        sent.append(items)

    sender = Sender(send, ends.append)
    for number in range(10):
        sender.put(number)
    gate.set()
    sender.close(10)
    assert [number for items in sent for number in items] == list(range(10))
    assert len(sent) <= 2
    assert ends == [None]


def test_a_sender_passes_an_error_on() -> None:
    ends: list[Exception | None] = []
    finished = threading.Event()

    def finish(error: Exception | None) -> None:
        ends.append(error)
        finished.set()

    sender = Sender(divide_by_zero, finish)
    sender.put(1)
    assert finished.wait(10)
    with pytest.raises(ZeroDivisionError):
        sender.put(2)
    with pytest.raises(ZeroDivisionError):
        sender.close(10)
    assert isinstance(ends[0], ZeroDivisionError) and len(ends) == 1


def test_a_failed_end_is_passed_on() -> None:
    sender = Sender(lambda items: None, divide_by_zero)
    with pytest.raises(ZeroDivisionError):
        sender.close(10)


def test_nobody_waits_for_ever() -> None:
    gate = threading.Event()

    def send(items: list[int]) -> None:
        gate.wait(60)

    sender = Sender(send, lambda error: None)
    sender.put(1)
    with pytest.raises(StateError, match=r"no answer within 0\.05 s; the last values may be missing"):
        sender.close(0.05)
    gate.set()


# MLflow, against a fake of what is used of it.


class FakeMlflow(ModuleType):
    """Experiments and runs in memory; refuses names as MLflow 3 does; `fails` stands for a server that is gone."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.entities = ModuleType("mlflow.entities")
        self.entities.Metric = lambda *values: ("metric", *values)  # type: ignore[attr-defined]
        self.entities.Param = lambda *values: ("param", *values)  # type: ignore[attr-defined]
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, SimpleNamespace] = {}
        self.fails: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()

    def MlflowClient(self) -> FakeMlflow:  # noqa: N802
        return self

    def _answer(self, name: str) -> None:
        self.gate.wait(10)
        if name in self.fails:
            raise RuntimeError(f"{name}: connection refused")

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str) -> str:
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def create_run(self, experiment_id: str, *, run_name: str) -> SimpleNamespace:
        self._answer("create_run")
        run_id = f"run {len(self.runs)}"
        self.runs[run_id] = SimpleNamespace(
            experiment=experiment_id, name=run_name, status="RUNNING", params={}, metrics={}
        )  # fmt: skip
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def log_batch(self, run_id: str, *, metrics: Any = (), params: Any = (), synchronous: bool) -> None:
        self._answer("log_batch" if metrics else "params")
        assert synchronous and len(params) <= 100 and len(metrics) <= 1000
        for kind, name, value in params:
            assert kind == "param" and isinstance(value, str)
            self.runs[run_id].params[name] = value
        for kind, name, value, _, at in metrics:
            assert kind == "metric" and all(c.isalnum() or c in "_-./ " for c in name) and ".." not in name, name
            self.runs[run_id].metrics.setdefault(name, []).append((at, value))

    def set_terminated(self, run_id: str, *, status: str) -> None:
        self._answer("set_terminated")
        self.runs[run_id].status = status


@pytest.fixture
def fake_mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    module = FakeMlflow()
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", module.entities)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return module


def run_a_little(logger: Logger, notices: list[str], *, num_steps: int = 4, fail: Callable[[], object] = int) -> None:
    with Guarded([logger], notices.append) as guarded:
        guarded.start(opening(2, out=None))
        guarded.steps([step(number, 0.5) for number in range(2, 2 + num_steps)])
        guarded.evaluated(evaluation(2 + num_steps, accuracy=0.5))
        fail()
        guarded.steps([step(2 + num_steps, 0.5)])


def test_mlflow_gets_parameters_points_and_the_end(fake_mlflow: FakeMlflow) -> None:
    notices: list[str] = []
    (logger,) = build.build(["mlflow:digits"], None)
    run_a_little(logger, notices)
    (run,) = fake_mlflow.runs.values()
    assert notices == []
    assert (fake_mlflow.experiments, run.experiment, run.name) == ({"digits": "0"}, "0", "digits-mlp")
    assert run.params == {"first_step": "2", "lr": "0.1", "optimizer": "sgd"}
    assert run.metrics["train/loss"] == [
        (4, pytest.approx((1 / 5 + 1 / 6) / 2)), (6, pytest.approx((1 / 7 + 1 / 8) / 2)), (7, pytest.approx(1 / 9)),
    ]  # fmt: skip
    assert run.metrics["train/samples_per_s"] == [(4, 64.0), (6, 64.0), (7, 64.0)]
    assert run.metrics["eval/accuracy"] == [(6, 0.5)]
    assert run.status == "FINISHED"


def test_mlflow_finds_its_experiment(fake_mlflow: FakeMlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "named")
    fake_mlflow.experiments.update(other="7", named="9")
    run_a_little(mlflow_log.MlflowLog(None), [])
    assert fake_mlflow.runs["run 0"].experiment == "9"
    assert set(fake_mlflow.experiments) == {"other", "named"}


def test_mlflow_of_a_failed_run_says_so(fake_mlflow: FakeMlflow) -> None:
    def fail() -> None:
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        run_a_little(mlflow_log.MlflowLog(None), [], fail=fail)
    (run,) = fake_mlflow.runs.values()
    assert run.status == "FAILED"
    assert run.metrics["eval/loss"] == [(6, pytest.approx(1 / 13))]


def test_mlflow_that_goes_away_is_left_out(fake_mlflow: FakeMlflow) -> None:
    fake_mlflow.fails = {"log_batch"}
    notices: list[str] = []
    run_a_little(mlflow_log.MlflowLog("x"), notices)
    (text,) = notices
    assert text.startswith("warning: the log mlflow:x failed after step ")
    assert "RuntimeError: log_batch: connection refused" in text
    assert fake_mlflow.runs["run 0"].status == "FAILED"


def test_mlflow_that_never_answers_does_not_hold_the_run(fake_mlflow: FakeMlflow) -> None:
    notices: list[str] = []
    run_a_little(mlflow_log.MlflowLog("x", timeout_s=0.05), notices, fail=fake_mlflow.gate.clear)
    fake_mlflow.gate.set()
    (text,) = notices
    assert "no answer within 0.05 s; the last values may be missing there" in text


@pytest.mark.parametrize("call", ["create_run", "params"])
def test_mlflow_that_is_not_there_stops_the_run_before_it_starts(fake_mlflow: FakeMlflow, call: str) -> None:
    fake_mlflow.fails = {call}
    with pytest.raises(StateError, match=f"the log mlflow cannot start: RuntimeError: {call}: connection refused"):
        run_a_little(mlflow_log.MlflowLog(None), [])
    assert [run.status for run in fake_mlflow.runs.values()] == (["FAILED"] if call == "params" else [])


def test_mlflow_gets_names_that_it_takes(fake_mlflow: FakeMlflow) -> None:
    notices: list[str] = []
    with Guarded([mlflow_log.MlflowLog(None)], notices.append) as guarded:
        guarded.start(opening())
        guarded.evaluated(evaluation(1, **{name: float(index) for index, name in enumerate([*NAMES, "..", "."])}))
    assert notices == []
    assert fake_mlflow.runs["run 0"].metrics["eval/top 5_ _"] == [(1, 1.0)]
    assert fake_mlflow.runs["run 0"].metrics["eval/_"] == [(1, 6.0)]
    assert len(fake_mlflow.runs["run 0"].metrics) == 1 + len(NAMES) + 2


@given(st.lists(st.text(), unique=True, max_size=8))
def test_plain_names_are_plain_and_never_alike(names: list[str]) -> None:
    plain = mlflow_log.plain_names([f"eval/{name}" for name in names])
    assert len(set(plain.values())) == len(names)
    for name in plain.values():
        rest = name.removeprefix("eval/")
        assert rest.strip(".") and all(c.isalnum() or c in "_-. " for c in rest)


# Weights & Biases, against a fake of what is used of it.


@dataclass
class FakeWandbRun:
    """One run; refuses a step that goes back, as W&B drops it."""

    settings: dict[str, Any]
    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    exit_code: int | None = None

    def log(self, data: dict[str, float], *, step: int) -> None:
        assert step >= max(self.rows, default=0)
        self.rows.setdefault(step, {}).update(data)

    def finish(self, *, exit_code: int) -> None:
        assert self.exit_code is None
        self.exit_code = exit_code


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> list[FakeWandbRun]:
    runs: list[FakeWandbRun] = []

    def init(**settings: Any) -> FakeWandbRun:
        runs.append(FakeWandbRun(settings))
        return runs[-1]

    module = ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_gets_configuration_points_and_the_end(fake_wandb: list[FakeWandbRun]) -> None:
    notices: list[str] = []
    (logger,) = build.build(["wandb:digits"], None)
    run_a_little(logger, notices)
    (run,) = fake_wandb
    assert notices == []
    config = {"lr": 0.1, "optimizer": "sgd", "out": None, "first_step": 2}
    assert run.settings == {"project": "digits", "name": "digits-mlp", "config": config, "reinit": "create_new"}
    assert {at: sorted(row) for at, row in run.rows.items()} == {
        4: ["train/gradient_norm", "train/loss", "train/samples_per_s"],
        6: ["eval/accuracy", "eval/loss", "train/gradient_norm", "train/loss", "train/samples_per_s"],
        7: ["train/gradient_norm", "train/loss", "train/samples_per_s"],
    }
    assert run.rows[6]["train/loss"] == pytest.approx((1 / 7 + 1 / 8) / 2)
    assert run.exit_code == 0


def test_wandb_of_a_failed_run_says_so(fake_wandb: list[FakeWandbRun]) -> None:
    def fail() -> None:
        raise RuntimeError("planted")

    (logger,) = build.build(["wandb"], None)
    with pytest.raises(RuntimeError, match="planted"):
        run_a_little(logger, [], fail=fail)
    logger.close()
    assert fake_wandb[0].settings["project"] is None
    assert fake_wandb[0].exit_code == 1


def test_a_step_record_is_all_that_a_row_holds() -> None:
    """A field that is added to the record must find its column; what has none is in the run's record."""
    assert StepRecord._fields == (*STEP_COLUMNS, "num_rounds", "num_rows", "pair", "growth")
