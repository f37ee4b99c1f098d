"""A study: the numbers are those of `measure.scaling`, and nothing is hidden."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from samestep.errors import UsageError
from samestep.measure.scaling import Scaling
from samestep.measure.series import Point
from samestep.measure.stats import Estimate
from samestep.report import charts, speed_ups, studies, text
from samestep.report.charts import Axes, Curve
from samestep.report.records import Study, read_study
from tests.report import made


def study(folder: Path) -> Study:
    return read_study(made.write_study(folder), "scale")


def estimate(value: float, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value=value, low=value if low is None else low, high=value if high is None else high)


def point(workers: int, speed_up: Estimate, roof: Estimate | None = None) -> Point:
    return Point(
        workers=workers,
        step_s=estimate(0.01 / workers),
        samples_per_s=estimate(1000 * workers),
        speed_up=speed_up,
        relative=estimate(float(workers)),
        efficiency=estimate(1.0),
        roof=roof,
        of_roof=None,
        relation="faster",
    )


def scaling(*points: Point) -> Scaling:
    return Scaling(
        axis="strong", best_single="torch, 1 thread", points=points, fits=(), pays_up_to=None, verdict="it is made up"
    )


def test_the_numbers_are_those_of_the_analysis(tmp_path: Path) -> None:
    analysed = studies.analyse(study(tmp_path))
    section = studies.section(analysed, 1, is_only=True)
    strong = analysed.scalings["strong"]
    rows = section.parts[0].tables[0].rows
    assert [row[3] for row in rows] == [text.estimate(point.speed_up) for point in strong.points]
    assert [row[-1] for row in rows] == [point.relation for point in strong.points]


def test_the_ideal_line_and_the_intervals_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = list[Sequence[Curve]]()

    def curves(given: Sequence[Curve], axes: Axes) -> dict[str, Any]:
        drawn.append(given)
        return charts.curves(given, axes)

    monkeypatch.setattr(speed_ups, "charts", SimpleNamespace(**{**vars(charts), "curves": curves}))
    found = scaling(point(1, estimate(0.9, 0.8, 1.0)), point(2, estimate(1.7, 1.5, 1.9), estimate(1.8, 1.7, 1.95)))
    figure = speed_ups._against_single(found)
    (_, ideal, roof, ours), *_ = drawn
    assert ideal.line == [(1, 1), (2, 2)]
    assert [(mark.x, mark.low, mark.y, mark.high) for mark in ours.marks] == [(1, 0.8, 0.9, 1.0), (2, 1.5, 1.7, 1.9)]
    assert [(mark.x, mark.low, mark.y, mark.high) for mark in roof.marks] == [(2, 1.7, 1.8, 1.95)]
    assert "Bars are 95 % intervals." in figure.caption


def test_one_sentence_per_axis(tmp_path: Path) -> None:
    analysed = studies.analyse(study(tmp_path))
    said = studies.verdicts(analysed)
    assert [each.subject for each in said] == [
        "Strong scaling of fashion-mlp (scale)",
        "Weak scaling of fashion-mlp (scale)",
    ]
    for each, found in zip(said, analysed.scalings.values(), strict=True):
        assert each.sentence.lower() == f"{found.verdict.lower()}."


def test_parts(tmp_path: Path) -> None:
    section = studies.section(studies.analyse(study(tmp_path)), 1, is_only=True)
    assert [part.title for part in section.parts] == [
        "Strong scaling",
        "Where the time of a step goes (strong scaling)",
        "Weak scaling",
        "Where the time of a step goes (weak scaling)",
    ]
    names = [entry.name for entry in section.parts[0].legend]
    assert names[0] == "samestep"
    assert any("roof" in name for name in names)
    assert any("ideal" in name for name in names)


def test_points_and_intervals_are_drawn() -> None:
    found = scaling(
        point(1, estimate(0.9, 0.8, 1.0)),
        point(2, estimate(1.7, 1.6, 1.8), roof=estimate(1.9, 1.8, 2.0)),
    )
    against_single, against_one = speed_ups.figures(found)
    assert against_single.drawing.count('role="img"') == 3
    assert "2 workers: 1.70 [1.60, 1.80] × torch, 1 thread; 5.00 ms" in against_single.drawing
    assert "roof, 2 programs: 1.90 [1.80, 2.00] × torch, 1 thread" in against_single.drawing
    assert against_one.drawing.count('role="img"') == 2


def test_an_unbounded_interval_is_not_drawn() -> None:
    odd = estimate(1.7, 0.0, float("inf"))
    mark = speed_ups._mark(2, odd, "tip")
    assert (mark.low, mark.high) == (None, None)
    assert "[0.00, ?]" in speed_ups.figures(scaling(point(1, estimate(1.0)), point(2, odd)))[0].drawing


def test_a_far_ideal_does_not_flatten_the_curve() -> None:
    found = scaling(point(1, estimate(1.0)), point(64, estimate(2.0)))
    curve = Curve(
        look=speed_ups._OURS, marks=[speed_ups._mark(each.workers, each.speed_up, "") for each in found.points]
    )
    assert speed_ups._top([curve], 64) == pytest.approx(1.05 * 3)
    assert speed_ups._top([curve], 2) == pytest.approx(1.05 * 2)


def test_ticks_stay_apart() -> None:
    assert speed_ups._ticks([1, 2, 3, 4, 64], 128) == [4, 64, 128]
    assert speed_ups._ticks([1, 2, 4], 8) == [1, 2, 4, 8]


def test_unstable_programs_are_told(tmp_path: Path) -> None:
    path = made.write_study(tmp_path, made.disturbed(made.study()))
    analysed = studies.analyse(read_study(path, "scale"))
    (alert,) = studies.alerts(analysed)
    assert alert.title == "Unstable: measured again, scale may say something else"
    assert alert.sentences == [f"{each}." for each in analysed.findings.warnings]
    (said,) = [each for each in alert.sentences if each.startswith("samestep, 4 workers of 256 samples: ")]
    assert "other processes took 30 %" in said
    assert said.endswith(": measure on an idle machine.")
    assert not any("other processes" in each for each in studies.caveats(analysed)), "it is said once"


def test_a_stable_study_has_no_warning(tmp_path: Path) -> None:
    assert studies.alerts(studies.analyse(study(tmp_path))) == []


@pytest.mark.parametrize("missing", ["torch", "samestep, 1 worker"])
def test_a_study_that_cannot_be_analysed(missing: str, tmp_path: Path) -> None:
    path = made.write_study(tmp_path)
    content = json.loads(path.read_text())
    content["programs"] = [each for each in content["programs"] if not each["name"].startswith(missing)]
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"scale\.json: "):
        studies.analyse(read_study(path, "scale"))
