"""samestep against plain torch and DDP: what is rounding, what is not, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.errors import UsageError
from samestep.measure.against.comparison import Against, against
from samestep.measure.against.habits import Habits, Peer, usual
from samestep.measure.against.peer import InProcess, State, Trainer, task_of
from samestep.measure.against.ranks import Ranks
from samestep.run.config import Settings
from samestep.run.prepare import Choices
from samestep.run.progress import Silent
from samestep.run.train import run
from samestep.run.workload import Workload
from samestep.workloads import catalog
from tests import helpers
from tests.measure.against.test_causes import Sums


def settings(**given: Any) -> Settings:
    common = {"steps": 5, "global_batch": 16, "microbatch": 4, "optimizer": "sgd", "lr": 0.1}
    return Settings(**{**common, "workers": 1, **given})


def compare(
    peer: Peer,
    work: Workload,
    given: Settings,
    *,
    habits: Habits | None = None,
    trainer: Trainer | None = None,
    change: Callable[[State], State] = lambda state: state,
) -> Against:
    state = run(work, given, choices=Choices(), progress=Silent()).model.state_dict()
    reference = change({name: values.clone() for name, values in state.items()})
    return against(peer, lambda: work, given, reference, Silent(), habits=habits, trainer=trainer)


class Narrow(nn.Module):
    """A network that knows no dtype but float32."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.net = helpers.Mlp(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("planted: float32 only")
        scores: Tensor = self.net(x)
        return scores


def spoil(state: State) -> State:
    """What a kernel that is wrong in one dtype only would give."""
    return {name: values * 1.01 for name, values in state.items()}


class TestTorch:
    def test_rounding(self) -> None:
        found = compare("torch", catalog.build("digits-cnn", width=4), Settings(steps=5, workers=1))
        assert found.is_explained
        assert found.differences, "the same bits would be an accident"
        assert 0 < found.relative < found.bound < 1e-3
        assert (found.cause, found.relative_in_float64, found.grown, found.reason) == ((), None, None, None)
        assert all(item.largest < 1e-5 for item in found.differences)

    def test_dropout(self) -> None:
        found = compare("torch", catalog.build("digits-mlp", width=16), Settings(steps=5, workers=1))
        assert not found.is_explained
        assert found.relative > 0.01
        assert found.relative_in_float64 == pytest.approx(found.relative, rel=0.01)
        (cause,) = found.cause
        assert cause.startswith("dropout: torch draws")

    def test_small_cause(self) -> None:
        """One batch of five weighed otherwise is more than rounding."""
        habits = replace(usual("torch"), last_batch="padded")
        found = compare("torch", helpers.workload(), settings(), habits=habits)
        assert [cause.split(":")[0] for cause in found.cause] == ["last batch"]

    @pytest.mark.parametrize("optimizer", ["adamw", "muon"])
    def test_grown_rounding(self, optimizer: str) -> None:
        """The gradient of the keys' bias is zero but for rounding; Adam makes a step of it, and Muon rounds inside."""
        found = compare("torch", helpers.workload(helpers.Encoder), settings(optimizer=optimizer, lr=0.01, steps=20))
        assert found.is_explained
        if optimizer == "adamw":
            assert found.relative > found.bound
            assert found.grown is not None
            assert found.relative <= 2 * found.grown
            assert found.relative_in_float64 is not None
            assert found.relative_in_float64 < 1e-9
            (cause,) = found.cause
            assert cause.startswith("rounding that has grown")

    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_wrong_in_one_dtype_only(self, optimizer: str) -> None:
        found = compare(
            "torch", helpers.workload(helpers.Encoder), settings(optimizer=optimizer, lr=0.01), change=spoil
        )
        assert not found.is_explained
        (cause,) = found.cause
        assert cause.startswith("precision: more than rounding")

    @pytest.mark.parametrize(("dropout", "is_explained"), [(0.0, True), (0.5, False)])
    def test_without_float64(self, dropout: float, is_explained: bool) -> None:
        """Where float64 cannot be had, what one rounding grows to is the measure."""
        work = helpers.workload(lambda: Narrow(dropout))
        found = compare("torch", work, settings())
        assert found.is_explained is is_explained
        if not is_explained:
            assert found.reason is not None
            assert "planted: float32 only" in found.reason
            assert found.relative_in_float64 is None
            assert [cause.split(":")[0] for cause in found.cause] == ["dropout"]
        spoiled = compare("torch", helpers.workload(lambda: Narrow(0.0)), settings(), change=spoil)
        assert (spoiled.is_explained, spoiled.cause) == (False, ())

    def test_threads_are_named_where_they_change_bits(self) -> None:
        work = helpers.workload(Sums)
        given = settings(microbatch=16, steps=4)
        found = compare("torch", work, given, habits=replace(usual("torch"), threads=2))
        assert found.is_explained
        assert [cause.split(":")[0] for cause in found.cause] == ["threads"]
        assert compare("torch", work, given).cause == ()

    def test_nothing_trained(self) -> None:
        found = compare("torch", helpers.workload(lambda: helpers.Mlp(0.5)), settings(lr=0.0))
        assert found.is_explained
        assert found.differences == ()

    def test_refused(self) -> None:
        with pytest.raises(UsageError, match="plain torch has no sharpness-aware step"):
            compare("torch", helpers.workload(), settings(sam_radius=0.1))
        with pytest.raises(UsageError, match="optimizer='kfac': plain torch has no step like its own"):
            compare("torch", helpers.workload(), Settings(optimizer="kfac"))


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """One pair of processes for all tests."""
    with Ranks(timeout_s=60) as ranks:
        ranks.train(task_of(helpers.workload(), settings(steps=1)), usual("ddp"))
        yield ranks


CLASS_WEIGHTS = nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 2.0, 3.0, 4.0]))
DDP: dict[str, tuple[Workload, dict[str, Any], list[str]]] = {
    "nothing": (helpers.workload(), {"steps": 4}, []),
    "last batch": (helpers.workload(), {}, ["which DDP splits into 6 + 5 to average their means"]),
    "unequal shares": (helpers.workload(), {"global_batch": 15}, ["unequal weight (8 + 7 samples)"]),
    "class weights": (helpers.workload(loss=CLASS_WEIGHTS), {"steps": 4}, ["mean of means: DDP averages means of"]),
    "ignored": (
        helpers.workload(train=helpers.samples(ignored=0), loss=nn.CrossEntropyLoss(ignore_index=0)), {"steps": 4},
        ["unequal weight (ignored targets)"],
    ),
    "BatchNorm": (
        helpers.workload(helpers.Cnn), {"steps": 4}, ["BatchNorm: DDP normalises its whole share of a batch"],
    ),
    "BatchNorm, only its running statistics": (
        helpers.workload(helpers.Cnn), {"steps": 4, "microbatch": 8},
        ["BatchNorm: DDP's buffers follow what it forwards (its whole share of a batch)"],
    ),
    "dropout": (helpers.workload(lambda: helpers.Mlp(0.5)), {"steps": 4}, ["dropout: DDP draws"]),
    "odd microbatches": (
        helpers.workload(lambda: helpers.Mlp(0.5)), {"global_batch": 20, "microbatch": 4, "steps": 3},
        ["dropout: DDP draws"],
    ),
}  # fmt: skip


@pytest.mark.processes
class TestDdp:
    @pytest.mark.parametrize("name", DDP)
    def test_causes(self, ranks: Ranks, name: str) -> None:
        work, given, expected = DDP[name]
        found = compare("ddp", work, settings(**given), trainer=ranks)
        assert found.is_explained is not bool(expected)
        assert len(found.cause) == len(expected), found.cause
        for cause, text in zip(found.cause, expected, strict=True):
            assert text in cause

    def test_order_of_the_sampler(self, ranks: Ranks) -> None:
        habits = replace(usual("ddp"), order="DistributedSampler", last_batch="padded")
        found = compare("ddp", helpers.workload(), settings(), habits=habits, trainer=ranks)
        assert [cause.split(":")[0] for cause in found.cause] == ["order", "last batch"]


def test_samesteps_habits_are_samesteps() -> None:
    """Plain torch with all of samestep's habits is samestep, on a network that has everything."""
    task = task_of(helpers.workload(helpers.Everything), settings(last_batch="drop"))
    state = run(helpers.workload(helpers.Everything), settings(last_batch="drop"), choices=Choices(), progress=Silent())
    assert task.gap(dict(state.model.state_dict()), InProcess().train(task, Habits())).is_rounding
