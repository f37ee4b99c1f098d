"""Who is missing, and who says so: pure functions of the signs of life."""

from __future__ import annotations

from samestep.engine.events import Phase
from samestep.engine.group import beacon
from samestep.engine.group.beacon import Sign
from samestep.engine.group.cards import Card
from samestep.engine.group.wire import PeerLost

CARDS = [Card(rank=rank, nonce="", host=f"h{rank}", pid=rank + 10) for rank in range(4)]
LOST = PeerLost("contributions", 2, "Timed out", 3.0)
WAITING = Phase.BARRIER_CONTRIBUTIONS


def signs(**later: Sign | None) -> tuple[dict[int, Sign], dict[int, Sign]]:
    """Of four ranks that all wait in step 5, but for those that are named."""
    before = {rank: Sign(10, WAITING, 5) for rank in range(4)}
    after = {rank: Sign(13, WAITING, 5) for rank in range(4)}
    for name, sign in later.items():
        rank = int(name[1:])
        if sign is None:
            del before[rank], after[rank]
        else:
            after[rank] = sign
    return before, after


def test_who_gives_no_sign_is_missing() -> None:
    found = beacon.explain(LOST, 5, 0, CARDS, signs(r2=Sign(10, Phase.FORWARD, 5)))
    assert found == (
        "step 5: the exchange of contributions ended after 3.0 s without rank 2 (h2, process 12), which gives no sign "
        "of life; its last was from forward of step 5. Here: rank 0 (h0), 1 (h1), 3 (h3)"
    )


def test_who_lives_and_has_not_come_is_late() -> None:
    found = beacon.explain(LOST, 5, 0, CARDS, signs(r2=Sign(13, Phase.BACKWARD, 5), r3=Sign(13, WAITING, 4)))
    assert "rank 2 (h2, process 12), which lives and is in backward of step 5" in found
    assert "rank 3 (h3, process 13), which lives and is in barrier after the contributions of step 4" in found
    assert found.endswith("Here: rank 0 (h0), 1 (h1)")


def test_who_has_itself_found_out_is_not_missing() -> None:
    found = beacon.explain(LOST, 5, 0, CARDS, signs(r1=Sign(10, Phase.UPDATE, 4, has_failed=True), r2=None))
    assert "without rank 2 (h2, process 12), which never gave a sign" in found
    assert "1 (h1)" in found.partition("Here")[2]


def test_without_signs_the_connection_is_all_that_is_known() -> None:
    found = beacon.explain(LOST, 5, 0, CARDS, None)
    assert "without rank 2 (h2, process 12), and the store that would know more does not answer (Timed out)" in found


def test_the_first_that_lives_and_has_found_it_out_speaks() -> None:
    failed = {f"r{rank}": Sign(13, WAITING, 5, has_failed=True) for rank in (1, 3)}
    assert beacon.speaker(3, signs(**failed)) == 1
    assert beacon.speaker(0, signs(**failed)) == 0
    assert beacon.speaker(3, None) == 3
