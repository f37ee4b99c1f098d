"""Whether values are of the types that fields of settings ask for."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from samestep.errors import UsageError

if TYPE_CHECKING:
    from samestep.run.config import NumericSettings


def check_types(settings: NumericSettings) -> None:
    """Refuse values of another type than the field's; from Python nothing else would."""
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        if not _fits(value, hint):
            wanted = " or ".join(_type_text(member) for member in get_args(hint) if member is not type(None))
            if isinstance(value, str) and "'" in wanted:
                raise UsageError(f"{field.name} {value!r} is not known; take {wanted}")
            raise UsageError(f"{field.name}={value!r} is a {type(value).__name__}, and it must be {wanted}")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return any(type(value) is type(allowed) and value == allowed for allowed in get_args(hint))
    if get_args(hint):
        return any(_fits(value, member) for member in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _type_text(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(repr(allowed) for allowed in get_args(hint))
    return {int: "a whole number", float: "a number", bool: "True or False", str: "a text", Path: "a path"}.get(
        hint, str(hint)
    )
