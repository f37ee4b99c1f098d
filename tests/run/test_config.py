"""Configuration: what a person gives, then the recipe, then defaults; contradictions in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samestep.errors import UsageError
from samestep.host.cores import num_cores
from samestep.run.config import Config, Settings, resolve
from samestep.run.given import make_settings
from samestep.run.train import train
from tests import helpers

RECIPE = {
    "global_batch": 64, "epochs": 30, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9,
    "lr_schedule": "cosine", "lr_warmup": 0.05, "weight_decay": 0.01,
}  # fmt: skip


def test_defaults() -> None:
    config = resolve(Settings(), {})
    assert (config.global_batch, config.microbatch, config.optimizer, config.epochs) == (256, 32, "adamw", 10.0)
    assert (config.lr, config.seed, config.threads_per_worker, config.precision) == (None, 0, 1, "fp32")
    assert config.workers == min(num_cores(), 8)


def test_the_recipe_comes_before_the_defaults_and_the_person_before_the_recipe() -> None:
    config = resolve(Settings(lr=0.5), RECIPE)
    assert (config.lr, config.momentum, config.global_batch, config.microbatch) == (0.5, 0.9, 64, 8)
    assert config.epochs == 30


def test_zero_is_a_value() -> None:
    config = resolve(Settings(weight_decay=0.0, lr_warmup=0.0, momentum=0.0, seed=0), {**RECIPE, "seed": 5})
    assert (config.weight_decay, config.lr_warmup, config.momentum, config.seed) == (0.0, 0.0, 0.0, 0)


@pytest.mark.parametrize(("optimizer", "has_recipe"), [("adamw", False), ("sgd", True), (None, True)])
def test_another_optimiser_does_not_get_the_recipes_learning_rate(optimizer: str | None, has_recipe: bool) -> None:
    config = resolve(Settings(optimizer=optimizer), RECIPE)
    found = (config.lr, config.momentum, config.weight_decay, config.lr_schedule, config.lr_warmup)
    assert found == ((0.1, 0.9, 0.01, "cosine", 0.05) if has_recipe else (None, None, None, "constant", 0.0))
    assert config.global_batch == 64


def test_clipping_of_the_recipe_is_left_out_for_an_optimiser_that_takes_none() -> None:
    recipe = {**RECIPE, "clip_norm": 1.0}
    found = [resolve(Settings(optimizer=name), recipe).clip_norm for name in ("kfac", "adamw", None)]
    assert found == [None, 1.0, 1.0]
    with pytest.raises(UsageError, match="optimizer 'kfca' is not known; did you mean kfac"):
        resolve(Settings(optimizer="kfca"), recipe)


def test_steps_take_the_place_of_the_recipes_epochs() -> None:
    assert (resolve(Settings(steps=7), RECIPE).steps, resolve(Settings(steps=7), RECIPE).epochs) == (7, None)
    assert resolve(Settings(epochs=2), {"steps": 9}).steps is None


def test_the_microbatch_does_not_depend_on_the_workers() -> None:
    assert len({resolve(Settings(workers=n, global_batch=100), {}).microbatch for n in (1, 2, 3, 50)}) == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"steps": 3, "epochs": 2}, r"steps=3 and epochs=2 contradict each other"),
        ({"global_batch": 0}, r"global_batch=0 is below 1"),
        ({"microbatch": 0}, r"microbatch=0 is below 1"),
        ({"workers": 0}, r"workers=0 is below 1"),
        ({"threads_per_worker": 0}, r"threads_per_worker=0 is below 1"),
        ({"epochs": 0}, r"epochs=0 is not"),
        ({"epochs": float("nan")}, r"epochs=nan is not"),
        ({"steps": 0}, r"steps=0 is below 1"),
        ({"lr": -1.0}, r"lr=-1.0 is not a finite number"),
        ({"lr": float("nan")}, r"lr=nan is not a finite number"),
        ({"lr": float("inf")}, r"lr=inf is not a finite number"),
        ({"weight_decay": -1.0}, r"weight_decay=-1.0 is not"),
        ({"seed": 2**63}, r"does not fit 64 bits"),
        ({"evaluate_every": 0}, r"evaluate_every=0 is below 1"),
        ({"noise_scale": 0}, r"noise_scale=0 is below 1"),
        ({"noise_scale": "on"}, r"noise_scale 'on' is not known; take a whole number or 'off'"),
        ({"resume": True}, r"name it with checkpoint"),
        ({"checkpoint_every_s": 0.0}, r"checkpoint_every_s=0 is not positive"),
    ],
)
def test_contradictions_and_ranges(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as error:
        resolve(Settings(**settings), {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"microbatch": 64, "global_batch": 32}, r"microbatch=64 is larger than global_batch=32"),
        ({"clip_norm": 0.0}, r"clip_norm=0.0 is not positive"),
        ({"clip_norm": float("nan")}, r"clip_norm=nan is not positive"),
        ({"sam_radius": 0.0}, r"sam_radius=0.0 is not positive"),
        ({"lr_warmup": 1.0}, r"share of the run"),
        ({"lr_schedule": "cos"}, r"lr_schedule 'cos' is not known"),
        ({"last_batch": "loose"}, r"last_batch 'loose' is not known"),
        ({"last_batch": "drop", "global_batch": 100, "microbatch": 10}, r"leaves no step"),
        ({"optimizer": "adamm"}, r"optimizer 'adamm' is not known; did you mean adam"),
        ({"batch_size": 32}, r"batch_size is not a word of ours.*global_batch.*microbatch"),
        ({"learning_rate": 0.1}, r"'learning_rate' is not a setting; known: .*\blr\b"),
    ],
)
def test_what_a_run_refuses(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as error:
        train(helpers.workload(), **{"workers": 1, "steps": 1, **settings})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [{"workers": "two"}, {"global_batch": "64"}, {"steps": 2.5}, {"lr": "0.1"}, {"seed": 1.5}, {"precision": "fp16"},
     {"workers": 1.5}],
)  # fmt: skip
def test_values_of_another_kind_are_refused(settings: dict[str, Any]) -> None:
    """No run is started: 2.5 steps would never end."""
    with pytest.raises(UsageError, match=next(iter(settings))):
        resolve(make_settings(settings), {})


def test_a_recipe_that_sets_what_is_no_setting() -> None:
    with pytest.raises(UsageError, match="the recipe sets batch, which is not a setting"):
        resolve(Settings(), {"batch": 3})


def test_the_configuration_is_plain_values() -> None:
    config = resolve(Settings(checkpoint=Path("a")), RECIPE)
    assert isinstance(config, Config)
    assert config.as_dict()["checkpoint"] == "a"
    assert config.as_dict()["lr"] == 0.1
