"""Stages between real workers: cut anywhere, in any schedule, the network is that of one worker, bit for bit."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from samestep.engine import faults
from samestep.errors import NonFiniteError, UsageError
from samestep.run.train import train
from samestep.workloads import catalog
from tests import helpers
from tests.marks import built_in, soak
from tests.run.test_same_bits import COMMON, EVERYTHING, double, everything, factors, summary

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

SHORT: dict[str, Any] = {**COMMON, "optimizer": "adamw", "lr": 0.02, "clip_norm": 0.5}


class Residual(nn.Module):
    """A normalised, dropped-out addition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True))
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = x + self.drop(self.layers(x))
        return summed


class Branched(nn.Module):
    """A value that skips stages, integers and floats that cross, a slice, and a table shared by both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 12)
        self.blocks = nn.ModuleList([Residual(12) for _ in range(4)])
        self.out = nn.Linear(16, helpers.NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        codes = x.abs().mul(3).long().clamp(max=15)
        looked_up = self.table(codes).mean(1)
        first = hidden = x + looked_up
        for block in self.blocks:
            hidden = block(hidden)
        mixed = (hidden + first)[:, 2:]
        scores: Tensor = self.out(functional.linear(torch.cat([mixed, x[:, :2]], dim=1), self.table.weight))
        return scores


class Drawing(nn.Module):
    """Drops out in its own forward, before and behind a module that draws."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, helpers.NUM_CLASSES)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(functional.dropout(self.first(x), 0.2, self.training))
        scores: Tensor = functional.dropout(self.third(self.drop(hidden)), 0.1, self.training)
        return scores


def branched() -> Any:
    return helpers.workload(Branched, train=helpers.samples(76), evaluation=helpers.samples(20))


@pytest.mark.parametrize(
    ("stages", "workers", "schedule"),
    [
        soak(2, 2, "gpipe"), soak(3, 3, "1f1b"), (2, 6, "1f1b"), soak(2, 2, "interleaved"), soak(3, 3, "zbv"),
        *(soak(3, 6, each) for each in ("gpipe", "interleaved", "zbv")),
    ],
)  # fmt: skip
def test_skips_shared_weights_batch_norm_and_dropout(stages: int, workers: int, schedule: str) -> None:
    settings = {**SHORT, "evaluate_every": 3}
    wanted = train(branched(), **settings)
    found = train(branched(), **{**settings, "workers": workers, "stages": stages, "schedule": schedule})
    assert summary(found) == summary(wanted)


@pytest.mark.parametrize(
    ("build", "settings", "schedule"),
    [
        soak(everything, EVERYTHING, "1f1b"), (everything, EVERYTHING, "zbv"), soak(double, SHORT, "1f1b"),
        soak(factors, {**COMMON, "optimizer": "adafactor", "lr": 0.02}, "interleaved"),
    ],
)  # fmt: skip
def test_optimisers_rounds_and_types(build: Callable[[], Any], settings: dict[str, Any], schedule: str) -> None:
    wanted = train(build(), **settings)
    found = train(build(), **{**settings, "workers": 2, "stages": 2, "schedule": schedule})
    assert summary(found) == summary(wanted)


@pytest.mark.parametrize("cut", ["second", "third"])
def test_what_the_network_draws_itself(cut: str) -> None:
    """Between two layers nobody could tell where the generator is, so the cut would be refused."""
    wanted = train(helpers.workload(Drawing), **SHORT)
    settings = {**SHORT, "workers": 2, "stages": 2, "cut": cut}
    if cut == "second":
        with pytest.raises(UsageError, match="can begin with 'second'; it can with dropout, third"):
            train(helpers.workload(Drawing), **settings)
    else:
        assert summary(train(helpers.workload(Drawing), **settings)) == summary(wanted)


class Again(nn.Module):
    """Uses a dropout on both sides of a cut: what it draws depends on how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, helpers.NUM_CLASSES)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.third(self.drop(self.second(self.drop(self.first(x)))))
        return scores


@pytest.mark.soak
def test_a_module_that_draws_in_two_stages() -> None:
    wanted = train(helpers.workload(Again), **SHORT)
    found = train(helpers.workload(Again), **{**SHORT, "workers": 2, "stages": 2, "cut": "second"})
    assert summary(found) == summary(wanted)


class Deep(nn.Module):
    """A recurrent network of three layers between dropouts, which draws in training between its layers."""

    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.before, self.behind = nn.Dropout(0.2), nn.Dropout(0.2)
        self.net = kind(3, 8, num_layers=3, dropout=0.3, bidirectional=True, batch_first=True)
        self.out = nn.Linear(32, helpers.NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        found, states = self.net(self.before(x.view(-1, 4, 3)))
        last = states[0] if isinstance(self.net, nn.LSTM) else states
        scores: Tensor = self.out(self.behind(torch.cat([found[:, -1], last[0], last[3]], dim=1)))
        return scores


@pytest.mark.parametrize(
    ("kind", "stages", "schedule", "cut"),
    [
        soak(nn.LSTM, 2, "1f1b", "net.l2"), soak(nn.GRU, 3, "1f1b", "net.l1,net.l2"),
        soak(nn.GRU, 2, "zbv", "net.l1,net.l2,out"), soak(nn.LSTM, 2, "interleaved", None),
    ],
)  # fmt: skip
def test_cuts_between_the_layers_of_a_recurrent_network(
    kind: Callable[..., nn.RNNBase], stages: int, schedule: str, cut: str | None
) -> None:
    work = helpers.workload(lambda: Deep(kind), evaluation=helpers.samples(20))
    settings = {**SHORT, "evaluate_every": 3}
    wanted = train(work, **settings)
    found = train(work, **{**settings, "workers": stages, "stages": stages, "schedule": schedule, "cut": cut})
    assert summary(found) == summary(wanted)


class Encoding(nn.Module):
    """torch's own encoder between two layers.

    Args:
        mask: "none"; "causal" or "other", as is said of it; "unsaid", where torch looks whether it is causal.
    """

    mask: Tensor

    def __init__(self, mask: str) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True, norm_first=True)
        self.first, self.out = nn.Linear(3, 8), nn.Linear(8, helpers.NUM_CLASSES)
        self.net = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(8), enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))
        self.is_masked = mask != "none"
        self.options: dict[str, Any] = {"causal": {"is_causal": True}, "other": {"is_causal": False}}.get(mask, {})

    def forward(self, x: Tensor) -> Tensor:
        options = {**self.options, "mask": self.mask} if self.is_masked else self.options
        scores: Tensor = self.out(self.net(self.first(x.view(-1, 4, 3)), **options).mean(dim=1))
        return scores


@pytest.mark.parametrize(
    ("mask", "cut"),
    [("causal", "net.layers.1"), soak("none", "net.layers.2"), soak("unsaid", "out"), soak("other", None)],
)
def test_cuts_between_the_layers_of_an_encoder(mask: str, cut: str | None) -> None:
    work = helpers.workload(partial(Encoding, mask), evaluation=helpers.samples(20))
    settings = {**SHORT, "evaluate_every": 3}
    wanted = train(work, **settings)
    found = train(work, **{**settings, "workers": 2, "stages": 2, "cut": cut})
    assert summary(found) == summary(wanted)


class Strict(nn.TransformerEncoderLayer):
    """Wants everything that torch's encoder gives its layers."""

    def forward(self, src: Tensor, src_mask: Any, src_key_padding_mask: Any, is_causal: bool) -> Tensor:  # type: ignore[override]
        return super().forward(src, src_mask, src_key_padding_mask, is_causal)


@pytest.mark.soak
def test_layers_of_an_encoder_get_what_the_whole_gives_them() -> None:
    def build() -> nn.Module:
        net = Encoding("none")
        net.net.layers = nn.ModuleList(Strict(8, 2, 16, dropout=0.2, batch_first=True) for _ in range(3))
        return net

    wanted = train(helpers.workload(build), **SHORT)
    found = train(helpers.workload(build), **{**SHORT, "workers": 2, "stages": 2, "cut": "net.layers.1"})
    assert summary(found) == summary(wanted)


def test_an_encoder_whose_mask_may_be_causal_is_not_opened() -> None:
    with pytest.raises(UsageError, match=r"no stage can begin with 'net.layers.1'"):
        train(
            helpers.workload(partial(Encoding, "unsaid")), **{**SHORT, "workers": 2, "stages": 2, "cut": "net.layers.1"}
        )


class Mixed(nn.Module):
    """A weight that a layer uses, whose gradient can wait, and an operation of which nothing is known."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(12, 12) for _ in range(5)))
        self.out = nn.Linear(12, helpers.NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers(x)
        weight: Any = self.layers[4].weight
        scores: Tensor = self.out(torch.einsum("bi,oi->bo", hidden, weight).tanh() @ weight)
        return scores


@pytest.mark.soak
def test_weights_whose_gradients_cannot_wait() -> None:
    settings = {**SHORT, "workers": 2, "stages": 2, "schedule": "zbv", "cut": "layers.1,layers.2,layers.3"}
    wanted = train(helpers.workload(Mixed), **SHORT)
    found = train(helpers.workload(Mixed), **settings)
    assert summary(found) == summary(wanted)


class Forked(nn.Module):
    """One value feeds three layers: autocast casts it for each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 24)
        self.a, self.b, self.c = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, helpers.NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).float()
        scores: Tensor = self.c(self.a(hidden) * self.b(hidden) + hidden)
        return scores


@pytest.mark.parametrize(
    ("model", "cut", "schedule"),
    [soak(helpers.Wide, "out", "1f1b"), soak(Forked, "a", "1f1b"), (helpers.Wide, "layers.1,layers.2,out", "zbv")],
)
@pytest.mark.soak
def test_bfloat16(model: Callable[[], nn.Module], cut: str, schedule: str) -> None:
    settings = {**SHORT, "precision": "bf16"}
    wanted = train(helpers.workload(model), **settings)
    options = {"workers": 2, "stages": 2, "schedule": schedule, "cut": cut}
    found = train(helpers.workload(model), **{**settings, **options})
    assert summary(found) == summary(wanted)


def test_resuming_with_other_stages(tmp_path: Path) -> None:
    settings = {**SHORT, "checkpoint": tmp_path}
    wanted = train(branched(), **SHORT)
    for steps, stages, workers, schedule in ((3, 2, 2, "zbv"), (5, 1, 2, "1f1b"), (7, 3, 3, "interleaved")):
        options = {"steps": steps, "stages": stages, "workers": workers, "schedule": schedule, "resume": steps > 3}
        found = train(branched(), **{**settings, **options})
    assert found.record.weights_sha256 == wanted.record.weights_sha256
    assert found.record.first_step == 5


class Slow(nn.Module):
    """Takes its time."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.02)
        return x


def slow() -> nn.Module:
    """Slow enough for a replacement to join before the end."""
    middle = (nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
    return nn.Sequential(nn.Linear(12, 16), Slow(), *middle, nn.Linear(16, helpers.NUM_CLASSES))


LONGER: dict[str, Any] = {**SHORT, "steps": 60, "global_batch": 16}


@cache
def undisturbed() -> str:
    """The digest of the run that nothing happens to."""
    return train(helpers.workload(slow), **LONGER).record.weights_sha256


@pytest.mark.parametrize(
    ("schedule", "workers", "victim"),
    [
        ("1f1b", 2, 1), soak("1f1b", 2, 0), soak("gpipe", 2, 0), soak("gpipe", 2, 1),
        *(soak(schedule, 2, victim) for schedule in ("interleaved", "zbv") for victim in (0, 1)),
        *(soak(schedule, 4, victim) for schedule in ("1f1b", "gpipe") for victim in (0, 3)),
    ],
)  # fmt: skip
def test_a_death_in_any_stage_is_a_replay(
    schedule: str, workers: int, victim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one worker left there is one stage, with three one replica, until the replacement joins."""
    phase = "exchange with another stage" if schedule == "gpipe" else "backward"
    marker = tmp_path / "died"
    monkeypatch.setenv(faults.VARIABLE, f"rank={victim},step=10,phase={phase},marker={marker}")
    found = train(helpers.workload(slow), **{**LONGER, "workers": workers, "stages": 2, "schedule": schedule})
    assert marker.exists()
    assert sum(" died (" in text for text in found.record.notices) == 1
    assert found.record.weights_sha256 == undisturbed()


def test_a_number_that_is_not_finite_is_found_in_its_stage() -> None:
    class Bursting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.where(x.detach().amax() > 0, torch.inf, 1.0)

    def bursting() -> nn.Module:
        return nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 8), Bursting(), nn.Linear(8, helpers.NUM_CLASSES))

    messages = []
    for stages in (1, 2):
        with pytest.raises(NonFiniteError) as caught:
            train(helpers.workload(bursting), **{**SHORT, "workers": stages, "stages": stages})
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("fault", ["none", "dropped", "swapped"])
def test_a_planted_fault_is_seen(fault: str) -> None:
    """The gradient of a weight is dropped once; or two microbatches' values arrive in each other's place."""
    from samestep.engine.stages import staged

    backward, received = staged.StagedPasses._backward_one, staged.StagedPasses._receive_values
    kept: list[Any] = []

    def without_one(passes: Any, held: Any, flight: Any) -> Any:
        found = backward(passes, held, flight)
        if passes._step == 2:
            weights = [parameter for parameter in passes._model.parameters if parameter.dim() >= 2]
            weights[-1].grad = None
        return found

    def swapped(passes: Any, *given: Any) -> Any:
        if not kept:
            kept.append(received(passes, *given))
            return received(passes, *given)
        staged.StagedPasses._receive_values = received  # type: ignore[method-assign]
        return kept[0]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        """In the worker that computes the loss: in the last stage."""
        kind: Any = staged.StagedPasses
        if fault == "dropped":
            kind._backward_one = without_one
        elif fault == "swapped" and not kept:
            kind._receive_values = swapped
        return functional.cross_entropy(output, target, reduction="none")

    def plain(output: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(output, target, reduction="none")

    wanted = train(helpers.workload(helpers.Wide, loss=plain), **SHORT)
    found = train(helpers.workload(helpers.Wide, loss=loss), **{**SHORT, "workers": 2, "stages": 2})
    assert (found.record.weights_sha256 == wanted.record.weights_sha256) == (fault == "none")


class Deciding(nn.Module):
    """Looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 8), nn.Linear(8, helpers.NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        scores: Tensor = self.second(hidden if hidden.sum() > 0 else -hidden)
        return scores


class Whole(nn.Module):
    """One operation."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(12, helpers.NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(x)
        return scores


@pytest.mark.parametrize(
    ("model", "settings", "says"),
    [
        (helpers.Wide, {"stages": 2, "workers": 3}, "workers=3 with stages=2.*take workers=2 or 4"),
        (helpers.Wide, {"stages": 2, "workers": 1}, "take workers=2$"),
        (helpers.Wide, {"stages": 2, "workers": 16}, "are 8 replicas, and a step has 7 microbatches.*workers=14"),
        (helpers.Wide, {"stages": 9, "workers": 9}, "can be cut in 5 pieces at most.*take stages=5 or less"),
        (helpers.Wide, {"stages": 2, "cut": "out,layers.2"}, "cut names 2 modules .*and 2 pieces have 1 cuts"),
        (helpers.Wide, {"stages": 2, "cut": "head"}, "can begin with 'head'; it can with layers.1, .*out"),
        (helpers.Wide, {"stages": 3, "workers": 3, "cut": "out,layers.2"}, "not in the order"),
        (helpers.Wide, {"cut": "out"}, "there is one; take stages=2 or more"),
        (helpers.Wide, {"stages": 2, "backprop": "concurrent"}, "do not go together"),
        (helpers.Wide, {"stages": 2, "chunks": 2}, "schedule='1f1b', in which a stage holds one"),
        (helpers.Wide, {"stages": 3, "workers": 3, "schedule": "zbv"}, "stages=3 with chunks=2, and.*take stages=2"),
        (helpers.Mlp, {"stages": 2, "schedule": "interleaved", "chunks": 4}, "; take chunks=2$"),
        (
            helpers.Mlp,
            {"stages": 3, "workers": 3, "schedule": "zbv", "chunks": 2},
            "; take stages=2$",
        ),
        (Whole, {"stages": 2}, "can be cut nowhere.*; take stages=1$"),
        (Whole, {"stages": 2, "schedule": "interleaved", "chunks": 3}, "can be cut nowhere.*; take stages=1$"),
        (Deciding, {"stages": 2}, "its forward pass cannot be traced.* into a module of its own.* or take stages=1$"),
        (helpers.Wide, {"stages": 2, "cut": ""}, "cut='' has an empty name"),
        (helpers.Wide, {"stages": 3, "workers": 3, "cut": "layers.1,"}, "cut='layers.1,' has an empty name"),
        (helpers.Wide, {"stages": 2, "workers": 4, "microbatch": 27}, "2 replicas, and a step has 1 microbatch; take"),
        (helpers.Wide, {"workers": 2, "microbatch": 27}, "more than the 1 microbatch of.*; take workers=1, a smaller"),
        (helpers.Tied, {"stages": 2, "cut": "second", "precision": "bf16"}, "two pieces use the same weight.*fp32"),
    ],
)
def test_mistakes(model: Callable[[], nn.Module], settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        train(helpers.workload(model), **{**SHORT, "workers": 2, **settings})
    assert "\n" not in str(caught.value)


def test_a_run_tells_of_a_cut_that_is_of_no_use() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.slow, self.out = nn.Linear(12, 8), Slow(), nn.Linear(8, helpers.NUM_CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            count = x.shape[0]
            scores: Tensor = self.out(self.slow(self.first(x)).reshape(count, 8))
            return scores

    options = {"steps": 1, "workers": 2, "stages": 2, "microbatch": 27}
    uneven, unfilled = train(helpers.workload(Counting), **{**SHORT, **options, "schedule": "gpipe"}).record.notices
    assert uneven.startswith("warning: stage 0 of 0-1 has ")
    assert unfilled.startswith("warning: stages=2 with schedule='gpipe' wait less where a replica has 2 or more")


class Turning(nn.Module):
    """Looks at values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.soak
def test_what_looks_at_values_in_a_module_of_its_own() -> None:
    """As is advised where a network cannot be traced."""

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(12, 8), Turning(), nn.Linear(8, helpers.NUM_CLASSES))

    wanted = train(helpers.workload(build), **SHORT)
    found = train(helpers.workload(build), **{**SHORT, "workers": 2, "stages": 2})
    assert summary(found) == summary(wanted)


def test_named_cuts() -> None:
    wanted = train(helpers.workload(helpers.Wide), **SHORT)
    options = {"workers": 3, "stages": 3, "cut": "layers.2, out"}
    found = train(helpers.workload(helpers.Wide), **{**SHORT, **options})
    assert summary(found) == summary(wanted)


class Repeated(nn.Module):
    """A layer that is used again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.d = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, helpers.NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.b(self.a(x))
        for _ in range(6):
            hidden = self.d(hidden)
        scores: Tensor = self.out(hidden)
        return scores


@pytest.mark.soak
def test_a_named_cut_where_fewer_stages_are_cut_elsewhere() -> None:
    wanted = train(helpers.workload(Repeated), **SHORT)
    found = train(helpers.workload(Repeated), **{**SHORT, "workers": 3, "stages": 3, "cut": "b,d"})
    assert summary(found) == summary(wanted)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", built_in())
def test_every_built_in_workload(name: str) -> None:
    """In every schedule, alone and with a second replica."""
    plain, chunked = ("1f1b", "gpipe"), ("interleaved", "zbv")
    if name == "fashion-lstm":  # an LSTM of one layer is one operation
        with pytest.raises(UsageError, match="can be cut in 3 pieces at most"):
            train(catalog.build(name), steps=1, workers=2, stages=2, schedule="zbv")
        helpers.check_built_in(name, _staged(*chunked), sizes={"depth": 3, "width": 64})
        helpers.check_built_in(name, _staged(*plain))
    else:
        helpers.check_built_in(name, _staged(*plain, *chunked))


def _staged(*schedules: str) -> list[dict[str, Any]]:
    """Two stages, and a second replica of them."""
    return [{"workers": w, "stages": 2, "schedule": schedule} for schedule in schedules for w in (2, 4)]
