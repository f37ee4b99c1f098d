"""Real workers: any number of them trains the same network, bit for bit; another seed does not."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep import torch_private
from samestep.data.columns import Rows
from samestep.engine.loop import EvaluationRecord
from samestep.errors import Interrupted, NonFiniteError, UsageError, WorkerError
from samestep.run.config import Settings
from samestep.run.outline import outline
from samestep.run.prepare import Choices, balanced_weights
from samestep.run.session import Result
from samestep.run.train import train
from samestep.run.weights import digest
from samestep.run.workload import Workload
from samestep.workloads import catalog
from tests import helpers
from tests.helpers import Cnn, Everything, Lstm, Tied, Wide
from tests.marks import built_in, soak

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

# Short last batches (75 or 76 samples), M = 7 with a shorter last microbatch; none of one sample, for batch norm.
COMMON: dict[str, Any] = {"global_batch": 27, "microbatch": 4, "steps": 7, "workers": 1}

EVERYTHING: dict[str, Any] = {  # whole tensors and element-wise ones, two rounds a step, clipping, groups
    **COMMON, "optimizer": "muon", "lr": 0.02, "sam_radius": 0.05, "clip_norm": 0.5, "weight_decay": 0.01,
    "lr_schedule": "cosine", "lr_warmup": 0.3, "evaluate_every": 3,
}  # fmt: skip
FACTORS: dict[str, Any] = {**COMMON, "optimizer": "adafactor", "lr": 0.02, "microbatch": 5}
DOUBLE: dict[str, Any] = {**COMMON, "optimizer": "adamw", "lr": 0.02, "clip_norm": 0.1}


def everything() -> Workload:
    return helpers.workload(Everything, train=helpers.samples(76), evaluation=helpers.samples(20))


def factors() -> Workload:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0, 3.0, 0.25]), ignore_index=3)
    return helpers.workload(Tied, loss=loss, train=helpers.samples(ignored=3))


def double() -> Workload:
    return helpers.workload(helpers.double(Lstm), train=helpers.samples(dtype=torch.float64))


def summary(result: Result) -> tuple[str, list[float], list[float], list[dict[str, float]]]:
    """All that must not depend on the number of workers, of one run."""
    record = result.record
    assert record.end == "finished"
    assert [step.step for step in record.steps] == list(range(7))
    return (
        record.weights_sha256,
        [step.loss for step in record.steps],
        [step.gradient_norm for step in record.steps],
        [dict(evaluation.means) for evaluation in record.evaluations],
    )


@pytest.mark.parametrize(("workers", "optimizer"), [(1, "adamw"), (2, "adamw"), soak(3, "adamw"), soak(2, "muon")])
def test_concurrent_back_propagation(workers: int, optimizer: str) -> None:
    settings = {**COMMON, "optimizer": optimizer, "lr": 0.02, "clip_norm": 0.5}
    wanted = train(helpers.workload(Wide), **settings)
    found = train(helpers.workload(Wide), **{**settings, "workers": workers, "backprop": "concurrent"})
    assert summary(found) == summary(wanted)


@pytest.mark.parametrize("workers", [soak(2), soak(3), soak(4), 7])
def test_everything_together(workers: int) -> None:
    wanted = train(everything(), **EVERYTHING)
    found = train(everything(), **{**EVERYTHING, "workers": workers})
    assert found.record.engine == "shared"
    assert summary(found) == summary(wanted)
    assert [e.step for e in found.record.evaluations] == [3, 6, 7]
    assert found.best_state is not None
    assert wanted.best_state is not None
    assert all(torch.equal(values, wanted.best_state[name]) for name, values in found.best_state.items())
    assert isinstance(found.model, Everything)
    assert found.model.second.weight is found.model.first.weight
    assert not found.model.frozen.weight.requires_grad


@pytest.mark.parametrize("workers", [2, soak(5)])
def test_a_whole_tensor_optimiser_masks_and_class_weights(workers: int) -> None:
    wanted = train(factors(), **FACTORS)
    assert summary(train(factors(), **{**FACTORS, "workers": workers})) == summary(wanted)


@pytest.mark.soak
def test_float64() -> None:
    assert summary(train(double(), **{**DOUBLE, "workers": 3})) == summary(train(double(), **DOUBLE))


def test_another_seed_and_another_microbatch_differ() -> None:
    digests = [
        train(everything(), **{**EVERYTHING, **changed}).record.weights_sha256
        for changed in ({}, {"seed": 1}, {"microbatch": 5}, {"sam_radius": 0.06})
    ]
    assert len(set(digests)) == 4


class _Rankwise(nn.Module):
    """Draws from a generator of its own, which counts this process's calls: what is promised to differ, differs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = helpers.Mlp()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        scores: Tensor = self.net(x) * (1 + 0.01 * self.calls)
        return scores


def test_a_module_that_counts_its_processs_calls_is_found_out() -> None:
    work = helpers.workload(_Rankwise)
    digests = {train(work, **{**COMMON, "workers": workers}).record.weights_sha256 for workers in (1, 2)}
    assert len(digests) == 2


def _itself(model: nn.Module) -> nn.Module:
    return model


@pytest.mark.parametrize("model_class", [soak(helpers.Cursed), helpers.Brittle])
def test_a_nan_ends_alike_on_one_worker_and_on_several(model_class: type[nn.Module]) -> None:
    """In a step's first round, and in its second."""
    found = []
    is_late = model_class is helpers.Brittle
    settings = {**COMMON, "sam_radius": 0.05} if is_late else COMMON
    for workers in (1, 3):
        model = model_class()
        for name, parameter in model.named_parameters():
            nn.init.constant_(parameter, 0.0 if name == "edge" else 0.01)
        with pytest.raises(NonFiniteError) as error:
            train(helpers.workload(partial(_itself, model)), **{**settings, "workers": workers})
        found.append((str(error.value), torch.cat([p.detach().reshape(-1) for p in model.parameters()])))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


class _Vertical(nn.Module):
    """A finite answer whose gradient is not, for some samples: the slope of a root at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.net = helpers.Mlp()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        return scores + torch.sqrt(0.0 * scores.abs()) if bool((x[:, 0].abs() > 2.8).any()) else scores


@pytest.mark.parametrize("clip_norm", [None, soak(1.0)])
def test_a_gradient_that_is_not_finite_ends_alike_whether_or_not_ranks_wait_for_the_norm(
    clip_norm: float | None,
) -> None:
    """Without clipping several ranks have updated when they find out; the replay undoes it."""
    found = []
    for workers in (1, 3):
        model = _Vertical()
        for parameter in model.parameters():
            nn.init.constant_(parameter, 0.01)
        with pytest.raises(NonFiniteError, match=r"step [1-9]: the gradient of ") as error:
            train(helpers.workload(partial(_itself, model)), **{**COMMON, "workers": workers, "clip_norm": clip_norm})
        found.append((str(error.value), torch.cat([p.detach().reshape(-1) for p in model.parameters()])))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert bool(torch.isfinite(found[0][1]).all())


def test_bf16_trains_with_the_weights_of_the_step_on_one_worker_and_on_several() -> None:
    """One worker runs inside of contexts of ours and the caller's, and torch keeps casts until the outermost ends."""
    found = []
    for workers in (1, 2, 3):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=workers != 2):
            settings = {**COMMON, "workers": workers, "precision": "bf16", "optimizer": "sgd", "lr": 0.2, "steps": 30}
            found.append(train(helpers.workload(helpers.Mlp), **settings).record)
    assert len({record.weights_sha256 for record in found}) == 1
    wanted = train(helpers.workload(helpers.Mlp), **{**COMMON, "optimizer": "sgd", "lr": 0.2, "steps": 30}).record
    assert found[0].weights_sha256 != wanted.weights_sha256
    assert found[0].last_loss == pytest.approx(wanted.last_loss, rel=0.05)
    is_said = [any("no fast kernels" in text for text in record.notices) for record in found]
    assert is_said == [not torch_private.has_bf16_kernels()] * 3


@pytest.mark.parametrize("workers", [1, 2])
def test_an_lstm_in_bf16_trains_or_is_refused_in_one_line(workers: int) -> None:
    settings = {**COMMON, "workers": workers, "precision": "bf16", "steps": 1}
    if torch_private.has_bf16_kernels():
        assert train(helpers.workload(Lstm), **settings).record.end == "finished"
        return
    with pytest.raises(UsageError, match=r"no kernel in bfloat16 for a layer .* take precision='fp32'$"):
        train(helpers.workload(Lstm), **settings)


@pytest.mark.parametrize("precision", ["fp32", soak("bf16")])
def test_channels_last_on_one_worker_and_on_several(precision: str) -> None:
    settings = {**COMMON, "channels_last": True, "precision": precision, "clip_norm": 0.5, "optimizer": "adamw"}
    found = [train(helpers.workload(Cnn), **{**settings, "workers": workers}).record for workers in (1, 3)]
    assert len({record.weights_sha256 for record in found}) == 1


class _TwoThreads(nn.Module):
    """Refuses to compute with another number of intra-op threads than two."""

    def __init__(self) -> None:
        super().__init__()
        self.net = helpers.Mlp()

    def forward(self, x: Tensor) -> Tensor:
        assert torch.get_num_threads() == 2
        scores: Tensor = self.net(x)
        return scores


def test_two_threads_a_worker() -> None:
    before = torch.get_num_threads()
    settings = {**COMMON, "threads_per_worker": 2}
    work = helpers.workload(_TwoThreads)
    digests = {train(work, **{**settings, "workers": workers}).record.weights_sha256 for workers in (1, 2)}
    assert len(digests) == 1
    assert torch.get_num_threads() == before


class _Dawdling(helpers.Mlp):
    """Takes two seconds for the microbatch with a certain sample."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and bool((x[:, 0].abs() > 2.8).any()):
            time.sleep(2.0)
        return super().forward(x)


def test_a_worker_that_lets_others_wait_for_longer_than_the_deadline_ends_the_run() -> None:
    with pytest.raises(WorkerError, match=r"waited 0\.5 s for .*take a larger deadline_s"):
        train(helpers.workload(_Dawdling), **{**COMMON, "workers": 2, "deadline_s": 0.5})


class _Once(nn.Module):
    """Refuses to compute where its parameters are not in the memory that all processes of the run share."""

    def __init__(self) -> None:
        super().__init__()
        self.net = helpers.Mlp()

    def forward(self, x: Tensor) -> Tensor:
        for parameter in self.parameters():
            where = parameter.data_ptr()
            for line in Path("/proc/self/maps").read_text().splitlines():
                start, _, stop = line.split()[0].partition("-")
                if int(start, 16) <= where < int(stop, 16):
                    assert line.split()[1] == "rw-s", line
                    assert "memfd:samestep" in line
                    break
            else:
                raise AssertionError("nowhere")
        scores: Tensor = self.net(x)
        return scores


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists its mappings here")
def test_parameters_are_there_once_whatever_the_workers() -> None:
    assert train(helpers.workload(_Once), **{**COMMON, "workers": 3}).record.end == "finished"
    with pytest.raises(AssertionError):  # the oracle itself: one worker shares with nobody
        train(helpers.workload(_Once), **COMMON)


@pytest.mark.soak
def test_balanced_class_weights_are_those_of_the_loss() -> None:
    target = helpers.samples().target
    assert isinstance(target, Rows)
    weight = balanced_weights(target.tensor).float()
    wanted = train(helpers.workload(loss=nn.CrossEntropyLoss(weight=weight)), **COMMON).record
    for workers in (1, 3):
        found = train(helpers.workload(), **{**COMMON, "class_weights": "balanced", "workers": workers}).record
        assert found.weights_sha256 == wanted.weights_sha256
    assert train(helpers.workload(), **COMMON).record.weights_sha256 != wanted.weights_sha256


def test_more_workers_than_microbatches_are_refused() -> None:
    with pytest.raises(UsageError, match=r"workers=8 is more than the 7 microbatches of a step"):
        train(everything(), **{**COMMON, "workers": 8})


@pytest.mark.parametrize(("before", "after"), [soak(1, 2), soak(3, 1)])
def test_a_stop_by_a_callback_is_an_end_also_for_other_workers(before: int, after: int, tmp_path: Any) -> None:
    wanted = train(everything(), **EVERYTHING)
    stopped = train(
        everything(),
        **{**EVERYTHING, "workers": before, "checkpoint": tmp_path / "c"},
        callbacks=[lambda record: record.step == 3],
    )
    assert stopped.record.end == "stopped"
    assert stopped.record.num_steps == 3
    resume = {**EVERYTHING, "workers": after, "checkpoint": tmp_path / "c", "resume": True}
    ended = train(everything(), **resume)
    # A callback's stop is an end that was decided: resuming does not undo it.
    assert ended.record.num_steps == 3
    assert ended.record.weights_sha256 == stopped.record.weights_sha256
    assert wanted.record.weights_sha256 != stopped.record.weights_sha256


@pytest.mark.parametrize("workers", [(2, 3, 1), soak((1, 7, 2))])
def test_a_run_of_everything_goes_on_with_other_numbers_of_workers(workers: tuple[int, ...], tmp_path: Path) -> None:
    """Stopped by a signal in the middle, twice: muon, two rounds a step, clipping, BatchNorm, dropout, schedules."""
    common = {**EVERYTHING, "steps": 10}
    wanted = train(everything(), **common)

    def run(number: int, *callbacks: Callable[[EvaluationRecord], None]) -> Result:
        settings = {**common, "workers": number, "checkpoint": tmp_path, "resume": True}
        return train(everything(), callbacks=callbacks, **settings)

    def interrupt(step: int, record: EvaluationRecord) -> None:
        if record.step >= step:
            signal.raise_signal(signal.SIGINT)

    for step, number in zip((3, 6), workers[:-1], strict=True):
        with pytest.raises(Interrupted, match="its state is in"):
            run(number, partial(interrupt, step))
    found = run(workers[-1])
    assert found.record.first_step > 0
    assert found.record.weights_sha256 == wanted.record.weights_sha256
    assert found.best_state is not None and wanted.best_state is not None
    assert digest(found.best_state) == digest(wanted.best_state)


@pytest.mark.parametrize(("before", "after"), [soak(2, 3), (3, 1)])
@pytest.mark.soak
def test_a_longer_run_takes_up_a_shorter_one(before: int, after: int, tmp_path: Any) -> None:
    options = {**FACTORS, "checkpoint": tmp_path / "c"}
    wanted = train(factors(), **FACTORS)
    train(factors(), **{**options, "workers": before, "steps": 4})
    found = train(factors(), **{**options, "workers": after, "resume": True})
    assert found.record.first_step == 4
    assert found.record.weights_sha256 == wanted.record.weights_sha256


@pytest.mark.timeout(30)
@pytest.mark.soak
def test_a_resumed_run_that_is_already_longer_ends_at_once(tmp_path: Any) -> None:
    options = {**FACTORS, "checkpoint": tmp_path / "c", "workers": 2}
    longer = train(factors(), **{**options, "steps": 4})
    with _deadline(20.0):  # start-up included, beside other tests; a rank that waited would wait ten minutes
        shorter = train(factors(), **{**options, "steps": 2, "resume": True})
    assert shorter.record.weights_sha256 == longer.record.weights_sha256


def _deadline(seconds: float) -> Any:
    import contextlib
    import signal

    def ring(signum: int, frame: Any) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    @contextlib.contextmanager
    def timer() -> Any:
        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    return timer()


class _Frozen(nn.Module):
    """A frozen matrix that lies transposed, and a square buffer beside its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 48)
        self.middle = nn.Linear(48, 48)
        values = torch.randn(48, 48, generator=helpers.generator(3)) / 7
        self.middle.weight = nn.Parameter(values.t(), requires_grad=False)
        self.plain = values
        self.out = nn.Linear(48, helpers.NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.middle(self.first(x).relu()) @ self.plain)
        return scores


def test_frozen_and_constant_tensors_arrive_as_they_are() -> None:
    work = helpers.workload(_Frozen)
    digests = {train(work, **{**COMMON, "workers": workers}).record.weights_sha256 for workers in (1, 2)}
    assert len(digests) == 1


@pytest.mark.soak
def test_the_callers_choice_of_attention_kernels_reaches_the_workers() -> None:
    work = helpers.workload(lambda: helpers.Encoder(0.0))
    before = torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_flash_sdp(not before)
    try:
        digests = {train(work, **{**COMMON, "workers": workers}).record.weights_sha256 for workers in (1, 2)}
    finally:
        torch.backends.cuda.enable_flash_sdp(before)
    assert len(digests) == 1


def _noisy(rows: Tensor) -> Tensor:
    return rows + 0.1 * torch.randn(rows.shape)


def test_a_transform_that_draws_is_keyed_too() -> None:
    from samestep.data.columns import Rows, Samples

    good = helpers.samples()
    assert isinstance(good.inputs[0], Rows)
    train_samples = Samples((Rows(values=good.inputs[0].values, transform=_noisy),), good.target)
    work = helpers.workload(helpers.Mlp, train=train_samples)
    digests = {train(work, **{**COMMON, "workers": workers}).record.weights_sha256 for workers in (1, 2)}
    assert len(digests) == 1


LARGE_ENOUGH: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "digits-mlp": ({"width": 512}, {}),
    "digits-cnn": ({"width": 32}, {}),
    "adult-mlp": ({"width": 256}, {}),
    "fashion-lstm": ({"width": 208}, {"global_batch": 1024, "microbatch": 512}),  # its head: torch's LSTM is one call
}
"""Sizes and settings of workloads that are too small, as they are, for anything to be left to helpers."""


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", built_in())
def test_every_built_in_workload_with_concurrent_back_propagation(name: str) -> None:
    sizes, settings = LARGE_ENOUGH.get(name, ({}, {}))
    ways: list[dict[str, Any]] = [{"workers": workers, "backprop": "concurrent"} for workers in (1, 2)]
    helpers.check_built_in(name, ways, sizes=sizes, **settings)
    for way in ways:
        planned = outline(catalog.build(name, **sizes), Settings(**settings, **way), Choices())
        assert planned.helpers and planned.layers
        assert any(layer.is_concurrent for layer in planned.layers), planned.layers
