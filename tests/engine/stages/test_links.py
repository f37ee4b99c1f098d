"""What travels between stages arrives with its values, its layout and its alignment, in order, in little memory."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from samestep.engine import signals
from samestep.engine.signals import SIGNAL_WORDS, Patience, Signal
from samestep.engine.stages import links
from samestep.engine.stages.links import Neighbours, neighbours


def pair(num_bytes: int, num_messages: int = 2) -> tuple[Neighbours, Neighbours]:
    """Both ends of the links between two stages."""
    words = torch.zeros(2, 1, 2, 2, SIGNAL_WORDS, dtype=torch.int64)
    rooms = torch.zeros(2, 1, 2, num_messages, num_bytes, dtype=torch.uint8)
    signals.reset(words)
    patience = Patience(has_own_core=False, check=lambda: None, timeout_s=20.0)
    (first,), (second,) = (
        neighbours(
            words, rooms, rank=rank, stage=rank, stages=(0, 1), wait=lambda signal: patience.take(signal, lambda: "x")
        )
        for rank in (0, 1)
    )
    return first, second


def wait(signal: Signal) -> None:
    """There is nothing to wait for."""
    assert signal.try_take()


TENSORS = {
    "plain": torch.randn(3, 5),
    "wants a gradient": torch.randn(3, 5).requires_grad_(),
    "double": torch.randn(7, dtype=torch.float64),
    "bfloat16": torch.randn(4, 4).bfloat16(),
    "integers": torch.arange(10),
    "truths": torch.tensor([True, False, True]),
    "a number": torch.tensor(2.5),
    "nothing in it": torch.empty(0, 3),
    "transposed": torch.randn(4, 6).t(),
    "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "expanded": torch.randn(4, 1).expand(4, 100),
    "not on a boundary": torch.randn(65)[1:],
}


@pytest.mark.parametrize("what", TENSORS)
def test_what_arrives_is_what_was_sent(what: str) -> None:
    sent = TENSORS[what]
    assert links.can_travel(sent)
    first, second = pair(links.num_bytes([sent, sent, sent]))
    assert first.to_behind is not None
    assert second.from_before is not None
    first.to_behind.send([sent, None, sent])
    found = second.from_before.receive(3)
    assert found[1] is None
    for tensor in (found[0], found[2]):
        assert tensor is not None
        assert torch.equal(tensor, sent)
        assert tensor.is_leaf
        kept = (tensor.dtype, tensor.shape, tensor.stride(), tensor.requires_grad)
        assert kept == (sent.dtype, sent.shape, sent.stride(), sent.requires_grad)
        if sent.numel():
            assert tensor.data_ptr() % 64 == sent.data_ptr() % 64


def test_what_has_gaps_is_refused_at_a_cut_and_packed_as_a_gradient() -> None:
    gappy = torch.randn(4, 100)[:, 3]
    assert not links.can_travel(gappy)
    first, second = pair(links.num_bytes([gappy]))
    assert second.to_before is not None
    assert first.from_behind is not None
    second.to_before.send([gappy])
    (found,) = first.from_behind.receive(1)
    assert found is not None
    assert torch.equal(found, gappy)


def test_a_fast_sender_waits_for_room() -> None:
    first, second = pair(links.num_bytes([torch.zeros(8)]), num_messages=2)
    sender, receiver = first.to_behind, second.from_before
    assert sender is not None
    assert receiver is not None
    sent: list[int] = []

    def send() -> None:
        for number in range(20):
            sender.send([torch.full((8,), float(number))])
            sent.append(number)

    thread = threading.Thread(target=send)
    thread.start()
    for number in range(20):
        (found,) = receiver.receive(1)
        assert isinstance(found, Tensor)
        assert found.tolist() == [float(number)] * 8
        assert len(sent) <= number + 4
    thread.join()


@pytest.mark.parametrize("num_messages", [1, 2, 5])
def test_what_is_larger_than_a_room_goes_through_several(num_messages: int) -> None:
    sent = [torch.randn(100, 7), torch.randn(65)[1:].requires_grad_()]
    first, second = pair(num_bytes=512, num_messages=num_messages)
    sender, receiver = first.to_behind, second.from_before
    assert sender is not None
    assert receiver is not None

    def send() -> None:
        for _ in range(3):
            sender.send([*sent, None])

    thread = threading.Thread(target=send)
    thread.start()
    for _ in range(3):
        *found, nothing = receiver.receive(3)
        assert nothing is None
        for wanted, tensor in zip(sent, found, strict=True):
            assert tensor is not None
            assert torch.equal(tensor, wanted)
            assert tensor.requires_grad == wanted.requires_grad
            assert tensor.data_ptr() % 64 == wanted.data_ptr() % 64
    thread.join()


def test_a_room_is_laid_out_anew_for_another_message() -> None:
    """The same room holds messages of several layouts in turn, and parts of larger ones, whatever lies there."""
    first, second = pair(num_bytes=1024, num_messages=6)
    sender, receiver = first.to_behind, second.from_before
    assert sender is not None
    assert receiver is not None
    plain, turned = torch.randn(2, 4), torch.randn(4, 2).t()
    kinds: list[list[Tensor | None]] = [
        [plain], [turned], [plain.double()], [plain, None], [None, plain], [plain.clone().requires_grad_()],
        [torch.ones(100, 7)], [torch.ones(100, 7, dtype=torch.int64)],
    ]  # fmt: skip
    for number in range(60):
        sent = kinds[number * number % len(kinds) if number % 2 else number // 2 % len(kinds)]
        sender.send(sent)
        found = receiver.receive(len(sent))
        for wanted, tensor in zip(sent, found, strict=True):
            assert (wanted is None) == (tensor is None)
            if wanted is not None and tensor is not None:
                assert torch.equal(wanted, tensor)
                kept = (tensor.dtype, tensor.stride(), tensor.requires_grad)
                assert kept == (wanted.dtype, wanted.stride(), wanted.requires_grad)


def test_chunks_of_one_rank_hand_over_without_copies() -> None:
    """The turn of a V: the second and the third chunk are on the second rank."""
    words = torch.zeros(2, 2, 2, 2, SIGNAL_WORDS, dtype=torch.int64)
    rooms = torch.zeros(2, 2, 2, 2, 4096, dtype=torch.uint8)
    signals.reset(words)
    going, coming = neighbours(words, rooms, rank=1, stage=1, stages=(0, 1, 1, 0), wait=wait)
    assert going.to_behind is coming.from_before
    assert going.from_behind is coming.to_before
    sent = torch.randn(3, 4).requires_grad_() * 2
    assert going.to_behind is not None
    assert coming.from_before is not None
    going.to_behind.send([sent, None])
    found, nothing = coming.from_before.receive(2)
    assert nothing is None
    assert found is not None
    assert (found.is_leaf, found.requires_grad, found._is_view()) == (True, True, True)
    assert found.data_ptr() == sent.data_ptr()


def test_every_chunk_has_links_of_its_own() -> None:
    """Two replicas of two stages with two chunks each, in turn: what one sends, only its neighbour gets."""
    words = torch.zeros(4, 2, 2, 2, SIGNAL_WORDS, dtype=torch.int64)
    rooms = torch.zeros(4, 2, 2, 2, 4096, dtype=torch.uint8)
    signals.reset(words)
    found = [neighbours(words, rooms, rank=n, stage=n % 2, stages=(0, 1, 0, 1), wait=wait) for n in range(4)]
    for replica in (0, 1):
        chunks = [found[2 * replica + chunk % 2][chunk // 2] for chunk in range(4)]
        for number, (before, behind) in enumerate(pairwise(chunks)):
            assert before.to_behind is not None
            assert behind.to_before is not None
            before.to_behind.send([torch.tensor([replica, number])])
            behind.to_before.send([torch.tensor([replica, -number])])
    for replica in (0, 1):
        chunks = [found[2 * replica + chunk % 2][chunk // 2] for chunk in range(4)]
        for number, (before, behind) in enumerate(pairwise(chunks)):
            assert behind.from_before is not None
            assert before.from_behind is not None
            (values,), (gradients,) = behind.from_before.receive(1), before.from_behind.receive(1)
            assert values is not None
            assert gradients is not None
            assert [values.tolist(), gradients.tolist()] == [[replica, number], [replica, -number]]
        assert chunks[0].from_before is chunks[0].to_before is chunks[3].to_behind is chunks[3].from_behind is None
