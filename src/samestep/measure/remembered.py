"""Choices that were made before, one small file each in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from samestep.errors import StateError, UsageError
from samestep.host import facts, files, provenance, records
from samestep.measure.candidates import Candidate, Choice, Measured

_KIND = "parallel"

_NO_MATTER = ("seed", "lr_schedule", "lr_warmup", "scheduled_steps")
"""What decides bits, but not how long a step takes."""


def key(
    numerics: Mapping[str, Any], candidates: Sequence[Candidate], staging: Sequence[str | int] = ()
) -> dict[str, Any]:
    """What a choice holds for: this machine, versions and sources; the workload's numerics; what was to choose from.

    Args:
        numerics: See `run.prepare.Prepared`.
        candidates: The ways that there are.
        staging: How stages take turns, where a way has some.
    """
    environment = {
        "host": facts.describe(),
        "versions": provenance.versions(),
        "source_sha256": provenance.source_sha256(),
    }
    return {
        "machine": records.comparable({"environment": environment}),
        "numerics": {name: value for name, value in numerics.items() if name not in _NO_MATTER},
        "candidates": [candidate.name for candidate in candidates],
        "staging": list(staging) if any(candidate.stages > 1 for candidate in candidates) else [],
    }


@dataclass(frozen=True)
class Memory:
    """Where the choice for a key is kept.

    Args:
        path: The file; None where the user has no cache folder.
        key: See `key`.
    """

    path: Path | None
    key: Mapping[str, Any]

    @classmethod
    def of(cls, key: Mapping[str, Any]) -> Memory:
        """In the user's cache folder."""
        folder = files.cache_folder()
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return cls(None if folder is None else folder / "parallel" / f"{digest[:32]}.json", key)

    def read(self) -> tuple[Choice, str] | None:
        """The choice and the day on which it was made; None where there is none, or the file is damaged."""
        if self.path is None or not self.path.exists():
            return None
        try:
            content = records.read(self.path, _KIND)
            if content["key"] != json.loads(json.dumps(self.key)):
                return None
            measured = tuple(_measured(**values) for values in content["measured"])
            chosen = Candidate(**content["candidate"])
            reason, created = str(content["reason"]), str(content["created"])
        except (UsageError, KeyError, TypeError, ValueError):
            return None
        if chosen not in [one.candidate for one in measured if one.failure is None]:
            return None
        return Choice(candidate=chosen, measured=measured, reason=reason), created[:10]

    def write(self, choice: Choice) -> str | None:
        """Keep a choice.

        Returns:
            Why it is not kept; None: it is.
        """
        if self.path is None:
            return "this user has no cache folder"
        body = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "reason": choice.reason,
            "candidate": asdict(choice.candidate),
            "measured": [asdict(one) for one in choice.measured],
            "key": self.key,
        }
        try:
            files.make_folder(self.path.parent, "what was measured before")
            records.write(self.path, _KIND, body)
        except StateError as error:
            return str(error)
        return None


def _measured(candidate: Mapping[str, Any], step_s: Sequence[float], failure: str | None) -> Measured:
    return Measured(candidate=Candidate(**candidate), step_s=tuple(map(float, step_s)), failure=failure)
