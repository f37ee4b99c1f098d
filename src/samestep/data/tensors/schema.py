"""What packed arrays are: the shape of a sample, and the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from samestep.data.table.schema import Classes, Value


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What the samples are.

    Args:
        shape: Of a sample's input.
        target: Classes, or a value.
    """

    shape: tuple[int, ...]
    target: Classes | Value

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Schema:
        """The schema that `as_dict` was made of."""
        target = dict(values["target"])
        if target.pop("task") == "value":
            return cls(shape=tuple(values["shape"]), target=Value(**target))
        return cls(shape=tuple(values["shape"]), target=Classes(**{**target, "values": tuple(target["values"])}))

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        task = "classes" if isinstance(self.target, Classes) else "value"
        return {"shape": list(self.shape), "target": {"task": task, **asdict(self.target)}}
