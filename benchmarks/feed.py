"""How fast samples become batches in memory: samestep's feed beside the loaders that people use.

python -m benchmarks.feed                  measure what is not yet measured, then write the page
python -m benchmarks.feed --page           only write the page from the results
python -m benchmarks.feed --list           say which cases are done

The loaders live in .venv-loaders; it is measured with the Python there, each case in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import feed_cases, feed_page, results
from benchmarks.feed_cases import CASES, TOOLS, Case, Plan
from benchmarks.rounds import say
from samestep.errors import DataError

_PAGE = results.ROOT / "benchmarks" / "FEED.md"
_MAKE_IT = (
    "the loaders' virtual environment is missing; make it: python3 -m venv .venv-loaders && "
    ".venv-loaders/bin/python -m pip install -r benchmarks/feed_requirements.txt && "
    ".venv-loaders/bin/python -m pip install --no-deps mosaicml-streaming==0.13.0 -e ."
)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    plan = Plan()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="", help="comma separated names or beginnings of names: rows,table-grain")
    parser.add_argument("--rounds", type=int, default=plan.rounds, help="with the timing warm-up; default: %(default)s")
    parser.add_argument("--warm-up", type=int, default=plan.warm_up, help="rounds left out; default: %(default)s")
    parser.add_argument("--slot-s", type=float, default=plan.slot_s, help="shortest slot; default: %(default)s")
    parser.add_argument("--seed", type=int, default=plan.seed, help="of the order within rounds; default: %(default)s")
    parser.add_argument("--most-samples", type=int, default=plan.most_samples, help="for a trial; default: %(default)s")
    parser.add_argument("--force", action="store_true", help="measure again what has been measured")
    parser.add_argument("--to", type=Path, default=_PAGE, help="the page to write")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--page", action="store_true", help="only write the page from the results")
    only.add_argument("--list", action="store_true", help="only say which cases are done")
    arguments = parser.parse_args(argv)
    words = [word for word in arguments.cases.split(",") if word]
    arguments.chosen = [case for case in CASES if not words or any(_means(word, case.name) for word in words)]
    if not arguments.chosen:
        parser.error(f"no case begins with {arguments.cases}; the cases: {', '.join(case.name for case in CASES)}")
    names = ("rounds", "warm_up", "slot_s", "seed", "most_samples")
    try:
        arguments.plan = Plan(**{name: getattr(arguments, name) for name in names})
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _means(word: str, name: str) -> bool:
    """Whether a word is a case's name, or, where no case is called so, the beginning of it."""
    return name == word or (name.startswith(word) and all(case.name != word for case in CASES))


def _measure(arguments: argparse.Namespace) -> bool:
    """Measure what is to be measured; whether all of it could be."""
    todo = [case for case in arguments.chosen if arguments.force or not case.is_done(arguments.plan)]
    say(f"{len(todo)} of {len(arguments.chosen)} cases to measure")
    for number, case in enumerate(todo, start=1):
        start = time.monotonic()
        child = multiprocessing.get_context("spawn").Process(target=_run, args=(case.name, arguments.plan))
        child.start()
        try:
            child.join()
        finally:
            child.terminate()
        if child.exitcode != 0:
            say(f"{case.name} ended with code {child.exitcode}; finished cases are kept")
            return False
        say(f"{case.name} done in {time.monotonic() - start:.0f} s ({number}/{len(todo)})")
    return True


def _run(name: str, plan: Plan) -> None:
    """In the process of a case, which starts others as a script of a user's does."""
    multiprocessing.set_start_method("fork", force=True)
    try:
        feed_cases.run(_named(name), plan, partial(_say, name))
    except DataError as error:
        _say(name, str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def _say(name: str, text: str) -> None:
    say(f"{name}: {text}")


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parse(words)
    if arguments.list:
        for case in arguments.chosen:
            print(f"{case.name:20} {'done' if case.is_done(arguments.plan) else '-'}")
        return 0
    if not arguments.page:
        python = TOOLS / "python"
        if not python.exists():
            say(_MAKE_IT)
            return 2
        if Path(sys.prefix).resolve() != TOOLS.parent.resolve():
            os.execv(python, [str(python), "-m", "benchmarks.feed", *(sys.argv[1:] if words is None else words)])
        try:
            if not _measure(arguments):
                return 1
        except KeyboardInterrupt:
            say("stopped; finished cases are kept")
            return 130
    found = {case.name: record for case in CASES if (record := results.read(case.path))}
    if not found:
        say(f"no results in {feed_cases.FOLDER}")
        return 1
    arguments.to.write_text(feed_page.render(found))
    say(f"wrote {arguments.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
