"""Fields of a JSON file, looked at with their type; a wrong one is named with the file and the way to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from samestep.errors import UsageError
from samestep.report import text

T = TypeVar("T")

WAY_OUT = "write it again with this samestep, or move it out of the folder"
_WORDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


@dataclass(frozen=True, kw_only=True)
class Fields:
    """An object of a file.

    Args:
        path: The file.
        values: What the object holds.
        place: The way to it, which ends with a point: "slots.strong/torch.0."; empty for the outermost.
    """

    path: Path
    values: Mapping[str, Any]
    place: str = ""

    def get(self, name: str, kind: type[T]) -> T:
        """A field that has to be there.

        Raises:
            UsageError: It is missing, or of another type.
        """
        if name not in self.values:
            raise UsageError(f"{self.path}: the field {self.place}{name} is missing; {WAY_OUT}")
        value = self.values[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            found = "null" if value is None else _WORDS[type(value)]
            raise UsageError(
                f"{self.path}: the field {self.place}{name} is {found}, and it must be {_WORDS[kind]}; {WAY_OUT}"
            )
        return value

    def number(self, name: str) -> float:
        """A field that holds a whole number or a float."""
        return float(self.get(name, int if isinstance(self.values.get(name), int) else float))

    def check_optional(self, name: str, kind: type) -> None:
        """A field that may be absent or null, but of no other type."""
        if self.values.get(name) is not None:
            _ = self.number(name) if kind is float else self.get(name, kind)

    def object(self, name: str) -> Fields:
        """A field that is an object itself."""
        return Fields(path=self.path, values=self.get(name, dict), place=f"{self.place}{name}.")

    def objects(self, name: str) -> Iterable[Fields]:
        """The objects of a field that is a list of them."""
        values = {str(index): value for index, value in enumerate(self.get(name, list))}
        inside = Fields(path=self.path, values=values, place=f"{self.place}{name}.")
        return [inside.object(index) for index in values]

    def numbers(self, name: str) -> list[float]:
        """A field that is a list of numbers."""
        values = self.get(name, list)
        if not all(type(value) in (int, float) for value in values):
            raise UsageError(f"{self.path}: the field {self.place}{name} holds something that is no number; {WAY_OUT}")
        return values

    def numbers_by_name(self) -> dict[str, float]:
        """This object, all of whose fields are numbers."""
        return {text.clean(name): self.number(name) for name in self.values}
