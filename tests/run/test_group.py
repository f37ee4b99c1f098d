"""The group engine: ranks on one machine or several train the same network, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samestep.engine.loop import EvaluationRecord
from samestep.errors import NonFiniteError, UsageError
from samestep.plan.layout import BLOCK, blocks_of_microbatches
from samestep.plan.tree import maximal_nodes
from samestep.run.session import Result
from samestep.run.train import train
from samestep.run.workload import Workload
from tests import helpers
from tests.helpers import Cnn, Everything, Lstm, Tied, Wide
from tests.marks import built_in, soak

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

# Short last batches, M = 7 with a shorter last microbatch; the last step has one microbatch where a batch has 27.
COMMON: dict[str, Any] = {"global_batch": 27, "microbatch": 4, "steps": 7, "noise_scale": 1}
EVERYTHING: dict[str, Any] = {
    **COMMON, "optimizer": "muon", "lr": 0.02, "sam_radius": 0.05, "clip_norm": 0.5, "weight_decay": 0.01,
    "lr_schedule": "cosine", "lr_warmup": 0.3, "evaluate_every": 3,
}  # fmt: skip


def everything() -> Workload:
    return helpers.workload(Everything, train=helpers.samples(76), evaluation=helpers.samples(20))


def masked() -> Workload:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0, 3.0, 0.25]), ignore_index=3)
    return helpers.workload(lambda: Tied(has_unused=True), loss=loss, train=helpers.samples(ignored=3))


def double() -> Workload:
    return helpers.workload(helpers.double(Lstm), train=helpers.samples(dtype=torch.float64))


def convolution() -> Workload:
    return helpers.workload(Cnn, train=helpers.samples(77), evaluation=helpers.samples(9))


def wide() -> Workload:
    return helpers.workload(Wide)


CASES: dict[str, tuple[Callable[[], Workload], dict[str, Any]]] = {
    "everything": (everything, EVERYTHING),
    "whole tensors, masks, unused": (masked, {**COMMON, "optimizer": "adafactor", "lr": 0.02, "microbatch": 5}),
    "float64": (double, {**COMMON, "optimizer": "adamw", "lr": 0.02, "clip_norm": 0.1}),
    "few microbatches at the end": (
        convolution,
        {**COMMON, "microbatch": 6, "optimizer": "adamw", "evaluate_every": 2},
    ),
    "averages": (convolution, {**COMMON, "optimizer": "schedulefreeadamw", "lr": 0.02, "evaluate_every": 2}),
    "helpers": (wide, {**COMMON, "optimizer": "adamw", "backprop": "concurrent"}),
    "one microbatch at the end": (everything, {"global_batch": 24, "microbatch": 4, "steps": 9, "lr": 0.02}),
    "dropped last batch": (everything, {**COMMON, "optimizer": "lamb", "lr": 0.01, "last_batch": "drop"}),
}
TOLD = ["everything", "one microbatch at the end"]
"""Cases that every change runs; the soak runs all."""


def summary(result: Result) -> tuple[Any, ...]:
    """All that must not depend on the engine, of one run."""
    record, best = result.record, result.best_state
    assert record.end == "finished"
    return (
        record.weights_sha256,
        [(step.step, step.loss, step.gradient_norm) for step in record.steps],
        [(evaluation.step, dict(evaluation.means), evaluation.is_best) for evaluation in record.evaluations],
        None if best is None else {name: values.tolist() for name, values in best.items()},
        record.pairs.as_dict() if record.pairs else None,
    )


def same_bits(case: str, workers: int, machines: int) -> None:
    build, settings = CASES[case]
    wanted = train(build(), **settings, workers=1)
    found = train(build(), **settings, workers=workers, engine="group", machines=machines)
    assert found.record.engine == "group"
    assert summary(found) == summary(wanted)


@pytest.mark.parametrize(("case", "workers", "machines"), [*((case, 2, 1) for case in TOLD), ("everything", 3, 2)])
def test_same_bits(case: str, workers: int, machines: int) -> None:
    same_bits(case, workers, machines)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("workers", "machines"), [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3), (4, 1), (4, 2), (4, 3), (4, 4)]
)
@pytest.mark.parametrize("case", CASES)
def test_same_bits_in_every_case(case: str, workers: int, machines: int) -> None:
    same_bits(case, workers, machines)


@pytest.mark.soak
def test_another_seed_differs() -> None:
    digests = {
        train(everything(), **EVERYTHING, workers=2, engine="group", seed=s).record.weights_sha256 for s in (0, 1)
    }
    assert len(digests) == 2


@pytest.mark.soak
def test_a_callback_stops_all_ranks_at_the_same_step() -> None:
    heard: list[int] = []

    def stop_at_4(record: EvaluationRecord) -> bool:
        heard.append(record.step)
        return record.step == 4

    settings: dict[str, Any] = {**EVERYTHING, "evaluate_every": 2, "callbacks": (stop_at_4,)}
    digests = []
    for ways in ({"workers": 1}, {"workers": 3, "engine": "group", "machines": 2}):
        heard.clear()
        record = train(everything(), **settings, **ways).record
        assert (record.end, heard, len(record.steps)) == ("stopped", [2, 4], 4)
        digests.append(record.weights_sha256)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("optimizer", ["muon", pytest.param("adamw", marks=pytest.mark.soak)])
def test_a_run_goes_on_on_another_engine(tmp_path: Path, optimizer: str) -> None:
    settings: dict[str, Any] = {**EVERYTHING, "optimizer": optimizer, "steps": 60}
    wanted = train(everything(), **settings, workers=1)
    ways: list[dict[str, Any]] = [{"workers": 2, "engine": "group"}, {"workers": 1}]
    if optimizer == "adamw":
        shared = {"workers": 2, "engine": "shared"}
        group = [{"workers": 3, "engine": "group", "machines": machines} for machines in (2, 3)]
        ways += [group[0], shared, group[1], {"workers": 3, "engine": "shared"}]
    for number, way in enumerate(ways):
        folder = tmp_path / "state"
        found = train(everything(), **settings, **way, checkpoint=folder, checkpoint_every_s=0.001, resume=number > 0)
        assert found.record.weights_sha256 == wanted.record.weights_sha256
        assert found.record.evaluations[-1].means == wanted.record.evaluations[-1].means
        assert [each.step for each in found.record.evaluations] == [each.step for each in wanted.record.evaluations]
        headers = sorted(folder.glob("step-*.json"))
        assert len(headers) == 3, "no checkpoint was written on the way"
        headers[-1].unlink()  # the next one goes on from the one before
        assert number == 0 or 0 < found.record.first_step < 60


@pytest.mark.soak
def test_on_one_machine_nobody_listens_but_on_the_loopback_interface() -> None:
    found: set[tuple[str, bool]] = set()

    def look(record: EvaluationRecord) -> None:
        own = psutil.Process()
        for process in (own, *own.children()):
            found.update((c.laddr.ip, process == own) for c in process.net_connections("tcp") if c.status == "LISTEN")

    settings = {**EVERYTHING, "evaluate_every": 7, "callbacks": (look,)}
    train(everything(), **settings, workers=2, engine="group")
    assert found == {("127.0.0.1", True), ("127.0.0.1", False)}


@pytest.mark.parametrize(
    ("model", "sam_radius"),
    [
        pytest.param(helpers.Cursed, None, marks=pytest.mark.soak),
        pytest.param(helpers.Cursed, 0.05, marks=pytest.mark.soak),
        (helpers.Brittle, 0.05),
    ],
)
def test_what_is_not_finite_is_named_as_on_one_worker(model: Callable[[], nn.Module], sam_radius: float | None) -> None:
    texts, states = [], []
    for ways in ({"workers": 1}, {"workers": 2, "engine": "group"}, {"workers": 3, "engine": "group", "machines": 2}):
        made: list[nn.Module] = []

        def build(made: list[nn.Module] = made) -> nn.Module:
            made.append(model())
            return made[-1]

        with pytest.raises(NonFiniteError) as caught:
            train(helpers.workload(build), **COMMON, **ways, optimizer="adamw", lr=0.02, sam_radius=sam_radius)
        texts.append(str(caught.value))
        states.append({name: values.tolist() for name, values in made[-1].state_dict().items()})
    assert texts[0] == texts[1] == texts[2]
    assert states[0] == states[1] == states[2]


class _Large(nn.Module):
    """300,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(12, 16_384)
        self.out = nn.Linear(16_384, helpers.NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.hidden(x).relu())
        return scores


STEP = ("contributions", "early contributions", "norms", "update")
DIVIDES: dict[str, Any] = {
    "global_batch": 32, "microbatch": 4, "last_batch": "drop", "optimizer": "sgd", "lr": 0.01, "steps": 6,
}  # fmt: skip


def by_rank(result: Result) -> list[dict[str, int]]:
    """What each rank has sent; the first one knows it of all."""
    every = result.record.sent_bytes_by_rank
    assert every is not None and len(every) == result.record.workers
    assert result.record.sent_bytes is not None and every[0].items() <= result.record.sent_bytes.items()
    return every


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_a_rank_sends_no_more_than_the_best_all_reduce(workers: int) -> None:
    settings: dict[str, Any] = {
        "global_batch": 32,
        "microbatch": 4,
        "last_batch": "drop",
        "clip_norm": 1.0,
        "lr": 0.01,
        "steps": 6,
    }
    ways: dict[str, Any] = {"workers": workers, "machines": workers, "engine": "group"}
    result = train(helpers.workload(_Large), **settings, **ways, optimizer="sgd")
    num_bytes = sum(4 * parameter.numel() for parameter in result.model.parameters())
    least = 2 * (workers - 1) / workers * num_bytes
    a_step = [sum(sent.get(name, 0) for name in STEP) / 6 for sent in by_rank(result)]
    assert max(a_step) < 1.02 * least
    assert workers * least < sum(a_step)


@pytest.mark.parametrize(("workers", "machines", "share"), [soak(2, 1, 0.0), (4, 2, 0.5)])
def test_a_machine_sends_once_whatever_its_ranks(workers: int, machines: int, share: float) -> None:
    """Of what one rank on each of two machines would send, each of two ranks on two machines sends half."""
    ways: dict[str, Any] = {"workers": workers, "machines": machines, "engine": "group"}
    result = train(helpers.workload(_Large), **DIVIDES, **ways)
    num_bytes = sum(4 * parameter.numel() for parameter in result.model.parameters())
    for sent in by_rank(result):
        assert sum(sent.get(name, 0) for name in STEP) / 6 == pytest.approx(share * num_bytes, rel=0.02)


@pytest.mark.parametrize(("workers", "machines"), [(2, 2), soak(4, 2), soak(4, 4), soak(3, 3)])
def test_a_snapshot_sends_what_the_optimiser_keeps_to_every_other_machine(workers: int, machines: int) -> None:
    """Of Adam twice the parameters' bytes; in a run that saves nothing on the way, once."""
    ways: dict[str, Any] = {"workers": workers, "machines": machines, "engine": "group"}
    result = train(helpers.workload(_Large), **{**DIVIDES, "optimizer": "adamw"}, **ways)
    num_bytes = sum(4 * parameter.numel() for parameter in result.model.parameters())
    of_rank = (machines - 1) / workers * 2 * num_bytes
    assert [sent["state"] for sent in by_rank(result)] == [pytest.approx(of_rank, rel=0.02)] * workers


@pytest.mark.soak
@pytest.mark.parametrize("workers", [3, 5, 6, 7])
def test_what_other_numbers_of_ranks_cost(workers: int) -> None:
    """Eight microbatches on three ranks make blocks of 2, 3 and 3, and so 1, 2 and 2 nodes: each rank sends its own."""
    for microbatch in (4, 2):
        ways: dict[str, Any] = {"workers": workers, "machines": workers, "engine": "group"}
        result = train(helpers.workload(_Large), **{**DIVIDES, "microbatch": microbatch}, **ways)
        num_bytes = sum(4 * parameter.numel() for parameter in result.model.parameters())
        share = (workers - 1) / workers * num_bytes
        blocks = blocks_of_microbatches(32 // microbatch, workers)
        for sent, block in zip(by_rank(result), blocks, strict=True):
            num_nodes = len(maximal_nodes(32 // microbatch, *block))
            assert sum(sent.get(name, 0) for name in STEP[:2]) / 6 == pytest.approx(num_nodes * share, rel=0.02)
        updates = [sent["update"] / 6 for sent in by_rank(result)]
        assert sum(updates) == pytest.approx(workers * share, rel=0.02)
        assert max(updates) - min(updates) <= 1.02 * (workers - 1) * 4 * BLOCK, "slices differ by a block at most"


class _Deep(nn.Module):
    """Four layers, of which two are large enough to travel by themselves."""

    def __init__(self, *, is_checkpointed: bool = False) -> None:
        super().__init__()
        widths = (12, 1024, 512, 512, helpers.NUM_CLASSES)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.is_checkpointed = is_checkpointed

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            if self.is_checkpointed and number == 2:  # twice the same layer, with a backward pass each
                x = checkpoint(layer, checkpoint(layer, x, use_reentrant=True), use_reentrant=True)
            x = layer(x).relu()
        return x


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("adafactor", marks=pytest.mark.soak)])
@pytest.mark.parametrize("workers", [2, soak(3)])
def test_large_parts_travel_during_the_backward_pass(workers: int, optimizer: str) -> None:
    """Three ranks hold two nodes of the tree each, and the last microbatch is not all of either."""
    settings: dict[str, Any] = {**DIVIDES, "optimizer": optimizer, "clip_norm": 1.0, "noise_scale": 1, "steps": 5}
    wanted = train(helpers.workload(_Deep), **settings, workers=1)
    found = train(helpers.workload(_Deep), **settings, workers=workers, machines=workers, engine="group")
    assert summary(found) == summary(wanted)
    sent = found.record.sent_bytes
    assert sent is not None
    assert sent["early contributions"] > 0.7 * (sent["contributions"] + sent["early contributions"])


def test_gradients_in_parts_travel_when_they_are_complete() -> None:
    build = partial(_Deep, is_checkpointed=True)
    wanted = train(helpers.workload(build), **DIVIDES, workers=1)
    found = train(helpers.workload(build), **DIVIDES, workers=2, machines=2, engine="group")
    assert summary(found) == summary(wanted)
    assert found.record.sent_bytes is not None and "early contributions" not in found.record.sent_bytes


def test_a_model_without_buffers_that_has_evaluated_is_resumed(tmp_path: Path) -> None:
    """Of its state, the arrays without elements are not in the file."""
    work = partial(helpers.workload, helpers.Mlp, evaluation=helpers.samples(20))
    settings: dict[str, Any] = {**COMMON, "steps": 40, "evaluate_every": 2}
    wanted = train(work(), **settings, workers=1)
    way: dict[str, Any] = {"workers": 2, "engine": "group", "checkpoint": tmp_path, "checkpoint_every_s": 0.001}
    train(work(), **settings, **way)
    headers = sorted(tmp_path.glob("step-*.json"))
    headers[-1].unlink()  # the next one goes on from the one before
    found = train(work(), **settings, **way, resume=True)
    assert 0 < found.record.first_step < 40
    assert found.record.weights_sha256 == wanted.record.weights_sha256
    assert found.best_state is not None and wanted.best_state is not None
    assert all(torch.equal(found.best_state[name], values) for name, values in wanted.best_state.items())


class _Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = helpers.Mlp()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 5:
            raise RuntimeError("a bug of the person's")
        scores: Tensor = self.net(x)
        return scores


@pytest.mark.soak
def test_what_a_model_raises_is_told_once() -> None:
    with pytest.raises(RuntimeError, match="a bug of the person's"):
        train(helpers.workload(_Broken), **COMMON, workers=2, engine="group")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"workers": 8}, "workers=8 is more than the 7 microbatches"),
        ({"workers": 2, "stages": 2}, "stages=2 work in shared memory so far"),
        ({"workers": 2, "deadline_s": 0.0}, "deadline_s=0 is not a finite number above 0"),
        ({"workers": 2, "device": "cuda"}, "device='cuda'"),
        ({"workers": 2, "machines": 3}, "machines=3 with engine='group' and workers=2"),
    ],
)
def test_what_cannot_be_done(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        train(wide(), **COMMON, **settings, engine="group")


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", built_in())
def test_every_built_in_workload(name: str) -> None:
    """With each rank on a machine of its own, two on each, and all on one: what travels, and what is shared."""
    ways = [(1, 1), (2, 2), (3, 3), (4, 4), (4, 2), (2, 1), (3, 1), (4, 1)]
    helpers.check_built_in(name, [{"workers": w, "machines": m, "engine": "group"} for w, m in ways])
