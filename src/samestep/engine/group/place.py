"""Where a process stands among the ranks: what torchrun, or whoever started it, has written into its environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from samestep.errors import UsageError

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LAST_PORT = 65_535


@dataclass(frozen=True, kw_only=True)
class Place:
    """One of the ranks of a run.

    Args:
        rank: Which one.
        world_size: How many there are.
        local_rank: Its number among those of its machine.
        local_size: How many its machine has.
        host: Where the ranks find each other: an address or name,
        port: and a port.
        hosts_store: Whether this process has to listen there; under torchrun its agent does.
        is_restarted: Whether an agent has started the ranks again.
        machine: Its first rank, where ranks of one machine are to behave as those of several.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    host: str
    port: int
    hosts_store: bool
    is_restarted: bool = False
    machine: int | None = None

    @property
    def is_first_of_machine(self) -> bool:
        return self.local_rank == 0

    @property
    def first(self) -> int:
        """The first rank of its machine."""
        return self.rank - self.local_rank if self.machine is None else self.machine


def from_environment(environment: Mapping[str, str]) -> Place | None:
    """The place that torchrun's variables name; None where there are none.

    Raises:
        UsageError: They are there and make no sense.

    Example:
        >>> place = from_environment({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "29500"})
        >>> place.rank, place.local_rank, place.port
        (1, 1, 29500)
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    missing = [name for name in _NEEDED if name not in environment]
    if missing:
        raise UsageError(
            f"RANK and WORLD_SIZE are set and {', '.join(missing)} not: start the ranks with torchrun, or set all of "
            f"{', '.join(_NEEDED)}; to train in one process, unset RANK and WORLD_SIZE"
        )

    def number(name: str, default: int | None = None) -> int:
        try:
            return int(environment[name]) if default is None or name in environment else default
        except ValueError:
            raise UsageError(f"{name}={environment[name]!r} in the environment is not a whole number") from None

    rank, world_size = number("RANK"), number("WORLD_SIZE")
    if not 0 <= rank < world_size:
        raise UsageError(f"RANK={rank} and WORLD_SIZE={world_size}: ranks count from 0 to {max(world_size - 1, 0)}")
    local_rank, local_size = number("LOCAL_RANK", rank), number("LOCAL_WORLD_SIZE", world_size)
    if not 0 <= local_rank < local_size <= world_size or local_rank > rank:
        raise UsageError(
            f"LOCAL_RANK={local_rank} and LOCAL_WORLD_SIZE={local_size} with RANK={rank} and WORLD_SIZE={world_size}: "
            "the ranks of a machine count from 0 and are neighbours; leave both out where all are on one machine"
        )
    port = number("MASTER_PORT")
    if not 1 <= port <= _LAST_PORT:
        raise UsageError(f"MASTER_PORT={port} in the environment: ports are numbers from 1 to {_LAST_PORT}")
    has_agent = environment.get("TORCHELASTIC_USE_AGENT_STORE", "") == "True"
    return Place(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_size=local_size,
        host=environment["MASTER_ADDR"],
        port=port,
        hosts_store=rank == 0 and not has_agent,
        is_restarted=number("TORCHELASTIC_RESTART_COUNT", 0) > 0,
    )
