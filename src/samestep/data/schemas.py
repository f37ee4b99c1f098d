"""The schema of a pack, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from samestep.data.pictures import schema as pictures
from samestep.data.series import schema as series
from samestep.data.table import schema as table
from samestep.data.tensors import schema as tensors
from samestep.data.text import schema as text

Schema = table.Schema | series.Schema | pictures.Schema | tensors.Schema | text.Schema

_KINDS: Mapping[str, Any] = {
    "table": table.Schema,
    "series": series.Schema,
    "pictures": pictures.Schema,
    "arrays": tensors.Schema,
    "text": text.Schema,
}


def read(kind: str, values: Mapping[str, Any]) -> Schema:
    """The schema that a manifest holds.

    Args:
        kind: Of the data: "table", "series", "pictures", "arrays" or "text".
        values: As the schema's `as_dict` gave them.
    """
    schema: Schema = _KINDS[kind].from_dict(values)
    return schema
