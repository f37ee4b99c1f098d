"""The step against oracles: the whole batch, plain torch, hand-written clipping and SAM; and what must differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from samestep.data import feed
from samestep.data.columns import Rows, Samples
from samestep.engine import losses
from samestep.engine.solo import Solo
from samestep.engine.step import Stepper
from samestep.errors import NonFiniteError, UsageError
from samestep.optim.rounds import clip_scale
from samestep.plan.layout import BLOCK
from tests import helpers
from tests.helpers import NUM_CLASSES, Cnn, Encoder, Lstm, Mlp, Tied


def convolution() -> nn.Module:
    """Without batch norm: the whole batch is what its microbatches are."""
    image = nn.Unflatten(1, (1, 3, 4))
    return nn.Sequential(image, nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 12, NUM_CLASSES))


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": Mlp,
    "cnn": convolution,
    "lstm": Lstm,
    "transformer": Encoder,
    "tied": Tied,
}
WITH_BATCH_NORM = {**NETS, "cnn with batch norm": Cnn}
"""Equal to plain torch on the same microbatches, not to the whole batch."""

CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.25])


def worst(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(helpers.relative(found[name], wanted[name]) for name in wanted)


# M microbatches are the whole batch.


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("microbatch", [5, 8])
def test_microbatches_equal_the_whole_batch(net: str, microbatch: int) -> None:
    work = helpers.workload(NETS[net])
    whole = helpers.gradients(work, global_batch=32, microbatch=32)
    assert worst(helpers.gradients(work, global_batch=32, microbatch=microbatch), whole) < 1e-5


def test_batch_norm_sees_the_microbatch() -> None:
    work = helpers.workload(Cnn)
    whole = helpers.gradients(work, global_batch=32, microbatch=32)
    assert worst(helpers.gradients(work, global_batch=32, microbatch=8), whole) > 1e-3


@pytest.mark.parametrize("ignored", [-100, 3])
def test_masked_and_weighted_means_are_over_the_global_batch(ignored: int) -> None:
    loss = nn.CrossEntropyLoss(weight=CLASS_WEIGHTS, ignore_index=ignored)
    work = helpers.workload(Mlp, loss=loss, train=helpers.samples(ignored=ignored))
    whole = helpers.gradients(work, global_batch=32, microbatch=32)
    assert worst(helpers.gradients(work, global_batch=32, microbatch=5), whole) < 1e-5


def test_a_mean_of_microbatch_means_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    work = helpers.workload(Mlp, loss=nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), train=helpers.samples(ignored=-100))
    whole = helpers.gradients(work, global_batch=32, microbatch=32)
    monkeypatch.setattr(losses, "_weigh_classes", lambda module, output, target: target.numel())
    planted = helpers.gradients(work, global_batch=32, microbatch=5)
    assert worst(planted, whole) > 1e-3


# One worker is plain torch.


def compare_with_torch(
    build: Callable[[], nn.Module], dtype: torch.dtype, *, ignored: int | None, weights: Tensor | None
) -> tuple[float, float, float]:
    """50 steps over short last batches: largest relative differences of losses and parameters, and the last loss."""
    skipped = -100 if ignored is None else ignored
    loss = nn.CrossEntropyLoss(weight=weights, ignore_index=skipped)
    work = helpers.workload(build, loss=loss, train=helpers.samples(dtype=dtype, ignored=ignored))
    plan = helpers.prepared(work, lr=0.05, momentum=0.9, steps=50, global_batch=32, microbatch=5)
    model = helpers.initial(plan)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    series = []
    model.train()
    for step in range(50):
        summed = helpers.summed_cross_entropy(weights, skipped)
        series.append(helpers.plain_step(model, helpers.microbatches(plan.job, step), summed))
        optimizer.step()
    ran = helpers.run(plan)
    found, wanted = torch.tensor(ran.heard.losses, dtype=torch.float64), torch.tensor(series, dtype=torch.float64)
    own = dict(model.named_parameters())
    parameters = max(helpers.relative(values, own[name].detach()) for name, values in ran.parameters().items())
    assert len(series) == 50
    assert plan.job.batches.span(2).stop - plan.job.batches.span(2).start == 11
    return helpers.relative(found, wanted), parameters, series[-1]


@pytest.mark.parametrize("net", WITH_BATCH_NORM)
def test_fifty_steps_equal_plain_torch_in_float64(net: str) -> None:
    in_losses, in_parameters, _ = compare_with_torch(
        helpers.double(WITH_BATCH_NORM[net]), torch.float64, ignored=3, weights=CLASS_WEIGHTS.double()
    )
    assert in_losses < 1e-12
    assert in_parameters < 1e-10


def test_fifty_steps_equal_plain_torch_in_float32() -> None:
    in_losses, in_parameters, last = compare_with_torch(Mlp, torch.float32, ignored=None, weights=None)
    assert in_losses < 1e-4
    assert in_parameters < 1e-4
    assert last < 1.0


@pytest.mark.parametrize("net", WITH_BATCH_NORM)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_the_gradient_equals_plain_torch(
    net: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimiser's own gradients are read, so that no parameter's rounding hides anything."""
    build = helpers.double(WITH_BATCH_NORM[net]) if dtype == torch.float64 else WITH_BATCH_NORM[net]
    weights = CLASS_WEIGHTS.to(dtype)
    work = helpers.workload(
        build, loss=nn.CrossEntropyLoss(weight=weights, ignore_index=3), train=helpers.samples(dtype=dtype, ignored=3)
    )
    plan = helpers.prepared(work, lr=0.0, steps=3, global_batch=32, microbatch=5)
    model = helpers.initial(plan)
    seen: list[Tensor] = []
    update = Stepper.update

    def spy(stepper: Stepper, scale: float = 1.0) -> None:
        seen.append(torch.cat([gradient.reshape(-1) for gradient in stepper.owned.padded_gradients]))
        update(stepper, scale)

    monkeypatch.setattr(Stepper, "update", spy)
    helpers.run(plan)
    for step, found in enumerate(seen):  # the third one is the short last batch
        helpers.plain_step(model, helpers.microbatches(plan.job, step), helpers.summed_cross_entropy(weights, 3))
        for place in plan.job.update.layout.places:
            wanted = model.get_parameter(place.spec.name).grad
            assert wanted is not None
            assert helpers.relative(found[place.start : place.stop].view(place.spec.shape), wanted) < tolerance
    assert len(seen) == 3


@pytest.mark.parametrize(("ignored", "name"), [(None, "_count_targets"), (3, "_weigh_classes")])
def test_a_wrong_weight_would_be_found_out(ignored: int | None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(losses, name)
    monkeypatch.setattr(losses, name, lambda module, output, target: right(module, output, target) + 1e-6)
    in_losses, _, _ = compare_with_torch(helpers.double(Mlp), torch.float64, ignored=ignored, weights=None)
    assert in_losses > 1e-12


# Clipping and SAM.


def test_clipping_equals_torch() -> None:
    work = helpers.workload(helpers.double(Mlp), train=helpers.samples(dtype=torch.float64))
    free = helpers.gradients(work, global_batch=32, microbatch=8)
    norm = float(torch.cat([g.reshape(-1) for g in free.values()]).norm())
    clipped = helpers.gradients(work, global_batch=32, microbatch=8, clip_norm=norm / 3)
    parameters = [nn.Parameter(torch.zeros_like(g)) for g in free.values()]
    for parameter, gradient in zip(parameters, free.values(), strict=True):
        parameter.grad = gradient.clone()
    found = nn.utils.clip_grad_norm_(parameters, norm / 3)
    assert float(found) == pytest.approx(norm, rel=1e-12)
    for values, parameter in zip(clipped.values(), parameters, strict=True):
        assert parameter.grad is not None
        assert helpers.relative(values, parameter.grad) < 1e-5  # torch adds 1e-6 to the norm
    longer = helpers.gradients(work, global_batch=32, microbatch=8, clip_norm=norm * 3)
    assert all(torch.equal(longer[name], free[name]) for name in free)


def test_the_recorded_norm_is_that_of_the_mean_gradient() -> None:
    work = helpers.workload(helpers.double(Mlp), train=helpers.samples(dtype=torch.float64))
    plan = helpers.prepared(work, lr=1.0, steps=1, global_batch=32, microbatch=8)
    before = {name: values.detach().clone() for name, values in plan.job.model.named_parameters()}
    ran = helpers.run(plan)
    gradient = torch.cat([(before[name] - values).reshape(-1) for name, values in ran.parameters().items()])
    assert ran.heard.records[0].gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-12)


def test_clip_scale_of_an_endless_norm_is_zero() -> None:
    assert clip_scale(float("inf"), 1.0) == 0.0


@pytest.mark.parametrize("clip_norm", [None, 0.1])
def test_sam_equals_two_hand_written_passes(clip_norm: float | None) -> None:
    work = helpers.workload(helpers.double(Mlp), train=helpers.samples(dtype=torch.float64))
    plan = helpers.prepared(work, lr=0.1, steps=6, global_batch=32, microbatch=5, sam_radius=0.3, clip_norm=clip_norm)
    model = helpers.initial(plan)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    series = []
    for step in range(6):
        parts = helpers.microbatches(plan.job, step)
        series.append(helpers.plain_step(model, parts, helpers.summed_cross_entropy()))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        norm = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).norm()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.add_(0.3 * parameter.grad / norm)
        helpers.plain_step(model, parts, helpers.summed_cross_entropy())
        with torch.no_grad():
            for parameter, values in zip(model.parameters(), before, strict=True):
                parameter.copy_(values)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
    ran = helpers.run(plan)
    tolerance = 1e-10 if clip_norm is None else 1e-5
    assert ran.heard.losses == pytest.approx(series, rel=tolerance)
    for name, values in ran.parameters().items():
        assert helpers.relative(values, model.get_parameter(name).detach()) < tolerance


def test_sam_is_not_a_plain_step() -> None:
    work = helpers.workload(helpers.double(Mlp), train=helpers.samples(dtype=torch.float64))
    plain = helpers.gradients(work, global_batch=32, microbatch=8)
    assert worst(helpers.gradients(work, global_batch=32, microbatch=8, sam_radius=0.3), plain) > 1e-3


# Alignment.


def misaligned(values: Tensor) -> Tensor:
    """The same values, one element off a 64-byte boundary."""
    size = values.numel()
    room = torch.empty(size + 64, dtype=values.dtype)
    start = (-room.data_ptr() // values.element_size()) % (64 // values.element_size()) + 1
    found = room[start : start + size].view(values.shape)
    found.copy_(values)
    assert found.data_ptr() % 64 == values.element_size()
    return found


def test_aligned_mends_what_is_off() -> None:
    good, bad = torch.arange(32.0), misaligned(torch.arange(32.0))
    assert feed.aligned(good) is good
    mended = feed.aligned(bad)
    assert mended.data_ptr() % 64 == 0
    assert torch.equal(mended, bad)


class _Shown(nn.Module):
    """Writes down where its inputs start."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp()
        self.starts: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.starts.append(x.data_ptr() % 64)
        scores: Tensor = self.net(x)
        return scores


class _MisalignedRows:
    """A column whose gathered rows start one element off."""

    def __init__(self, values: Tensor) -> None:
        self._values = values

    @property
    def num_samples(self) -> int:
        return len(self._values)

    def gather(self, indices: Tensor) -> Tensor:
        return misaligned(self._values[indices])


@pytest.mark.parametrize("kind", ["view", "gather"])
def test_a_misaligned_column_is_mended(kind: str) -> None:
    good = helpers.samples()
    values = good.inputs[0].gather(torch.arange(good.num_samples))
    column = Rows(values=misaligned(values)) if kind == "view" else _MisalignedRows(values)
    plan = helpers.prepared(
        helpers.workload(_Shown, train=Samples((column,), good.target)), steps=3, global_batch=32, microbatch=5
    )
    ran = helpers.run(plan)
    assert isinstance(plan.job.model, _Shown)
    assert set(plan.job.model.starts) == {0}
    reference = helpers.run(
        helpers.prepared(helpers.workload(_Shown, train=good), steps=3, global_batch=32, microbatch=5)
    )
    assert torch.equal(ran.image.arrays["parameters"], reference.image.arrays["parameters"])


def test_a_misaligned_feed_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "aligned", lambda tensor: tensor)
    good = helpers.samples()
    column = _MisalignedRows(good.inputs[0].gather(torch.arange(good.num_samples)))
    plan = helpers.prepared(
        helpers.workload(_Shown, train=Samples((column,), good.target)), steps=1, global_batch=32, microbatch=5
    )
    helpers.run(plan)
    assert isinstance(plan.job.model, _Shown)
    assert set(plan.job.model.starts) == {4}


@pytest.mark.parametrize("build", [Mlp, Cnn, Lstm, Encoder, Tied])
def test_parameters_gradients_and_buffers_are_aligned(build: Callable[[], nn.Module]) -> None:
    starts: list[int] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build()

        def forward(self, x: Tensor) -> Tensor:
            starts.extend(p.data_ptr() % 64 for p in self.net.parameters())
            starts.extend(b.data_ptr() % 64 for b in self.net.buffers())
            scores: Tensor = self.net(x)
            return scores

    plan = helpers.prepared(helpers.workload(Watched), steps=1, global_batch=32, microbatch=8)
    helpers.run(plan)
    assert set(starts) == {0}
    assert plan.job.num_elements % BLOCK == 0


@pytest.mark.parametrize("kind", ["misaligned", "transposed"])
def test_frozen_parameters_lie_alike_on_every_engine(kind: str) -> None:
    """Workers get them contiguous and aligned; so must one worker in the caller's process."""
    seen: list[tuple[int, bool]] = []

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(12, 12)
            values = torch.randn(12, 12, generator=helpers.generator(3))
            values = misaligned(values) if kind == "misaligned" else values.t()
            self.first.weight = nn.Parameter(values, requires_grad=False)
            self.out = nn.Linear(12, NUM_CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.first.weight
            seen.append((weight.data_ptr() % 64, weight.is_contiguous()))
            scores: Tensor = self.out(self.first(x))
            return scores

    helpers.run(helpers.prepared(helpers.workload(Frozen), steps=1, global_batch=32, microbatch=8))
    assert set(seen) == {(0, True)}


# Activation checkpointing.


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 12)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = nn.functional.dropout(self.dropout(self.linear(x)).tanh(), 0.2, self.training)
        return y


class _Blocks(nn.Module):
    def __init__(self, *, is_checkpointed: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block() for _ in range(3))
        self.out = nn.Linear(12, NUM_CLASSES)
        self.is_checkpointed = is_checkpointed

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.is_checkpointed and self.training else block(x)
        scores: Tensor = self.out(x)
        return scores


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    def found(*, is_checkpointed: bool) -> dict[str, Tensor]:
        work = helpers.workload(lambda: _Blocks(is_checkpointed=is_checkpointed))
        return helpers.gradients(work, global_batch=32, microbatch=8)

    plain, recomputed = found(is_checkpointed=False), found(is_checkpointed=True)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_activation_checkpointing_of_a_module_called_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = _Block()
            self.out = nn.Linear(12, NUM_CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = checkpoint(self.block, x, use_reentrant=False)
            scores: Tensor = self.out(x)
            return scores

    with pytest.raises(UsageError, match=r"called 2 times a forward"):
        helpers.gradients(helpers.workload(Twice), global_batch=32, microbatch=8)


# Buffers.


def test_float_buffers_take_the_weighted_mean_of_the_changes_and_integers_microbatch_0() -> None:
    plan = helpers.prepared(helpers.workload(Cnn), lr=0.0, steps=3, global_batch=32, microbatch=5)
    model = helpers.initial(plan)
    ran = helpers.run(plan)
    model.train()
    assert isinstance(model, Cnn)
    for step in range(3):
        before = {name: values.clone() for name, values in model.named_buffers()}
        change = {name: torch.zeros_like(values, dtype=torch.float64) for name, values in before.items()}
        total = 0
        for inputs, target in helpers.microbatches(plan.job, step):
            for name, values in model.named_buffers():
                values.copy_(before[name])
            model(*inputs)
            for name, values in model.named_buffers():
                change[name] += len(target) * (values.double() - before[name].double())
            total += len(target)
        for name, values in model.named_buffers():
            if values.is_floating_point():
                values.copy_(before[name] + change[name] / total)
            else:
                values.copy_(before[name] + 1)
    for name, values in ran.tracked().items():
        assert helpers.relative(values, model.get_buffer(name)) < 1e-6
    assert int(ran.other("norm.num_batches_tracked")) == 3
    assert set(ran.tracked()) == {"norm.running_mean", "norm.running_var"}


class _Counting(nn.Module):
    """Buffers of several kinds: one assigned anew, a mask of -inf, integers that depend on the microbatch."""

    mask: Tensor
    total: Tensor
    first: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp()
        self.register_buffer("mask", torch.full((3, 3), float("-inf")))
        self.register_buffer("total", torch.zeros(1))
        self.register_buffer("first", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.total = self.total + x.detach().mean()
            self.first += 1 + int(x.detach()[0, 0] * 1000)
        scores: Tensor = self.net(x) + self.mask.exp().sum()
        return scores


def test_infinite_and_replaced_buffers() -> None:
    plan = helpers.prepared(helpers.workload(_Counting), lr=0.0, steps=1, global_batch=32, microbatch=5)
    ran = helpers.run(plan)
    parts = helpers.microbatches(plan.job, 0)
    assert bool(torch.isneginf(ran.tracked()["mask"]).all())
    wanted = sum(len(target) * float(inputs[0].mean()) for inputs, target in parts) / 32
    assert float(ran.tracked()["total"]) == pytest.approx(wanted, rel=1e-5)
    assert int(ran.other("first")) == 1 + int(parts[0][0][0][0, 0] * 1000)


class _Large(nn.Module):
    table: Tensor

    def __init__(self, *, changes: str) -> None:
        super().__init__()
        self.net = Mlp()
        self.register_buffer("table", torch.zeros(70_000))
        self.changes = changes

    def forward(self, x: Tensor) -> Tensor:
        if self.changes == "in place":
            self.table[0] += 1
        elif self.changes == "anew":
            self.table = self.table + 1
        scores: Tensor = self.net(x) + self.table[1]
        return scores


@pytest.mark.parametrize("changes", ["in place", "anew"])
def test_a_large_buffer_that_changes_is_refused(changes: str) -> None:
    work = helpers.workload(lambda: _Large(changes=changes))
    with pytest.raises(UsageError, match=r"buffer table has 70,000 elements and is changed"):
        helpers.gradients(work, global_batch=32, microbatch=8)


def test_a_large_buffer_that_stays_is_a_constant() -> None:
    plan = helpers.prepared(helpers.workload(lambda: _Large(changes="")), steps=1, global_batch=32, microbatch=8)
    assert plan.job.buffers.constants == ("table",)
    assert plan.job.buffers.num_tracked == 0
    helpers.run(plan)


# Non-finite sums.


class _Cursed(nn.Module):
    """Brings NaN where an input is the cursed one: in the loss, or in the gradient only."""

    def __init__(self, value: float, where: str) -> None:
        super().__init__()
        self.net = Mlp()
        self.value, self.where = value, where

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        if bool((x[:, 0] == self.value).any()):
            if self.where == "loss":
                return scores * float("nan")
            # The root of zero is finite and its slope is not.
            return scores + (self.net.out.bias - self.net.out.bias.detach()).abs().sqrt()
        return scores


@pytest.mark.parametrize(("where", "text"), [("loss", "the loss"), ("gradient", "the gradient of net.out.bias")])
@pytest.mark.parametrize("radius", [None, 0.1])
def test_the_culprit_of_a_nan_is_named_and_parameters_stay(where: str, text: str, radius: float | None) -> None:
    reference = helpers.prepared(helpers.workload(Mlp), steps=3, global_batch=32, microbatch=5)
    value = float(helpers.microbatches(reference.job, 1)[4][0][0][2, 0])
    plan = helpers.prepared(
        helpers.workload(lambda: _Cursed(value, where)),
        steps=3, global_batch=32, microbatch=5, lr=0.1, sam_radius=radius,
    )  # fmt: skip
    one = helpers.prepared(
        helpers.workload(lambda: _Cursed(float("inf"), where)),
        steps=1, global_batch=32, microbatch=5, lr=0.1, sam_radius=radius,
    )  # fmt: skip
    wanted = helpers.run(one).image.arrays["parameters"]
    solo = Solo(plan.job, plan.image, helpers.Heard())
    with pytest.raises(NonFiniteError, match=rf"step 1: {text} of microbatch 4 is not finite"):
        solo.run()
    final = solo.final()
    assert final is not None
    assert final.step == 1
    assert torch.equal(final.arrays["parameters"], wanted)


# Unused parameters.


def test_unused_parameters_are_named_and_left_alone() -> None:
    plan = helpers.prepared(
        helpers.workload(lambda: Tied(has_unused=True)),
        steps=4, global_batch=32, microbatch=8, lr=0.1, weight_decay=0.5, optimizer="adamw", momentum=None,
    )  # fmt: skip
    before = helpers.initial(plan)
    ran = helpers.run(plan)
    assert sorted(ran.heard.unused) == ["unused.bias", "unused.weight"]
    after = ran.parameters()
    assert torch.equal(after["unused.weight"], before.get_parameter("unused.weight"))
    assert not torch.equal(after["out.weight"], before.get_parameter("out.weight"))


def test_a_parameter_used_by_some_microbatches_only_is_used() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Mlp()
            self.extra = nn.Parameter(torch.zeros(NUM_CLASSES))

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.net(x)
            return scores + self.extra if len(x) == 2 else scores

    ran = helpers.run(helpers.prepared(helpers.workload(Sometimes), steps=1, global_batch=32, microbatch=5, lr=1.0))
    assert ran.heard.unused == []
    assert float(ran.parameters()["extra"].abs().max()) > 0


# What a run leaves of the caller's process.


def test_the_callers_generator_and_modes_are_given_back() -> None:
    plan = helpers.prepared(helpers.workload(lambda: Mlp(0.5)), steps=2, global_batch=32, microbatch=8)
    plan.job.model.hidden.eval()  # type: ignore[union-attr]
    torch.manual_seed(123)
    wanted = torch.rand(3)
    torch.manual_seed(123)
    helpers.run(plan)
    assert torch.equal(torch.rand(3), wanted)
    assert plan.job.model.training
    assert not plan.job.model.hidden.training  # type: ignore[union-attr]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in plan.job.model.modules())


@pytest.mark.parametrize("context", ["no_grad", "autocast"])
def test_the_callers_thread_modes_do_not_change_the_bits(context: str) -> None:
    """Workers do not have them; so one worker in the caller's process must not either."""
    contexts: dict[str, Any] = {"no_grad": torch.no_grad(), "autocast": torch.autocast("cpu", dtype=torch.bfloat16)}

    def ran() -> Tensor:
        plan = helpers.prepared(helpers.workload(Mlp), steps=2, global_batch=32, microbatch=8)
        return helpers.run(plan).image.arrays["parameters"]

    wanted = ran()
    with contexts[context]:
        found = ran()
    assert torch.equal(found, wanted)
