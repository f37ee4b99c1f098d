"""The subspace K-FAC from end to end: the same bits for any W, over layers of every kind; resumed, killed, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.data.columns import Rows, Samples
from samestep.engine.curvature import Curvature
from samestep.engine.job import Job
from samestep.errors import NonFiniteError, UsageError
from samestep.optim.kfac import quadratic
from samestep.optim.kfac.rule import NUM_PRODUCTS, SubspaceKfac
from samestep.optim.kfac.units import DECIDED, FACTORS, factor_places, shares
from samestep.optim.views import view_of
from samestep.plan.batch import Microbatch
from samestep.run import curvature
from samestep.run.session import Result
from samestep.run.train import train
from tests import helpers

SETTINGS: dict[str, Any] = {"optimizer": "kfac", "global_batch": 27, "microbatch": 4, "seed": 3}


NUM_INPUTS = 12


class Recurrent(nn.Module):
    """An LSTM over three rows of four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.out = nn.Linear(8, helpers.NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.lstm(x.view(-1, 3, 4))[0][:, -1])
        return scores


class Attentive(nn.Module):
    """A transformer's layer, with dropout, over three rows of four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.1)
        self.out = nn.Linear(12, helpers.NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.layer(x.view(-1, 3, 4)).flatten(1))
        return scores


class Series(nn.Module):
    """A convolution over four places of three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(3, 6, 3, padding=1)
        self.out = nn.Linear(24, helpers.NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.convolution(x.view(-1, 3, 4)).tanh().flatten(1))
        return scores


class Gated(nn.Module):
    """A GRU over three rows of four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 8, batch_first=True)
        self.out = nn.Linear(8, helpers.NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.gru(x.view(-1, 3, 4))[0][:, -1])
        return scores


class Looked(nn.Module):
    """An embedding of three signs for each number, both trained."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4)
        self.out = nn.Linear(48, helpers.NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.table((x > -0.5).long() + (x > 0.5).long()).flatten(1))
        return scores


def run(build: Any, steps: int = 5, **settings: Any) -> Result:
    return train(helpers.workload(build, evaluation=helpers.samples(20)), steps=steps, **{**SETTINGS, **settings})


@pytest.mark.processes
@pytest.mark.parametrize(
    ("build", "workers"),
    [
        pytest.param(helpers.Mlp, 2),
        pytest.param(helpers.Cnn, 3, marks=pytest.mark.soak),
        pytest.param(Series, 2, marks=pytest.mark.soak),
        pytest.param(Recurrent, 2, marks=pytest.mark.soak),
        pytest.param(Attentive, 3, marks=pytest.mark.soak),
    ],
)
def test_the_same_bits_on_any_number_of_workers(build: Any, workers: int) -> None:
    one, several = (run(build, workers=number) for number in (1, workers))
    assert several.record.weights_sha256 == one.record.weights_sha256
    assert [step.loss for step in several.record.steps] == [step.loss for step in one.record.steps]
    assert run(build, workers=1, seed=4).record.weights_sha256 != one.record.weights_sha256


@pytest.mark.parametrize("build", [helpers.Mlp, helpers.Cnn, Recurrent, Attentive, Series, Gated, Looked])
def test_it_learns_on_layers_of_every_kind(build: Any) -> None:
    losses = [step.loss for step in run(build, steps=12, workers=1, global_batch=75, microbatch=15).record.steps]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.processes
def test_a_run_goes_on_with_another_number_of_workers(tmp_path: Path) -> None:
    whole = run(helpers.Mlp, steps=14, workers=1)
    run(helpers.Mlp, steps=11, workers=2, checkpoint=tmp_path)  # the factors are those of step 9 until step 12
    again = run(helpers.Mlp, steps=14, workers=1, checkpoint=tmp_path, resume=True)
    assert again.record.first_step == 11
    assert again.record.weights_sha256 == whole.record.weights_sha256


def linear(num_samples: int, dtype: torch.dtype = torch.float64) -> Samples:
    inputs = torch.randn(num_samples, 3, generator=helpers.generator(5), dtype=dtype)
    return Samples(
        (Rows(values=inputs),), Rows(values=torch.randn(num_samples, 2, generator=helpers.generator(6), dtype=dtype))
    )


def test_the_factors_of_a_linear_layer_are_the_second_moments() -> None:
    """Mean squared error: A is the inputs' second moment, with a 1 for the bias; G the unit matrix, up to its draws."""
    work = helpers.workload(helpers.double(lambda: nn.Linear(3, 2)), loss=nn.MSELoss(), train=linear(2000))
    work = type(work)(**{**vars(work), "metrics": {}})
    plan = helpers.prepared(work, optimizer="kfac", momentum=None, global_batch=2000, microbatch=500, steps=1)
    ran = helpers.run(plan)
    inputs, outputs = _factors(ran.job, ran.image.arrays[FACTORS])
    values = helpers.load(linear(2000).inputs[0], torch.arange(2000))
    ones = torch.cat([values, torch.ones(2000, 1, dtype=torch.float64)], 1)
    assert helpers.relative(inputs, ones.T @ ones / 2000) < 1e-12
    assert helpers.relative(outputs, torch.eye(2, dtype=torch.float64)) < 0.1  # H = 2 over 2 elements of the mean
    assert float(ran.image.arrays[DECIDED][0]) == 1


def _factors(job: Job, flat: Tensor) -> tuple[Tensor, ...]:
    assert job.curvature is not None
    (places,) = factor_places(job.curvature.units, job.curvature.factors)
    return tuple(view_of(place, flat) for place in places)


def test_one_step_solves_a_linear_problem() -> None:
    """The loss is the quadratic itself: the step leaves little of it, and the second less."""
    work = helpers.workload(helpers.double(lambda: nn.Linear(3, 2)), loss=nn.MSELoss(), train=linear(200))
    work = type(work)(**{**vars(work), "metrics": {}})
    plan = helpers.prepared(work, optimizer="kfac", momentum=None, global_batch=200, microbatch=50, steps=6)
    heard = helpers.run(plan).heard
    inputs = helpers.load(linear(200).inputs[0], torch.arange(200))
    target = helpers.load(linear(200).target, torch.arange(200))
    design = torch.cat([inputs, torch.ones(200, 1, dtype=torch.float64)], 1)
    least = float((design @ torch.linalg.lstsq(design, target).solution - target).square().mean())
    assert heard.losses[1] - least < 0.1 * (heard.losses[0] - least)
    assert heard.losses[-1] - least < 1e-3 * (heard.losses[0] - least)


def test_products_are_those_of_the_dense_gauss_newton_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jᵀ H J of the summed cross-entropy, written out: H of a sample is diag(p) - p pᵀ."""
    compute, seen = Curvature._products, []

    def watched(self: Curvature, source: int, microbatch: Microbatch) -> Any:
        entries, weight = compute(self, source, microbatch)
        (inputs,) = self._batches[microbatch.index].inputs

        def scores(flat: Tensor) -> Tensor:
            answer: Tensor = torch.func.functional_call(self._job.model, self._named(flat), (inputs,))
            return answer

        jacobian = torch.func.jacrev(scores)(self._parameters.clone())
        shares = scores(self._parameters).detach().softmax(1)
        moved = torch.stack([jacobian @ direction for direction in self._all()], 1)  # samples, directions, classes
        curved = shares[:, None] * moved - shares[:, None] * (shares[:, None] * moved).sum(2, keepdim=True)
        dense = torch.einsum("nic,njc->ij", moved, curved)
        found = torch.from_numpy(entries)
        seen.append(helpers.relative(found[:NUM_PRODUCTS], dense[tuple(torch.triu_indices(*dense.shape))]))
        targets = nn.functional.one_hot(self._batches[microbatch.index].target, shares.shape[1])
        slopes = torch.einsum("nc,nic->i", shares - targets, moved)  # the gradient of these samples, not of the step's
        seen.append(helpers.relative(found[NUM_PRODUCTS:], slopes))
        return entries, weight

    monkeypatch.setattr(Curvature, "_products", watched)
    train(
        helpers.workload(helpers.double(helpers.Mlp), train=helpers.samples(dtype=torch.float64)),
        steps=3, workers=1, **SETTINGS,
    )  # fmt: skip
    assert len(seen) > 3
    assert max(seen) < 1e-10


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"stages": 2, "workers": 2}, "stages=2 do not go together"),
        ({"engine": "group"}, "engine='group' do not go together"),
        ({"clip_norm": 1.0}, "clip_norm=1.0 do not go together"),
        ({"sam_radius": 0.1}, "sam_radius=0.1 do not go together"),
        ({"precision": "bf16"}, "precision='bf16' do not go together"),
        ({"base_batch": 8, "batch_rule": "linear"}, "batch_rule='linear' do not go together; its step has a length of"),
        ({"base_batch": 8, "batch_rule": "sqrt"}, "batch_rule='sqrt' do not go together"),
        ({"base_batch": 8, "batch_rule": "adascale"}, "batch_rule='adascale' do not go together"),
        ({"momentum": 0.9}, "'kfac' has no option 'momentum'"),
        ({"weight_decay": 0.1}, "'kfac' has no option 'weight_decay'"),
    ],
)
def test_what_does_not_go_with_it_is_said_in_one_line(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        run(helpers.Mlp, **{"workers": 1, **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", [None, "auto", "none"])
def test_a_base_batch_leaves_the_step_as_long_as_it_is(rule: str | None) -> None:
    plain, based = run(helpers.Mlp, workers=1), run(helpers.Mlp, workers=1, base_batch=8, batch_rule=rule)
    assert based.record.weights_sha256 == plain.record.weights_sha256


def test_what_is_known_less_well_is_said_in_one_line() -> None:
    (line,) = helpers.prepared(helpers.workload(Attentive), momentum=None, **SETTINGS).lines
    own, bias = "layer.self_attn.in_proj_weight, layer.self_attn.out_proj.weight", "layer.self_attn.in_proj_bias"
    assert line == (
        f"kfac: less is known of the curvature of {own} (gradients, not inputs) and of {bias}, "
        "layer.self_attn.out_proj.bias and 4 more (the diagonal)"
    )
    assert helpers.prepared(helpers.workload(helpers.Mlp), momentum=None, **SETTINGS).lines == ()


@pytest.mark.parametrize(
    ("size", "last_batch", "has_fresh_rows"),
    [(75, "keep", False), (200, "keep", False), (74, "keep", True), (50, "drop", True), (75, "drop", False)],
)
def test_a_step_is_tried_on_its_own_rows_only_where_they_are_all(
    size: int, last_batch: str, has_fresh_rows: bool
) -> None:
    """Of 75; where the short last batch is dropped there is one step an epoch, which sees other rows each time."""
    settings = {**SETTINGS, "global_batch": size, "last_batch": last_batch, "momentum": None}
    curved = helpers.prepared(helpers.workload(), **settings).job.curvature
    assert curved is not None
    assert curved.has_fresh_rows is has_fresh_rows


def test_given_targets_are_said_in_one_line() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(output, target, reduction="none")

    (line,) = helpers.prepared(helpers.workload(loss=loss), momentum=None, **SETTINGS).lines
    assert line.startswith("kfac: factors are those of the given targets (an empirical Fisher matrix)")
    assert "\n" not in line


def test_rounds_and_rows_are_those_counted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of 27, 27 and 21 rows in microbatches of 4: so two rows of each give factors, and one of each (two where
    there are 6) is tried on.
    """
    best, tries = quadratic.best, [0]

    def counted(*arguments: Any) -> Any:
        tries[-1] += 1
        return best(*arguments)

    monkeypatch.setattr(curvature, "FACTOR_ROWS", (10, 10))
    monkeypatch.setattr(curvature, "TRIAL_ROWS", (7, 7))
    monkeypatch.setattr(quadratic, "best", counted)
    record = train(helpers.workload(), steps=12, workers=1, **SETTINGS).record
    found = record.steps.as_lists()
    small = [num_rounds - (2 if step < 10 else 1) for step, num_rounds in enumerate(found["num_rounds"])]
    assert sum(small) == 12 + tries[0]  # products in each step, and candidates as often as one was chosen
    own = [{0: 27 + 14, 1: 27 + 14, 2: 21 + 11}[step % 3] if step < 10 else (27, 21)[step - 10] for step in range(12)]
    each = [
        {0: 7, 1: 11, 2: 7}[step % 3] for step in range(12)
    ]  # of the next step, which is the short one after every 2nd
    assert found["num_rows"] == [rows + size * number for rows, size, number in zip(own, each, small, strict=True)]
    assert record.as_dict()["num_rounds"] == sum(found["num_rounds"])
    assert record.as_dict()["num_rows"] == sum(found["num_rows"])
    rule = SubspaceKfac
    assert all(rule.num_rounds <= number <= rule.most_rounds for number in found["num_rounds"])


@pytest.mark.parametrize(
    ("settings", "num_rounds", "num_rows"),
    [
        ({}, [1, 1, 1], [27, 27, 21]),
        ({"sam_radius": 0.1}, [2, 2, 2], [54, 54, 42]),
        ({"sync": "local:2", "replicas": 3, "noise_scale": "off"}, [2, 1], [54, 21]),
    ],
)
def test_rounds_and_rows_of_other_steps(settings: dict[str, Any], num_rounds: list[int], num_rows: list[int]) -> None:
    given = {**SETTINGS, "optimizer": "sgd", "steps": 3, "workers": 1, **settings}
    found = train(helpers.workload(), **given).record.steps.as_lists()
    assert (found["num_rounds"], found["num_rows"]) == (num_rounds, num_rows)


def overflowing() -> Samples:
    """One input is so large that its second moment is no number of float32, though gradients are."""
    inputs = torch.randn(75, NUM_INPUTS, generator=helpers.generator(1))
    inputs[:, 0] = 1e19
    return Samples((Rows(values=inputs),), Rows(values=torch.arange(75) % helpers.NUM_CLASSES))


def small_then_large() -> nn.Module:
    """The first layer's inverses are so cheap that one of two ranks has them all."""
    first = nn.Linear(NUM_INPUTS, 2)
    with torch.no_grad():
        first.weight[:, 0] = 0
    return nn.Sequential(first, nn.Tanh(), nn.Linear(2, 64), nn.Linear(64, helpers.NUM_CLASSES))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.processes)])
def test_a_factor_without_an_inverse_ends_all_workers_alike(workers: int) -> None:
    models: list[nn.Module] = []

    def build() -> nn.Module:
        models.append(small_then_large())
        return models[-1]

    work = helpers.workload(build, train=overflowing())
    plan = helpers.prepared(work, momentum=None, **SETTINGS)
    assert plan.job.curvature is not None
    owners = [{number for number, _ in jobs} for jobs in shares(plan.job.curvature.units, 3, 2)]
    assert [0 in owned for owned in owners].count(True) == 1
    start = dict(helpers.initial(plan).named_parameters())
    with pytest.raises(NonFiniteError) as caught:
        train(work, steps=3, workers=workers, **SETTINGS)
    assert str(caught.value) == (
        "step 0: a factor of 0.weight is not finite; the parameters are as they were before this step. "
        "Inputs of very different size do this: scale them; or take another optimizer"
    )
    assert all(torch.equal(start[name], values) for name, values in models[-1].named_parameters())


def test_a_loss_without_curvature_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^optimizer='kfac': nn.L1Loss has no curvature"):
        train(helpers.workload(loss=nn.L1Loss()), steps=3, workers=1, **SETTINGS)


class Backwards(torch.autograd.Function):
    """The identity, which can only be differentiated backwards."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0]


class OneWay(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = helpers.Mlp()

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = Backwards.apply(self.net(inputs))  # type: ignore[no-untyped-call]
        return scores


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.processes)])
def test_a_network_that_cannot_be_differentiated_forwards_is_told_in_one_line(workers: int) -> None:
    with pytest.raises(UsageError, match=r"^optimizer kfac differentiates the network forwards, too, and .*jvp$"):
        train(helpers.workload(OneWay), steps=3, workers=workers, **SETTINGS)
