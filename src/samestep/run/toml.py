"""A configuration as a file that can be fed back."""

from __future__ import annotations

from typing import Any


def as_toml(values: dict[str, Any]) -> str:
    """Flat values as TOML; what is None is left out.

    >>> print(as_toml({"lr": 0.1, "optimizer": "sgd", "resume": False, "steps": None}))
    lr = 0.1
    optimizer = "sgd"
    resume = false
    """
    lines = []
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, bool):
            text = str(value).lower()
        elif isinstance(value, str):
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            text = f'"{escaped}"'
        else:
            text = repr(value)
        lines.append(f"{name} = {text}")
    return "\n".join(lines)
