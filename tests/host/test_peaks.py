"""The machine's peaks: the formulas, the threads, and what is kept. No time is asserted."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from samestep.errors import UsageError
from samestep.host import cores, facts, peaks

TINY = peaks.Sizes(
    num_cores=2,
    copy_bytes_one_core=4096,
    copy_bytes_all_cores=8192,
    side_one_core=8,
    side_all_cores=16,
    run_s=0.0,
)
KNOWN = peaks.Peaks(
    num_cores=2,
    copy_bytes_per_s_one_core=1e10,
    copy_bytes_per_s_all_cores=1.5e10,
    matmul_flop_per_s_one_core=8e10,
    matmul_flop_per_s_all_cores=1.5e11,
    matmul_float64_flop_per_s_one_core=4e10,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where figures are kept, instead of in the cache of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(peaks, "usual_sizes", lambda: TINY)
    return tmp_path / "samestep"


def kept(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_small_runs_give_figures() -> None:
    found = peaks.take(TINY)
    assert found.num_cores == 2
    assert all(0 < value < math.inf for value in asdict(found).values())


def test_the_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every run taking half a second: bytes read and written, and 2 n³ operations."""
    monkeypatch.setattr(peaks, "_fastest_s", lambda run, run_s: 0.5)
    assert peaks.take(TINY) == peaks.Peaks(
        num_cores=2,
        copy_bytes_per_s_one_core=2 * 4096 / 0.5,
        copy_bytes_per_s_all_cores=2 * 8192 / 0.5,
        matmul_flop_per_s_one_core=2 * 8**3 / 0.5,
        matmul_flop_per_s_all_cores=2 * 16**3 / 0.5,
        matmul_float64_flop_per_s_one_core=2 * 8**3 / 0.5,
    )


def seen_while_running(monkeypatch: pytest.MonkeyPatch, look: Callable[[], object]) -> list[object]:
    found = []

    def fastest_s(run: Callable[[], Any], run_s: float) -> float:
        run()
        found.append(look())
        return 0.5

    monkeypatch.setattr(peaks, "_fastest_s", fastest_s)
    peaks.take(TINY)
    return found


def test_threads_are_what_the_names_say(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen_while_running(monkeypatch, torch.get_num_threads) == [1, 2, 1, 2, 1]
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    assert seen_while_running(monkeypatch, torch.get_num_threads) != [1, 2, 1, 2, 1], "the oracle sees one thread only"


def test_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ones are copied, whole; products have the size and the type that their names say."""
    results: list[torch.Tensor] = []

    def fastest_s(run: Callable[[], torch.Tensor], run_s: float) -> float:
        results.append(run().clone())
        return 0.5

    monkeypatch.setattr(peaks, "_fastest_s", fastest_s)
    peaks.take(TINY)
    assert [result.dtype for result in results] == [torch.float32] * 4 + [torch.float64]
    assert [tuple(result.shape) for result in results] == [(1024,), (2048,), (8, 8), (16, 16), (8, 8)]
    assert all(bool((result == 1).all()) for result in results[:2])
    assert all(bool((result > 0).all()) for result in results[2:])


def test_the_best_of_the_runs_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now, durations = [0.0], iter([0.5, 3.0, 2.0, 4.0, 9.0])

    def run() -> None:
        now[0] += next(durations)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert peaks._fastest_s(run, run_s=6.0) == 2.0, "0.5 s, the first run, does not count"
    assert list(durations) == [9.0], "the time is over after 9 s"


def test_at_least_two_runs_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    peaks._fastest_s(lambda: calls.append(1), run_s=0.0)
    assert len(calls) == 3


def test_torch_is_given_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    state = torch.random.get_rng_state()
    try:
        torch.set_float32_matmul_precision("medium")
        seen = seen_while_running(monkeypatch, torch.get_float32_matmul_precision)
        assert set(seen) == {"highest"}
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(precision)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_torch_is_given_back_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run: Callable[[], Any], run_s: float) -> float:
        if torch.get_num_threads() == 2:
            raise MemoryError
        return 0.5

    threads = torch.get_num_threads()
    monkeypatch.setattr(peaks, "_fastest_s", fail)
    with pytest.raises(MemoryError):
        peaks.take(TINY)
    assert torch.get_num_threads() == threads


def test_autocast_of_the_caller_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert set(seen_while_running(monkeypatch, lambda: torch.is_autocast_enabled("cpu"))) == {False}


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_impossible_figures(value: float) -> None:
    with pytest.raises(UsageError, match=r"copy_bytes_per_s_one_core=.* is not a finite number above 0"):
        replace(KNOWN, copy_bytes_per_s_one_core=value)


def test_figures_are_kept(folder: Path) -> None:
    assert peaks.cached() is None
    found = peaks.measure()
    assert peaks.cached() == found
    assert kept(folder).name.startswith("peaks-")


def test_kept_figures_are_used_until_refreshed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([KNOWN, replace(KNOWN, num_cores=7)])
    monkeypatch.setattr(peaks, "take", lambda sizes: next(taken))
    assert [peaks.measure().num_cores for _ in range(3)] == [2, 2, 2]
    assert peaks.measure(refresh=True).num_cores == 7
    assert peaks.cached() == replace(KNOWN, num_cores=7)
    kept(folder)


@pytest.mark.parametrize("cause", ["processor", "instruction set", "cores", "quota", "torch"])
def test_another_machine_has_other_figures(cause: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "quota_cores", lambda: None)
    monkeypatch.setattr(cores, "num_cores", lambda: 4)
    peaks._keep(KNOWN)
    assert peaks.cached() == KNOWN
    changes: dict[str, tuple[Any, str, Any]] = {
        "processor": (facts, "processor", lambda: "another"),
        "instruction set": (torch.backends.cpu, "get_cpu_capability", lambda: "another"),
        "cores": (cores, "num_cores", lambda: 3),
        "quota": (cores, "quota_cores", lambda: 1.5),
        "torch": (torch, "__version__", "0.1"),
    }
    where, name, value = changes[cause]
    monkeypatch.setattr(where, name, value)
    assert peaks.cached() is None
    kept(folder).rename(folder / peaks._file_name(peaks._machine()))
    assert peaks.cached() is None, "a file under this machine's name that is about another"


def damaged(**changes: Any) -> bytes:
    content = {"format": 1, "machine": peaks._machine(), "peaks": asdict(KNOWN)}
    return json.dumps({**content, **changes}).encode()


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"",
        lambda: b"{",
        lambda: b"\xff\xfe",
        lambda: b"[" * 100_000,
        lambda: b"3",
        lambda: damaged()[:-40],
        lambda: damaged(format=2),
        lambda: damaged(peaks=None),
        lambda: damaged(peaks={}),
        lambda: damaged(peaks={**asdict(KNOWN), "more": 1.0}),
        lambda: damaged(peaks={**asdict(KNOWN), "num_cores": "2"}),
        lambda: damaged(peaks={**asdict(KNOWN), "num_cores": True}),
        lambda: damaged(peaks={**asdict(KNOWN), "copy_bytes_per_s_one_core": -1}),
        lambda: damaged(peaks={**asdict(KNOWN), "copy_bytes_per_s_one_core": math.nan}),
    ],
)
def test_a_damaged_file_is_no_figure(make: Callable[[], bytes], folder: Path) -> None:
    peaks._keep(KNOWN)
    kept(folder).write_bytes(damaged())
    assert peaks.cached() == KNOWN, "the oracle sees a whole file"
    kept(folder).write_bytes(make())
    assert peaks.cached() is None
    assert peaks.measure() == peaks.cached(), "measured and kept anew"


def test_figures_that_cannot_be_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.write_bytes(b"no folder")
    monkeypatch.setattr(peaks, "take", lambda sizes: KNOWN)
    with pytest.warns(RuntimeWarning, match=r"cannot be kept for the next time: the folder for measured peaks"):
        assert peaks.measure() == KNOWN
    assert peaks.cached() is None


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert peaks.cached() is None
    with pytest.warns(RuntimeWarning, match="the user has no home; name a folder with .* XDG_CACHE_HOME"):
        peaks._keep(KNOWN)


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (64.0, 8), (3.9, 3), (1.5, 1), (0.5, 1)])
def test_a_quota_limits_the_threads(quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "num_cores", lambda: 8)
    monkeypatch.setattr(cores, "quota_cores", lambda: quota)
    sizes = peaks.usual_sizes()
    assert (sizes.num_cores, sizes.side_all_cores) == (expected, peaks.side(expected))


def test_sizes_go_with_caches_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "caches", lambda: {"L2_bytes": 2**20, "L3_bytes": 2**26, "L3_total_bytes": 2**27})
    monkeypatch.setattr(cores, "cgroup_memory_bytes", lambda: None)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**40))
    sizes = peaks.usual_sizes()
    assert (sizes.copy_bytes_one_core, sizes.copy_bytes_all_cores) == (2**28, 2**29)
    monkeypatch.setattr(cores, "cgroup_memory_bytes", lambda: 2**28)
    sizes = peaks.usual_sizes()
    assert (sizes.copy_bytes_one_core, sizes.copy_bytes_all_cores) == (2**25, 2**25)
    monkeypatch.setattr(facts, "caches", lambda: None)
    monkeypatch.setattr(cores, "cgroup_memory_bytes", lambda: None)
    assert peaks.usual_sizes().copy_bytes_one_core == 2**27
