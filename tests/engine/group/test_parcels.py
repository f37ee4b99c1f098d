"""What travels between two ranks: both ends make the same messages of it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from samestep.engine.group.parcels import Parcel


@given(st.lists(st.sampled_from([0, 1, 3, 1000, 20_000]), max_size=6))
def test_what_is_sent_arrives_where_it_belongs(sizes: list[int]) -> None:
    sent = [torch.randn(size) for size in sizes]
    received = [torch.zeros(size) for size in sizes]
    there, here = Parcel(sent), Parcel(received)
    there.close()
    assert [len(message) for message in there.messages] == [len(message) for message in here.messages]
    for message, room in zip(there.messages, here.messages, strict=True):
        room.copy_(message)
    here.open()
    assert there.num_bytes == 4 * sum(sizes)
    for wanted, found in zip(sent, received, strict=True):
        assert torch.equal(wanted, found)


def test_large_pieces_travel_as_they_lie_and_small_ones_together() -> None:
    large, small = torch.zeros(1 << 17), [torch.zeros(8), torch.zeros(16, dtype=torch.float64)]
    found = Parcel([small[0], large, small[1]])
    assert [len(message) for message in found.messages] == [1 << 19, 32 + 128]
    assert found.messages[0].data_ptr() == large.data_ptr()
    assert Parcel([small[0]]).messages[0].data_ptr() == small[0].data_ptr()
