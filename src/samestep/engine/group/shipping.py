"""A state on its way from the rank that has the newest one to those that have not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from samestep.engine.group import cards as all_cards
from samestep.engine.group.cards import Card
from samestep.engine.group.parcels import Parcel, Route
from samestep.engine.group.wire import Wire
from samestep.engine.job import MODEL_ARRAYS, Image


def ship_newest(
    wire: Wire, cards: Sequence[Card], image: Image | None, empty: Image, history: Mapping[str, Any]
) -> tuple[Image, Mapping[str, Any]]:
    """The newest state that a rank has, on all ranks.

    Args:
        wire: Between them.
        cards: What each rank says that it has.
        image: This rank's state; None where it has none.
        empty: A state of zeros.
        history: Plain values that go with the state.
    """
    source = all_cards.newest(cards)
    receivers = [card.rank for card in cards if card.step < source.step]
    said = wire.gather("state to begin with", [dict(history), bool(image and image.best)])[source.rank]
    if not receivers:
        assert image is not None
        return image, said[0]
    route = Route({}, {})
    if wire.rank == source.rank:
        assert image is not None
        route = Route(dict.fromkeys(receivers, Parcel(_pieces(image))), {})
    elif wire.rank in receivers:
        best = {name: empty.arrays[name].clone() for name in MODEL_ARRAYS} if said[1] else {}
        image = Image(source.step, empty.arrays, empty.scalars, empty.decided, best)
        route = Route({}, {source.rank: Parcel(_pieces(image))})
    wire.swap("state to begin with", route)
    assert image is not None
    return image, said[0]


def _pieces(image: Image) -> list[Tensor]:
    best = [image.best[name] for name in MODEL_ARRAYS] if image.best else []
    return [*image.arrays.values(), image.scalars, image.decided, *best]
