"""What torchrun writes into the environment."""

from __future__ import annotations

import pytest

from samestep.engine.group.place import from_environment
from samestep.errors import UsageError

GIVEN = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}


def test_nothing_is_said_of_ranks() -> None:
    assert from_environment({"PATH": "/bin"}) is None
    assert from_environment({"RANK": "1"}) is None, "other programs set RANK, too"


def test_torchruns_agent_has_the_store() -> None:
    place = from_environment({**GIVEN, "RANK": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"})
    assert place is not None
    assert not place.hosts_store
    place = from_environment({**GIVEN, "RANK": "0"})
    assert place is not None
    assert place.hosts_store


def test_several_ranks_of_a_machine_and_a_restart() -> None:
    more = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "1"}
    place = from_environment({**GIVEN, **more})
    assert place is not None
    assert (place.local_rank, place.local_size, place.is_restarted, place.is_first_of_machine) == (0, 2, True, True)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"RANK": "x"}, "RANK='x' in the environment is not a whole number"),
        ({"RANK": "4"}, "RANK=4 and WORLD_SIZE=4: ranks count from 0 to 3"),
        ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK=1 and LOCAL_WORLD_SIZE=1 with RANK=1"),
        ({"LOCAL_RANK": "-1", "LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK=-1"),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}, "LOCAL_RANK=2"),
        ({"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "5"}, "LOCAL_WORLD_SIZE=5"),
        *(
            ({"MASTER_PORT": port}, f"MASTER_PORT={port} in the environment: ports are numbers from 1 to 65535")
            for port in ("99999", "0", "-5")
        ),
        ({"MASTER_ADDR": None}, "RANK and WORLD_SIZE are set and MASTER_ADDR not"),
    ],
)
def test_what_makes_no_sense(changed: dict[str, str | None], text: str) -> None:
    given = {name: value for name, value in {**GIVEN, **changed}.items() if value is not None}
    with pytest.raises(UsageError, match=text):
        from_environment(given)
