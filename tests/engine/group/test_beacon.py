"""Who is missing, and who says so: pure functions of the signs of life."""

from __future__ import annotations

import pytest
from torch import distributed

from samestep.engine.events import Phase
from samestep.engine.group import beacon
from samestep.engine.group.beacon import Beacon, Sign
from samestep.engine.group.board import Board
from samestep.engine.group.cards import Card
from samestep.engine.group.wire import Arrivals, PeerLost

CARDS = [Card(rank=rank, nonce="", host=f"h{rank}", pid=rank + 10) for rank in range(4)]
LOST = PeerLost("contributions", (2,), "Timed out\nin a line of C++", 3.0)


def waiting(count: int, name: str = "contributions", phase: Phase = Phase.BARRIER_CONTRIBUTIONS) -> Sign:
    """Of a rank that has come to its 20th exchange, and waits in it."""
    return Sign(count, phase, 5, 20, name)


OWN = waiting(13)


def signs(**later: Sign | None) -> tuple[dict[int, Sign], dict[int, Sign]]:
    """Of four ranks that all wait in step 5, but for those that are named."""
    before = {rank: waiting(10) for rank in range(4)}
    after = {rank: waiting(13) for rank in range(4)}
    for name, sign in later.items():
        rank = int(name[1:])
        if sign is None:
            del before[rank], after[rank]
        else:
            after[rank] = sign
    return before, after


def test_who_gives_no_sign_is_missing() -> None:
    found = beacon.explain(LOST, OWN, 0, CARDS, signs(r2=Sign(10, Phase.FORWARD, 5, 19)))
    assert found == (
        "step 5: the exchange of contributions ended after 3.0 s without rank 2 (h2, process 12), which gives no sign "
        "of life; its last was from forward of step 5. "
        "Here: rank 0 (h0), 1 (h1), 3 (h3), in the exchange of contributions of step 5"
    )


def test_who_lives_and_has_not_come_is_late() -> None:
    behind = Sign(13, Phase.BARRIER_UPDATE, 4, 19, "update")
    found = beacon.explain(LOST, OWN, 0, CARDS, signs(r2=Sign(13, Phase.BACKWARD, 5, 19), r3=behind))
    assert "rank 2 (h2, process 12), which lives and is in backward of step 5" in found
    assert "rank 3 (h3, process 13), which lives and is in the exchange of update of step 4" in found
    assert found.endswith("Here: rank 0 (h0), 1 (h1), in the exchange of contributions of step 5")


@pytest.mark.parametrize("name", ["evaluation", "verdict", "state", "parameters", "barriers"])
@pytest.mark.parametrize("phase", [Phase.EVALUATION, Phase.SNAPSHOT, Phase.BETWEEN, Phase.START])
def test_who_waits_in_any_exchange_has_come_whatever_its_phase(name: str, phase: Phase) -> None:
    before = {rank: waiting(10, name, phase) for rank in range(4)}
    after = {rank: waiting(13, name, phase) for rank in range(4)}
    after[2] = Sign(10, phase, 5, 19)
    lost = PeerLost(name, (1,), "Timed out", 3.0)
    found = beacon.explain(lost, after[0], 0, CARDS, (before, after))
    assert f"without rank 2 (h2, process 12), which gives no sign of life; its last was from {phase.text}" in found
    assert "rank 1" not in found
    assert found.endswith(f"Here: rank 0 (h0), 1 (h1), 3 (h3), in the exchange of {name} of step 5")


def test_who_is_past_the_exchange_has_come_and_what_each_does_is_told() -> None:
    ahead = Sign(13, Phase.COMBINE, 5, 20)
    found = beacon.explain(LOST, OWN, 0, CARDS, signs(r1=ahead, r2=Sign(13, Phase.EVALUATION, 5, 19)))
    assert "without rank 2 (h2, process 12), which lives and is in evaluation of step 5. Here: " in found
    assert found.endswith(
        "Here: rank 0 (h0), 3 (h3), in the exchange of contributions of step 5; rank 1 (h1), in combine of step 5"
    )


def test_where_all_have_come_the_connection_is_slow() -> None:
    found = beacon.explain(LOST, OWN, 0, CARDS, signs())
    assert found == (
        "step 5: the exchange of contributions ended after 3.0 s without all that comes from rank 2 (h2, process 12), "
        "which lives and is in the exchange of contributions of step 5 (Timed out); a slow connection needs a longer "
        "deadline_s. Here: rank 0 (h0), 1 (h1), 3 (h3), in the exchange of contributions of step 5"
    )


def test_who_has_itself_found_out_is_not_missing() -> None:
    failed = Sign(10, Phase.UPDATE, 4, 19, has_failed=True)
    found = beacon.explain(LOST, OWN, 0, CARDS, signs(r1=failed, r2=None))
    assert "without rank 2 (h2, process 12), which never gave a sign" in found
    assert "rank 1 (h1), in update of step 4" in found.partition("Here")[2]


def test_without_signs_the_connection_is_all_that_is_known() -> None:
    found = beacon.explain(LOST, OWN, 0, CARDS, None)
    assert "without rank 2 (h2, process 12), and the store that would know more does not answer (Timed out)" in found
    found = beacon.explain(PeerLost("evaluation", (1, 3), "Timed out", 3.0), OWN, 0, CARDS, None)
    assert "without rank 1 (h1, process 11) and rank 3 (h3, process 13), and the store" in found


def test_the_first_that_lives_and_has_found_it_out_speaks() -> None:
    failed = {f"r{rank}": Sign(13, Phase.BARRIER_CONTRIBUTIONS, 5, has_failed=True) for rank in (1, 3)}
    assert beacon.speaker(3, signs(**failed)) == 1
    assert beacon.speaker(0, signs(**failed)) == 0
    assert beacon.speaker(3, None) == 3


def test_others_read_how_far_a_rank_has_come() -> None:
    store, arrivals = distributed.HashStore(), Arrivals()  # type: ignore[attr-defined]
    light = Beacon(store, "meeting", 1, arrivals)
    try:
        light.enter(Phase.EVALUATION, 40)
        arrivals.come("evaluation")
        found = beacon.look(Board(store, 5.0), "meeting", CARDS[:2])
    finally:
        light.close()
    assert found is not None
    assert [*found[1]] == [1]  # rank 0 has no beacon
    sign = found[1][1]
    assert sign.count > found[0].get(1, Sign(0, Phase.START, 0)).count
    assert (sign.phase, sign.step, sign.num_exchanges, sign.waits_in) == (Phase.EVALUATION, 40, 1, "evaluation")
    assert sign.doing == "the exchange of evaluation of step 40"
