"""A global batch of all training samples, and one that is larger than they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from samestep.errors import UsageError
from samestep.run.config import Settings, resolve
from samestep.run.outline import outline
from samestep.run.prepare import Choices
from samestep.run.train import train
from tests import helpers

ALL = helpers.NUM_SAMPLES


def run(**settings: Any) -> Any:
    return train(helpers.workload(), **{"optimizer": "sgd", "lr": 0.1, "steps": 3, "workers": 1, **settings}).record


def test_a_batch_larger_than_the_data_is_said_and_cut_into_eight() -> None:
    found = run(global_batch=99_999)
    line = f"global_batch 99,999 is more than the {ALL} training samples: every step is a whole epoch of them"
    assert line in found.notices
    assert (found.config["microbatch"], found.config["global_batch"]) == (-(-ALL // 8), 99_999)
    assert found.weights_sha256 == run(global_batch=ALL).weights_sha256
    planned = outline(helpers.workload(), Settings(global_batch=99_999, steps=3, workers=2), Choices())
    assert planned.lines == (line,)
    assert (planned.num_microbatches, len(planned.allotments)) == (8, 2)


@pytest.mark.parametrize("batch", [ALL - 1, ALL])
def test_a_batch_that_is_not_larger_is_cut_as_ever_and_nothing_is_said(batch: int) -> None:
    found = run(global_batch=batch)
    assert found.config["microbatch"] == -(-batch // 8)
    assert not [line for line in found.notices if "global_batch" in line]


def test_a_microbatch_that_is_named_stays() -> None:
    assert run(global_batch=99_999, microbatch=12_500).config["microbatch"] == 12_500
    with pytest.raises(UsageError, match=r"take workers=1, or a smaller microbatch$"):
        run(global_batch=99_999, microbatch=12_500, workers=2)
    with pytest.raises(UsageError, match=r"a smaller microbatch, or a larger global_batch$"):
        run(global_batch=16, microbatch=16, workers=2)


def test_full_is_all_training_samples_counted_once() -> None:
    calls = []

    def data() -> Any:
        calls.append(1)
        return helpers.workload().data()

    found = train(replace(helpers.workload(), data=data), global_batch="full", steps=3, workers=1).record
    assert (found.config["global_batch"], found.config["microbatch"], len(calls)) == (ALL, -(-ALL // 8), 1)
    planned = outline(helpers.workload(), Settings(global_batch="full", steps=3, workers=1), Choices())
    assert planned.global_batch == ALL


def test_full_needs_the_data() -> None:
    with pytest.raises(UsageError, match="global_batch='full' is for train"):
        resolve(Settings(global_batch="full"), {})
