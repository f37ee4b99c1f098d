"""Numbers and names as a person reads them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from samestep.measure.stats import Estimate

UNKNOWN = "–"
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many digits that tell something.

    >>> [number(value) for value in (0.123456, 12345.6, 3, 0.0000321, float("nan"), None)]
    ['0.1235', '12,346', '3', '3.21e-05', 'nan', '–']
    """
    if value is None:
        return UNKNOWN
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:#.{digits}g}".rstrip(".")


def unit_of(seconds: Iterable[float]) -> tuple[float, str]:
    """The unit in which the largest of some times is a number of at least 1, and the unit's seconds.

    >>> unit_of([0.002, 0.0001])
    (0.001, 'ms')
    """
    most = max((abs(value) for value in seconds), default=0.0)
    return next(((factor, name) for factor, name in _UNITS if most >= factor), _UNITS[-1])


def duration(seconds: float | None) -> str:
    """A time in the unit that suits it.

    >>> duration(0.00247), duration(93.0), duration(7261.0), duration(None)
    ('2.47 ms', '93.0 s', '2 h 1 min', '–')
    """
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    if seconds >= 10:
        return f"{seconds:,.1f} s"
    factor, unit = unit_of([seconds])
    return f"{number(seconds / factor, 3)} {unit}"


def estimate(found: Estimate, factor: float = 1.0, digits: int = 3) -> str:
    """A number and its 95 % interval, both times a factor; "?" for a bound that is not known.

    >>> estimate(Estimate(value=12345.6, low=12000.0, high=math.inf))
    '12,346 [12,000, ?]'
    >>> estimate(Estimate(value=0.00247, low=0.00241, high=0.00252), 1000)
    '2.47 [2.41, 2.52]'
    """
    values = [each * factor for each in (found.value, found.low, found.high)]
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(values[0])))) if values[0] else digits - 1
    value, low, high = (f"{each:,.{decimals}f}" if math.isfinite(each) else "?" for each in values)
    return f"{value} [{low}, {high}]"


def estimated_duration(found: Estimate) -> str:
    """A time and its 95 % interval.

    >>> estimated_duration(Estimate(value=0.00247, low=0.00241, high=0.00252))
    '2.47 ms [2.41, 2.52]'
    """
    factor, unit = unit_of([found.value])
    value, interval = estimate(found, 1 / factor).split(" ", 1)
    return f"{value} {unit} {interval}"


def size(num_bytes: float | None) -> str:
    """Bytes in the largest binary unit that fits.

    >>> size(3 * 2**30), size(12), size(None)
    ('3.00 GiB', '12 bytes', '–')
    """
    if num_bytes is None:
        return UNKNOWN
    for factor, unit in _SIZES:
        if num_bytes >= factor:
            return f"{number(num_bytes / factor, 3)} {unit}"
    return f"{num_bytes:,.0f} bytes"


def value(item: Any, name: str = "") -> str:
    """Anything that stands in a record, in the unit that its name tells.

    >>> value(True), value([1, 2]), value(2**31, "memory_bytes"), value(0.5, "wall_s"), value({"a": 1})
    ('yes', '1, 2', '2.00 GiB', '500 ms', 'a 1')
    """
    if item is None:
        return UNKNOWN
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, int | float):
        if "_bytes_per_s" in name:
            return f"{number(item / 1e9)} GB/s"
        if "_flop_per_s" in name:
            return f"{number(item / 1e9)} GFLOP/s"
        if name.endswith("_bytes"):
            return size(item)
        if name.endswith("_s") and "_per_" not in name:
            return duration(float(item))
        return str(item) if name == "seed" else number(item)
    if isinstance(item, dict):
        return ", ".join(f"{key} {value(entry, str(key))}" for key, entry in item.items()) or UNKNOWN
    if isinstance(item, list | tuple):
        return ", ".join(value(entry) for entry in item) or UNKNOWN
    return clean(str(item)) or UNKNOWN


def label(name: str) -> str:
    """The name of a field in words.

    >>> label("threads_per_worker"), label("memory_mb"), label("copy_bytes_per_s_one_core")
    ('threads per worker', 'memory (MB)', 'copy one core')
    """
    words = name.removeprefix("num_").replace("_bytes_per_s", "").replace("_flop_per_s", "")
    words = clean(words.removesuffix("_s").removesuffix("_bytes").replace("_frac", " share").replace("_", " "))
    return f"{words.removesuffix(' mb')} (MB)" if words.endswith(" mb") else words


def clean(text: str) -> str:
    """A text without what no page can hold: control characters, and halves of characters from odd file names.

    >>> clean("a\\x00b\\udc80c\\n")
    'a\\ufffdb\\ufffdc\\ufffd'
    """
    return re.sub("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "\ufffd", text)


def file_name(text: str) -> str:
    """A text as part of a file's name.

    >>> file_name("runs/two workers")
    'runs-two-workers'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "record"
