"""Workers that are started before the command line imports torch."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import psutil
import pytest

from samestep.cli.main import main
from samestep.engine import crew as crews
from samestep.engine.crew import Crew, hired
from samestep.engine.launch import WorkerProcess
from samestep.host.cores import num_cores
from samestep.run import ahead
from samestep.run.config import Settings

MODULES_BEFORE_TORCH = ("samestep.cli.main", "samestep.run.ahead")


@pytest.mark.parametrize("module", MODULES_BEFORE_TORCH)
def test_what_runs_before_the_workers_start_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestHowMany:
    @pytest.fixture(autouse=True)
    def _four_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ahead, "num_cores", lambda: 4)
        monkeypatch.delenv("RANK", raising=False)

    @pytest.mark.parametrize(
        ("settings", "count"),
        [
            (Settings(), 4),
            (Settings(workers="auto"), 4),
            (Settings(workers=3), 3),
            (Settings(workers=1), 0),
            (Settings(workers=1000), 4),
            (Settings(workers=0), 0),
            (Settings(workers=2, engine="group"), 0),
        ],
    )
    def test_as_asked_for_but_no_more_than_cores(self, settings: Settings, count: int) -> None:
        assert ahead.num_ahead(settings) == count

    def test_a_rank_of_torchrun_starts_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
            monkeypatch.setenv(name, value)
        assert ahead.num_ahead(Settings(workers=2)) == 0


@pytest.mark.processes
class TestCrew:
    @pytest.mark.parametrize(("size", "threads", "is_kept"), [(2, 1, True), (3, 1, True), (2, 2, False), (1, 1, False)])
    def test_it_is_taken_where_it_suits_and_ended_in_any_case(self, size: int, threads: int, is_kept: bool) -> None:
        with ahead.started_ahead(Settings(workers=2)) as early:
            if num_cores() < 2:
                pytest.skip("one core: nothing is started ahead")
            assert isinstance(early, Crew)
            early_pids = [worker.pid for worker in early.workers]
            with hired(size, threads, early) as crew:
                pids = [worker.pid for worker in crew.workers] if crew else []
                assert len(pids) == (size if size > 1 else 0)
                assert (pids[:2] == early_pids) is is_kept
        assert not any(psutil.pid_exists(pid) for pid in {*early_pids, *pids})

    def test_the_command_trains_with_the_workers_that_it_has_started(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        launched: list[int] = []

        class Counted(WorkerProcess):
            def __init__(self, number: int, **about: Any) -> None:
                launched.append(number)
                super().__init__(number, **about)

        monkeypatch.setattr(crews, "WorkerProcess", Counted)
        assert main(["train", "digits-mlp", "--workers", "2", "--steps", "1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["workers"] == 2
        assert launched == [0, 1]
