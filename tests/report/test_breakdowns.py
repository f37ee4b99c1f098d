"""Where the time goes: the groups of every worker, in one order, with nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from samestep.report import breakdowns
from samestep.report.records import Program, Slot
from tests.report import made


def program(*slots: tuple[dict[str, float], ...], kind: str = "samestep") -> Program:
    return Program(
        name="samestep, 2 workers",
        kind=kind,
        axis="strong",
        workers=2,
        threads=1,
        copies=1,
        global_batch=64,
        slots=tuple(
            Slot(round=index, step_s=0.01, num_steps=5, others_frac=None, phases=phases)
            for index, phases in enumerate(slots)
        ),
    )


TWO = program(
    ({"compute": 0.006, "waiting": 0.002}, {"compute": 0.008}),
    ({"compute": 0.008, "waiting": 0.000}, {"compute": 0.008}),
)


def test_means_over_rounds() -> None:
    first, second = breakdowns.means(TWO)
    assert first == pytest.approx({"compute": 0.007, "waiting": 0.001})
    assert second == pytest.approx({"compute": 0.008, "waiting": 0.0})


def test_shares_add_up_to_one() -> None:
    found = breakdowns.shares([TWO, program(({"compute": 1.0},), kind="torch")])
    assert found == {2: pytest.approx({"compute": 15 / 16, "waiting": 1 / 16})}


def test_a_part() -> None:
    part = breakdowns.part("Where the time goes", [TWO])
    assert part is not None
    assert [entry.name for entry in part.legend] == ["compute", "waiting"]
    drawing = part.figures[0].drawing
    assert drawing.count('role="img"') == 3  # nothing is drawn of 0 seconds
    assert "samestep, 2 workers: 0: waiting 1.00 ms a step" in drawing
    assert part.tables[0].head == ["worker", "compute", "waiting"]
    assert part.tables[0].rows[1] == ["samestep, 2 workers: 1", "8.00", "0"]


def test_groups_that_nobody_has_heard_of() -> None:
    part = breakdowns.part("t", [program(({"compute": 0.5, "dreaming": 0.5},))])
    assert part is not None
    assert [entry.name for entry in part.legend] == ["compute", "dreaming"]


def test_no_phases() -> None:
    assert breakdowns.part("t", [program((), ())]) is None
    assert breakdowns.shares([program((), ())]) == {}


def test_many_workers_are_thinned_and_it_is_said() -> None:
    part = breakdowns.part("t", [program(tuple({"compute": 0.1} for _ in range(64)))])
    assert part is not None
    assert len(part.tables[0].rows) == 6
    assert part.notes == ["Of each program at most 6 workers are shown."]


def test_the_made_study_adds_up_to_its_steps(tmp_path: Path) -> None:
    from samestep.report.records import read_study

    for found in read_study(made.write_study(tmp_path), "scale").programs:
        mean = sum(slot.step_s for slot in found.slots) / len(found.slots)
        for worker in breakdowns.means(found):
            assert sum(worker.values()) == pytest.approx(mean)
