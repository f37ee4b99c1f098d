"""The command, with programs to measure that start at once: their steps sleep, and they import no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from samestep.cli.main import main
from samestep.measure import programs
from samestep.measure.programs import Task
from samestep.measure.running import Program

TINY = Path(__file__).parent.parent / "measure" / "tiny.py"


def light(task: Task, *how: Any) -> Program:
    assert task.workers == 1, "it keeps one log"
    command = (sys.executable, "-I", "-S", str(TINY), "--child", "--told")
    return Program(name=task.name, command=command, stdin=b"begin\n")


if __name__ == "__main__":
    programs.program = light  # type: ignore[assignment]
    sys.exit(main(sys.argv[1:]))
