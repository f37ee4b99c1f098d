"""What packed pictures are: their size, and the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the samples are.

    Args:
        height: Rows of pixels.
        width: Pixels of a row.
        channels: 1 for grey, 3 for colours.
        target: Name of the target.
        classes: Names of the classes; a class's number is its place.
    """

    height: int
    width: int
    channels: int
    target: str
    classes: tuple[str, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """The schema that `as_dict` was made of."""
        return cls(**{**values, "classes": tuple(values["classes"])})

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)
