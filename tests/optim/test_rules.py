"""The batch rules in closed form; what is said about them; what is recorded; and that they reach the optimiser."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.optim import catalog
from samestep.optim.catalog import RuleName
from samestep.optim.rules import BatchChange
from samestep.run.config import Settings, resolve
from samestep.run.train import train
from tests import helpers

SIZES = st.integers(1, 2**20)


def change(base: int, batch: int, rule: RuleName) -> BatchChange:
    return BatchChange(base_batch=base, global_batch=batch, rule=rule)


@pytest.mark.parametrize(("rule", "lr", "decay"), [("linear", 16.0, 1.0), ("sqrt", 4.0, 4.0), ("none", 1.0, 1.0)])
def test_from_256_to_4096(rule: RuleName, lr: float, decay: float) -> None:
    found = change(256, 4096, rule)
    assert (found.lr_factor, found.decay_factor(decays_by_rate=True)) == (lr, decay)
    assert found.decay_factor(decays_by_rate=False) == 1.0


@given(SIZES, SIZES, SIZES, st.sampled_from(["linear", "sqrt"]))
def test_two_changes_are_one(first: int, second: int, third: int, rule: RuleName) -> None:
    both = change(first, second, rule).lr_factor * change(second, third, rule).lr_factor
    assert both == pytest.approx(change(first, third, rule).lr_factor)
    assert change(first, first, rule).lr_factor == 1.0


@given(SIZES, SIZES, st.sampled_from(["linear", "sqrt"]))
def test_an_epoch_shrinks_the_weights_as_much_as_before(base: int, batch: int, rule: RuleName) -> None:
    """Rate × decay × steps of an epoch, over what it was."""
    found = change(base, batch, rule)
    steps = float(Fraction(base, batch))
    assert found.lr_factor * found.decay_factor(decays_by_rate=True) * steps == pytest.approx(1.0)


def test_the_line_says_what_was_done() -> None:
    lines = change(256, 4096, "sqrt").lines(catalog.entry("adamw"), 0.0, 0.05)
    assert lines == [
        "global_batch 256 → 4,096: learning rate × 4 by the square-root rule; momentum and lr_warmup as they were"
    ]
    (line,) = change(256, 4096, "sqrt").lines(catalog.entry("adamw"), 0.1, 0.05)
    assert "learning rate × 4 by the square-root rule, weight decay × 4; momentum" in line
    (line,) = change(64, 128, "linear").lines(catalog.entry("sgd"), 0.1, 0.05)
    assert "learning rate × 2 by the linear rule; weight decay, momentum and lr_warmup as they were" in line


def test_what_may_be_wrong_is_said() -> None:
    entry = catalog.entry("sgd")
    assert "lr_warmup is 0" in change(64, 128, "linear").lines(entry, 0.0, 0.0)[1]
    assert "hold up to a batch of 8,192" in change(64, 8193, "linear").lines(entry, 0.0, 0.1)[1]
    assert len(change(64, 8192, "linear").lines(entry, 0.0, 0.1)) == 1
    assert len(change(128, 64, "linear").lines(entry, 0.0, 0.0)) == 1
    assert change(64, 8193, "none").lines(entry, 0.0, 0.0) == [
        "global_batch 64 → 8,193: learning rate and weight decay as they were, by the rule none"
    ]


@pytest.mark.parametrize(
    ("optimizer", "rule", "lr", "decay"),
    [
        ("sgd", "auto", 0.4, 0.01),
        ("adamw", "auto", 0.2, 0.02),
        ("adam", "auto", 0.2, 0.01),
        ("adamw", "linear", 0.4, 0.01),
        ("adamw", "none", 0.1, 0.01),
        ("lamb", "auto", 0.2, 0.01),
    ],
)
def test_the_rates_of_a_run(optimizer: str, rule: Any, lr: float, decay: float) -> None:
    settings = Settings(
        optimizer=optimizer, lr=0.1, weight_decay=0.01, base_batch=32, global_batch=128, batch_rule=rule
    )
    config = resolve(settings, {})
    assert dataclasses.astuple(config.rates) == pytest.approx((lr, decay))
    assert (config.lr, config.weight_decay) == (0.1, 0.01)  # what is written down gives the same run again


def test_without_a_base_batch_nothing_changes() -> None:
    config = resolve(Settings(optimizer="adamw", global_batch=4096, weight_decay=0.1), {})
    assert dataclasses.astuple(config.rates) == (None, 0.1)
    assert config.rate_lines == []


def test_a_rate_that_nobody_named_is_the_optimisers_own() -> None:
    config = resolve(Settings(optimizer="adamw", base_batch=64, global_batch=256), {})
    assert config.rates.lr == pytest.approx(2e-3)
    assert config.rates.weight_decay == pytest.approx(0.02)
    assert "weight decay × 2" in config.rate_lines[0]


def test_rates_that_nobody_named_are_left_to_the_optimiser_where_the_batch_is_the_base() -> None:
    config = resolve(Settings(optimizer="muon", base_batch=64, global_batch=64), {})
    assert dataclasses.astuple(config.rates) == (None, None)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"base_batch": 0}, "base_batch=0 is below 1"),
        ({"batch_rule": "sqrt"}, "batch_rule='sqrt' needs base_batch"),
        ({"base_batch": 8, "batch_rule": "cube"}, "batch_rule"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as error:
        resolve(Settings(**settings), {})
    assert "\n" not in str(error.value)


def test_an_optimiser_of_ones_own_gets_its_rates_from_its_owner() -> None:
    with pytest.raises(UsageError, match="base_batch=8 changes the rates of an optimizer by name"):
        train(helpers.workload(), optimizer=torch.optim.SGD, base_batch=8, global_batch=32, workers=1, steps=1)


def test_a_run_follows_the_rule_and_records_it() -> None:
    common: dict[str, Any] = {"optimizer": "sgd", "global_batch": 32, "microbatch": 8, "workers": 1, "steps": 3}
    ruled = train(helpers.workload(), lr=0.01, base_batch=8, weight_decay=0.1, **common)
    wanted = train(helpers.workload(), lr=0.04, weight_decay=0.1, **common)
    plain = train(helpers.workload(), lr=0.01, weight_decay=0.1, **common)
    assert ruled.record.weights_sha256 == wanted.record.weights_sha256 != plain.record.weights_sha256
    assert "global_batch 8 → 32: learning rate × 4 by the linear rule" in ruled.record.notices[0]
    assert (ruled.record.config["base_batch"], ruled.record.config["batch_rule"]) == (8, "auto")
