"""Ranks on several hosts: the same bits; a host that is cut off or slow; hosts that torchrun loses and gets back."""

from __future__ import annotations

import os
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

SLEEPY, HASTY, HEAVY = (f"{Path(__file__).with_name('nets.py')}:{name}" for name in ("sleepy", "short", "heavy"))
LIMIT_S, LONG_S = 90.0, 240.0
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


def alone(*words: str) -> str:
    """The digest of one worker."""
    command = [*one_rank.TRAIN, *words, "--workers", "1"]
    return digest(subprocess.run(command, capture_output=True, text=True, check=True, timeout=LONG_S).stdout)


def test_two_hosts_of_two_ranks_train_the_same(started: Started) -> None:
    started.start(["digits-mlp", "--steps", "20"], per_host=2)
    code, out, err = started.end(0)
    assert (code, [started.end(rank)[0] for rank in (1, 2, 3)]) == (0, [0, 0, 0]), err
    assert digest(out) == alone("digits-mlp", "--steps", "20")


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
    assert digest(out) == alone("digits-mlp", "--steps", "20")


def test_a_host_slowed_to_a_tenth_is_named(started: Started) -> None:
    """An exchange that took a second takes ten, and may take four."""
    for machine in started.machines:
        machine.slow("10mbit")
    started.start([HEAVY, "--evaluate-every", "4", "--deadline-s", "4"])
    started.wait_for("after step 4")
    started.machines[1].slow("1mbit")
    start = time.monotonic()
    code, _, err = started.end(0)
    assert (code, time.monotonic() - start < 20) == (1, True)
    assert re.fullmatch(
        r"samestep: step \d+: the exchange of [a-z]+ ended after [4-6]\.\d s without (all that comes from )?"
        r"rank 1 \(.*\. Here: rank 0 \(\S+\), in the exchange of [a-z]+ of step \d+",
        err.splitlines()[-1],
    ), err
    code, _, err = started.end(1)  # through such a link it may not hear that rank 0 speaks
    assert (code, time.monotonic() - start < 30) == (1, True)
    assert "Traceback" not in err
    assert ranks_of(Path(HEAVY)) == []


class Agents:
    """torchrun with one to two hosts, each with a folder of its own for states; what it says goes to files.

    Args:
        machines: The hosts; the first one has the store.
        folder: For states, and for what is said.
    """

    def __init__(self, machines: list[Host], folder: Path) -> None:
        self.machines, self.folder = machines, folder
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, number: int, *words: str) -> None:
        """On a host, a single rank."""
        host = self.machines[number]
        torchrun = [
            str(Path(sys.executable).with_name("torchrun")), "--nnodes", "1:2", "--nproc-per-node", "1",
            "--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-id", "lost", "--local-addr", host.address,
            "--rdzv-endpoint", f"{self.machines[0].address}:{PORT}", "--rdzv-conf",
            f"is_host={int(number == 0)},last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3",
        ]  # fmt: skip
        state = ["--checkpoint", str(self.folder / str(number)), "--checkpoint-every-s", "0.2", "--resume"]
        command = host.command([*torchrun, "-m", "samestep", "train", SLEEPY, "--deadline-s", "5", *state, *words])
        # As docs/clusters.md says: a machine that comes later cannot join the store of the rendezvous.
        environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with open(self._out(number), "ab") as out, open(self._err(number), "ab") as err:
            self.running[number] = subprocess.Popen(command, stdout=out, stderr=err, env=environment)

    def wait_for(self, text: str) -> re.Match[str]:
        """Until the first host has said it."""
        deadline = time.monotonic() + LIMIT_S
        while (found := re.search(text, self._err(0).read_text())) is None:
            assert self.running[0].poll() is None, self._err(0).read_text()
            assert time.monotonic() < deadline, self._err(0).read_text()
            time.sleep(0.05)
        return found

    def lose(self, number: int) -> None:
        """Cut a host off and kill its agent; its rank ends by its own deadline."""
        self.machines[number].cut()
        self.running[number].kill()
        self.running[number].wait()
        deadline = time.monotonic() + LIMIT_S
        while ranks_of(self.folder / str(number)):
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def digest(self) -> str:
        """Of the weights, when all is over."""
        assert self.running[0].wait(LONG_S) == 0, self._err(0).read_text()
        return digest(self._out(0).read_text())

    def close(self) -> None:
        for agent in self.running.values():
            agent.kill()
        for process in ranks_of(self.folder):
            process.kill()
        for agent in self.running.values():
            agent.wait()

    def _out(self, number: int) -> Path:
        return self.folder / f"{number}.out"

    def _err(self, number: int) -> Path:
        return self.folder / f"{number}.err"


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    with hosts.hosts(2) as machines:
        found = Agents(machines, tmp_path)
        yield found
        found.close()


def test_a_host_is_lost_and_the_other_goes_on_alone(agents: Agents) -> None:
    agents.start(0)
    agents.start(1)
    agents.wait_for("after step 60")
    agents.lose(1)
    step = agents.wait_for(r"on 1 worker, from step (\d+)")
    assert int(step[1]) >= 40
    assert agents.digest() == alone(SLEEPY)


@pytest.mark.timeout(600)
def test_a_host_that_was_lost_comes_back_and_both_go_on(agents: Agents) -> None:
    """From two ranks to one to two: what the host has of its own is old by then, and the newest state is shipped."""
    longer = ("--steps", "4000")
    agents.start(0, *longer)
    agents.start(1, *longer)
    agents.wait_for("on 2 workers")
    agents.wait_for("after step 60:")
    agents.lose(1)
    first = agents.wait_for(r"on 1 worker, from step (\d+)")
    agents.wait_for(f"after step {int(first[1]) // 20 * 20 + 200}:")
    agents.machines[1].mend()
    agents.start(1, *longer)
    second = agents.wait_for(r"on 2 workers, from step (\d+)")
    assert 40 <= int(first[1]) < int(second[1]) < 4000
    assert agents.digest() == alone(HASTY, *longer)  # the same network, which does not sleep
    assert agents.running[1].wait(LIMIT_S) == 0
