"""Colours that can be read, and told apart by everyone."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from samestep.report import palette

Vector = NDArray[np.float64]

SERIES = [f"c{index}" for index in range(palette.NUM_COLOURS)]
GROUNDS = ("page", "panel")
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}
"""Machado, Oliveira and Fernandes: A physiologically-based model for simulation of colour vision deficiency, 2009."""
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = np.array([0.9505, 1.0, 1.089])


def seen(colour: str, deficiency: str) -> Vector:
    """A colour in CIE Lab, as somebody with this deficiency sees it."""
    channels = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    scaled = TO_XYZ @ np.clip(DEFICIENCIES[deficiency] @ linear, 0, 1) / WHITE
    x, y, z = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def distance(one: str, other: str, deficiency: str) -> float:
    return float(np.linalg.norm(seen(one, deficiency) - seen(other, deficiency)))


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("name", ["text", "quiet", "link", "warn"])
def test_text_has_contrast(name: str, ground: str, theme: int) -> None:
    assert palette.contrast(palette.COLOURS[name][theme], palette.COLOURS[ground][theme]) >= 4.5


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("name", SERIES)
def test_series_have_contrast(name: str, theme: int) -> None:
    assert palette.contrast(palette.COLOURS[name][theme], palette.COLOURS["page"][theme]) >= 3


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_series_stay_apart(deficiency: str, theme: int) -> None:
    pairs = combinations((palette.COLOURS[name][theme] for name in SERIES), 2)
    assert min(distance(one, other, deficiency) for one, other in pairs) >= 15


def test_the_oracle_finds_red_and_green_alike() -> None:
    assert distance("#a83232", "#6b6b1f", "deuteranopia") < 15 < distance("#a83232", "#6b6b1f", "none")


def test_looks_differ_in_more_than_colour() -> None:
    looks = [palette.look(index) for index in range(210)]
    assert len({(look.colour, look.dash, look.shape) for look in looks}) == 210
    by_colour = [(look.dash, look.shape) for look in looks[:30]]
    assert len(set(by_colour)) == 30


def test_the_switch_wins_over_the_system() -> None:
    css = palette.css()
    assert css.index("prefers-color-scheme: dark") < css.index("[data-theme=light]")
    assert css.count(f"--page: {palette.COLOURS['page'][0]}") == css.count(f"--page: {palette.COLOURS['page'][1]}") == 2
