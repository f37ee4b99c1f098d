"""Formula and unit of each definition, on times that are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from samestep.errors import UsageError
from samestep.measure.series import (
    Kind,
    Series,
    check_batches,
    of_roof,
    point,
    speed_up,
    strong_efficiency,
    weak_efficiency,
)


def series(kind: Kind, step_s: float, *, workers: int = 1, global_batch: int = 64, rounds: int = 10) -> Series:
    """The same drift over rounds in all of them: it drops out of every ratio."""
    times = tuple(float(step_s * share) for share in np.linspace(1.0, 1.1, rounds))
    name = f"{kind}, {workers}"
    return Series(name=name, kind=kind, workers=workers, threads=1, global_batch=global_batch, step_s=times)


SINGLE, ONE = series("torch", 0.012), series("samestep", 0.016)


class TestStrong:
    def test_speed_up_is_time_over_time(self) -> None:
        found = speed_up(SINGLE, series("samestep", 0.005, workers=4))
        assert (found.value, found.low, found.high) == pytest.approx((2.4, 2.4, 2.4))

    def test_efficiency_is_against_one_worker_and_per_worker(self) -> None:
        assert strong_efficiency(ONE, series("samestep", 0.005, workers=4)).value == pytest.approx(0.016 / (4 * 0.005))

    def test_roof_over_ours(self) -> None:
        roof, ours = series("roof", 0.004, workers=4), series("samestep", 0.005, workers=4)
        assert of_roof(roof, ours).value == pytest.approx(0.8)


class TestWeak:
    MANY = series("samestep", 0.020, workers=4, global_batch=256)

    def test_speed_up_is_throughput_over_throughput(self) -> None:
        assert speed_up(SINGLE, self.MANY).value == pytest.approx((256 / 0.020) / (64 / 0.012))

    def test_efficiency(self) -> None:
        assert weak_efficiency(ONE, self.MANY).value == pytest.approx((256 / 0.020) / (4 * 64 / 0.016))


class TestPoint:
    def test_strong(self) -> None:
        many, roof = series("samestep", 0.005, workers=4), series("roof", 0.004, workers=4)
        found = point("strong", many, single=SINGLE, one=ONE, roof=roof)
        assert found.workers == 4 and found.relation == "faster"
        assert found.step_s.value == pytest.approx(0.005 * 1.05)  # seconds; the drift's middle
        assert found.samples_per_s.value == pytest.approx(64 / (0.005 * 1.05))
        assert found.speed_up.value == pytest.approx(2.4) and found.relative.value == pytest.approx(3.2)
        assert found.efficiency.value == pytest.approx(0.8)
        assert found.roof is not None and found.roof.value == pytest.approx(3.0)
        assert found.of_roof is not None and found.of_roof.value == pytest.approx(0.8)

    def test_weak_relation_is_per_sample(self) -> None:
        """A step takes longer, but holds four times the samples."""
        many = series("samestep", 0.020, workers=4, global_batch=256)
        found = point("weak", many, single=SINGLE, one=ONE, roof=None)
        assert found.relation == "faster" and found.roof is None and found.of_roof is None
        assert found.efficiency.value == pytest.approx(0.8)

    def test_throughput_is_the_inverse_with_its_bounds_exchanged(self) -> None:
        found = point("strong", ONE, single=SINGLE, one=ONE, roof=None)
        assert found.samples_per_s.low == pytest.approx(64 / found.step_s.high)
        assert found.samples_per_s.high == pytest.approx(64 / found.step_s.low)

    def test_one_round(self) -> None:
        one = series("samestep", 0.01, rounds=1)
        found = point("strong", one, single=one, one=one, roof=None)
        assert found.relation == "not shown different"
        assert (found.samples_per_s.low, found.samples_per_s.high) == (0.0, math.inf)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"workers": 0}, r'workers=0 of "torch" is below 1'),
            ({"global_batch": 0}, "global_batch=0"),
            ({"threads": -1}, "threads=-1"),
            ({"step_s": ()}, r'step times of "torch" must be numbers above 0'),
            ({"step_s": (1.0, 0.0)}, "above 0"),
            ({"step_s": (1.0, math.nan)}, "above 0"),
        ],
    )
    def test_series(self, change: dict[str, Any], words: str) -> None:
        fields: dict[str, Any] = {"kind": "torch", "workers": 1, "threads": 1, "global_batch": 64, "step_s": (1.0,)}
        Series(name="torch", **fields)
        with pytest.raises(UsageError, match=words):
            Series(name="torch", **{**fields, **change})

    def test_efficiency_against_more_than_one_worker(self) -> None:
        two = series("samestep", 0.01, workers=2)
        for efficiency in (strong_efficiency, weak_efficiency):
            with pytest.raises(UsageError, match="efficiency is against one worker"):
                efficiency(two, two)

    def test_other_batches(self) -> None:
        grown = series("samestep", 0.01, workers=2, global_batch=128)
        with pytest.raises(UsageError, match=r"takes 128 samples a step with 2 workers; strong scaling.*: 64"):
            strong_efficiency(ONE, grown)
        with pytest.raises(UsageError, match=r"takes 64 samples a step with 2 workers; weak scaling.*: 128"):
            weak_efficiency(ONE, series("samestep", 0.01, workers=2))
        check_batches("weak", 64, [ONE, grown])

    def test_another_roof(self) -> None:
        ours = series("samestep", 0.01, workers=2)
        for roof in (series("roof", 0.01, workers=4), series("roof", 0.01, workers=2, global_batch=128)):
            with pytest.raises(UsageError, match="a roof is that of the same workers and global batch"):
                of_roof(roof, ours)

    def test_other_rounds(self) -> None:
        with pytest.raises(UsageError, match="10 rounds against 9"):
            speed_up(SINGLE, series("samestep", 0.01, rounds=9))
