"""Which ways there are to carry a run out, and which one is taken: simple before fast, where noise decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.errors import UsageError
from samestep.measure.candidates import (
    MARGIN,
    Candidate,
    Measured,
    candidates,
    check_asked,
    decide,
    is_clearly_slower,
    times_as_long,
)
from samestep.run.config import Settings

OPEN: dict[str, Any] = {"cores": 4, "num_microbatches": 8, "threads": 1}


def names(**changed: Any) -> list[str]:
    return [one.name for one in candidates(**{**OPEN, **changed})]


class TestWhatThereIs:
    def test_the_simplest_comes_first(self) -> None:
        both = [f"{count}{kind}" for count in ("1 worker", "2 workers", "4 workers") for kind in ("", ", concurrent")]
        assert names() == [*both, "2 workers, 2 stages", "4 workers, 2 stages", "4 workers, 4 stages"]

    def test_never_more_workers_than_microbatches_or_cores(self) -> None:
        assert names(num_microbatches=3, backprop="ordinary") == [
            "1 worker", "2 workers", "3 workers", "2 workers, 2 stages", "4 workers, 2 stages", "4 workers, 4 stages",
        ]  # fmt: skip
        assert names(cores=6, threads=2, backprop="ordinary") == [
            "1 worker, 2 threads", "2 workers, 2 threads", "3 workers, 2 threads", "2 workers, 2 stages, 2 threads",
        ]  # fmt: skip
        assert names(cores=1) == ["1 worker"]

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ({"cores": 2, "num_microbatches": 1}, [(2, 2)]),
            ({"cores": 4, "num_microbatches": 1}, [(2, 2), (4, 4)]),
            ({"cores": 4, "num_microbatches": 2}, [(2, 2), (4, 2), (4, 4)]),
            ({"cores": 8, "num_microbatches": 2}, [(2, 2), (4, 2), (4, 4), (8, 4)]),
            ({"cores": 7, "num_microbatches": 8}, [(2, 2), (4, 2), (6, 2), (4, 4)]),
            ({"cores": 8, "threads": 4}, [(2, 2)]),
            ({"workers": 2, "num_microbatches": 1}, [(2, 2)]),
            ({"workers": 4, "num_microbatches": 1}, [(4, 4)]),
            ({"workers": 4}, [(4, 2), (4, 4)]),
            ({"workers": 3}, []),
            ({"backprop": "concurrent"}, []),
            ({"may_have_stages": False}, []),
        ],
    )
    def test_stages_go_with_more_workers_than_microbatches(
        self, changed: dict[str, Any], expected: list[tuple[int, int]]
    ) -> None:
        found = candidates(**{**OPEN, **changed})
        assert [(one.workers, one.stages) for one in found if one.stages > 1] == expected

    def test_workers_that_only_stages_have_work_for(self) -> None:
        assert names(workers=2, num_microbatches=1) == ["2 workers, 2 stages"]

    def test_what_is_set_stays(self) -> None:
        assert names(workers=3) == ["3 workers", "3 workers, concurrent"]
        assert all("concurrent" in name for name in names(backprop="concurrent"))

    def test_threads_need_to_be_allowed_and_come_last(self) -> None:
        assert not any("threads" in name for name in names())
        found = candidates(**OPEN, allows_threads=True)
        assert [one.name for one in found[-2:]] == [
            "1 worker, 2 threads (other bits)", "1 worker, 4 threads (other bits)",
        ]  # fmt: skip
        assert [one.changes_bits for one in found] == [False] * 9 + [True] * 2
        assert not any("threads" in name for name in names(workers=2, allows_threads=True))

    @given(cores=st.integers(1, 200), num_microbatches=st.integers(1, 64), threads=st.integers(1, 4))
    def test_each_once_and_one_worker_first(self, cores: int, num_microbatches: int, threads: int) -> None:
        found = candidates(cores=cores, num_microbatches=num_microbatches, threads=threads)
        assert len(set(found)) == len(found) == len({one.name for one in found})
        assert found[0] == Candidate(workers=1, backprop="ordinary", threads=threads)
        plain = [one.workers for one in found if one.stages == 1]
        assert max(plain) == min(max(1, cores // threads), num_microbatches)
        for one in found:
            assert one.workers % one.stages == 0
            assert one.workers // one.stages <= num_microbatches
            assert one.workers * threads <= max(cores, threads)

    @pytest.mark.parametrize(
        ("changed", "text"),
        [
            ({"workers": 0}, "workers=0 is below 1"),
            ({"workers": 16, "may_have_stages": False}, "workers=16 is more than the 8 microbatches of a step"),
            ({"workers": 9}, "workers=9 is more than the 8 microbatches of a step"),
            ({"workers": 2, "backprop": "ordinary"}, "leave nothing for parallel='auto' to choose"),
        ],
    )
    def test_what_cannot_be_is_one_line(self, changed: dict[str, Any], text: str) -> None:
        with pytest.raises(UsageError, match=text):
            names(**changed)

    @pytest.mark.parametrize(
        ("asked", "text"),
        [
            (("fast", False, False), "parallel 'fast' is not known; take 'auto'"),
            ((None, True, False), "allow_threads goes with parallel='auto'"),
            ((None, False, True), "measure_again goes with parallel='auto'"),
        ],
    )
    def test_wishes_that_say_nothing(self, asked: tuple[str | None, bool, bool], text: str) -> None:
        with pytest.raises(UsageError, match=text):
            check_asked(asked[0], allow_threads=asked[1], measure_again=asked[2])


class TestSettings:
    def test_the_bits_are_left_alone_unless_threads_are_allowed(self) -> None:
        given = Settings(seed=3, threads_per_worker=2)
        found = Candidate(workers=2, backprop="concurrent", threads=2).applied_to(given)
        assert found == Settings(seed=3, threads_per_worker=2, workers=2, backprop="concurrent")
        other = Candidate(workers=1, backprop="ordinary", threads=4, changes_bits=True).applied_to(Settings())
        assert other.threads_per_worker == 4


WAYS = candidates(**{**OPEN, "cores": 2})


def measured(*times: tuple[float, ...] | str) -> list[Measured]:
    return [
        Measured(candidate=way, failure=each) if isinstance(each, str) else Measured(candidate=way, step_s=each)
        for way, each in zip(WAYS, times, strict=False)
    ]


class TestDecision:
    def test_the_fastest(self) -> None:
        found = decide(measured((3.0, 3.1, 3.0), (2.8, 2.9, 2.8), (2.0, 2.1, 2.0), (2.5, 2.6, 2.5)))
        assert found.candidate.name == "2 workers"
        assert found.reason == "2 workers: 2,000 ms a step, 1.50 × as fast as 1 worker"

    def test_the_simplest_where_noise_decides(self) -> None:
        found = decide(measured((2.05, 2.04, 2.06), (2.2, 2.2, 2.2), (2.0, 2.0, 2.0)))
        assert found.candidate.name == "1 worker"
        assert "2 workers with 2,000 ms is not faster beyond the margin for noise" in found.reason

    def test_times_that_spread_widen_the_margin(self) -> None:
        quiet = measured((2.4, 2.4, 2.4, 2.4, 2.4), (9.0,) * 5, (2.0, 2.0, 2.0, 2.0, 2.0))
        noisy = measured((2.4, 1.6, 3.0, 1.5, 3.1), (9.0,) * 5, (2.0, 2.0, 2.0, 2.0, 2.0))
        assert decide(quiet).candidate.name == "2 workers"
        assert decide(noisy).candidate.name == "1 worker"

    def test_what_slows_a_round_down_slows_all_of_it(self) -> None:
        """The medians say nothing here; round by round the second is faster."""
        found = decide(measured((1.0, 9.0, 3.0), (0.8, 7.2, 2.4)))
        assert found.candidate.name == "1 worker, concurrent"

    def test_one_that_fails_is_not_taken(self) -> None:
        found = decide(measured((3.0, 3.0), "it broke", (2.0, 2.0)))
        assert found.candidate.name == "2 workers"
        assert found.measured[1].failure == "it broke"
        assert decide(measured("a", (3.0,), "c")).reason.endswith("nothing else could be measured")

    def test_one_that_left_early_is_compared_where_both_ran(self) -> None:
        one, other = measured((1.0, 1.0, 5.0, 5.0), (2.0, 2.0))
        assert times_as_long(other, one) == 2.0
        assert is_clearly_slower(other, [one, other])
        assert not is_clearly_slower(measured((1.0, 1.0), (2.0,))[1], [one])

    @given(st.lists(st.lists(st.floats(0.1, 10.0), min_size=3, max_size=3), min_size=1, max_size=4))
    def test_never_slower_than_the_fastest_beyond_the_margin(self, times: list[list[float]]) -> None:
        table = measured(*map(tuple, times))
        found = decide(table)
        fastest = min(table, key=lambda one: one.median_s)
        chosen = table[[one.candidate for one in table].index(found.candidate)]
        ratios = np.divide(chosen.step_s, fastest.step_s)
        spread = float(np.median(np.abs(ratios - np.median(ratios))))
        assert float(np.median(ratios)) <= 1 + max(MARGIN, spread) + 1e-12
        assert found.reason.startswith(f"{found.candidate.name}: ")
