"""Where the time goes: the groups of every worker, in one order, with nothing lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from samestep.engine.breakdown import GROUPS
from samestep.report import breakdowns
from samestep.report.palette import HATCHES
from samestep.report.records import Program, Slot, read_study
from tests.report import made


def program(*slots: tuple[dict[str, float], ...]) -> Program:
    return Program(
        name="samestep, 2 workers",
        kind="samestep",
        axis="strong",
        workers=2,
        threads=1,
        copies=1,
        global_batch=64,
        slots=tuple(
            Slot(round=index, step_s=0.01, steps_s=[0.01], others_frac=0.0, phases=phases)
            for index, phases in enumerate(slots)
        ),
    )


def took(compute: float, waiting: float = 0.0) -> dict[str, float]:
    return {**dict.fromkeys(GROUPS, 0.0), "compute": compute, "waiting": waiting}


TWO = program((took(0.006, 0.002), took(0.008)), (took(0.008, 0.000), took(0.008)))


def test_means_over_rounds() -> None:
    first, second = breakdowns.means(TWO)
    assert first == pytest.approx(took(0.007, 0.001))
    assert second == pytest.approx(took(0.008))


def test_a_part() -> None:
    part = breakdowns.part("Where the time goes", [TWO])
    assert [entry.name for entry in part.legend] == list(GROUPS)
    drawing = part.figures[0].drawing
    assert drawing.count('role="img"') == 3  # nothing is drawn of 0 seconds
    assert "samestep, 2 workers: 0: waiting 1.00 ms a step" in drawing
    assert part.tables[0].head == ["worker", *GROUPS]
    assert part.tables[0].rows[1] == ["samestep, 2 workers: 1", "0", "8.00", "0", "0", "0"]


def test_every_group_has_a_hatch() -> None:
    assert len(GROUPS) <= len(HATCHES)


def test_short_names_only_where_they_tell_programs_apart() -> None:
    small, large = (replace(TWO, name=f"samestep, 2 workers of {batch} samples") for batch in (64, 128))
    assert breakdowns._short_names([small]) == ["samestep, 2 workers"]
    assert breakdowns._short_names([small, large]) == [small.name, large.name]


def test_many_workers_are_thinned_and_it_is_said() -> None:
    part = breakdowns.part("t", [program(tuple(took(0.1) for _ in range(64)))])
    assert len(part.tables[0].rows) == 6
    assert part.notes == ["Of each program at most 6 workers are shown."]


def test_the_made_study_adds_up_to_its_steps(tmp_path: Path) -> None:
    for found in read_study(made.write_study(tmp_path), "scale").programs:
        mean = sum(slot.step_s for slot in found.slots) / len(found.slots)
        for worker in breakdowns.means(found):
            assert sum(worker.values()) == pytest.approx(mean)
