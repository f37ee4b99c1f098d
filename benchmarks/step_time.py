"""Step time against the roof, DistributedDataParallel and plain torch: ratios, taken interleaved in one run.

python -m benchmarks.step_time              measure what is not yet measured, then write the page
python -m benchmarks.step_time --page       only write the page from the results
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional

from benchmarks import cases, results, rounds, step_time_page
from benchmarks.cases import Case
from benchmarks.programs import Task
from benchmarks.results import Result
from benchmarks.rounds import Plan, say

FOLDER = results.FOLDER / "step_time"
_PAGE = results.ROOT / "benchmarks" / "STEP_TIME.md"
EXTRAS = ("m4", "m8", "bf16", "channels-last", "bf16-channels-last", "kept-memory")


def tasks(case: Case, extras: Sequence[str]) -> list[Task]:
    """The programs of a case."""
    batch, half, net = case.global_batch, case.global_batch // 2, case.net

    def make(name: str, **options: object) -> Task:
        values: dict[str, object] = {"net": net, "global_batch": batch, "microbatch": half, **options}
        return Task(name=name, **values)  # type: ignore[arg-type]

    def plain(suffix: str = "", *, keeps_memory: bool = False) -> list[Task]:
        keeps = {"keeps_memory": keeps_memory}
        return [
            make(f"torch-1{suffix}", kind="torch", microbatch=batch, **keeps),
            make(f"torch-2{suffix}", kind="torch", microbatch=batch, threads=2, **keeps),
            make(f"roof{suffix}", kind="torch", global_batch=half, copies=2, **keeps),
            make(f"torch-accumulating{suffix}", kind="torch", **keeps),
        ]

    found = [
        make("samestep-2", kind="samestep", workers=2),
        make("samestep-2-twin", kind="samestep", workers=2),
        make("samestep-1", kind="samestep"),
        *plain(),
        make("torch-accumulating-twin", kind="torch"),
        make("ddp", kind="ddp", workers=2),
    ]
    for name, num_microbatches in (("m4", 4), ("m8", 8)):
        if name in extras:
            microbatch = max(1, batch // num_microbatches)
            found.append(make(f"samestep-2-{name}", kind="samestep", workers=2, microbatch=microbatch))
    if "bf16" in extras:
        found.append(make("samestep-2-bf16", kind="samestep", workers=2, precision="bf16"))
    if "channels-last" in extras and net == "cnn":
        found.append(make("samestep-2-channels-last", kind="samestep", workers=2, channels_last=True))
    if "bf16-channels-last" in extras and net == "cnn":
        found.append(
            make("samestep-2-bf16-channels-last", kind="samestep", workers=2, precision="bf16", channels_last=True)
        )
    if "kept-memory" in extras:
        found += plain("-kept-memory", keeps_memory=True)
    return found


def settings(case: Case, plan: Plan, extras: Sequence[str]) -> Result:
    return {"case": case.name, **rounds.settings(plan, tasks(case, extras))}


def path_of(case: Case) -> Path:
    return FOLDER / f"{case.name}.json"


def run_case(case: Case, plan: Plan, extras: Sequence[str], prefix: str) -> Result:
    """Measure all programs of a case."""
    start = time.monotonic()
    slots = rounds.measure(tasks(case, extras), plan, prefix)
    return results.new(
        settings(case, plan, extras),
        {"slots": slots},
        module="benchmarks.step_time",
        duration_s=time.monotonic() - start,
    )


def estimate_s(case: Case, plan: Plan, extras: Sequence[str]) -> float:
    """A guess at a case's duration, from a few steps of plain torch in this process."""
    whole_s = _time_plain(case)
    # Two processes or two threads take a bit more than half of one thread's time.
    shares = [0.6 if task.workers * task.copies * task.threads > 1 else 1.0 for task in tasks(case, extras)]
    return sum(plan.whole_for(share * whole_s) for share in shares)


def _time_plain(case: Case) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        inputs, targets = cases.build_data(case.net)
        model = cases.build_model(case.net)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            loss = functional.cross_entropy(model(inputs[: case.global_batch]), targets[: case.global_batch])
            loss.backward()  # type: ignore[no-untyped-call]
            times.append(time.perf_counter() - start)
        return min(times)
    finally:
        torch.set_num_threads(before)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_time", description=__doc__)
    parser.add_argument("--cases", default=",".join(cases.all_names()), help="comma separated, such as mlp-64,cnn-256")
    rounds.add_arguments(parser, num_rounds=7)
    parser.add_argument("--slot-s", type=float, default=0.4, help="shortest slot in seconds; default: %(default)s")
    parser.add_argument("--slot-steps", type=int, default=6, help="fewest measured steps a slot; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the order within rounds; default: %(default)s")
    parser.add_argument("--extras", default="", help=f"comma separated, of {', '.join(EXTRAS)}")
    parser.add_argument("--force", action="store_true", help="measure again what has been measured")
    parser.add_argument("--page", action="store_true", help="only write the page from the results")
    parser.add_argument("--to", type=Path, default=_PAGE, help="the page to write")
    arguments = parser.parse_args(words)
    arguments.extras = [name for name in arguments.extras.split(",") if name]
    unknown = set(arguments.extras) - set(EXTRAS)
    if unknown:
        parser.error(f"unknown extras {', '.join(sorted(unknown))}; known: {', '.join(EXTRAS)}")
    try:
        arguments.cases = [cases.parse(name) for name in arguments.cases.split(",")]
        arguments.plan = Plan(
            rounds=arguments.rounds,
            warm_up=0,
            slot_s=arguments.slot_s,
            slot_steps=arguments.slot_steps,
            seed=arguments.seed,
            turns=arguments.turns,
        )
    except ValueError as error:
        parser.error(str(error))
    return arguments


def _is_done(case: Case, plan: Plan, extras: Sequence[str]) -> bool:
    found = results.read(path_of(case))
    return found is not None and found["settings"] == settings(case, plan, extras)


def measure_cases(chosen: Sequence[Case], plan: Plan, extras: Sequence[str], *, is_forced: bool) -> None:
    """Measure the cases that have no result with these settings."""
    todo = [case for case in chosen if is_forced or not _is_done(case, plan, extras)]
    for case in chosen:
        if case not in todo:
            say(f"{case.name}: done before with the same settings (--force measures again)")
    if todo:
        total_s = sum(estimate_s(case, plan, extras) for case in todo)
        say(f"{len(todo)} cases, about {total_s / 60:.0f} min")
    for number, case in enumerate(todo, start=1):
        result = run_case(case, plan, extras, f"{case.name} ({number}/{len(todo)})")
        results.write(path_of(case), result)


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parse(words)
    if not arguments.page:
        chosen = (arguments.cases, arguments.plan, arguments.extras)
        code = rounds.code_of(lambda: measure_cases(*chosen, is_forced=arguments.force))
        if code is not None:
            return code
    found = [result for name in cases.all_names() if (result := results.read(path_of(cases.parse(name))))]
    if not found:
        say(f"no results in {FOLDER}")
        return 1
    arguments.to.write_text(step_time_page.render(found))
    say(f"wrote {arguments.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
