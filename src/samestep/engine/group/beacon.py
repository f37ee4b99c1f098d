"""Signs of life: every rank writes now and then what it is doing, so that others can say who is missing, and where."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any

from samestep.engine.events import Phase
from samestep.engine.group.board import Board
from samestep.engine.group.cards import Card
from samestep.engine.group.wire import Arrivals, PeerLost

INTERVAL_S = 0.5
_LOOK_S = 3 * INTERVAL_S
"""Who gives no sign for so long is gone, stopped or cut off."""


@dataclass(frozen=True)
class Sign:
    """A rank's last word: how many signs it has given, and what it did.

    Args:
        count: Of its signs.
        phase: Of the step.
        step: Which one.
        num_exchanges: That it has come to, see `Arrivals`: whether it has come to another rank's is seen by this alone.
        waits_in: The exchange in which it waits for others; "" where it works.
        has_failed: Whether it has itself found that the run cannot go on.
    """

    count: int
    phase: Phase
    step: int
    num_exchanges: int = 0
    waits_in: str = ""
    has_failed: bool = False

    @property
    def doing(self) -> str:
        """What it did, as people read it."""
        where = f"the exchange of {self.waits_in}" if self.waits_in else self.phase.text
        return f"{where} of step {self.step}"


class Beacon:
    """Gives a rank's signs of life from a thread of its own, until it is closed.

    Args:
        store: Of the ranks; it hears from them by a connection of its own.
        name: Of their meeting.
        rank: This rank.
        arrivals: How far it has come.
    """

    def __init__(self, store: Any, name: str, rank: int, arrivals: Arrivals) -> None:
        self._store, self._name, self._rank, self._arrivals = store.clone(), name, rank, arrivals
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

    def sign(self) -> Sign:
        """Of this moment."""
        arrivals = self._arrivals
        return Sign(self._count, *self._doing, arrivals.count, arrivals.waits_in, self._has_failed)

    def close(self) -> None:
        self._is_over.set()
        self._thread.join(timeout=1.0)  # it may hang in a store that is cut off

    def _shine(self) -> None:
        with suppress(RuntimeError):  # where the store is gone there is nobody to tell
            while True:
                self._count += 1
                self._store.set(f"{self._name}/sign/{self._rank}", _text(self.sign()))
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


def _text(sign: Sign) -> str:
    return json.dumps(astuple(sign))


def _sign(text: bytes) -> Sign:
    count, phase, *others = json.loads(text)
    return Sign(count, Phase(phase), *others)


def explain(
    lost: PeerLost,
    own: Sign,
    rank: int,
    cards: Sequence[Card],
    signs: tuple[Mapping[int, Sign], Mapping[int, Sign]] | None,
) -> str:
    """Why an exchange was not completed: which one, who is missing, what each did last.

    Args:
        lost: What this rank saw.
        own: What it did when it saw that.
        rank: This rank.
        cards: Of all ranks.
        signs: Twice, with a while in between; None where there are none to be had.
    """
    head = f"step {own.step}: the exchange of {lost.exchange} ended after {lost.waited_s:.1f} s without"
    peers, cause = [cards[peer] for peer in lost.peers], lost.cause.partition("\n")[0]
    if signs is None:
        names = " and ".join(peer.name for peer in peers)
        return f"{head} {names}, and the store that would know more does not answer ({cause})"
    before, after = signs[0], {**signs[1], rank: own}
    others = [card for card in cards if card.rank != rank]
    silent = [card for card in others if _is_silent(before.get(card.rank), after.get(card.rank))]
    late = [card for card in others if card not in silent and not _has_come(after.get(card.rank), own)]
    missing = silent + late or peers
    words = "; and ".join(f"{card.name}, which {_last_word(after.get(card.rank), card in silent)}" for card in missing)
    if missing is peers:
        words = f"all that comes from {words} ({cause}); a slow connection needs a longer deadline_s"
    return f"{head} {words}. Here: {_groups([card for card in cards if card not in missing], after)}"


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


def _has_come(sign: Sign | None, own: Sign) -> bool:
    """Whether a rank has come to the exchange in which another one waits, or has found out itself."""
    return sign is not None and (sign.has_failed or sign.num_exchanges >= own.num_exchanges)


def _last_word(sign: Sign | None, is_silent: bool) -> str:
    if sign is None:
        return "never gave a sign"
    return f"gives no sign of life; its last was from {sign.doing}" if is_silent else f"lives and is in {sign.doing}"


def _groups(cards: Sequence[Card], signs: Mapping[int, Sign]) -> str:
    """Ranks by what each did last.

    >>> cards = [Card(rank=rank, nonce="", host="ab"[rank], pid=1) for rank in (0, 1)]
    >>> _groups(cards, {rank: Sign(9, Phase.EVALUATION, 40, 81, "evaluation") for rank in (0, 1)})
    'rank 0 (a), 1 (b), in the exchange of evaluation of step 40'
    """
    by_doing: dict[str, list[str]] = {}
    for card in cards:
        by_doing.setdefault(signs[card.rank].doing, []).append(f"{card.rank} ({card.host})")
    return "; ".join(f"rank {', '.join(names)}, in {doing}" for doing, names in by_doing.items())
