"""Ranks of the group engine that die, hang, are stopped, or were not started alike: one says so, and all end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from samestep.engine.group.beacon import INTERVAL_S
from samestep.engine.group.store import listen
from tests.faults import one_rank
from tests.faults.nets import BROKEN, LEAVING, STALL, WIDTH, is_here
from tests.marks import soak

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

NETS = Path(__file__).with_name("nets.py")
SLEEPY = f"{NETS}:sleepy"
LIMIT_S = 60.0


class Ranks:
    """Ranks of one run, each a command of its own, as torchrun would start them."""

    def __init__(self) -> None:
        with listen("127.0.0.1", 0) as free:
            self.port = free.getsockname()[1]
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self, arguments: Sequence[Sequence[str]], variables: Sequence[Mapping[str, str]] | None = None, prefix: str = ""
    ) -> None:
        """One rank for each list of arguments."""
        world_size = len(arguments)
        for rank, words in enumerate(arguments):
            own = {"RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.port}
            more = variables[rank] if variables else {}
            self.started.append(one_rank.start([*one_rank.TRAIN, *words], {**own, **more}))

    def wait_for(self, text: str) -> None:
        """Until rank 0 has said it."""
        one_rank.wait_for(self.started[0], text)

    def ends(self) -> list[tuple[int, str, str]]:
        """Exit code, stdout and what was said on stderr of every rank."""
        found = []
        for process in self.started:
            out, err = process.communicate(timeout=LIMIT_S)
            found.append((process.returncode, out, err))
        return found

    def complaints(self) -> tuple[list[int], list[str]]:
        """Exit codes, and the lines that begin with our name, of all ranks."""
        ends = self.ends()
        for _, _, err in ends:
            assert "Traceback" not in err, err
        return [end[0] for end in ends], [
            line.removeprefix("samestep: ")
            for *_, err in ends
            for line in err.splitlines()
            if line.startswith("samestep: ")
        ]

    def refused_at_once(self) -> str:
        """The one line of a mistake that ends all ranks within half a minute."""
        start = time.monotonic()
        codes, lines = self.complaints()
        assert time.monotonic() - start < 30
        assert set(codes) == {2}
        assert len(lines) == 1
        return lines[0]

    def close(self) -> None:
        one_rank.end_all(self.started)


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    found = Ranks()
    yield found
    found.close()


def digest(out: str) -> str:
    return next(line.split()[-1] for line in out.splitlines() if line.startswith("weights sha256"))


@pytest.mark.soak
def test_machines_of_unequal_size_train_the_same(ranks: Ranks) -> None:
    """Three ranks on one, one on the other."""
    places = [(0, 3), (1, 3), (2, 3), (0, 1)]
    variables = [{"LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": str(size)} for number, size in places]
    ranks.start([["digits-mlp", "--steps", "20"]] * 4, variables)
    (code, out, err), *others = ranks.ends()
    assert (code, [other[0] for other in others]) == (0, [0, 0, 0]), err
    assert digest(out) == alone("digits-mlp", "--steps", "20")


def alone(*words: str) -> str:
    """The digest of one worker."""
    command = [sys.executable, "-m", "samestep", "train", *words, "--workers", "1"]
    return digest(subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout)


@pytest.mark.soak
@pytest.mark.parametrize("number", [1, 2, 3])  # with rank 0 goes the store
def test_of_two_machines_with_two_ranks_one_dies_and_one_line_says_so(ranks: Ranks, number: int) -> None:
    variables = [{"LOCAL_RANK": str(rank % 2), "LOCAL_WORLD_SIZE": "2"} for rank in range(4)]
    ranks.start([[SLEEPY, "--deadline-s", "30"]] * 4, variables)
    ranks.wait_for("after step 20")
    ranks.started[number].kill()
    start = time.monotonic()
    codes, lines = ranks.complaints()
    assert time.monotonic() - start < 15
    assert codes == [-9 if rank == number else 1 for rank in range(4)]
    assert len(lines) == 1
    assert f" without rank {number} (" in lines[0]


def test_ranks_by_variables_train_the_same_and_only_the_first_speaks(ranks: Ranks) -> None:
    ranks.start([["digits-mlp", "--steps", "20"]] * 2)
    (code, out, _), (other_code, other_out, other_err) = ranks.ends()
    assert (code, other_code, other_out, other_err) == (0, 0, "", "")
    alone = subprocess.run(
        [sys.executable, "-m", "samestep", "train", "digits-mlp", "--steps", "20", "--workers", "1"],
        capture_output=True, text=True, check=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert digest(out) == digest(alone.stdout)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (["--seed", "1"], "the ranks do not agree on seed: it is 0 on rank 0"),
        pytest.param(["--microbatch", "16"], "the ranks do not agree on microbatch: it is 8", marks=pytest.mark.soak),
    ],
)
def test_ranks_that_were_not_started_alike(ranks: Ranks, other: list[str], text: str) -> None:
    ranks.start([["digits-mlp"], ["digits-mlp", *other]])
    codes, lines = ranks.complaints()
    assert codes == [2, 2]
    assert len(lines) == 1
    assert lines[0].startswith(text)


@pytest.mark.parametrize("bad", [soak([1]), [0, 1]])
def test_a_mistake_in_a_command_line_ends_all_at_once_and_is_told_once(ranks: Ranks, bad: list[int]) -> None:
    ranks.start([["digits-mlp", *(["--no-such"] if rank in bad else [])] for rank in range(2)])
    line = ranks.refused_at_once()
    assert re.fullmatch(rf"rank {bad[0]} \(\S+, process \d+\): unknown option --no-such; see .* --help", line)


@pytest.mark.soak
def test_another_code_of_the_model_is_found(ranks: Ranks, tmp_path: Path) -> None:
    files = [tmp_path / "a.py", tmp_path / "b.py"]
    files[0].write_text(NETS.read_text())
    files[1].write_text(NETS.read_text().replace("self.net(inputs)", "(self.net(inputs) * 1.5)"))
    assert files[0].read_text() != files[1].read_text()
    for file in files:
        (tmp_path / file.stem).mkdir()
        file.rename(tmp_path / file.stem / "nets.py")
    ranks.start([[f"{tmp_path / name / 'nets.py'}:short"] for name in ("a", "b")])
    codes, lines = ranks.complaints()
    assert codes == [2, 2]
    assert len(lines) == 1
    assert lines[0].startswith("the ranks do not agree on the code of the model")


@pytest.mark.soak
@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_that_cannot_begin_says_why(ranks: Ranks, rank: int, data_folder: Path) -> None:
    """As where one host has not the data, or a bad setting."""
    words = [["fashion-mlp", "--steps", "2"], ["fashion-mlp", "--steps", "2"]]
    ranks.start(
        words,
        [{"SAMESTEP_DATA": "/nowhere" if each == rank else str(data_folder)} for each in (0, 1)],
    )
    codes, lines = ranks.complaints()
    assert codes == [2, 2]
    assert len(lines) == 1
    assert "/nowhere" in lines[0]


def test_a_file_that_one_rank_has_not_ends_all_at_once(ranks: Ranks, tmp_path: Path) -> None:
    ranks.start([["digits-mlp", "--steps", "2"], [f"{tmp_path}/none.py:net"]])
    line = ranks.refused_at_once()
    assert re.match(r"rank 1 \(\S+, process \d+\): there is no file .*/none\.py", line)


APART = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
"""Of a rank that is a machine of its own."""


@pytest.mark.soak
def test_a_state_of_other_settings_on_the_second_machine_is_told(ranks: Ranks, tmp_path: Path) -> None:
    state = ["--resume", "--checkpoint", str(tmp_path / "1")]
    command = [*one_rank.TRAIN, f"{NETS}:short", "--workers", "1", *state]
    subprocess.run(command, capture_output=True, check=True, timeout=LIMIT_S)
    words = [f"{NETS}:short", "--resume", "--lr", "0.02"]
    ranks.start([[*words, "--checkpoint", str(tmp_path / str(rank))] for rank in range(2)], [APART] * 2)
    codes, lines = ranks.complaints()
    assert codes == [2, 2]
    assert len(lines) == 1
    assert re.match(r"rank 1 \(\S+, process \d+\): \S+/1/step-000000012\.json is of a run with optimizer=", lines[0])


@pytest.mark.soak
def test_a_checkpoint_that_cannot_be_written_on_the_second_machine_is_told(ranks: Ranks, tmp_path: Path) -> None:
    folders = [tmp_path / str(rank) for rank in range(2)]
    words = [[SLEEPY, "--checkpoint", str(folder), "--checkpoint-every-s", "0.05"] for folder in folders]
    ranks.start(words, [APART] * 2)
    ranks.wait_for("after step 20")
    folders[1].rename(tmp_path / "moved")
    codes, lines = ranks.complaints()
    assert codes == [1, 2]
    assert len(lines) == 1
    assert re.search(r"/1/step-\d+\.\w+ cannot be written", lines[0])


@pytest.mark.soak
@pytest.mark.parametrize("bad", [0, 1])
def test_data_that_one_rank_has_not_end_all_at_once(ranks: Ranks, tmp_path: Path, bad: int) -> None:
    there = tmp_path / "there.csv"
    there.write_text("a,b,label\n" + "".join(f"{n},{n % 7},{'xy'[n % 2]}\n" for n in range(200)))
    ranks.start(
        [["--data", str(tmp_path / "none.csv" if rank == bad else there), "--target", "label"] for rank in range(3)],
        [{"XDG_CACHE_HOME": str(tmp_path / str(rank))} for rank in range(3)],
    )
    start = time.monotonic()
    codes, lines = ranks.complaints()
    assert time.monotonic() - start < 30
    assert codes == [2, 2, 2]
    assert len(lines) == 1
    assert re.match(rf"rank {bad} \(\S+, process \d+\): .*none\.csv", lines[0])


@pytest.mark.soak
@pytest.mark.parametrize("part", ["function", "data", "model"])
@pytest.mark.parametrize("bad", [[0], [1], [0, 1]])
def test_what_a_persons_code_raises_before_the_first_step_ends_all_at_once(
    ranks: Ranks, part: str, bad: list[int]
) -> None:
    ranks.start([[f"{NETS}:broken"]] * 2, [{BROKEN: part if rank in bad else ""} for rank in range(2)])
    start = time.monotonic()
    ends = ranks.ends()
    assert time.monotonic() - start < 30
    lines = [line for *_, err in ends for line in err.splitlines() if line.startswith("samestep: ")]
    assert len(lines) == 1
    assert re.match(
        rf"samestep: rank {bad[0]} \(\S+, process \d+\).*nets\.py line \d+: KeyError: 'no {part} here'", lines[0]
    )
    assert all("Traceback" not in err for *_, err in ends)
    assert all(code in (1, 2) for code, *_ in ends)


@pytest.mark.soak
def test_a_rank_that_does_not_come_is_named(ranks: Ranks) -> None:
    ranks.start([["digits-mlp", "--deadline-s", "3"]], [{"WORLD_SIZE": "2"}])
    codes, lines = ranks.complaints()
    assert codes == [1]
    assert lines[0].startswith("rank 1 did not come within 3 s; here are rank 0")


@pytest.mark.soak
def test_a_wrong_address(ranks: Ranks) -> None:
    ranks.start([["digits-mlp", "--deadline-s", "2"]], [{"RANK": "1", "WORLD_SIZE": "2"}])
    start = time.monotonic()
    ((code, _, err),) = ranks.ends()
    assert time.monotonic() - start < 12  # most of it is the start of the program
    assert code == 2
    assert re.fullmatch(r"samestep: rank 1: nobody answers at 127\.0\.0\.1:\d+ within 2 s \(.*\n", err)


@pytest.mark.soak
def test_a_port_in_use(ranks: Ranks) -> None:
    with listen("127.0.0.1", 0) as taken:
        ranks.start([["digits-mlp"]], [{"WORLD_SIZE": "2", "MASTER_PORT": str(taken.getsockname()[1])}])
        codes, lines = ranks.complaints()
    assert codes == [2]
    assert "cannot listen on 127.0.0.1" in lines[0]


@pytest.mark.parametrize(
    ("number", "deadline"),
    [(signal.SIGKILL, "60"), pytest.param(signal.SIGSTOP, "3", marks=pytest.mark.soak)],
)
def test_a_rank_that_dies_or_hangs_is_named(ranks: Ranks, number: int, deadline: str) -> None:
    ranks.start([[SLEEPY, "--deadline-s", deadline]] * 2)
    ranks.wait_for("after step 20")
    ranks.started[1].send_signal(number)
    start = time.monotonic()
    _, err = ranks.started[0].communicate(timeout=LIMIT_S)
    assert time.monotonic() - start < 30
    assert ranks.started[0].returncode == 1
    assert "Traceback" not in err
    line = err.splitlines()[-1]
    assert re.match(r"samestep: step \d+: the exchange of [a-z]+ ended after .* s without rank 1 \(", line)
    assert re.search(r"which gives no sign of life; its last was from [a-z ]+ of step \d+\. Here: rank 0 \(", line)


@pytest.mark.soak
@pytest.mark.parametrize("is_stopped", [True, False])
@pytest.mark.parametrize("is_apart", [True, False])
def test_of_three_ranks_the_one_that_does_not_come_to_an_evaluation_is_named(
    ranks: Ranks, tmp_path: Path, is_apart: bool, is_stopped: bool
) -> None:
    """And no other, by one of the two that wait; on machines of their own, and on one."""
    stall = tmp_path / "stall"
    places: list[dict[str, str]] = [dict(APART) if is_apart else {} for _ in range(3)]
    places[1][STALL] = str(stall)
    ranks.start([[SLEEPY, "--deadline-s", "4"]] * 3, places)
    ranks.wait_for("after step 20")
    stall.write_text("evaluation")
    deadline = time.monotonic() + LIMIT_S
    while not is_here(stall).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if is_stopped:
        time.sleep(2 * INTERVAL_S)  # its last sign is from there
        ranks.started[1].send_signal(signal.SIGSTOP)
    stall.unlink()
    ends = [ranks.started[rank].communicate(timeout=LIMIT_S) for rank in (0, 2)]
    assert [ranks.started[rank].returncode for rank in (0, 2)] == [1, 1]
    (line,) = [line for _, err in ends for line in err.splitlines() if line.startswith("samestep: ")]
    last = "gives no sign of life; its last was from" if is_stopped else "lives and is in"
    assert re.fullmatch(
        r"samestep: step \d+: the exchange of evaluation ended after \d\.\d s without rank 1 \(\S+, process \d+\), "
        rf"which {last} evaluation of step \d+\. "
        r"Here: rank 0 \(\S+\), 2 \(\S+\), in the exchange of evaluation of step \d+",
        line,
    )


def test_a_model_of_other_shapes_on_one_rank_is_named_with_the_first_of_them(ranks: Ranks) -> None:
    ranks.start([[f"{NETS}:uneven"]] * 2, [{WIDTH: str(width)} for width in (16, 24)])
    assert re.fullmatch(
        r"the ranks do not agree on the model's 1\.weight: it is float32 \(16, 8\) on rank 0 \(\S+\) and "
        r"float32 \(24, 8\) on rank 1 \(\S+\) "
        r"\(nor on the model's 1\.bias, the model's 3\.weight, model\)\. Start all of them alike",
        ranks.refused_at_once(),
    )


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("dies", r"samestep: step 0: the exchange of state to begin with ended .* without rank 1 \(\S+, process \d+\)"),
        pytest.param("raises", "MemoryError: no room for the state", marks=pytest.mark.soak),
    ],
)
def test_a_rank_that_is_lost_while_the_state_is_shipped_is_named_once(ranks: Ranks, how: str, text: str) -> None:
    ranks.start([[f"{NETS}:leaving"]] * 3, [{LEAVING: how if rank == 1 else ""} for rank in range(3)])
    ends = ranks.ends()
    assert [code for code, *_ in ends] == [1, 3 if how == "dies" else 1, 1]
    lines = [line for *_, err in ends for line in err.splitlines() if re.match(r"samestep: |\w*Error", line)]
    assert len(lines) == 1
    assert re.match(text, lines[0])


@pytest.mark.soak
def test_a_host_of_the_store_that_hangs_is_named_soon(ranks: Ranks) -> None:
    """Nobody answers for the store either: each question to it waits no longer than for a rank."""
    ranks.start([[SLEEPY, "--deadline-s", "2"]] * 2)
    ranks.wait_for("after step 20")
    ranks.started[0].send_signal(signal.SIGSTOP)
    start = time.monotonic()
    _, err = ranks.started[1].communicate(timeout=LIMIT_S)
    assert time.monotonic() - start < 9
    assert re.fullmatch(r"samestep: step \d+: the exchange of [a-z]+ ended after .* s without rank 0 \(.*\n", err)


@pytest.mark.soak
def test_a_stop_saves_on_every_machine_and_others_go_on_from_the_newest_state(ranks: Ranks, tmp_path: Path) -> None:
    alone = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}  # each is a machine of its own
    ranks.start([[SLEEPY, "--checkpoint", str(tmp_path / str(rank))] for rank in range(2)], [alone] * 2)
    ranks.wait_for("after step 20")
    ranks.started[1].send_signal(signal.SIGTERM)
    codes, _ = ranks.complaints()
    assert codes == [0, 143]
    states = [list((tmp_path / str(rank)).glob("step-*.json")) for rank in range(2)]
    assert [len(found) for found in states] == [1, 1]
    assert states[0][0].name == states[1][0].name
    # The first machine is lost, and two new ones have come: only rank 1 has a state.
    again = Ranks()
    folders = [tmp_path / name for name in ("new", "1", "newer")]
    again.start([[SLEEPY, "--resume", "--checkpoint", str(folder)] for folder in folders], [alone] * 3)
    (code, out, err), *others = again.ends()
    again.close()
    assert (code, [other[0] for other in others]) == (0, [0, 0])
    assert f"from step {int(states[1][0].stem[5:])}" in err
    command = [sys.executable, "-m", "samestep", "train", SLEEPY, "--workers", "1"]
    undisturbed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert digest(out) == digest(undisturbed.stdout)


@pytest.mark.soak
def test_torchrun_starts_ranks_again_and_they_go_on(tmp_path: Path) -> None:
    fault = f"rank=1,step=150,phase=forward,marker={tmp_path / 'died'}"
    state = ["--checkpoint", str(tmp_path / "state"), "--checkpoint-every-s", "0.3"]
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2"]
    found = subprocess.run(
        [*torchrun, "--max-restarts", "1", "-m", "samestep", "train", SLEEPY, *state],
        env={**os.environ, "SAMESTEP_FAULTS": fault},
        capture_output=True,
        text=True,
        check=True,
        timeout=LIMIT_S,
    )
    assert (tmp_path / "died").exists()
    assert "without rank 1 (" in found.stderr
    step = re.search(r"on 2 workers, from step (\d+)", found.stderr)
    assert step is not None
    assert 100 < int(step[1]) <= 150
    command = [sys.executable, "-m", "samestep", "train", SLEEPY, "--workers", "1"]
    undisturbed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert digest(found.stdout) == digest(undisturbed.stdout)


def local(*words: str) -> subprocess.Popen[str]:
    """Two ranks that samestep starts itself, at work."""
    command = [sys.executable, "-m", "samestep", "train", SLEEPY, "--engine", "group", "--workers", "2", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("after step 20" in line for line in process.stderr)
    return process


@pytest.mark.soak
def test_ctrl_c_saves_and_the_other_engine_goes_on(tmp_path: Path) -> None:
    state = ["--checkpoint", str(tmp_path / "state")]
    process = local(*state)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("samestep: stopped by SIGINT at step ")
    command = [sys.executable, "-m", "samestep", "train", SLEEPY]
    found = [
        subprocess.run([*command, *words], capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout
        for words in (["--workers", "2", "--resume", *state], ["--workers", "1"])
    ]
    assert digest(found[0]) == digest(found[1])


@pytest.mark.soak
def test_a_member_that_dies_is_named_and_one_whose_parent_dies_ends() -> None:
    process = local()
    (member,) = psutil.Process(process.pid).children()
    member.kill()
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith("samestep: rank 1 ended (signal 9); step ")
    process = local()
    (member,) = psutil.Process(process.pid).children()
    process.kill()
    process.communicate()
    member.wait(timeout=10)


@pytest.mark.soak
@pytest.mark.parametrize("before", ["", "torch.distributed.init_process_group('gloo')"])
def test_from_python_every_rank_gets_the_model(ranks: Ranks, tmp_path: Path, before: str) -> None:
    """Also within torch's default process group, whose store has the port: as Ray starts a training function."""
    (tmp_path / "script.py").write_text(
        f"import samestep, torch\nfrom samestep.workloads import catalog\n{before}\n"
        "for seed in (1, 0):\n"
        "    result = samestep.train(catalog.build('digits-mlp'), steps=20, seed=seed)\n"
        "print(result.is_first, len(result.record.steps), samestep.digest(result.model))\n"
    )
    own = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ranks.port)}
    for rank in range(2):
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py")],
            env={**os.environ, **own, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        ranks.started.append(process)
    words = [out.split() for _, out, _ in ranks.ends()]
    assert [each[:2] for each in words] == [["True", "20"], ["False", "20"]]
    assert words[0][2] == words[1][2]
