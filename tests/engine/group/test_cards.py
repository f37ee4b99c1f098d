"""What ranks tell each other before they begin."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from samestep.engine.group import cards
from samestep.engine.group.cards import Card


def made(rank: int, **said: object) -> Card:
    return replace(Card(rank=rank, nonce=f"n{rank}", host=f"host{rank}", pid=rank + 100), **said)  # type: ignore[arg-type]


def test_cards_travel_as_text() -> None:
    wanted = [made(0, error="no data"), made(1, step=7, facts={"seed": "1"})]
    assert cards.from_text(cards.as_text(wanted)) == wanted


def test_a_card_of_another_version_is_read_and_told_by_its_version() -> None:
    mine = made(0, facts={"the code of samestep": "0.1.0 abc"})
    theirs = {**vars(made(1, facts={"the code of samestep": "0.2.0 def"})), "mood": "fine"}
    text = cards.difference(cards.from_text(json.dumps([vars(mine), theirs])))
    assert text is not None
    assert text.startswith(
        "the ranks do not agree on the code of samestep: it is 0.1.0 abc on rank 0 (host0) and 0.2.0"
    )


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=6))
def test_all_go_on_from_the_first_of_the_newest_states(steps: list[int]) -> None:
    found = cards.newest([made(rank, step=step) for rank, step in enumerate(steps)])
    assert found.step == max(steps)
    assert found.rank == steps.index(max(steps))


def test_what_differs_is_told_with_both_values_and_both_hosts() -> None:
    facts = {"torch_version": "2.13", "seed": "0", "lr": "0.1"}
    same = [made(rank, facts=facts) for rank in range(3)]
    assert cards.difference(same) is None
    assert cards.difference([same[0], made(1)]) is None, "who got its job from another rank says nothing"
    other = made(2, facts={**facts, "seed": "1", "lr": "0.2"})
    text = cards.difference([*same[:2], other])
    assert text is not None
    assert text.startswith(
        "the ranks do not agree on seed: it is 0 on rank 0 (host0) and 1 on rank 2 (host2) (nor on lr)"
    )


def test_long_texts_are_shown_where_they_differ() -> None:
    texts = ["x" * 100 + f"lr: {rate}" + "y" * 100 for rate in ("0.1", "0.2")]
    found = cards.difference([made(rank, facts={"options": text}) for rank, text in enumerate(texts)])
    assert found is not None
    for rate in ("0.1", "0.2"):
        assert f"lr: {rate}" in found


def test_a_fact_that_one_rank_does_not_have_differs() -> None:
    assert cards.difference([made(0, facts={"a": "1"}), made(1, facts={"a": "1", "b": "2"})]) is not None


def test_the_first_error_is_the_one_that_is_told() -> None:
    assert cards.first_error([made(0), made(1)]) is None
    found = cards.first_error([made(0), made(1, error="x"), made(2, error="y")])
    assert found is not None
    assert found.rank == 1
