"""Whether the stages of a cut have about the same to do; where they have not, a line says so, and the way out."""

from __future__ import annotations

from dataclasses import replace

from samestep.engine.stages.cutting import Measured, fastest
from samestep.engine.stages.graph import Graph
from samestep.plan.pipeline import Stages

_MOST_SHARES = 1.5
"""What a stage may have of the measured time, in shares: one by the number of stages each."""

_CLEARLY_LESS = 0.05
"""By how much of the measured time another cut has to be better to be named; less may be noise."""


def uneven(graph: Graph, found: Measured, stages: Stages, *, is_autocast: bool) -> str | None:
    """One line where a stage has far more to do than its share; None where none has.

    Args:
        graph: The network.
        found: What is known of it.
        stages: How it is cut.
        is_autocast: Whether operations run in another dtype than the parameters'.
    """
    shares = stages.time_shares()
    largest = max(shares)
    if largest <= _MOST_SHARES / stages.num_stages:
        return None
    return (
        f"warning: stage {shares.index(largest)} of 0-{stages.num_stages - 1} has {largest:.0%} of the measured time "
        f"of a microbatch, where an even share is {1 / stages.num_stages:.0%}; "
        + _way_out(graph, found, stages, is_autocast=is_autocast)
    )


def _way_out(graph: Graph, found: Measured, stages: Stages, *, is_autocast: bool) -> str:
    edges = fastest(graph, found, stages.num_stages * stages.num_chunks, is_autocast=is_autocast)
    if edges is not None:
        other = replace(stages, cuts={stages.num_stages: edges}).time_shares()
        if max(other) < max(stages.time_shares()) - _CLEARLY_LESS:
            return f"--cut {','.join(map(graph.name, edges))} would make that {max(other):.0%}"
    return (
        "no other --cut does much better: one operation takes that long, or what crosses the cuts between is no tensor "
        "without gaps (as x.shape[0] kept for later is none; take it where it is used); or take stages=1"
    )
