"""What packed pictures are: their size, and their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samestep.data import target as targets
from samestep.data.target import Classes


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the samples are.

    Args:
        height: Rows of pixels.
        width: Pixels of a row.
        channels: 1 for grey, 3 for colours.
        target: Their classes.
    """

    height: int
    width: int
    channels: int
    target: Classes

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        sizes = {"height": self.height, "width": self.width, "channels": self.channels}
        return {**sizes, "target": targets.as_dict(self.target)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """The schema that `as_dict` was made of."""
        target = targets.from_dict(values["target"])
        assert isinstance(target, Classes)
        return cls(**{**values, "target": target})
