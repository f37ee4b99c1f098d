"""What packed arrays are: the shape of a sample, and the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samestep.data import target as targets
from samestep.data.target import Target


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the samples are.

    Args:
        shape: Of a sample's input.
        target: Classes, or a value.
    """

    shape: tuple[int, ...]
    target: Target

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"shape": list(self.shape), "target": targets.as_dict(self.target)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """The schema that `as_dict` was made of."""
        return cls(shape=tuple(values["shape"]), target=targets.from_dict(values["target"]))
