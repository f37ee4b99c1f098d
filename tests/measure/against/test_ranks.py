"""DDP's ranks: what they train, and what is left of them when something goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from samestep.errors import UsageError, WorkerError
from samestep.measure.against.habits import Habits, usual
from samestep.measure.against.peer import InProcess, Task, task_of
from samestep.measure.against.ranks import Ranks
from samestep.run.config import Settings
from tests import helpers

pytestmark = pytest.mark.processes


class Acts(nn.Module):
    """Does something in a rank's forward pass; which rank it is, the test says by the number of samples."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 5)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 7:  # of 15 samples, rank 0 has 8 and rank 1 has 7
            self.act()
        scores: Tensor = self.layer(x)
        return scores


def complain() -> None:
    raise ValueError("planted in a rank")


def end_it() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stall() -> None:
    time.sleep(60)


def task(build: Callable[[], nn.Module] = helpers.Mlp, **settings: Any) -> Task:
    return task_of(helpers.workload(build), Settings(workers=1, **{"steps": 3, "global_batch": 15, **settings}))


def left_in(folder: Path) -> list[Path]:
    """Temporary files of ours; torch has some of its own."""
    return [path for path in folder.iterdir() if not path.name.startswith("torchinductor")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; nothing may be left there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert left_in(tmp_path) == []
    assert psutil.Process().children() == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("samestep-")]


def test_trains_in_time(folder: Path) -> None:
    """Two ranks that do as samestep does are one process that does; a buffer's mean goes over the ranks too."""
    with Ranks(timeout_s=60) as ranks:
        for build in (helpers.Mlp, helpers.Cnn):
            given = task(build, global_batch=16, microbatch=4, steps=4)
            alone = InProcess().train(given, Habits())
            assert given.gap(alone, ranks.train(given, Habits())).is_rounding
            assert given.gap(alone, ranks.train(given, Habits(mean="mean of means", loss="own"))).relative < 1
            assert given.gap(alone, ranks.train(given, Habits(nudge=1))).relative > 0
        unused = task(lambda: helpers.Tied(has_unused=True))
        assert unused.gap(InProcess().train(unused, Habits()), ranks.train(unused, Habits())).is_rounding
        assert len(left_in(folder)) == 1
        ranks._timeout_s, start = 0.5, time.monotonic()
        with pytest.raises(WorkerError, match=r"no answer from DDP's rank 0 and 1 within 0\.5 s"):
            ranks.train(task(lambda: Acts(stall)), usual("ddp"))
        assert time.monotonic() - start < 30, "nobody waits for a rank that sleeps"


@pytest.mark.soak
def test_exception_and_death(folder: Path) -> None:
    with Ranks(timeout_s=60) as ranks:
        with pytest.raises(WorkerError, match="DDP's rank 1 failed: ValueError: planted in a rank") as caught:
            ranks.train(task(lambda: Acts(complain)), usual("ddp"))
        assert 'raise ValueError("planted in a rank")' in caught.value.trace
        assert left_in(folder) == []
        assert psutil.Process().children() == []
        with pytest.raises(WorkerError, match=r"rank 1 ended \(signal 9\)"):  # in new processes
            ranks.train(task(lambda: Acts(end_it)), usual("ddp"))


def test_deadline_of_the_start(folder: Path) -> None:
    with Ranks(timeout_s=0.0) as ranks, pytest.raises(WorkerError, match="within 0 s"):
        ranks.train(task(), usual("ddp"))


def test_unsendable(folder: Path) -> None:
    given = task()
    given.job.model.lock = threading.Lock()  # type: ignore[assignment]
    with Ranks(timeout_s=60) as ranks, pytest.raises(UsageError, match="cannot be sent to DDP's ranks"):
        ranks.train(given, usual("ddp"))


def test_threads_and_generator_are_given_back() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    InProcess().train(task(lambda: helpers.Mlp(0.5)), usual("torch"))
    assert torch.equal(torch.rand(2), expected)


PROGRAM = """
import os
import time
from torch import nn
from samestep.measure.against.habits import usual
from samestep.measure.against.peer import task_of
from samestep.measure.against.ranks import Ranks
from samestep.run.config import Settings
from tests import helpers

class Stalls(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 5)

    def forward(self, x):
        os.write(2, b"stalls\\n")  # whole, also where both ranks say it at once
        time.sleep(60)
        return self.layer(x)

Ranks(timeout_s=60).train(task_of(helpers.workload(Stalls), Settings(steps=1, workers=1)), usual("ddp"))
"""


@pytest.mark.soak
def test_parent_dies(tmp_path: Path) -> None:
    """The ranks and the guard end with it, and the guard takes the folder away."""
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": root}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, stderr=subprocess.PIPE) as program:
        assert program.stderr is not None
        line = program.stderr.readline()  # what a rank prints goes there
        children = psutil.Process(program.pid).children()
        program.kill()
        gone, left = psutil.wait_procs(children, timeout=10)
        for process in left:
            process.kill()
    assert line == b"stalls\n"
    assert (len(gone), left) == (3, [])
    assert left_in(tmp_path) == []
