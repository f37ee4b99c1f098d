"""The feed: the right samples, on boundaries that kernels like, however many microbatches are gathered together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from samestep.data import feed as feeds
from samestep.data.ahead import ReadAhead
from samestep.data.columns import Column, Rows, Samples, Scale, Stretches, Windows
from samestep.data.feed import Feed
from samestep.data.pack import reader, writer
from samestep.data.pack.mapped import Mapped
from samestep.plan.batch import cut
from samestep.plan.order import Order

NUM = 1000


def samples(width: int, transform: Callable[[Tensor], Tensor] | None = None) -> Samples:
    x = torch.arange(NUM * width, dtype=torch.float32).reshape(NUM, width)
    text = torch.arange(4 * NUM + 8)
    windows = Windows(values=text, length=7, stride=4, offset=1, num_samples=NUM)
    return Samples((Rows(values=x, transform=transform), windows), Rows(values=torch.arange(NUM)))


@pytest.mark.parametrize("width", [1, 3, 16, 2000])
@pytest.mark.parametrize("microbatch", [1, 7, 8, 64, 300])
def test_batches_hold_what_loads_hold(width: int, microbatch: int) -> None:
    feed = Feed(samples(width), Order(num_samples=NUM, seed=1))
    microbatches = cut(0, NUM, microbatch)
    indices = Order(num_samples=NUM, seed=1).indices(epoch=2, start=0, stop=NUM)
    seen = []
    for part, batch in zip(microbatches, feed.batches(2, microbatches), strict=True):
        other = feed.load(2, part.start, part.stop)
        for one, two in zip((*batch.inputs, batch.target), (*other.inputs, other.target), strict=True):
            assert torch.equal(one, two)
            assert one.data_ptr() % 64 == 0
            assert one.is_contiguous()
        assert batch.num_samples == part.num_samples
        assert torch.equal(batch.inputs[1][:, 0], batch.target * 4 + 1)
        seen.append(batch.target)
    assert torch.cat(seen).tolist() == indices.tolist()


def test_small_microbatches_are_gathered_together_and_large_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []
    gather = Feed._gather

    def counted(self: Feed, column: Column, indices: Tensor, epoch: int) -> Tensor:
        if column is self.samples.target:
            gathered.append(len(indices))
        return gather(self, column, indices, epoch)

    monkeypatch.setattr(Feed, "_gather", counted)
    monkeypatch.setattr(feeds, "GATHERED_BYTES", 100 * (4 * 5 + 7 * 8 + 8))
    for microbatch, expected in ((20, [100] * 10), (100, [100] * 10), (400, [400, 400, 200])):
        gathered.clear()
        list(Feed(samples(5), Order(num_samples=NUM, seed=0)).batches(0, cut(0, NUM, microbatch)))
        assert gathered == expected
    monkeypatch.undo()
    monkeypatch.setattr(Feed, "_gather", counted)
    gathered.clear()
    list(Feed(samples(5), Order(num_samples=NUM, seed=0)).batches(0, cut(0, NUM, 1)))
    assert gathered == [256, 256, 256, NUM - 3 * 256]


def test_microbatches_that_do_not_follow_each_other() -> None:
    """A rank's part of several steps: the others' lie between."""
    feed = Feed(samples(5), Order(num_samples=NUM, seed=0))
    parts = [part for part in cut(0, NUM, 30) if part.index % 3 == 1]
    for part, batch in zip(parts, feed.batches(1, iter(parts)), strict=True):
        assert torch.equal(batch.target, feed.load(1, part.start, part.stop).target)


def test_a_transform_of_the_users_meets_one_microbatch_at_a_time() -> None:
    met: list[int] = []

    def transform(rows: Tensor) -> Tensor:
        met.append(len(rows))
        return rows

    batches = Feed(samples(2, transform), Order(num_samples=NUM, seed=0)).batches(0, cut(0, 40, 10))
    next(batches)
    assert met == [10]
    list(batches)
    assert met == [10] * 4


def test_one_that_scales_may_be_met_together() -> None:
    feed = Feed(samples(2, Scale(factor=0.5)), Order(num_samples=NUM, seed=0, is_shuffled=False))
    batches = list(feed.batches(0, cut(0, 40, 16)))
    assert batches[2].inputs[0].tolist() == [[n, n + 0.5] for n in range(32, 40)]


@pytest.mark.parametrize("kind", ["windows", "stretches", "targets"])
def test_reading_ahead_knows_where_windows_and_stretches_lie(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value at a place is the place, so that a batch says what was read."""
    with writer.writing(tmp_path / "pack") as place:
        place.append("train", "x", np.arange(4 * NUM, dtype=np.float32))
        place.append("other", "starts", np.flatnonzero(np.arange(3 * NUM) % 3 != 1)[:NUM])
        place.finish(kind="arrays", schema={}, statistics={}, source="a test", made_of={})
    opened = reader.open_pack(tmp_path / "pack")
    values, starts = opened.parts["train"]["x"], opened.parts["other"]["starts"]
    length = None if kind == "targets" else 5
    column: Windows | Stretches = Stretches(values=values, starts=starts, length=length, offset=2)
    if kind == "windows":
        column = Windows(values=values, length=5, stride=3, offset=2, num_samples=NUM)
    told: list[tuple[int, int, bool]] = []

    def advise(mapped: Mapped, start: int, stop: int, *, is_needed: bool) -> None:
        assert mapped is values
        told.append((start, stop, is_needed))

    monkeypatch.setattr(Mapped, "advise", advise)
    target = Rows(values=torch.zeros(NUM))
    feed = Feed(Samples((column,), target), Order(num_samples=NUM, seed=0, block=10))
    for start in range(0, NUM, 50):
        batch = feed.load(0, start, start + 50)
        needed = {row for first, stop, is_needed in told if is_needed for row in range(first, stop)}
        assert set(batch.inputs[0].flatten().int().tolist()) <= needed
    assert any(not is_needed for *_, is_needed in told)
    assert max(stop - first for first, stop, _ in told) < NUM, "a block at a time, not everything"


def test_reading_ahead_tells_of_every_row_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int, bool]] = []
    monkeypatch.setattr(Mapped, "advise", lambda self, start, stop, *, is_needed: told.append((start, stop, is_needed)))
    with writer.writing(tmp_path / "pack") as place:
        place.append("train", "x", np.arange(NUM, dtype=np.float32))
        place.finish(kind="arrays", schema={}, statistics={}, source="a test", made_of={})
    column = reader.open_pack(tmp_path / "pack").parts["train"]["x"]
    order = Order(num_samples=NUM, seed=0, block=10)
    feed = Feed(Samples((Rows(values=column),), Rows(values=column)), order)
    assert feed._ahead is not None
    resident: set[int] = set()
    most = 0
    for epoch in range(2):
        for start in range(0, NUM, 50):
            told.clear()
            batch = feed.load(epoch, start, start + 50)
            for first, stop, is_needed in told:
                rows = set(range(first, stop))
                resident = resident | rows if is_needed else resident - rows
            assert set(batch.target.int().tolist()) <= resident
            most = max(most, len(resident))
    assert most <= 3 * 160
    assert ReadAhead([], order).at(0, 0) is None  # type: ignore[func-returns-value]
