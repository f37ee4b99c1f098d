"""Augmentation: each change does what it says, and depends on (seed, epoch, sample) alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from samestep.data import augment
from samestep.data.augment import Change, Cutout, Draws, Flip, Noise, Shift
from samestep.data.columns import Rows, Samples, Scale
from samestep.data.feed import Feed
from samestep.errors import UsageError
from samestep.plan.batch import cut
from samestep.plan.order import Order
from samestep.workloads.from_data import from_data

PICTURES = np.random.default_rng(0).integers(1, 256, (200, 3, 9, 7), np.uint8)
SAMPLES = np.arange(200)
CHANGES: list[Change] = [Shift(pixels=2), Flip(), Cutout(pixels=4)]


def changed(
    *changes: Change, samples: npt.NDArray[np.int64] = SAMPLES, epoch: int = 0, seed: int = 0
) -> npt.NDArray[np.uint8]:
    return augment.apply(changes, PICTURES[samples], seed=seed, epoch=epoch, samples=samples)


@pytest.mark.parametrize("changes", [[change] for change in CHANGES] + [CHANGES])
def test_a_sample_is_changed_alike_wherever_it_is(changes: list[Change]) -> None:
    together = changed(*changes)
    some = np.random.default_rng(1).permutation(200)[:37]
    np.testing.assert_array_equal(changed(*changes, samples=some), together[some])
    np.testing.assert_array_equal(changed(*changes, samples=some[:1]), together[some[:1]])
    assert (changed(*changes, epoch=1) != together).any()
    assert (changed(*changes, seed=1) != together).any()
    assert together.dtype == np.uint8
    assert PICTURES.min() >= 1


def test_shifts_are_crops_of_the_padded_picture() -> None:
    padded = np.pad(PICTURES, ((0, 0), (0, 0), (2, 2), (2, 2)))
    found = []
    for picture, whole in zip(changed(Shift(pixels=2)), padded, strict=True):
        places = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if np.array_equal(picture, whole[:, down : down + 9, right : right + 7])
        ]
        assert len(places) == 1
        found += places
    assert len(set(found)) == 25


def test_half_of_the_pictures_are_mirrored() -> None:
    flipped = changed(Flip())
    is_same = (flipped == PICTURES).all(axis=(1, 2, 3))
    is_mirrored = (flipped == PICTURES[..., ::-1]).all(axis=(1, 2, 3))
    assert (is_same ^ is_mirrored).all()
    assert 70 < is_mirrored.sum() < 130


def test_a_cutout_is_a_square() -> None:
    is_zero = changed(Cutout(pixels=4)) == 0
    assert (is_zero == is_zero[:, :1]).all()
    for hole in is_zero[:, 0]:
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        assert hole.sum() == len(rows) * len(columns)
        assert 2 <= len(rows) <= 4
        assert 2 <= len(columns) <= 4


def test_noise_is_normal() -> None:
    rows = np.zeros((2000, 20), np.float32)
    noise = augment.apply([Noise(deviation=0.5)], rows, seed=0, epoch=0, samples=np.arange(2000))
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 0.5) < 0.01
    assert abs((np.abs(noise) < 0.5).mean() - 0.6827) < 0.01
    assert np.abs(np.corrcoef(noise.T) - np.eye(20)).max() < 0.12


def test_draws_are_uniform_and_differ() -> None:
    draws = Draws(7, np.arange(100_000))
    counts = np.bincount(draws.below(0, 5), minlength=5)
    assert np.abs(counts - 20_000).max() < 700
    assert abs((draws.below(0, 2) == draws.below(1, 2)).mean() - 0.5) < 0.01


def test_the_feed_changes_training_rows_before_it_scales_them() -> None:
    column = Rows(values=torch.from_numpy(PICTURES), transform=Scale(factor=1 / 255), changes=(Flip(),))
    feed = Feed(Samples((column,), Rows(values=torch.arange(200))), Order(num_samples=200, seed=5))
    for microbatch in (8, 64):
        for batch in feed.batches(3, cut(0, 200, microbatch)):
            samples = batch.target.numpy()
            expected = changed(Flip(), samples=samples, epoch=3, seed=5).astype(np.float32) * np.float32(1 / 255)
            np.testing.assert_array_equal(batch.inputs[0].numpy(), expected)


def test_noise_leaves_the_marks_of_missing_values() -> None:
    values = torch.ones((50, 3))
    column = Rows(values=values, changes=(Noise(deviation=0.5),), num_marks=1)
    found = column.changed(torch.arange(50), 0, 0)
    assert (found[:, 2] == 1).all()
    assert (found[:, :2] != 1).all()
    marked = from_data({"x": [1.0, None, 3.0, 4.0] * 20, "y": [0, 1] * 40}, target="y").data().train.inputs[0]
    assert isinstance(marked, Rows)
    assert marked.num_marks == 1


@pytest.mark.parametrize("text", ["turn", "shift", "shift=x", "flip=2", "noise", "", "shift=2,,flip"])
def test_what_is_not_known(text: str) -> None:
    with pytest.raises(UsageError, match="is not known; take shift=PIXELS, flip"):
        augment.parse(text)


@pytest.mark.parametrize("text", ["shift=0", "cutout=0"])
def test_changes_that_change_nothing(text: str) -> None:
    with pytest.raises(UsageError, match="take 1 or more"):
        augment.parse(text)
