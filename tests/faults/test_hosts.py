"""Ranks on several hosts: the same bits; a host that is cut off or slow; a host that torchrun's agent starts again."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults import hosts, one_rank
from tests.faults.hosts import Host

WHY_NOT = hosts.why_not()
pytestmark = [
    pytest.mark.processes,
    pytest.mark.soak,
    pytest.mark.timeout(180),
    pytest.mark.skipif(WHY_NOT is not None, reason=f"no hosts here: {WHY_NOT}"),
]

SLEEPY = f"{Path(__file__).with_name('nets.py')}:sleepy"
LIMIT_S = 90.0
PORT = "29517"


class Started:
    """Ranks on hosts, two hosts if not told otherwise."""

    def __init__(self, machines: list[Host]) -> None:
        self.machines = machines
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, words: list[str], *, per_host: int = 1) -> None:
        self.processes += one_rank.start_on(self.machines, int(PORT), lambda rank: words, per_host=per_host)

    def wait_for(self, text: str) -> None:
        one_rank.wait_for(self.processes[0], text)

    def end(self, rank: int) -> tuple[int, str, str]:
        out, err = self.processes[rank].communicate(timeout=LIMIT_S)
        return self.processes[rank].returncode, out, err

    def close(self) -> None:
        one_rank.end_all(self.processes)


@pytest.fixture
def started() -> Iterator[Started]:
    with hosts.hosts(2) as machines:
        found = Started(machines)
        yield found
        found.close()


def ranks_of(folder: Path) -> list[psutil.Process]:
    """Processes that were told of a folder."""
    everything = psutil.process_iter(["cmdline"])
    return [each for each in everything if str(folder) in " ".join(each.info["cmdline"] or [])]


def digest(out: str) -> str:
    return next(line.split()[-1] for line in out.splitlines() if line.startswith("weights sha256"))


def test_two_hosts_of_two_ranks_train_the_same(started: Started) -> None:
    started.start(["digits-mlp", "--steps", "20"], per_host=2)
    code, out, err = started.end(0)
    assert (code, [started.end(rank)[0] for rank in (1, 2, 3)]) == (0, [0, 0, 0]), err
    alone = [sys.executable, "-m", "samestep", "train", "digits-mlp", "--steps", "20", "--workers", "1"]
    undisturbed = subprocess.run(alone, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert digest(out) == digest(undisturbed.stdout)


def test_a_host_that_is_cut_off_is_named_on_the_one_that_has_the_store(started: Started) -> None:
    started.start([SLEEPY, "--deadline-s", "4"])
    started.wait_for("after step 20")
    started.machines[1].cut()
    start = time.monotonic()
    code, _, err = started.end(0)
    assert (code, time.monotonic() - start < 20) == (1, True)
    assert re.search(r"without rank 1 \(.*gives no sign of life", err.splitlines()[-1]), err
    code, _, err = started.end(1)  # it cannot know more than that rank 0 and the store are gone
    assert code == 1
    assert "without rank 0 (" in err.splitlines()[-1]


def test_a_slow_link_changes_no_bit(started: Started) -> None:
    for machine in started.machines:
        machine.slow("10mbit")
    started.start(["digits-mlp", "--steps", "20"])
    code, out, err = started.end(0)
    assert (code, started.end(1)[0]) == (0, 0), err
    alone = [sys.executable, "-m", "samestep", "train", "digits-mlp", "--steps", "20", "--workers", "1"]
    undisturbed = subprocess.run(alone, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert digest(out) == digest(undisturbed.stdout)


def test_a_host_is_lost_and_the_other_goes_on_alone(tmp_path: Path) -> None:
    """torchrun with one to two machines, each with a folder of its own; the second one is cut off and killed."""
    with hosts.hosts(2) as machines:
        agents = []
        for number, host in enumerate(machines):
            torchrun = [
                str(Path(sys.executable).with_name("torchrun")), "--nnodes", "1:2", "--nproc-per-node", "1",
                "--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-id", "lost", "--local-addr", host.address,
                "--rdzv-endpoint", f"{machines[0].address}:{PORT}", "--rdzv-conf",
                f"is_host={int(number == 0)},last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3",
            ]  # fmt: skip
            state = ["--checkpoint", str(tmp_path / str(number)), "--checkpoint-every-s", "0.2", "--resume"]
            words = ["-m", "samestep", "train", SLEEPY, "--deadline-s", "5", *state]
            agents.append(
                subprocess.Popen(
                    host.command([*torchrun, *words]), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
        try:
            stream = agents[0].stderr
            assert stream is not None
            assert any("after step 60" in line for line in stream)
            machines[1].cut()
            agents[1].kill()
            out, err = agents[0].communicate(timeout=LIMIT_S)
            deadline = time.monotonic() + LIMIT_S  # the rank whose agent was killed ends by its own deadline
            while ranks_of(tmp_path):
                assert time.monotonic() < deadline
                time.sleep(0.2)
        finally:
            for agent in agents:
                agent.kill()
            for process in ranks_of(tmp_path):  # they hold the agents' pipes
                process.kill()
            for agent in agents:
                agent.communicate(timeout=LIMIT_S)
    step = re.search(r"on 1 worker, from step (\d+)", err)
    assert step is not None, err
    assert int(step[1]) >= 40
    alone = [sys.executable, "-m", "samestep", "train", SLEEPY, "--workers", "1"]
    undisturbed = subprocess.run(alone, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert digest(out) == digest(undisturbed.stdout)
