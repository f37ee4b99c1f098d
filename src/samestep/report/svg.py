"""A Vega-Lite specification as an inline SVG that takes its colours and its type from the page."""

from __future__ import annotations

import re
from typing import Literal
from xml.etree import ElementTree as ET

import vl_convert
from markupsafe import Markup

from samestep.report.charts import MARKS, Spec
from samestep.report.palette import HATCHES, Look

Kind = Literal["points", "faint", "bars"]

_NAMESPACE = "{http://www.w3.org/2000/svg}"
_TAGS = {"g", "path", "line", "text", "rect"}
_KEPT = {
    *("d", "x", "y", "x2", "y2", "width", "height", "transform", "text-anchor", "font-size", "font-weight"),
    *("fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-opacity", "stroke-miterlimit"),
    *("stroke-linejoin", "stroke-linecap", "opacity"),
}
_OF_MARKS = re.compile(rf"\b{MARKS}\d+_marks\b")
_DECIMALS = re.compile(r"(\d+\.\d{2})\d+")
_SHAPES = {
    "circle": "M-4 0A4 4 0 1 1 4 0A4 4 0 1 1-4 0Z",
    "square": "M-4-4H4V4H-4Z",
    "triangle-up": "M0-5L5 4H-5Z",
    "triangle-down": "M0 5L5-4H-5Z",
    "triangle-right": "M5 0L-4 5V-5Z",
    "diamond": "M0-6L5 0L0 6L-5 0Z",
    "cross": "M-5-2H-2V-5H2V-2H5V2H2V5H-2V2H-5Z",
}
_STROKE = 'fill="none" stroke="var(--page)" stroke-width="1.5"'
_HATCHED = {
    "plain": "",
    "rising": f'<path d="M-2 2L2-2M0 8L8 0M6 10L10 6" {_STROKE}/>',
    "dots": '<path d="M2 2h2v2h-2zM6 6h2v2h-2z" fill="var(--page)"/>',
    "falling": f'<path d="M-2 6L2 10M0 0L8 8M6-2L10 2" {_STROKE}/>',
    "bars": f'<path d="M2 0V8M6 0V8" {_STROKE}/>',
}


def render(spec: Spec, *, kind: Kind = "points") -> Markup:
    """Draw a chart.

    The drawing is silent for a screen reader, but for the marks of the layers `MARKS`: each is an image with its
    description as name. One of them is in the order of the tabulator key; the page's script moves on from there.

    Args:
        spec: Colours are variables of the page: "var(--c0)".
        kind: "points": the nearest mark shows its numbers; "faint": likewise, and marks are seen only then; "bars": the
            mark under the pointer does.
    """
    drawn = ET.fromstring(vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]))
    box = f"0 0 {drawn.get('width')} {drawn.get('height')}"
    root = ET.Element("svg", {"class": f"chart {kind}", "viewBox": box})
    for child in drawn:
        _copy(child, root, is_mark=False)
    for index, mark in enumerate(root.iterfind(".//path[@role='img']")):
        mark.set("tabindex", "-1" if index else "0")
    return Markup(ET.tostring(root, encoding="unicode"))


def _copy(source: ET.Element, target: ET.Element, *, is_mark: bool) -> None:
    """Copy what is seen, and nothing that an attribute could smuggle in."""
    tag = source.tag.removeprefix(_NAMESPACE)
    if tag not in _TAGS or source.get("class") in ("background", "foreground"):
        return
    is_mark = is_mark or _OF_MARKS.search(source.get("class", "")) is not None
    kept = {name: _DECIMALS.sub(r"\1", value) for name, value in source.attrib.items() if name in _KEPT}
    if kept.get("opacity") == "1":
        del kept["opacity"]
    if is_mark and tag == "path":
        kept |= {"class": "mark", "role": "img", "aria-label": source.get("aria-label", "")}
    elif tag == "text":
        kept["aria-hidden"] = "true"
    element = ET.SubElement(target, tag, kept)
    element.text = source.text
    for child in source:
        _copy(child, element, is_mark=is_mark)


def swatch(look: Look, *, has_points: bool = True) -> Markup:
    """A sample of a line and its points, for a legend."""
    dash = " ".join(str(length) for length in look.dash)
    line = f'<path d="M0 6H36" stroke="var(--{look.colour})" stroke-width="2" stroke-dasharray="{dash}"/>'
    point = f'<path d="{_SHAPES[look.shape]}" transform="translate(18 6)" fill="var(--{look.colour})"/>'
    return _sample(line + (point if has_points else ""))


def hatch_swatch(number: int) -> Markup:
    """A sample of a hatch, for a legend."""
    return _sample(f'<path d="M.5 .5H35.5V11.5H.5Z" fill="url(#hatch{number})" stroke="var(--c{number})"/>')


def _sample(drawn: str) -> Markup:
    return Markup(f'<svg class="swatch" viewBox="0 0 36 12" aria-hidden="true">{drawn}</svg>')


def hatches() -> Markup:
    """The hatches that bars are filled with, once for a page."""
    patterns = "".join(
        f'<pattern id="hatch{number}" width="8" height="8" patternUnits="userSpaceOnUse">'
        f'<path d="M0 0H8V8H0Z" fill="var(--c{number})"/>{_HATCHED[name]}</pattern>'
        for number, name in enumerate(HATCHES)
    )
    return Markup(f'<svg class="defs" width="0" height="0" aria-hidden="true"><defs>{patterns}</defs></svg>')
