"""Where the time goes: the groups of every worker, in one order, with nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from samestep.engine.breakdown import GROUPS, MEANINGS
from samestep.report import breakdowns, studies
from samestep.report.palette import HATCHES
from samestep.report.records import read_study
from tests.report import made


def took(compute: float, waiting: float = 0.0) -> dict[str, float]:
    return {**dict.fromkeys(GROUPS, 0.0), "compute": compute, "waiting": waiting}


NAME = "samestep, 2 workers"
ROOT = Path(__file__).parent.parent.parent
TWO = (took(0.007, 0.001), took(0.008))


def test_a_part() -> None:
    part = breakdowns.part("Where the time goes", {NAME: TWO}, over="the mean over all rounds")
    assert [entry.name for entry in part.legend] == list(GROUPS)
    drawing = part.figures[0].drawing
    assert drawing.count('role="img"') == 3  # nothing is drawn of 0 seconds
    assert "samestep, 2 workers: 0: waiting 1.00 ms a step" in drawing
    assert part.tables[0].head == ["worker", *GROUPS]
    assert part.tables[0].rows[1] == ["samestep, 2 workers: 1", "0", "8.00", "0", "0", "0"]


def test_page_and_documentation_say_the_same_of_every_group() -> None:
    assert [*MEANINGS] == [*GROUPS]
    note = breakdowns.part("t", {NAME: TWO}, over="all").tables[0].note
    documented = " ".join((ROOT / "docs" / "measuring.md").read_text().split())
    for group, meaning in MEANINGS.items():
        assert f"{group}: {meaning}" in note
        assert f"*{group}* ({meaning})" in documented


def test_every_group_has_a_hatch() -> None:
    assert len(GROUPS) <= len(HATCHES)


def test_short_names_only_where_they_tell_programs_apart() -> None:
    small, large = (f"{NAME} of {batch} samples" for batch in (64, 128))
    assert breakdowns.short_names([small]) == [NAME]
    assert breakdowns.short_names([small, large]) == [small, large]


def test_many_workers_are_thinned_and_it_is_said() -> None:
    part = breakdowns.part("t", {NAME: [took(0.1)] * 64}, over="all")
    assert len(part.tables[0].rows) == 6
    assert part.notes == ["Of each program at most 6 workers are shown."]


def test_the_made_study_adds_up_to_its_steps(tmp_path: Path) -> None:
    study = read_study(made.write_study(tmp_path), "scale")
    found = studies.analyse(study).findings.breakdowns
    for program in study.programs:
        mean = sum(slot.step_s for slot in program.slots) / len(program.slots)
        for worker in found[program.axis][program.name]:  # type: ignore[index]
            assert sum(worker.values()) == pytest.approx(mean)
