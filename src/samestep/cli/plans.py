"""What is printed of how a run is carried out: --print-plan, and what --parallel auto has chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samestep.cli import tables
from samestep.measure.candidates import Choice, in_ms, times_as_long
from samestep.plan.layout import Range, Segment
from samestep.run.outline import Outline
from samestep.words import count

_MOST_SLICES = 3


def print_outline(found: Outline) -> None:
    """A run before it is run: in words, and in a table or two."""
    workers = len(found.allotments)
    print(f"{found.workload}: {found.num_steps:,} steps, {count(workers, 'worker')} on {count(found.cores, 'core')}")
    micro = f"{count(found.num_microbatches, 'microbatch')} of at most {found.microbatch}"
    grows = "" if found.max_batch is None else f" at first, and up to {found.max_batch:,},"
    if found.replicas is not None:
        micro = f"microbatches of at most {found.microbatch}, shared by {count(found.replicas, 'replica')}"
    rounds = count(found.most_rounds, "round")
    if found.num_rounds < found.most_rounds:
        rounds = f"{found.num_rounds} to {rounds}"
    print(f"a step: {min(found.global_batch, found.num_samples):,} samples{grows} in {micro}, {rounds}")
    if found.factors_bytes is not None and found.inverses_bytes is not None:
        inverses = f"their inverses {_in_mb(found.inverses_bytes)}, over all workers"
        print(f"factors: {_in_mb(found.factors_bytes)}; {inverses}")
    for line in found.lines:
        print(line)
    if found.replicas is not None:
        print(f"replicas meet every {count(found.period, 'step')}; samples below are of such a period")
    parts = "microbatches" if found.replicas is None else "replicas"
    has_short = found.last_num_microbatches != found.num_microbatches
    has_stages = found.schedule is not None
    if has_stages:
        print(f"stages: {found.schedule}; they begin with {', '.join(found.stage_begins)}")
        print(f"time by stage: {_shares(found.stage_times)}")
        print(f"parameters by stage: {_shares(found.stage_shares)}")
    stage_column, last_column = ["stage"] if has_stages else [], ["last step"] if has_short else []
    table = tables.new("worker", *stage_column, parts, "samples", *last_column, "elements", "slices")
    for part in found.allotments:
        last = [_range(part.last_microbatches)] if has_short else []
        shown = [_slice(segment) for segment in part.segments[:_MOST_SLICES]]
        more = len(part.segments) - len(shown)
        slices = ", ".join([*shown, *([f"and {more} more"] if more else [])])
        stage = [str(part.stage)] if has_stages else []
        row = (*stage, _range(part.microbatches), f"{part.num_samples:,}", *last, f"{part.num_elements:,}")
        table.add_row(str(part.worker), *row, slices or "-")
    tables.show(table)
    print(f"back-propagation: {found.backprop}", end="")
    print(f", {count(found.helpers, 'helper')} beside each worker" if found.helpers else "")
    if found.device is not None:
        _print_device(found.device)
    if found.layers is not None:
        _print_layers(found)


def _print_device(device: dict[str, Any]) -> None:
    print(f"device: {device['name']}; data {device['data']}", end="")
    print(f"; memory of a step at most {device['peak_bytes'] / 2**30:.2f} GiB" if device["peak_bytes"] else "")
    how = count(device["graphs"], "graph") if device["graphs"] else "one kernel after the other"
    print(f"passes of microbatches: {how}", end="")
    print(f" ({device['not_captured']})" if device["not_captured"] else "")


def choice_as_dict(choice: Choice) -> dict[str, Any]:
    """A choice as plain values."""
    measured = [
        {"program": one.candidate.name, "step_s": list(one.step_s), "failure": one.failure} for one in choice.measured
    ]
    return {"chosen": choice.candidate.name, "reason": choice.reason, "measured": measured}


def print_choice(choice: Choice) -> None:
    """What was measured, and what was chosen."""
    if len(choice.measured) > 1:
        table = tables.new("program", "step ms", "rounds", "times as long as the first")
        first = next(one for one in choice.measured if one.failure is None)
        for one in choice.measured:
            if one.failure is not None:
                table.add_row(one.candidate.name, "-", "-", "failed")
                continue
            relative = f"{times_as_long(one, first):.2f} ×"
            table.add_row(one.candidate.name, in_ms(one.median_s), str(len(one.step_s)), relative)
        tables.show(table)
        for one in choice.measured:
            if one.failure is not None:
                print(f"failed: {one.failure}")
    print(f"parallel: {choice.reason}")


def _print_layers(found: Outline) -> None:
    assert found.layers is not None
    table = tables.new("layer", "operation", "calls", "multiplications", "weight gradients")
    for layer in found.layers:
        work = "-" if layer.work is None else f"{layer.work:,.0f}"
        who = "concurrent" if layer.is_concurrent else "torch"
        table.add_row(layer.path or "(model)", layer.operation or "-", str(layer.num_calls), work, who)
    tables.show(table)
    reasons: dict[str, list[str]] = {}
    for layer in found.layers:
        if layer.reason is not None:
            reasons.setdefault(layer.reason, []).append(layer.path or "(model)")
    for reason, paths in reasons.items():
        print(f"left to torch: {', '.join(dict.fromkeys(paths))}: {reason}")
    number = sum(layer.is_concurrent for layer in found.layers)
    print(f"concurrent: {number} of {count(len(found.layers), 'operation')} with weights")


def _shares(found: Sequence[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in found)


def _range(found: Range) -> str:
    start, stop = found
    return "-" if start == stop else str(start) if stop == start + 1 else f"{start}-{stop - 1}"


def _slice(segment: Segment) -> str:
    return f"{segment.start:,}-{segment.stop - 1:,}" if segment.place is None else segment.place.spec.name


def _in_mb(num_bytes: int) -> str:
    """
    >>> _in_mb(300_000), _in_mb(300_000_000)
    ('0.286 MB', '286 MB')
    """
    return f"{num_bytes / 2**20:,.3g} MB" if num_bytes < 2**30 else f"{num_bytes / 2**20:,.0f} MB"
