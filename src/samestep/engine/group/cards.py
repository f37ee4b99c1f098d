"""Cards: what ranks tell each other before they begin, and whether they can begin together. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from ipaddress import ip_address
from itertools import groupby
from typing import Any

from samestep.plan.machines import Machines, single
from samestep.words import cut_to_difference


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a rank says of itself.

    Args:
        rank: Which one.
        nonce: Drawn anew by every process, so that nobody takes an earlier one's word for its.
        host: Name of its machine.
        pid: Its process.
        error: Why it cannot begin, if it cannot.
        step: Of the newest state that it has; -1 where it has none.
        num_helpers: Threads that it has for helpers.
        first: The first rank of its machine, as far as it knows.
        address: By which it reaches the store; "" where it does not know.
        facts: What must be the same on all ranks, by name; empty where a rank got its job from another one.
    """

    rank: int
    nonce: str
    host: str
    pid: int
    error: str | None = None
    step: int = -1
    num_helpers: int = 0
    first: int = -1
    address: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As people read it."""
        return f"rank {self.rank} ({self.host}, process {self.pid})"


def as_text(cards: Sequence[Card]) -> str:
    """Cards as JSON."""
    return json.dumps([asdict(card) for card in cards])


def from_text(text: str) -> list[Card]:
    """Cards from JSON; what another version of samestep says beside what is known here does not matter.

    >>> from_text('[{"rank": 0, "nonce": "", "host": "a", "pid": 1, "mood": "fine"}]')[0].rank
    0
    """
    found: list[dict[str, Any]] = json.loads(text)
    known = {each.name for each in fields(Card)}
    return [Card(**{name: value for name, value in item.items() if name in known}) for item in found]


def first_error(cards: Sequence[Card]) -> Card | None:
    """The first rank that cannot begin."""
    return next((card for card in cards if card.error is not None), None)


def difference(cards: Sequence[Card]) -> str | None:
    """What the ranks do not agree on, in words; None where they do.

    >>> cards = [Card(rank=r, nonce="", host="ab"[r], pid=1, facts={"seed": str(r)}) for r in (0, 1)]
    >>> difference(cards)
    'the ranks do not agree on seed: it is 0 on rank 0 (a) and 1 on rank 1 (b). Start all of them alike'
    """
    known = [card for card in cards if card.facts]
    longest_first = sorted(known, key=lambda card: -len(card.facts))  # what others lack keeps its place among the rest
    names = list(dict.fromkeys(name for card in longest_first for name in card.facts))
    differing = [name for name in names if len({card.facts.get(name) for card in known}) > 1]
    if not differing:
        return None
    first = known[0]
    other = next(card for card in known if card.facts.get(differing[0]) != first.facts.get(differing[0]))
    texts = cut_to_difference(*(card.facts.get(differing[0], "not there") for card in (first, other)))
    values = [f"{t} on rank {card.rank} ({card.host})" for t, card in zip(texts, (first, other), strict=True)]
    more = f" (nor on {', '.join(differing[1:4])})" if len(differing) > 1 else ""
    return f"the ranks do not agree on {differing[0]}: it is {values[0]} and {values[1]}{more}. Start all of them alike"


def machines_of(cards: Sequence[Card]) -> Machines:
    """Which ranks are of one machine; each on one of its own where what they say makes no sense.

    >>> machines_of([Card(rank=r, nonce="", host="a", pid=r, first=first) for r, first in enumerate((0, 0, 2))]).runs
    ((0, 2), (2, 3))
    """
    groups = [[*group] for _, group in groupby(cards, key=lambda card: (card.host, card.first))]
    if any(group[0].first != group[0].rank for group in groups):
        return single(len(cards))
    return Machines(tuple((group[0].rank, group[-1].rank + 1) for group in groups))


def towards(own: Card, cards: Sequence[Card]) -> str | None:
    """Whom a rank has to look at for the address by which others reach it; None where its own is that.

    A machine's own name often means its loopback interface there, and the machine everywhere else.

    >>> cards = [Card(rank=0, nonce="", host="a", pid=1, address=a) for a in ("127.0.1.1", "10.0.0.2")]
    >>> towards(cards[0], cards), towards(cards[1], cards)
    ('10.0.0.2', None)
    """
    if not _is_loopback(own.address):
        return None
    return next((card.address for card in cards if card.address and not _is_loopback(card.address)), None)


def _is_loopback(address: str) -> bool:
    return bool(address) and ip_address(address.partition("%")[0]).is_loopback


def newest(cards: Sequence[Card]) -> Card:
    """The rank whose state all go on from: the first of those that have the newest."""
    return max(cards, key=lambda card: (card.step, -card.rank))
