"""A scaling study: what is measured, how long it takes, what a record means, and which records are another study's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samestep.engine.breakdown import GROUPS
from samestep.errors import Interrupted, UsageError
from samestep.host import records
from samestep.measure import scale
from samestep.measure.scale import Study, analyse, estimate_s, mean_phases, plan_study, shares, tasks
from samestep.measure.slots import Slot
from samestep.run.config import Config, NumericSettings
from samestep.workloads import catalog
from tests.report import made


class Heard:
    """A teller that writes down."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def phase(self, text: str, done: int, total: int, left_s: float | None) -> None:
        self.lines.append(f"{text} {done}/{total}")


def planned(workers: Sequence[int] = (1, 2), *, is_weak: bool = False, **settings: Any) -> tuple[Study, Config]:
    given = NumericSettings(**settings)
    return plan_study(catalog.build("digits-mlp"), given, workers, is_weak=is_weak, rounds=3, slot_s=0.1)


# ---------------------------------------------------------------- what is measured


def test_one_worker_is_always_measured() -> None:
    study, config = planned((4, 2, 2), seed=7)
    assert study == Study(workload="digits-mlp", workers=(1, 2, 4), axes=("strong",), rounds=3, slot_s=0.1, seed=7)
    assert config.global_batch == 64


@pytest.mark.parametrize(
    ("workers", "text"),
    [
        ((), "needs at least one number of workers"),
        ((0,), "workers=0 is below 1"),
        ((1, 99), "workers=99 is more than"),
    ],
)
def test_a_plan_that_cannot_be(workers: tuple[int, ...], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        planned(workers)


def test_plain_torch_has_no_step_of_kfac() -> None:
    with pytest.raises(UsageError, match="optimizer='kfac': plain torch, beside which scale measures"):
        planned(optimizer="kfac")


def test_a_weak_plan_needs_enough_samples() -> None:
    with pytest.raises(
        UsageError, match=r"weak scaling to 2 workers takes steps of 2800 samples, and an epoch has 1618"
    ):
        planned((1, 2), is_weak=True, global_batch=1400, microbatch=100)
    planned((1, 2), global_batch=1400, microbatch=100)


def test_programs_of_strong_scaling() -> None:
    study, config = planned((1, 2, 3))
    found = tasks(study, config, cores=6)["strong"]
    assert [
        (task.name, task.kind, task.workers, task.threads, task.global_batch, task.microbatch) for task in found
    ] == [
        ("torch, 1 thread", "torch", 1, 1, 64, 64),
        ("torch, 2 threads", "torch", 1, 2, 64, 64),
        ("torch, 4 threads", "torch", 1, 4, 64, 64),
        ("torch, 6 threads", "torch", 1, 6, 64, 64),
        ("samestep, 1 worker", "samestep", 1, 1, 64, config.microbatch),
        ("samestep, 2 workers", "samestep", 2, 1, 64, config.microbatch),
        ("roof, 2 programs", "roof", 2, 1, 64, 32),
        ("samestep, 3 workers", "samestep", 3, 1, 64, config.microbatch),
    ], "64 samples cannot be dealt to 3 programs alike: no roof"


def test_programs_of_weak_scaling_keep_the_batch_of_a_worker() -> None:
    study, config = planned((1, 2), is_weak=True)
    found = tasks(study, config, cores=1)
    weak = {task.name: task for task in found["weak"]}
    assert list(weak) == [
        "torch, 1 thread",
        "samestep, 1 worker",
        "samestep, 2 workers of 64 samples",
        "roof, 2 programs of 64 samples",
    ]
    assert {
        (task.global_batch // task.workers, task.kind != "samestep" or task.microbatch == config.microbatch)
        for task in weak.values()
    } == {(64, True)}
    shared = {task.name: task for task in found["strong"]}
    assert all(weak[name] == shared[name] for name in weak.keys() & shared.keys()), "one name, one program"


def test_the_estimate_grows_with_what_is_measured() -> None:
    study, _ = planned()
    base = estimate_s(study, 5)
    round_s = 5 * (scale._START_S + 3 * (0.1 + scale._STOP_S))
    assert estimate_s(replace(study, rounds=6), 5) - base == pytest.approx(3 * round_s)
    assert estimate_s(study, 10) > base
    assert estimate_s(replace(study, slot_s=1.1), 5) - base == pytest.approx(3 * 5 * 3 * 1.0)


# ---------------------------------------------------------------- what it means


def test_phases_are_means_over_slots_and_shares_over_workers() -> None:
    def worker(**given: float) -> dict[str, float]:
        return {group: given.get(group, 0.0) for group in GROUPS}

    slots = [
        {"phases": [worker(data=1.0, compute=3.0), worker(waiting=4.0)]},
        {"phases": [worker(data=3.0, compute=1.0), worker(waiting=4.0)]},
    ]
    by_worker = mean_phases(slots)
    assert by_worker == (worker(data=2.0, compute=2.0), worker(waiting=4.0))
    found = shares(by_worker)
    assert found == {"data": 0.25, "compute": 0.25, "waiting": 0.5, "combine + update": 0.0, "machinery": 0.0}
    assert list(found) == list(GROUPS)


def test_a_made_record() -> None:
    record = made.study()
    found = analyse(record)
    assert list(found.scalings) == ["strong", "weak"]
    assert [point.workers for point in found.scalings["strong"].points] == list(made.WORKERS)
    for by_workers in found.losses.values():
        assert list(by_workers) == list(made.WORKERS)
        for by_group in by_workers.values():
            assert sum(by_group.values()) == pytest.approx(1.0)
            assert by_group["compute"] == pytest.approx(made.GROUPS["compute"], abs=0.1)
    slots = record["slots"]["strong/samestep, 2 workers"]
    best = found.scalings["strong"].best_single
    slower = copy.deepcopy(record)
    for slot in slower["slots"]["strong/samestep, 2 workers"]:
        slot["step_s"] *= 3
    assert len(slots) == made.ROUNDS
    before, after = (analyse(each).scalings["strong"].points[1].speed_up.value for each in (record, slower))
    assert after == pytest.approx(before / 3)
    assert analyse(slower).scalings["strong"].best_single == best


def with_slow_worker(factor: float) -> dict[str, Any]:
    record = made.study()
    single = min(slot["step_s"] for name, slots in record["slots"].items() if "/torch" in name for slot in slots)
    for axis in ("strong", "weak"):
        for slot in record["slots"][f"{axis}/samestep, 1 worker"]:
            slot["step_s"] = single * factor
    for program in record["programs"]:
        program["microbatch"] = 32 if program["kind"] == "samestep" else program["global_batch"]
    return record


def test_a_slow_worker_gets_a_hint_and_a_fast_one_none() -> None:
    (hint,) = analyse(with_slow_worker(2.5)).hints
    assert hint.startswith("one worker gives 0.4")
    assert "its 8 microbatches of 32 samples cost more than one batch of 256; --microbatch 64 (4 microbatches" in hint
    assert analyse(with_slow_worker(1.0)).hints == ()


# ---------------------------------------------------------------- records of another study


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"a": {"b": [1, 2]}}, None),
        ({"a": {"b": [1, 3]}}, "its x.a.b[1] is 3 and this one's is 2"),
        ({"a": {"b": [1]}}, "its x.a.b is [1] and this one's is [1, 2]"),
        ({"a": {"b": [1, 2], "c": "new"}}, "its x.a.c is 'new' and this one's is None"),
        ({}, "its x.a is None and this one's is {'b': [1, 2]}"),
        (None, "its x is None and this one's is {'a': {'b': [1, 2]}}"),
    ],
)
def test_the_first_difference_in_words(found: Any, text: str | None) -> None:
    assert records.difference(found, {"a": {"b": [1, 2]}}, "x") == text


def slot(step_s: float) -> Slot:
    phases = ({group: step_s / len(GROUPS) for group in GROUPS},)
    return Slot(step_s=step_s, num_steps=2, others_frac=0.0, steps_s=(step_s,) * 2, phases=phases)


def measure_with(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    rounds: Sequence[int],
    ending: BaseException | None = None,
    workers: tuple[int, ...] = (1, 2),
    num_rounds: int = 3,
    **settings: Any,
) -> tuple[dict[str, Any], Heard]:
    """Measure without processes: the given rounds are made up, then `ending` is raised."""
    study, config = planned(workers, **settings)
    study = replace(study, rounds=num_rounds)
    monkeypatch.setattr(records, "environment", lambda: {**made.environment(), "peaks": None})

    def rounds_of(unique: Any, build: Any, given: Any, study: Any, record: Any, folder: Path, teller: Any) -> None:
        assert scale._num_rounds(record) == rounds[0]
        for number in rounds:
            for slots in record["slots"].values():
                slots.append({"round": number, **scale._plain(slot(1.0 + number))})
            records.write(folder / scale.PARTIAL, "scale", record)
        if ending is not None:
            raise ending

    monkeypatch.setattr(scale, "_measure_rounds", rounds_of)
    heard = Heard()
    build = lambda: catalog.build("digits-mlp")  # noqa: E731
    record = scale.measure(build, NumericSettings(**settings), study, config, folder, heard)
    return record, heard


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), Interrupted("stopped by SIGTERM", 15)])
def test_an_interrupted_study_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ending: KeyboardInterrupt
) -> None:
    with pytest.raises(Interrupted, match="1 of 3 rounds are kept, the same command goes on from there") as caught:
        measure_with(monkeypatch, tmp_path, [0], ending)
    assert caught.value.signum == getattr(ending, "signum", 2)
    kept = records.read(tmp_path / scale.PARTIAL, "scale")["slots"]
    record, heard = measure_with(monkeypatch, tmp_path, [1, 2])
    assert heard.lines == ["scale.part.json: 1 of 3 rounds were measured before"]
    assert [path.name for path in tmp_path.iterdir()] == [scale.RECORD]
    assert records.read(tmp_path / scale.RECORD, "scale")["slots"] == record["slots"]
    for name, slots in record["slots"].items():
        assert [each["round"] for each in slots] == [0, 1, 2]
        assert slots[:1] == kept[name]


def test_a_finished_study_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, _ = measure_with(monkeypatch, tmp_path, [0, 1, 2])
    content = (tmp_path / scale.RECORD).read_bytes()
    again, heard = measure_with(monkeypatch, tmp_path, [99])
    assert again["slots"] == first["slots"]
    assert heard.lines == ["scale.json: 3 of 3 rounds were measured before"]
    assert (tmp_path / scale.RECORD).read_bytes() == content


@pytest.mark.parametrize("num_rounds", [2, 5])
def test_a_finished_study_takes_more_rounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, num_rounds: int) -> None:
    """As its own warnings advise; fewer than there are leave it as it is."""
    measure_with(monkeypatch, tmp_path, [0, 1, 2])
    record, heard = measure_with(monkeypatch, tmp_path, [3, 4], num_rounds=num_rounds)
    wanted = max(3, num_rounds)
    assert heard.lines == [f"scale.json: 3 of {num_rounds} rounds were measured before"]
    for stored in (record, records.read(tmp_path / scale.RECORD, "scale")):
        assert stored["study"]["rounds"] == wanted
        assert all([each["round"] for each in slots] == list(range(wanted)) for slots in stored["slots"].values())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"seed": 3}, r"its study\.seed is 0 and this one's is 3"),
        ({"lr": 0.5}, r"its config\.lr is 0\.1 and this one's is 0\.5"),
        ({"workers": (1, 4)}, r"its study\.workers\[1\] is 2 and this one's is 4"),
    ],
)
@pytest.mark.parametrize("is_finished", [True, False])
def test_another_study_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, Any], text: str, *, is_finished: bool
) -> None:
    if is_finished:
        measure_with(monkeypatch, tmp_path, [0, 1, 2])
    else:
        with pytest.raises(Interrupted):
            measure_with(monkeypatch, tmp_path, [0], KeyboardInterrupt())
    with pytest.raises(UsageError, match=f"holds another study: {text}; name another folder, or remove scale"):
        measure_with(monkeypatch, tmp_path, [99], **settings)


def test_a_study_of_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measure_with(monkeypatch, tmp_path, [0, 1, 2])
    record = records.read(tmp_path / scale.RECORD)
    record["environment"]["host"]["processor"] = "another"
    del record["format"], record["kind"]
    records.write(tmp_path / scale.RECORD, "scale", record)
    with pytest.raises(UsageError, match=r"cannot be mixed: processor is 'another' in one"):
        measure_with(monkeypatch, tmp_path, [99])


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 1, "kind": "run"}', b'{"format": 1, "kind": "scale"}'])
def test_a_damaged_record_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    (tmp_path / scale.PARTIAL).write_bytes(content)
    with pytest.raises(UsageError, match=r"scale\.part\.json|holds another study"):
        measure_with(monkeypatch, tmp_path, [99])
