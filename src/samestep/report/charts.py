"""Charts as Vega-Lite specifications: plain dicts, pure functions of what is to be seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samestep.report.palette import Look

Spec = dict[str, Any]

WIDTH, HEIGHT = 460, 270
BAR_STEP = 24
MARKS = "points"
"""How the names of layers begin whose marks show their numbers."""

_FONT_SIZE = 12
_ZERO = "datum.value === 0 ? '0' : datum.label"
"""d3 writes 0k beside 50k."""

_WIDEST_LETTER = 7
"""Pixels that a letter of an axis may take in the reader's type."""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point that shows its numbers.

    Args:
        x, y: Where it is.
        low, high: Its interval; None where it has none, or none that is bounded.
        tip: Its numbers in words.
    """

    x: float
    y: float
    tip: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line, points on it, or both.

    Args:
        look: Colour, dash and shape; the colour is a name of the palette's.
        line: Its corners.
        marks: Its points.
        width: Of the line, in pixels.
        opacity: Of the line.
        shift: Pixels to the right, for what would lie on another curve's points.
        is_steps: The value holds until the next corner.
    """

    look: Look
    line: Sequence[tuple[float, float]] = ()
    marks: Sequence[Mark] = ()
    width: float = 2
    opacity: float = 1
    shift: int = 0
    is_steps: bool = False


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What the axes say.

    Args:
        x_title: Of the horizontal axis; the vertical one's stands above the chart.
        x_values: Where it has ticks; None: where they fit.
        x_domain, y_domain: What it covers; None: what the values cover.
        y_zero: The vertical axis begins at 0.
        x_format, y_format: Of the numbers, in d3's words.
        y_values: Where the vertical axis has ticks; None: where they fit.
        is_log: Both axes are logarithmic.
    """

    x_title: str
    x_values: Sequence[float] | None = None
    x_domain: tuple[float, float] | None = None
    y_domain: tuple[float, float] | None = None
    y_zero: bool = False
    x_format: str = ""
    y_format: str = ""
    y_values: Sequence[float] | None = None
    is_log: bool = False


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of a bar: from `start` to `end`, of the group with this number."""

    bar: str
    group: int
    start: float
    end: float
    tip: str


def curves(drawn: Sequence[Curve], axes: Axes) -> Spec:
    """Curves over one pair of axes; later ones lie above earlier ones, points above all lines."""
    x = {
        "field": "x",
        "type": "quantitative",
        "title": axes.x_title,
        "scale": _scale(axes.x_domain, is_zero=False, is_nice=False, is_log=axes.is_log),
        "axis": {
            "grid": False,
            "labelFlush": False,
            "format": axes.x_format,
            "labelExpr": _ZERO,
            **({"values": list(axes.x_values)} if axes.x_values else {"tickCount": 6}),
        },
    }
    y = {
        "field": "y",
        "type": "quantitative",
        "title": None,
        "scale": _scale(axes.y_domain, is_zero=axes.y_zero, is_nice=True, is_log=axes.is_log),
        "axis": {
            "domain": False,
            "ticks": False,
            "format": axes.y_format,
            "labelExpr": _ZERO,
            **({"values": list(axes.y_values)} if axes.y_values else {"tickCount": 5}),
        },
    }
    layers = [_line(curve, x, y) for curve in drawn if curve.line]
    layers += [_intervals(curve, x, y) for curve in drawn if any(mark.high is not None for mark in curve.marks)]
    layers += [_marks(curve, x, y, f"{MARKS}{index}") for index, curve in enumerate(drawn) if curve.marks]
    return {**_frame(), "height": HEIGHT, "layer": layers}


def format_for(most: float) -> str:
    """How d3 is to write an axis' numbers up to this one: plain ones, or 120k and 3M.

    >>> format_for(300), format_for(120_000)
    (',~r', '~s')
    """
    return "~s" if most >= 100_000 else ",~r"


def bars(pieces: Sequence[Piece], *, x_title: str) -> Spec:
    """Horizontal bars made of pieces, in the order in which they are given."""
    names = list(dict.fromkeys(piece.bar for piece in pieces))
    room = _WIDEST_LETTER * max(len(name) for name in names)  # the reader's letters may be wider than those at hand
    encoding = {
        "y": {
            "field": "bar",
            "type": "nominal",
            "sort": names,
            "title": None,
            "axis": {
                "domain": False,
                "ticks": False,
                "grid": False,
                "labelLimit": 0,
                "labelPadding": 6,
                "minExtent": room,
            },
        },
        "x": {
            "field": "start",
            "type": "quantitative",
            "title": x_title,
            "scale": {"zero": True, "nice": False},
            "axis": {"tickCount": 5, "labelFlush": False},
        },
        "x2": {"field": "end"},
        "description": {"field": "tip"},
    }
    groups = sorted({piece.group for piece in pieces})
    layers = [
        {
            "name": f"{MARKS}{group}",
            "mark": {
                "type": "bar",
                "height": BAR_STEP - 8,
                "fill": f"url(#hatch{group})",
                "stroke": f"var(--c{group})",
            },
            "data": {"values": [_piece(piece) for piece in pieces if piece.group == group]},
            "encoding": encoding,
        }
        for group in groups
    ]
    return {**_frame(), "height": BAR_STEP * len(names) + 50, "layer": layers}


def _piece(piece: Piece) -> dict[str, Any]:
    return {"bar": piece.bar, "start": piece.start, "end": piece.end, "tip": piece.tip}


def _line(curve: Curve, x: Mapping[str, Any], y: Mapping[str, Any]) -> Spec:
    return {
        "mark": {
            "type": "line",
            "aria": False,
            "stroke": f"var(--{curve.look.colour})",
            "strokeWidth": curve.width,
            "strokeOpacity": curve.opacity,
            "strokeDash": list(curve.look.dash),
            "strokeJoin": "round",
            "xOffset": curve.shift,
            "interpolate": "step-after" if curve.is_steps else "linear",
        },
        "data": {"values": [{"x": at, "y": value} for at, value in curve.line if math.isfinite(value)]},
        "encoding": {"x": x, "y": y},
    }


def _intervals(curve: Curve, x: Mapping[str, Any], y: Mapping[str, Any]) -> Spec:
    bounded = [mark for mark in curve.marks if mark.low is not None and mark.high is not None]
    return {
        "mark": {
            "type": "rule",
            "aria": False,
            "stroke": f"var(--{curve.look.colour})",
            "strokeWidth": 5,
            "strokeOpacity": 0.45,
            "xOffset": curve.shift,
        },
        "data": {"values": [{"x": mark.x, "y": mark.low, "high": mark.high} for mark in bounded]},
        "encoding": {"x": x, "y": y, "y2": {"field": "high"}},
    }


def _marks(curve: Curve, x: Mapping[str, Any], y: Mapping[str, Any], name: str) -> Spec:
    return {
        "name": name,
        "mark": {
            "type": "point",
            "filled": True,
            "opacity": 1,
            "size": 70,
            "shape": curve.look.shape,
            "fill": f"var(--{curve.look.colour})",
            "stroke": "var(--page)",
            "strokeWidth": 1,
            "xOffset": curve.shift,
        },
        "data": {"values": [{"x": mark.x, "y": mark.y, "tip": mark.tip} for mark in curve.marks]},
        "encoding": {"x": x, "y": y, "description": {"field": "tip"}},
    }


def _scale(domain: tuple[float, float] | None, *, is_zero: bool, is_nice: bool, is_log: bool) -> Spec:
    if is_log:
        return {"type": "log", "nice": False, **({} if domain is None else {"domain": list(domain)})}
    return {"zero": is_zero, "nice": is_nice} if domain is None else {"domain": list(domain), "nice": False}


def _frame() -> Spec:
    """What all charts have in common."""
    axis = {
        "labelColor": "var(--quiet)",
        "titleColor": "var(--quiet)",
        "gridColor": "var(--grid)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": _FONT_SIZE,
        "titleFontSize": _FONT_SIZE,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelPadding": 4,
        "aria": False,
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": WIDTH,
        "autosize": {"type": "fit", "contains": "padding"},
        "padding": 4,
        "background": None,
        "config": {"axis": axis, "view": {"stroke": None}},
    }
