"""Predicted step times: the two costs are found again, and more workers are never slower."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.measure.sweep.forecast import StepTime, fit_step_time


@settings(deadline=None)  # the first call imports scipy
@given(fixed=st.floats(0, 1.0), sample=st.floats(1e-8, 1e-1))
def test_both_costs_are_found(fixed: float, sample: float) -> None:
    found = fit_step_time({batch: fixed + batch * sample for batch in (64, 256, 8192)})
    for batch in (1, 100, 100_000):
        assert found.on(1, batch) == pytest.approx(fixed + batch * sample, rel=1e-3)


def test_neither_cost_is_below_nothing() -> None:
    assert fit_step_time({100: 1.0, 200: 0.5}).sample_s == 0.0
    assert fit_step_time({100: 1.0, 200: 9.0}).fixed_s == 0.0


@given(
    batch=st.integers(1, 5000),
    microbatch=st.one_of(st.none(), st.integers(1, 300)),
    workers=st.integers(1, 40),
    more=st.integers(0, 40),
)
def test_more_workers_are_never_slower_and_never_better_than_dividing(
    batch: int, microbatch: int | None, workers: int, more: int
) -> None:
    time = StepTime(fixed_s=0.001, sample_s=0.0001)
    alone, some, many = (time.on(number, batch, microbatch) for number in (1, workers, workers + more))
    assert alone == pytest.approx(0.001 + 0.0001 * batch)
    assert many <= some + 1e-12
    assert some >= 0.001 + 0.0001 * batch / workers - 1e-12


@given(batch=st.integers(1, 5000), workers=st.integers(1, 40))
def test_what_is_shared_is_divided_as_the_samples_are(batch: int, workers: int) -> None:
    alone, shared = (StepTime(fixed_s=0.2, sample_s=1e-5, is_all_divided=flag) for flag in (False, True))
    assert shared.on(1, batch) == pytest.approx(alone.on(1, batch))
    share = (alone.on(workers, batch) - 0.2) / (alone.on(1, batch) - 0.2)
    assert shared.on(workers, batch) == pytest.approx(share * alone.on(1, batch))


def test_nothing_to_fit() -> None:
    with pytest.raises(UsageError, match="no step was timed"):
        fit_step_time({})
