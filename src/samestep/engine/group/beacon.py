"""Signs of life: every rank writes now and then what it is doing, so that others can say who is missing, and where."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from samestep.engine.events import Phase
from samestep.engine.group.board import Board
from samestep.engine.group.cards import Card
from samestep.engine.group.wire import PeerLost

INTERVAL_S = 0.5
_LOOK_S = 3 * INTERVAL_S
"""Who gives no sign for so long is gone, stopped or cut off."""
_WAITING = frozenset({Phase.BARRIER_CONTRIBUTIONS, Phase.BARRIER_COMBINATION, Phase.BARRIER_UPDATE})


@dataclass(frozen=True)
class Sign:
    """A rank's last word: how many signs it has given, and what it did.

    Args:
        count: Of its signs.
        phase: Of the step.
        step: Which one.
        has_failed: Whether it has itself found that the run cannot go on.
    """

    count: int
    phase: Phase
    step: int
    has_failed: bool = False


class Beacon:
    """Gives a rank's signs of life from a thread of its own, until it is closed.

    Args:
        store: Of the ranks; it hears from them by a connection of its own.
        name: Of their meeting.
        rank: This rank.
    """

    def __init__(self, store: Any, name: str, rank: int) -> None:
        self._store, self._name, self._rank = store.clone(), name, rank
        self._doing, self._count, self._has_failed = (Phase.START, 0), 0, False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._shine, name="samestep-beacon", daemon=True)
        self._thread.start()

    def enter(self, phase: Phase, step: int) -> None:
        """What the rank does from now on."""
        self._doing = (phase, step)

    def fail(self) -> None:
        """Say that this rank has found that the run cannot go on."""
        self._has_failed = True

    def close(self) -> None:
        self._is_over.set()
        self._thread.join(timeout=1.0)  # it may hang in a store that is cut off

    def _shine(self) -> None:
        with suppress(RuntimeError):  # where the store is gone there is nobody to tell
            while True:
                self._count += 1
                phase, step = self._doing
                words = [self._count, int(phase), step, self._has_failed]
                self._store.set(f"{self._name}/sign/{self._rank}", json.dumps(words))
                if self._is_over.wait(INTERVAL_S):
                    return


def look(board: Board, name: str, cards: Sequence[Card]) -> tuple[dict[int, Sign], dict[int, Sign]] | None:
    """The ranks' signs now and a while later; None where the store does not answer."""
    keys = {card.rank: f"{name}/sign/{card.rank}" for card in cards}

    def signs() -> dict[int, Sign]:
        return {rank: _sign(board.get(key)) for rank, key in keys.items() if board.check([key])}

    try:
        before = signs()
        time.sleep(_LOOK_S)
        return before, signs()
    except RuntimeError:
        return None


def _sign(text: bytes) -> Sign:
    count, phase, step, has_failed = json.loads(text)
    return Sign(count, Phase(phase), step, has_failed)


def explain(
    lost: PeerLost,
    step: int,
    rank: int,
    cards: Sequence[Card],
    signs: tuple[Mapping[int, Sign], Mapping[int, Sign]] | None,
) -> str:
    """Why an exchange was not completed: which one, who is missing, what each did last.

    Args:
        lost: What this rank saw.
        step: In which step.
        rank: This rank.
        cards: Of all ranks.
        signs: Twice, with a while in between; None where there are none to be had.
    """
    head = f"step {step}: the exchange of {lost.exchange} ended after {lost.waited_s:.1f} s without"
    if signs is None:
        peer = cards[lost.peer]
        return f"{head} {peer.name}, and the store that would know more does not answer ({lost.cause.splitlines()[0]})"
    before, after = signs
    silent = [card for card in cards if card.rank != rank and _is_silent(before.get(card.rank), after.get(card.rank))]
    late = [card for card in cards if card.rank != rank and card not in silent and not _arrived(after, card, step)]
    missing = silent + late or [cards[lost.peer]]
    here = ", ".join(f"{card.rank} ({card.host})" for card in cards if card not in missing)
    words = [f"{card.name}, which {_last_word(after.get(card.rank), card in silent)}" for card in missing]
    return f"{head} {'; and '.join(words)}. Here: rank {here}"


def speaker(rank: int, signs: tuple[Mapping[int, Sign], Mapping[int, Sign]] | None) -> int:
    """Who says it: the first rank that has found it out and lives."""
    if signs is None:
        return rank
    before, after = signs
    failed = [n for n, sign in after.items() if sign.has_failed and not _is_silent(before.get(n), sign)]
    return min([*failed, rank])


def _is_silent(before: Sign | None, after: Sign | None) -> bool:
    if before is None or after is None:
        return after is None
    return after.count == before.count and not after.has_failed


def _arrived(signs: Mapping[int, Sign], card: Card, step: int) -> bool:
    sign = signs.get(card.rank)
    return sign is not None and (sign.has_failed or (sign.phase in _WAITING and sign.step >= step))


def _last_word(sign: Sign | None, is_silent: bool) -> str:
    if sign is None:
        return "never gave a sign"
    doing = f"{sign.phase.text} of step {sign.step}"
    return f"gives no sign of life; its last was from {doing}" if is_silent else f"lives and is in {doing}"
