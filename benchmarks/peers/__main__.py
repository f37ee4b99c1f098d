"""samestep beside what people use today: the same networks, data, optimiser and global batch.

python -m benchmarks.peers                  measure what is not yet measured, then write the page
python -m benchmarks.peers --page           only write the page from the records
python -m benchmarks.peers --list           say which parts are done
python -m benchmarks.peers --try            only see that every program starts and does its first step
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType

from benchmarks.peers import contenders, measures, parts
from benchmarks.peers.measures import Plan, Stage
from samestep.errors import DataError

PAGE = contenders.ROOT / "benchmarks" / "PEERS.md"


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    plan = Plan()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="", help="comma separated names or beginnings of names: step-mlp,target")
    parser.add_argument("--rounds", type=int, default=plan.rounds, help="of a step part; default: %(default)s")
    parser.add_argument("--slot-s", type=float, default=plan.slot_s, help="shortest slot; default: %(default)s")
    parser.add_argument("--slot-steps", type=int, default=plan.slot_steps, help="fewest steps; default: %(default)s")
    parser.add_argument("--force", action="store_true", help="measure again what has been measured")
    parser.add_argument("--results", type=Path, default=parts.FOLDER, help="where the records are")
    parser.add_argument("--to", type=Path, default=PAGE, help="the page to write")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--page", action="store_true", help="only write the page")
    only.add_argument("--list", action="store_true", help="only say which parts are done")
    only.add_argument("--try", action="store_true", dest="is_trial", help="only start every program")
    arguments = parser.parse_args(words)
    beginnings = tuple(name for name in arguments.parts.split(",") if name)
    arguments.chosen = [part for part in parts.every() if not beginnings or part.name.startswith(beginnings)]
    if not arguments.chosen:
        parser.error(f"no part begins with {arguments.parts}; the parts: {', '.join(p.name for p in parts.every())}")
    try:
        arguments.plan = Plan(rounds=arguments.rounds, slot_s=arguments.slot_s, slot_steps=arguments.slot_steps)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _measure(arguments: argparse.Namespace) -> None:
    plan, folder = arguments.plan, arguments.results
    todo = [part for part in arguments.chosen if arguments.force or not parts.is_done(folder, part, plan)]
    _say(f"{len(todo)} of {len(arguments.chosen)} parts to measure")
    for number, part in enumerate(todo, start=1):
        start = time.monotonic()
        parts.run(folder, part, plan, _say)
        _say(f"{part.name} done in {time.monotonic() - start:.0f} s ({number}/{len(todo)})")


def _try() -> None:
    """Every program once, up to its first step."""
    with tempfile.TemporaryDirectory(prefix="samestep-peers-") as name:
        parts.write_data(Path(name))
        for case in contenders.CASES:
            _say(f"case {case}")
            measures.start_up(contenders.of(case), Stage(folder=Path(name), case=case, seed=1), Plan(), _say)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parse(words)
    if arguments.list:
        for part in arguments.chosen:
            print(f"{part.name:18} {'done' if parts.is_done(arguments.results, part, arguments.plan) else '-'}")
        return 0
    if not arguments.page:
        signal.signal(signal.SIGTERM, _interrupt)
        missing = parts.needs_what()
        if missing is not None:
            _say(missing)
            return 2
        try:
            if arguments.is_trial:
                _try()
                return 0
            _measure(arguments)
        except DataError as error:
            _say(str(error))
            return 2
        except KeyboardInterrupt:
            _say("stopped; finished parts are kept")
            return 130
    text = import_module("benchmarks.peers.page").render(parts.collect(arguments.results))
    if text is None:
        _say("nothing is measured yet")
        return 1
    arguments.to.write_text(text)
    _say(f"wrote {arguments.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
