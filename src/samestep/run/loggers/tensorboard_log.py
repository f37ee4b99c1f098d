"""Curves for TensorBoard, written with tensorboardX's protocol buffers.

Its `SummaryWriter` is not used: a thread of its own writes the file, a full disk ends that thread, and the queue in
front of it then fills and blocks the run for ever. Here the few events are written where an error is seen.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from samestep.engine.loop import EvaluationRecord, StepRecord
from samestep.host import files
from samestep.run.loggers.logger import as_utf8, required
from samestep.run.loggers.points import Point, Thinned, of_evaluation
from samestep.run.toml import as_toml

_INTERVAL_S = 0.05
"""At most 20 points a second."""

_WAY_OUT = "pip install tensorboardX"


class TensorboardLog:
    """Curves train/loss, train/gradient_norm, train/samples_per_s and eval/...; their step is optimiser steps made.

    A resumed run marks the points beyond its first step as void, and TensorBoard leaves them out; so it does with
    all points of an earlier run in the same folder when a run starts from the beginning.

    Args:
        folder: Where the event files are; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        self.name = f"tensorboard:{folder}"
        self._folder = folder
        self._event = required("tensorboardX.proto.event_pb2", _WAY_OUT)
        self._summary = required("tensorboardX.proto.summary_pb2", _WAY_OUT)
        self._text = required("tensorboardX.summary", _WAY_OUT).text
        self._checksum = required("tensorboardX.record_writer", _WAY_OUT).masked_crc32c
        self._thinned = Thinned(_INTERVAL_S)
        self._file: BinaryIO | None = None

    def start(self, run: Mapping[str, Any]) -> None:
        """Open a new event file; it says from where on earlier ones are void, and what is run."""
        files.make_folder(self._folder, "the tensorboard log")
        self._file = open(self._folder / self._next_name(), "xb")  # noqa: SIM115
        first_step = run["first_step"]
        self._write(0, file_version="brain.Event:2")
        restart = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write(first_step + 1 if first_step else 0, session_log=restart)
        lines = as_toml(run["config"]).splitlines()
        text = "\n".join([run["name"], "", *(f"    {line}" for line in lines)])  # indented: verbatim in Markdown
        self._write(first_step, summary=self._text("config", as_utf8(text)))
        self.flush()

    def _next_name(self) -> str:
        """A name that sorts after those that are there: TensorBoard reads event files in the order of their names."""
        found = [re.match(r"events\.out\.tfevents\.(\d{10})\.", path.name) for path in self._folder.iterdir()]
        stamp = max([int(time.time()), *(int(match[1]) + 1 for match in found if match)])
        return f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}.0"

    def step(self, record: StepRecord) -> None:
        """A point, now and then."""
        self._draw(self._thinned.add(record))

    def flush(self) -> None:
        """Write the new points."""
        if self._file is not None:
            self._file.flush()

    def evaluated(self, record: EvaluationRecord) -> None:
        """Points of their own curves."""
        self._draw(self._thinned.rest())
        self._draw(of_evaluation(record))
        self.flush()

    def close(self, error: BaseException | None = None) -> None:
        """Write the last point, and close the file."""
        if self._file is None:
            return
        try:
            self._draw(self._thinned.rest())
        finally:
            file, self._file = self._file, None
            file.close()

    def _draw(self, point: Point | None) -> None:
        if point is not None:
            value = self._summary.Summary.Value
            values = [value(tag=name, simple_value=number) for name, number in point.values.items()]
            self._write(point.step, summary=self._summary.Summary(value=values))

    def _write(self, step: int, **what: Any) -> None:
        """A record: length (8 bytes), its checksum (4), the event, its checksum (4)."""
        assert self._file is not None
        data = self._event.Event(wall_time=time.time(), step=step, **what).SerializeToString()
        length = struct.pack("<Q", len(data))
        checksums = struct.pack("<I", self._checksum(length)), struct.pack("<I", self._checksum(data))
        self._file.write(b"".join((length, checksums[0], data, checksums[1])))
