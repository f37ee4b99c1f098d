"""Colours, dashes and shapes: every series differs from the others in more than its colour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

COLOURS: Mapping[str, tuple[str, str]] = {
    "page": ("#ffffff", "#14171a"),
    "panel": ("#f5f6f7", "#1d2125"),
    "text": ("#1b1f23", "#e8eaec"),
    "quiet": ("#57606a", "#a2abb4"),
    "line": ("#d5d9de", "#3a4149"),
    "grid": ("#e6e9ec", "#2a3036"),
    "link": ("#0057a8", "#7cbcff"),
    "warn": ("#8a4b00", "#f0b866"),
    "c0": ("#0d5fd0", "#5f9bff"),
    "c1": ("#c23b12", "#e07a45"),
    "c2": ("#00937a", "#5be3a2"),
    "c3": ("#6b2a90", "#dbe6f2"),
    "c4": ("#7a8a3c", "#f2c530"),
    "c5": ("#3f4757", "#8f9296"),
}
"""By name: on a light page, on a dark page. The series (c0 ...) stay apart for colour-blind readers."""

NUM_COLOURS = sum(name[0] == "c" and name[1:].isdigit() for name in COLOURS)
DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (5, 2))
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
HATCHES = ("plain", "rising", "dots", "falling", "bars")
"""How the parts of a bar are filled, in the order of the groups of a breakdown."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a series is drawn.

    Args:
        colour: A name of `COLOURS`.
        dash: Lengths of strokes and gaps.
        shape: Of its points, by Vega's name.
    """

    colour: str
    dash: tuple[int, ...]
    shape: str


def look(index: int) -> Look:
    """The look of the series with this number; the first 210 are all different."""
    return Look(
        colour=f"c{index % NUM_COLOURS}",
        dash=DASHES[index % len(DASHES)],
        shape=SHAPES[index % len(SHAPES)],
    )


def css() -> str:
    """The colours as variables of a style sheet: light, dark where the reader's system is, and as the switch says."""
    light, dark = (_variables(index) for index in (0, 1))
    return (
        f":root {{ {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        f"@media screen {{ :root[data-theme=light] {{ {light} }}\n"
        f":root[data-theme=dark] {{ {dark} }} }}\n"
    )


def _variables(index: int) -> str:
    return " ".join(f"--{name}: {pair[index]};" for name, pair in COLOURS.items())


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, (L1 + 0.05) / (L2 + 0.05) with the lighter first, from 1 to 21.

    References: Web Content Accessibility Guidelines 2.2, "contrast ratio".

    >>> contrast("#000000", "#ffffff")
    21.0
    """
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
