"""A study of known programs comes out as it was made, and its verdict names what was planted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from samestep.errors import UsageError
from samestep.measure.laws import amdahl, usl
from samestep.measure.scaling import Scaling, analyse
from samestep.measure.series import Axis, Kind, Series

ROUNDS = 20


def study(
    ours: Mapping[int, float],
    *,
    torch: Mapping[int, float],
    roofs: Mapping[int, float] = {},
    axis: Axis = "strong",
    noise: float = 0.002,
    rounds: int = ROUNDS,
) -> list[Series]:
    """Series from step times in ms: of samestep by workers, of torch by threads, of roofs by programs."""
    generator = np.random.default_rng(0)
    drift = np.linspace(1.0, 1.3, rounds)

    def series(kind: Kind, workers: int, threads: int, step_ms: float) -> Series:
        name = {
            "torch": f"torch, {threads} thread{'s' if threads > 1 else ''}",
            "samestep": f"samestep, {workers} workers",
            "roof": f"roof, {workers} programs",
        }[kind]
        return Series(
            name=name,
            kind=kind,
            workers=workers,
            threads=threads,
            global_batch=64 * (workers if axis == "weak" else 1),
            step_s=tuple(step_ms / 1000 * drift * np.exp(noise * generator.normal(size=rounds))),
        )

    return [
        *(series("torch", 1, threads, step_ms) for threads, step_ms in torch.items()),
        *(series("samestep", workers, 1, step_ms) for workers, step_ms in ours.items()),
        *(series("roof", programs, 1, step_ms) for programs, step_ms in roofs.items()),
    ]


def found(*args: Any, cores: int = 4, losses: Mapping[int, Mapping[str, float]] = {}, **options: Any) -> Scaling:
    return analyse(options.get("axis", "strong"), study(*args, **options), cores=cores, losses=losses)


class TestAnalyse:
    def test_strong(self) -> None:
        scaling = found({1: 22, 2: 11.5, 4: 7}, torch={1: 20, 2: 16}, roofs={2: 11, 4: 6})
        assert scaling.axis == "strong" and scaling.best_single == "torch, 2 threads"
        assert [point.workers for point in scaling.points] == [1, 2, 4]
        one, two, four = scaling.points
        assert four.speed_up.value == pytest.approx(16 / 7, rel=0.01)
        assert four.relative.value == pytest.approx(22 / 7, rel=0.01)
        assert four.efficiency.value == pytest.approx(22 / 28, rel=0.01)
        assert four.roof is not None and four.roof.value == pytest.approx(16 / 6, rel=0.01)
        assert four.of_roof is not None and four.of_roof.value == pytest.approx(6 / 7, rel=0.01)
        assert (one.relation, two.relation, four.relation) == ("slower", "faster", "faster")
        assert one.efficiency.value == 1 and one.roof is None
        assert scaling.pays_up_to == 4

    def test_weak(self) -> None:
        scaling = found({1: 22, 2: 24, 4: 30}, torch={1: 20, 2: 22}, roofs={4: 25}, axis="weak")
        four = scaling.points[-1]
        assert four.speed_up.value == pytest.approx(4 * 20 / 30, rel=0.01)
        assert four.efficiency.value == pytest.approx(22 / 30, rel=0.01)
        assert four.samples_per_s.value == pytest.approx(256 / (0.030 * 1.15), rel=0.01)
        assert four.roof is not None and four.roof.value == pytest.approx(4 * 20 / 25, rel=0.01)
        assert scaling.pays_up_to == 4
        assert "up to 4 workers: 2.6" in scaling.verdict
        assert "× the samples/s of the best single process (torch, 1 thread) [2.6" in scaling.verdict

    def test_fits(self) -> None:
        serial = found({count: 20 / amdahl(count, 0.1) for count in (1, 2, 4)}, torch={1: 20})
        assert serial.fits[0].parameters["serial_frac"].value == pytest.approx(0.1, rel=0.02)
        retrograde = found({count: 20 / usl(count, 0.05, 0.05) for count in (1, 2, 4, 8)}, torch={1: 20}, cores=8)
        assert retrograde.fits[1].parameters["coherency"].value == pytest.approx(0.05, rel=0.02)
        assert retrograde.fits[1].peak_workers == pytest.approx(4.36, rel=0.02)

    def test_fits_that_cannot_be(self) -> None:
        strong, weak = found({1: 20, 2: 11}, torch={1: 20}), found({1: 20, 2: 21}, torch={1: 20}, axis="weak")
        assert strong.fits[0].reason is None
        assert strong.fits[1].reason == "needs three counts of workers, 1 and two others; measured were 1, 2"
        assert weak.fits[0].reason == "Amdahl's law is about one global batch (strong scaling); here it grows"

    def test_the_order_of_series_does_not_matter(self) -> None:
        series = study({1: 22, 2: 11.5, 4: 7}, torch={1: 20, 2: 16}, roofs={2: 11, 4: 6})
        assert analyse("strong", series, cores=4) == analyse("strong", series[::-1], cores=4)


class TestPaysUpTo:
    def test_not_beyond_what_is_faster_than_fewer(self) -> None:
        assert found({1: 20, 2: 11, 4: 11}, torch={1: 20}).pays_up_to == 2

    def test_a_dip_between(self) -> None:
        assert found({1: 20, 2: 25, 4: 10}, torch={1: 20}).pays_up_to == 4

    def test_one_worker_is_not_parallel(self) -> None:
        assert found({1: 10, 2: 10}, torch={1: 20}).pays_up_to is None

    def test_faster_than_one_worker_only(self) -> None:
        assert found({1: 40, 2: 25}, torch={1: 20}).pays_up_to is None


class TestVerdict:
    def test_pays(self) -> None:
        verdict = found({1: 22, 2: 11, 4: 7}, torch={1: 20, 2: 20.3}).verdict
        assert verdict.startswith(
            "parallel training pays here up to 4 workers: 2.86 × the best single process (torch, 1 thread) [2.8"
        )
        assert verdict.endswith("]")

    def test_fewer_are_best_because_of_cores(self) -> None:
        verdict = found({1: 20, 2: 11, 4: 16}, torch={1: 20}, cores=2).verdict
        assert "pays here up to 2 workers: 1.82 × the best single process (torch, 1 thread) [1.8" in verdict
        assert "; with 4 it is slower, 1.25 × [1.2" in verdict
        assert verdict.endswith("because there are more workers than cores (4 workers on 2 cores)")

    def test_fewer_are_best_because_of_the_machine(self) -> None:
        verdict = found({1: 20, 2: 11, 4: 11}, torch={1: 20}, roofs={2: 10, 4: 10}).verdict
        assert "; with 4 it is not faster beyond noise, 1.82 × [1.8" in verdict
        assert "because the machine itself gives no more (4 independent programs that exchange nothing" in verdict
        assert "reach 2.00 × [2.00, 2.00], 2 reach 2.00 ×)" in verdict

    def test_fewer_are_best_because_of_waiting(self) -> None:
        losses = {2: {"waiting": 0.05}, 4: {"waiting": 0.3, "combine + update": 0.2}}
        verdict = found({1: 20, 2: 11, 4: 12}, torch={1: 20}, roofs={2: 10, 4: 6}, losses=losses).verdict
        assert verdict.endswith("because waiting and combining take 50 % of the step (13.8 ms)")

    def test_fewer_are_best_and_waiting_was_as_long_before(self) -> None:
        losses = {2: {"waiting": 0.3}, 4: {"waiting": 0.3}}
        verdict = found({1: 20, 2: 11, 4: 12}, torch={1: 20}, losses=losses).verdict
        assert "with 4 it is slower" in verdict and "because" not in verdict

    def test_short_step(self) -> None:
        losses = {2: {"compute": 0.55, "waiting": 0.15, "combine + update": 0.28, "data": 0.02}}
        verdict = found({1: 1.1, 2: 1.4}, torch={1: 1.0}, roofs={2: 0.6}, losses=losses).verdict
        assert verdict.startswith(
            "parallel training does not pay here, because the step is short (1.61 ms) and waiting and combining take "
            "43 % of it: 2 workers give 0.71 × the best single process (torch, 1 thread) [0.7"
        )

    def test_a_loss_that_explains_a_part(self) -> None:
        verdict = found({1: 1.1, 2: 2.5}, torch={1: 1.0}, losses={2: {"waiting": 0.43}}).verdict
        assert "take 43 % of it, which explains a part: 2 workers give 0.40 ×" in verdict

    @pytest.mark.parametrize(
        ("group", "words"), [("data", "reading data takes"), ("machinery", "samestep's own machinery takes")]
    )
    def test_other_losses(self, group: str, words: str) -> None:
        verdict = found({1: 22, 2: 24}, torch={1: 20}, losses={2: {group: 0.4, "waiting": 0.2}}).verdict
        assert f"because {words} 40 % of the step (27.6 ms): 2 workers" in verdict

    def test_the_machine_gives_no_more(self) -> None:
        verdict = found({1: 22, 2: 21}, torch={1: 22, 2: 20}, roofs={2: 19.8}, losses={2: {"waiting": 0.5}}).verdict
        assert verdict.startswith(
            "parallel training does not pay here, because the machine itself gives no more (2 independent programs "
            "that exchange nothing reach 1.01 × [1.01, 1.01]): 2 workers give 0.95 × the best single process "
            "(torch, 2 threads) [0.9"
        )

    @pytest.mark.parametrize(("cores", "words"), [(1, "(2 workers on 1 core)"), (2, "no cause shows")])
    def test_more_workers_than_cores(self, cores: int, words: str) -> None:
        verdict = found({1: 20, 2: 22}, torch={1: 20}, cores=cores).verdict
        assert words in verdict and ("because there are more workers than cores" in verdict) is (cores == 1)

    def test_no_cause(self) -> None:
        verdict = found({1: 20, 2: 22}, torch={1: 20}, roofs={2: 12}, losses={2: {"waiting": 0.1}}).verdict
        assert verdict.startswith("parallel training does not pay here: 2 workers give 0.91 × the best single process")
        assert verdict.endswith("; no cause shows in what was measured")

    def test_equal(self) -> None:
        verdict = found({1: 22, 2: 20}, torch={1: 20}, roofs={2: 20}).verdict
        assert verdict.startswith("parallel training does not pay here, because the machine itself gives no more")
        assert verdict.endswith("equal within 2 %")

    def test_not_shown_different(self) -> None:
        verdict = found({1: 20, 2: 19.8}, torch={1: 20}, noise=0.05, rounds=10).verdict
        assert verdict.startswith(
            "parallel training is not shown to pay here: 2 workers are not shown different from the best single "
            "process (torch, 1 thread), "
        )
        assert int(verdict.split("; more rounds would tell: --repeats ")[1]) > 10

    def test_no_faster_than_one_worker(self) -> None:
        losses = {1: {"data": 0.05}, 2: {"data": 0.5}}
        verdict = found({1: 15, 2: 15}, torch={1: 20}, losses=losses).verdict
        assert verdict.startswith(
            "parallel training does not pay here, because reading data takes 50 % of the step (17.3 ms): 2 workers "
            "give 1.33 × the best single process (torch, 1 thread) ["
        )
        assert "], but are no faster than 1 worker (1.33 × [" in verdict

    def test_not_shown_faster_than_one_worker(self) -> None:
        verdict = found({1: 15, 2: 14.7}, torch={1: 20}, noise=0.04, rounds=10).verdict
        assert "is not shown to pay here: 2 workers give 1." in verdict
        assert ", but are not shown faster than 1 worker (1." in verdict and "--repeats " in verdict

    def test_only_one_worker(self) -> None:
        assert "only one worker was measured" in found({1: 15}, torch={1: 20}).verdict

    def test_names_hold_any_characters(self) -> None:
        series = study({1: 15, 2: 15}, torch={1: 20})
        series[0] = Series(**{**vars(series[0]), "name": "100 %s {odd}"})
        assert "(100 %s {odd})" in analyse("strong", series, cores=2).verdict

    @pytest.mark.parametrize("rounds", [1, 2, 3])
    def test_few_rounds_say_so_little(self, rounds: int) -> None:
        scaling = found({1: 20, 2: 18, 4: 21}, torch={1: 20}, rounds=rounds, noise=0.03)
        assert scaling.pays_up_to is None
        assert "is not shown to pay here" in scaling.verdict


class TestRefusals:
    @pytest.mark.parametrize(
        ("drop", "words"),
        [("torch", "no series of plain torch"), ("samestep, 1", "with 2 workers: scaling is against one worker")],
    )
    def test_missing(self, drop: str, words: str) -> None:
        series = [one for one in study({1: 20, 2: 11}, torch={1: 20}) if not one.name.startswith(drop)]
        with pytest.raises(UsageError, match=words):
            analyse("strong", series, cores=2)

    def test_twice(self) -> None:
        series = study({1: 20, 2: 11}, torch={1: 20})
        with pytest.raises(UsageError, match='"samestep, 2 workers" and "samestep, 2 workers" both have 2 workers'):
            analyse("strong", [*series, series[-1]], cores=2)

    def test_other_rounds(self) -> None:
        series = study({1: 20, 2: 11}, torch={1: 20})
        series[-1] = Series(**{**vars(series[-1]), "step_s": (0.01,) * 3})
        with pytest.raises(UsageError, match='"samestep, 1 workers" 20, "samestep, 2 workers" 3'):
            analyse("strong", series, cores=2)

    @pytest.mark.parametrize("axis", ["strong", "weak"])
    def test_other_batches(self, axis: Axis) -> None:
        other: Axis = "weak" if axis == "strong" else "strong"
        with pytest.raises(UsageError, match=f"{axis} scaling asks for the same"):
            analyse(axis, study({1: 20, 2: 11}, torch={1: 20}, axis=other), cores=2)

    @pytest.mark.parametrize("share", [-0.1, 43.0, float("nan")])
    def test_losses_that_are_no_shares(self, share: float) -> None:
        with pytest.raises(UsageError, match=r'"waiting" takes .* of the step with 2 workers: a share is 0 .. 1'):
            found({1: 20, 2: 11}, torch={1: 20}, losses={2: {"waiting": share}})
