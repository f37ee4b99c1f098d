"""Records are read whole, or refused with the file and the field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from samestep.errors import UsageError
from samestep.report import records
from tests.report import made


def change(path: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return path


def test_finds_every_record(tmp_path: Path) -> None:
    found = records.find(made.fill(tmp_path))
    assert [run.name for run in found.runs] == ["one", "two"]
    assert [study.name for study in found.studies] == ["scale"]
    assert [len(found.studies[0].on(axis)) for axis in ("strong", "weak")] == [7, 7]


def test_a_record_in_the_folder_itself(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    made.write_run(folder)
    assert [run.name for run in records.find(folder).runs] == ["digits"]


def test_seconds_of_steps(tmp_path: Path) -> None:
    run = records.read_run(made.write_run(tmp_path, made.run(num_steps=4)), "run")
    durations = run.steps["duration_s"]
    assert run.seconds_at(0) == 0
    assert run.seconds_at(3) == pytest.approx(sum(durations[:3]))
    assert run.seconds_at(4) == pytest.approx(sum(durations))


def test_seconds_of_a_resumed_run(tmp_path: Path) -> None:
    body = made.run(num_steps=4, first_step=100)
    body["step_table"]["step"] = [100, 101, 102, 103]
    run = records.read_run(made.write_run(tmp_path, body), "run")
    assert run.seconds_at(50) is None
    assert run.seconds_at(100) == 0
    assert run.seconds_at(101) == pytest.approx(run.steps["duration_s"][0])


def test_values_that_are_not_finite_come_back(tmp_path: Path) -> None:
    body = made.run(num_steps=4)
    body["step_table"]["loss"][2] = math.nan
    run = records.read_run(made.write_run(tmp_path, body), "run")
    assert math.isnan(run.steps["loss"][2])


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        records.find(tmp_path / "nowhere")


def test_no_record(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="samestep train WORKLOAD --out"):
        records.find(tmp_path)


def set_format(content: dict[str, Any]) -> None:
    content["format"] = 2


def drop_losses(content: dict[str, Any]) -> None:
    del content["step_table"]["loss"]


def shorten_losses(content: dict[str, Any]) -> None:
    content["step_table"]["loss"].pop()


def spoil_losses(content: dict[str, Any]) -> None:
    content["step_table"]["loss"][1] = "low"


def spoil_workers(content: dict[str, Any]) -> None:
    content["workers"] = True


def spoil_time(content: dict[str, Any]) -> None:
    content["wall_s"] = "long"


def spoil_evaluation(content: dict[str, Any]) -> None:
    content["evaluations"][1]["means"] = None


def spoil_host(content: dict[str, Any]) -> None:
    content["environment"]["host"] = [1]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (set_format, "format is 2, and this samestep reads format 1"),
        (drop_losses, "the field step_table.loss is missing"),
        (shorten_losses, "columns of different lengths"),
        (spoil_losses, "the field step_table.loss holds something that is no number"),
        (spoil_workers, "the field workers is true or false, and it must be a whole number"),
        (spoil_time, "the field wall_s is a text, and it must be a number"),
        (spoil_evaluation, "the field evaluations.1.means is null, and it must be an object"),
        (spoil_host, "the field environment.host is a list, and it must be an object"),
    ],
)
def test_a_spoilt_run(edit: Callable[[dict[str, Any]], None], said: str, tmp_path: Path) -> None:
    path = change(made.write_run(tmp_path), edit)
    with pytest.raises(UsageError) as caught:
        records.find(tmp_path)
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert "\n" not in message


def drop_slots(content: dict[str, Any]) -> None:
    del content["slots"]["strong/samestep, 1 worker"]


def spoil_axis(content: dict[str, Any]) -> None:
    content["programs"][0]["axis"] = "odd"


def spoil_slot(content: dict[str, Any]) -> None:
    content["slots"]["strong/samestep, 1 worker"][3]["step_s"] = None


def drop_round(content: dict[str, Any]) -> None:
    content["slots"]["strong/samestep, 2 workers"].pop(4)


def repeat_round(content: dict[str, Any]) -> None:
    for slots in content["slots"].values():
        slots[4]["round"] = 3


def drop_group(content: dict[str, Any]) -> None:
    del content["slots"]["strong/samestep, 2 workers"][4]["phases"][1]["waiting"]


def drop_worker(content: dict[str, Any]) -> None:
    content["slots"]["strong/samestep, 2 workers"][4]["phases"].pop()


def spoil_kind(content: dict[str, Any]) -> None:
    content["programs"][2]["kind"] = "magic"


def add_axis(content: dict[str, Any]) -> None:
    content["study"]["axes"].append("diagonal")


def drop_cores(content: dict[str, Any]) -> None:
    del content["environment"]["host"]["cores"]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (drop_slots, "the field slots.strong/samestep, 1 worker is missing"),
        (spoil_axis, "programs.0.axis is 'odd', and it must be strong or weak"),
        (spoil_slot, "the field slots.strong/samestep, 1 worker.3.step_s is null, and it must be a number"),
        (drop_round, "slots.strong/samestep, 2 workers has the rounds [0, 1, 2, 3, 5"),
        (repeat_round, "has the rounds [0, 1, 2, 3, 3"),
        (drop_group, "the field slots.strong/samestep, 2 workers.4.phases.1.waiting is missing"),
        (drop_worker, "tells the phases of [1, 2] workers"),
        (spoil_kind, "programs.2.kind is 'magic', and it must be torch, samestep or roof"),
        (add_axis, "the field study.axes names 'diagonal', and no program is of it"),
        (drop_cores, "the field environment.host.cores is missing"),
    ],
)
def test_a_spoilt_study(edit: Callable[[dict[str, Any]], None], said: str, tmp_path: Path) -> None:
    path = change(made.write_study(tmp_path), edit)
    with pytest.raises(UsageError) as caught:
        records.find(tmp_path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text("{")
    with pytest.raises(UsageError, match=r"record\.json is not JSON"):
        records.find(tmp_path)


def test_a_run_that_does_not_tell_where_it_ran(tmp_path: Path) -> None:
    body = made.run()
    del body["environment"]
    assert records.read_run(made.write_run(tmp_path, body), "run").environment == {}
