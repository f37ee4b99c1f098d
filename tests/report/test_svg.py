"""Charts become drawings that take the page's colours, say their numbers, and carry nothing else."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from samestep.report import charts, palette, svg
from samestep.report.charts import Axes, Curve, Mark, Piece

EVIL = '<script>alert("x")</script>'


def drawn(markup: str) -> ET.Element:
    return ET.fromstring(markup)


def marks(root: ET.Element) -> list[ET.Element]:
    return root.findall(".//path[@role='img']")


def two_curves(tip: str = "a point") -> charts.Spec:
    points = [Mark(x=1, y=1, low=0.9, high=1.1, tip=tip), Mark(x=2, y=1.8, tip="the other")]
    curves = [
        Curve(look=palette.look(index), line=[(1, 1), (2, 1.8 + index)], marks=points if index == 0 else ())
        for index in range(2)
    ]
    return charts.curves(curves, Axes(x_title="workers"))


def test_marks_say_their_numbers() -> None:
    root = drawn(svg.render(two_curves()))
    assert [mark.get("aria-label") for mark in marks(root)] == ["a point", "the other"]
    assert [mark.get("tabindex") for mark in marks(root)] == ["0", "-1"]


def test_every_series_is_drawn_in_its_look() -> None:
    root = drawn(svg.render(two_curves()))
    lines = [path for path in root.iter("path") if path.get("stroke", "").startswith("var(--c")]
    assert {path.get("stroke") for path in lines} == {"var(--c0)", "var(--c1)"}
    assert len({path.get("stroke-dasharray") for path in lines}) == 2


def test_an_interval_is_drawn_where_there_is_one() -> None:
    root = drawn(svg.render(two_curves()))
    assert len([line for line in root.iter("line") if line.get("stroke") == "var(--c0)"]) == 1


def test_colours_are_the_pages() -> None:
    root = drawn(svg.render(two_curves()))
    used = {element.get(name) for element in root.iter() for name in ("fill", "stroke")} - {None, "none"}
    assert used
    assert all(str(colour).startswith("var(--") for colour in used), used


def test_what_is_silent() -> None:
    root = drawn(svg.render(two_curves()))
    assert all(text.get("aria-hidden") == "true" for text in root.iter("text"))
    assert {element.get("role") for element in root.iter()} == {None, "img"}


def test_names_cannot_do_anything() -> None:
    markup = svg.render(two_curves(EVIL))
    assert "<script" not in markup
    assert marks(drawn(markup))[0].get("aria-label") == EVIL
    pieces = [Piece(bar=EVIL, group=0, start=0, end=1, tip=EVIL)]
    assert "<script" not in svg.render(charts.bars(pieces, x_title="ms"), kind="bars")


def test_what_is_not_known_is_left_out() -> None:
    """The filter itself, on a planted drawing."""
    source = ET.fromstring(
        '<svg xmlns="http://www.w3.org/2000/svg"><a href="javascript:x"/><path d="M0 0" onclick="x" style="y"/></svg>'
    )
    target = ET.Element("svg")
    for child in source:
        svg._copy(child, target, is_mark=False)
    assert ET.tostring(target, encoding="unicode") == '<svg><path d="M0 0" /></svg>'


def test_bars() -> None:
    pieces = [
        Piece(bar="worker 0", group=0, start=0, end=1, tip="data 1 ms"),
        Piece(bar="worker 0", group=1, start=1, end=3, tip="compute 2 ms"),
        Piece(bar="worker 1", group=1, start=0, end=2, tip="compute 2 ms"),
    ]
    root = drawn(svg.render(charts.bars(pieces, x_title="ms a step"), kind="bars"))
    assert [mark.get("fill") for mark in marks(root)] == ["url(#hatch0)", "url(#hatch1)", "url(#hatch1)"]
    assert root.get("class") == "chart bars"
    texts = [text.text for text in root.iter("text")]
    assert texts.index("worker 0") < texts.index("worker 1")


def test_nothing_to_draw() -> None:
    root = drawn(svg.render(charts.curves([Curve(look=palette.look(0))], Axes(x_title="steps"))))
    assert marks(root) == []


@pytest.mark.parametrize("index", range(len(palette.SHAPES)))
def test_samples_have_every_shape(index: int) -> None:
    paths = drawn(svg.swatch(palette.look(index))).findall("path")
    assert len(paths) == 2


def test_hatches() -> None:
    patterns = drawn(svg.hatches()).findall(".//pattern")
    assert [pattern.get("id") for pattern in patterns] == [f"hatch{number}" for number in range(5)]
    assert len({ET.tostring(pattern[-1]) for pattern in patterns}) == 5
