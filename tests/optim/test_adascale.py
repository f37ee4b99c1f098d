"""AdaScale: the paper's gain, from gradients that are known; in runs, the same bits on any number of workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.measure.against.peer import task_of
from samestep.measure.plain import PlainTorch
from samestep.optim.adascale import NUM_KEPT, AdaScale, Kept
from samestep.optim.noise import Pair
from samestep.run.config import Settings, resolve
from samestep.run.train import train
from tests import helpers
from tests.helpers import Everything

RULE = AdaScale(base_batch=8, global_batch=64, num_training_samples=10**9)
NOTHING: Kept = (0.0,) * NUM_KEPT
COMMON: dict[str, Any] = {
    "global_batch": 24, "microbatch": 4, "base_batch": 6, "batch_rule": "adascale", "optimizer": "sgd", "lr": 0.02,
    "steps": 9, "workers": 1,
}  # fmt: skip


def pair(variance: float, square: float, step: int = 0) -> Pair:
    """What a step of 64 samples in 8 microbatches shows, on average."""
    return Pair(
        step=step,
        microbatch_square=square + variance / 8,
        square=square + variance / 64,
        num_microbatches=8,
        num_samples=64,
    )


@pytest.mark.parametrize(
    ("variance", "square", "gain"), [(1.0, 0.0, 8.0), (0.0, 1.0, 1.0), (64.0, 1.0, 4.5), (0.0, 0.0, 1.0)]
)
def test_the_gain_of_the_paper(variance: float, square: float, gain: float) -> None:
    """(σ² / B0 + μ²) / (σ² / B + μ²): 8 for noise alone, 1 without, (8 + 1) / (1 + 1) in between."""
    assert RULE.gain(RULE.after(NOTHING, pair(variance, square))) == pytest.approx(gain)


@given(
    steps=st.lists(st.tuples(st.floats(-5, 50), st.floats(-2, 5)), max_size=20),
    base=st.integers(1, 100),
    batch=st.integers(1, 100),
)
def test_the_gain_stays_between_1_and_the_ratio(steps: list[tuple[float, float]], base: int, batch: int) -> None:
    rule, kept, gains = AdaScale(base_batch=base, global_batch=batch, num_training_samples=10**6), NOTHING, []
    for step, (variance, square) in enumerate(steps):
        gains.append(rule.gain(kept))
        kept = rule.after(kept, pair(variance, square, step))
    low, high = sorted((1.0, batch / base))
    assert all(low * (1 - 1e-9) <= gain <= high * (1 + 1e-9) for gain in gains)
    assert kept[-1] == pytest.approx(sum(gains))


def test_averages_forget_as_in_the_paper() -> None:
    """θ = 1 - S / 1000, with the weights of an average that starts with nothing."""
    kept = NOTHING
    for number in range(3):
        kept = RULE.after(kept, pair(float(number + 1), 0.5))
    theta = 1 - 8 / 1000
    weights = [theta**2, theta, 1.0]
    mean = sum(w * v for w, v in zip(weights, (1.0, 2.0, 3.0), strict=True)) / sum(weights)
    assert kept[1] / kept[0] == pytest.approx(mean)


def test_a_step_that_shows_nothing_changes_no_average() -> None:
    kept = RULE.after(NOTHING, pair(1.0, 1.0))
    for nothing in (None, replace(pair(1.0, 1.0), num_microbatches=1), replace(pair(1.0, 1.0), square=float("nan"))):
        found = RULE.after(kept, nothing)
        assert found[:3] == kept[:3]
        assert found[3] == kept[3] + RULE.gain(kept)


# Runs.


def test_a_run_is_that_of_plain_torch_with_the_gains_by_hand() -> None:
    work = helpers.workload(helpers.double(helpers.Mlp), train=helpers.samples(dtype=torch.float64))
    plan = helpers.prepared(work, **COMMON)
    model, ran = helpers.initial(plan), helpers.run(plan)
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.02), helpers.summed_cross_entropy()
    rule = AdaScale(base_batch=6, global_batch=24, num_training_samples=helpers.NUM_SAMPLES)
    kept, gains = NOTHING, []
    for step, record in enumerate(ran.heard.records):
        gains.append(rule.gain(kept))
        optimizer.param_groups[0]["lr"] = 0.02 * gains[-1]
        helpers.plain_step(model, helpers.microbatches(plan.job, step), loss)
        optimizer.step()
        kept = rule.after(kept, record.pair)
    assert gains[0] == 1.0
    assert max(gains) > 1.1
    for name, values in ran.parameters().items():
        assert torch.allclose(values, model.get_parameter(name), rtol=1e-9, atol=1e-12)


def test_it_is_said() -> None:
    record = train(helpers.workload(), **COMMON).record
    assert "learning rate × 1 to 4, as every step finds by AdaScale" in record.notices[0]
    assert "AdaScale: 9 steps did the work of" in record.notices[-1]


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    wanted = train(helpers.workload(), **COMMON).record
    folder = tmp_path / "states"
    train(helpers.workload(), **{**COMMON, "steps": 4}, checkpoint=folder)
    found = train(helpers.workload(), **COMMON, checkpoint=folder, resume=True).record
    assert (found.first_step, found.weights_sha256) == (4, wanted.weights_sha256)
    assert found.notices[-1] == wanted.notices[-1]
    linear = train(helpers.workload(), **{**COMMON, "batch_rule": "linear"}).record
    assert linear.weights_sha256 != wanted.weights_sha256
    with pytest.raises(Exception, match="gain="):
        train(helpers.workload(), **{**COMMON, "base_batch": 3}, checkpoint=folder, resume=True)


@pytest.mark.processes
@pytest.mark.parametrize("workers", [3, pytest.param(2, marks=pytest.mark.soak)])
@pytest.mark.soak
def test_the_same_bits_on_any_number_of_workers(workers: int, tmp_path: Path) -> None:
    def work() -> Any:
        return helpers.workload(Everything, train=helpers.samples(76))

    wanted = train(work(), **COMMON).record
    settings = {**COMMON, "workers": workers, "noise_scale": 5}
    train(work(), **{**settings, "steps": 5}, checkpoint=tmp_path / "states")
    found = train(work(), **{**settings, "workers": 1}, checkpoint=tmp_path / "states", resume=True).record
    assert (found.first_step, found.weights_sha256) == (5, wanted.weights_sha256)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"optimizer": "adamw"}, "optimizer='adamw': its gain is that of SGD"),
        ({"noise_scale": "off"}, "noise_scale='off'"),
        ({"sam_radius": 0.1}, "sam_radius=0.1"),
        ({"microbatch": 24}, "microbatch=24 of global_batch=24"),
        ({"base_batch": None}, "batch_rule='adascale' needs base_batch"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as error:
        resolve(Settings(**{**COMMON, **settings}), {})
    assert "\n" not in str(error.value)


def test_there_is_nothing_to_compare_it_with() -> None:
    with pytest.raises(UsageError, match="take linear"):
        task_of(helpers.workload(), Settings(**COMMON))
    with pytest.raises(UsageError, match="take linear"):
        PlainTorch(helpers.workload(), resolve(Settings(**COMMON), {}))
