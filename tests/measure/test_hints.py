"""Warnings of one kind are one line; a larger microbatch is proposed where it helps and fits."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.measure.hints import larger_microbatch, merged
from samestep.measure.stats import stability


def test_the_worst_of_each_kind_is_told() -> None:
    times = {"a": [1.0, 1.2] * 5, "b": [1.0, 1.5] * 5, "quiet": [1.0] * 10}
    others = {"a": [0.3] * 10, "b": [0.0] * 10, "quiet": [0.0] * 10}
    found = merged({name: stability(times[name], others_frac=others[name]).warnings for name in times})
    wide, disturbed = found
    assert wide.startswith("a; b; at worst: the median's 95 % interval is 40.0 % wide")
    assert disturbed.startswith("a: other processes took 30 %")


def test_what_all_share_is_said_once() -> None:
    (line,) = merged({name: stability([1.0, 1.0]).warnings for name in "abc"})
    assert line.startswith("all 3 programs: 2 rounds are too few")
    assert merged({"a": (), "b": ()}) == ()
    assert merged({"a": ("x",)}) == ("a: x",), "one program is named"


@given(speed_up=st.floats(0.01, 2.0), batch=st.integers(1, 600), micro=st.integers(1, 600), workers=st.integers(1, 9))
def test_a_proposed_microbatch_fits(speed_up: float, batch: int, micro: int, workers: int) -> None:
    micro = min(micro, batch)
    text = larger_microbatch(speed_up, global_batch=batch, microbatch=micro, most_workers=workers)
    is_possible = any(batch % count == 0 for count in range(workers, -(-batch // micro)))
    assert (text is not None) == (speed_up < 0.8 and is_possible)
    if text is not None:
        proposed = re.search(r"--microbatch (\d+) \((\d+) microbatch", text)
        assert proposed is not None
        size, count = map(int, proposed.groups())
        assert size > micro
        assert size * count == batch
        assert count >= workers


@pytest.mark.parametrize(("micro", "workers"), [(128, 2), (32, 8), (256, 1)])
def test_no_hint_where_every_microbatch_is_needed(micro: int, workers: int) -> None:
    assert larger_microbatch(0.1, global_batch=256, microbatch=micro, most_workers=workers) is None
