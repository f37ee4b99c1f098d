"""Cuts that a person asks for: the edges that their names stand for, and what is said where there is no such cut."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from samestep.engine.stages.graph import Graph
from samestep.errors import UsageError
from samestep.plan.schedules import Schedule

_MOST_NAMES = 12


def edges_of(graph: Graph, edges: Sequence[int], num_pieces: int, names: Sequence[str]) -> tuple[int, ...]:
    """The edges at which pieces begin that are called so: as a plan calls them, or by a module that begins there.

    Args:
        graph: The network.
        edges: Where it can be cut.
        num_pieces: How many there are to be.
        names: Of the second, third, ... piece.

    Raises:
        UsageError: No piece can begin there; the line says where one can.
    """
    if len(names) != num_pieces - 1:
        raise UsageError(
            f"cut names {len(names)} modules ({', '.join(names)}), and {num_pieces} pieces have {num_pieces - 1} cuts"
        )
    known: dict[str, int] = {}
    for edge in edges:
        known.setdefault(graph.name(edge), edge)
    for edge in edges:
        for name in _prefixes(graph.operations[edge]):
            known.setdefault(name, edge)
    missing = next((name for name in names if name not in known), None)
    if missing is not None:
        raise UsageError(
            f"cut: no stage can begin with {missing!r}; it can with {', '.join(list(known)[:_MOST_NAMES])}"
            + (f" and {len(known) - _MOST_NAMES} more" if len(known) > _MOST_NAMES else "")
        )
    found = tuple(known[name] for name in names)
    if list(found) != sorted(set(found)):
        raise UsageError(f"cut: {', '.join(names)} are not in the order in which the network runs them")
    return found


def too_many(graph: Graph, edges: Sequence[int], num_stages: int, num_chunks: int, schedule: Schedule) -> str:
    """What is said where a network cannot be cut into so many pieces, wherever the cuts are."""
    most = len(edges) + 1
    where = f"in {most} pieces at most" if edges else "nowhere"
    asked = f"stages={num_stages}" if num_chunks == 1 else f"stages={num_stages} with chunks={num_chunks}"
    return (
        f"{asked}, and this network can be cut {where} (it has {len(graph.operations)} operations, and "
        f"what crosses a cut must be tensors without gaps); {_nearest(most, num_stages, num_chunks, schedule)}"
    )


def no_cut(num_pieces: int, fewer: int, *, is_autocast: bool) -> str:
    """What is said where every cut into so many pieces breaks a rule of shared weights.

    Args:
        num_pieces: How many.
        fewer: The most stages for which there is a cut.
        is_autocast: Whether operations run in another dtype than the parameters'.
    """
    if is_autocast:
        return (
            f"every cut into {num_pieces} pieces parts two uses of a weight, and precision='bf16' adds the gradients "
            f"of its uses in bfloat16 where one worker holds both; take precision='fp32', or stages={fewer}"
        )
    return (
        f"every cut into {num_pieces} pieces has one that uses a weight more than once that a later one uses too, and "
        f"the order of the sum would change; take stages={fewer}"
    )


def _nearest(most: int, num_stages: int, num_chunks: int, schedule: Schedule) -> str:
    """What to take where there are at most so many pieces.

    >>> _nearest(4, 2, 4, "interleaved"), _nearest(5, 3, 2, "zbv"), _nearest(5, 9, 1, "1f1b")
    ('take chunks=2', 'take stages=2', 'take stages=5 or less')
    >>> _nearest(3, 2, 2, "zbv"), _nearest(2, 3, 2, "interleaved")
    ("leave out chunks and take schedule='1f1b'", "leave out chunks and take schedule='1f1b' with stages=2")
    """
    if most == 1:
        return "take stages=1"
    if schedule == "interleaved" and most // num_stages >= 2:
        return f"take chunks={most // num_stages}"
    fewer = most // num_chunks
    if fewer >= 2:
        return f"take stages={fewer}" + (" or less" if fewer > 2 else "")
    plain = "leave out chunks and take schedule='1f1b'"
    return plain if num_stages <= most else f"{plain} with stages={most}"


def _prefixes(operation: fx.Node) -> list[str]:
    """The names of the module that an operation calls, and of those that it is in."""
    if operation.op != "call_module":
        return []
    words = str(operation.target).split(".")
    return [".".join(words[:length]) for length in range(len(words), 0, -1)]
