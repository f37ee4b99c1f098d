"""One table of tests for every named optimiser: two closed-form optima, dtype, saved state, real workers, decay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.data.columns import Dataset, Rows, Samples
from samestep.measure.sweep.space import space_of
from samestep.optim import build, catalog, state
from samestep.optim.lars import LARS
from samestep.run.prepare import Choices
from samestep.run.session import Result
from samestep.run.train import train
from samestep.run.workload import Workload
from tests import helpers
from tests.marks import soak
from tests.optim import test_owner as owned

RATES: dict[str, tuple[float, float]] = {
    "adabelief": (1, 0.3),
    "adadelta": (100, 10),
    "adafactor": (0.3, 0.1),
    "adagrad": (3, 0.3),
    "adam": (1, 0.3),
    "adamax": (1, 1),
    "adamw": (1, 0.3),
    "adan": (1, 1),
    "ademamix": (1, 1),
    "asgd": (1, 3),
    "kfac": (1, 1),
    "lamb": (0.1, 0.03),
    "laprop": (0.3, 0.3),
    "lars": (5, 3),
    "lion": (0.1, 0.03),
    "muon": (0.1, 0.03),
    "nadam": (1, 0.3),
    "nesterov": (1, 3),
    "novograd": (3, 0.3),
    "radam": (3, 3),
    "rmsprop": (0.3, 0.03),
    "rprop": (3, 0.03),
    "schedulefreeadamw": (3, 1),
    "schedulefreesgd": (10, 100),
    "sgd": (1, 3),
    "shampoo": (10, 1),
    "soap": (1, 0.1),
    "stableadamw": (1, 0.3),
    "yogi": (1, 0.3),
}
"""Learning rates for the quadratic and for the logistic problem; searched once, by factors of three."""

PAGE = Path(__file__).parents[2] / "docs" / "optimisers.md"

FREQUENCIES = torch.tensor([[8, 4, 2, 2], [2, 8, 4, 2], [3, 3, 4, 6]])
"""How often each of four classes comes with each of three inputs."""


def settings_of(name: str) -> dict[str, Any]:
    """Of a run to an optimum: few steps for the one whose steps are long and costly."""
    return {"workers": 1, "lr_schedule": "linear", "steps": 20 if name == "kfac" else 200}


def every_name() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", catalog.names())


def made(samples: Samples, loss: nn.Module, dtype: torch.dtype) -> Workload:
    data = Dataset(samples, samples)
    return Workload(name="optimum", model=lambda: nn.Linear(3, 4).to(dtype), data=lambda: data, loss=loss)


def quadratic() -> tuple[Workload, Tensor]:
    """Mean squared error of a linear map that is one: its minimum is 0. And the map's outputs."""
    inputs = torch.randn(32, 3, generator=helpers.generator(3))
    weight = torch.randn(4, 3, generator=helpers.generator(4))
    outputs = inputs @ weight.T + torch.tensor([1.0, -1.0, 0.5, 0.0])
    samples = Samples((Rows(values=inputs),), Rows(values=outputs))
    return made(samples, nn.MSELoss(), torch.float32), outputs


def logistic() -> Workload:
    """Cross-entropy over one-hot inputs: at its minimum the probabilities are the frequencies."""
    inputs = torch.eye(3, dtype=torch.float64).repeat_interleave(FREQUENCIES.sum(1), dim=0)
    target = torch.cat([torch.arange(4).repeat_interleave(row) for row in FREQUENCIES])
    return made(Samples((Rows(values=inputs),), Rows(values=target)), nn.CrossEntropyLoss(), torch.float64)


def every_sample(work: Workload) -> tuple[tuple[Tensor, ...], Tensor]:
    samples = work.data().train
    indices = torch.arange(samples.num_samples)
    return tuple(helpers.load(column, indices) for column in samples.inputs), helpers.load(samples.target, indices)


def loss_of(result: Result) -> float:
    assert result.record.last_evaluation is not None
    return float(result.record.last_evaluation["loss"])


def test_the_table_is_whole() -> None:
    assert set(RATES) == set(catalog.names())
    assert {entry.origin.split(":")[0].split(".")[0] for entry in catalog.entries()} == {
        "torch",
        "pytorch_optimizer",
        "samestep",
    }
    assert all(entry.source for entry in catalog.entries())


@every_name()
def test_the_page_has_a_row_for_it(name: str) -> None:
    entry = catalog.entry(name)
    rows = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith(f"| {name} |")]
    assert [row[1:4] for row in rows] == [[entry.looks_at, f"{entry.lr(None):g}", entry.rule]]


@every_name()
def test_reaches_the_minimum_of_a_quadratic(name: str) -> None:
    work, outputs = quadratic()
    result = train(work, optimizer=name, lr=RATES[name][0], global_batch=32, microbatch=16, **settings_of(name))
    assert result.model.weight.dtype == torch.float32
    assert loss_of(result) < 1e-3 * float(outputs.square().mean())


@every_name()
def test_reaches_the_frequencies_of_a_logistic_problem(name: str) -> None:
    result = train(logistic(), optimizer=name, lr=RATES[name][1], global_batch=48, microbatch=16, **settings_of(name))
    assert result.model.weight.dtype == torch.float64
    found = result.model(torch.eye(3, dtype=torch.float64)).softmax(1).detach()
    assert float((found - FREQUENCIES / 16).abs().max()) < 0.01
    wanted = -(FREQUENCIES * (FREQUENCIES / 16).log()).sum() / 48
    assert abs(loss_of(result) - float(wanted)) < 1e-3


def test_a_rate_of_nothing_would_be_found_out() -> None:
    work, outputs = quadratic()
    result = train(work, optimizer="adamw", lr=1e-6, global_batch=32, microbatch=16, **settings_of("adamw"))
    assert loss_of(result) > 0.1 * float(outputs.square().mean())


@every_name()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_has_the_parameters_dtype(name: str, dtype: torch.dtype) -> None:
    model = helpers.Mlp().to(dtype)
    plan = state.plan_update(build.parts(model, name, lr=0.01), dict(model.named_parameters()))
    floats = {array.dtype for array in plan.arrays if array.dtype.startswith(("float", "bfloat"))}
    assert floats <= {str(dtype).removeprefix("torch.")}


@every_name()
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(name: str, tmp_path: Path) -> None:
    """Past the tenth step, where SOAP refreshes its bases; the stop is between evaluations and at one."""
    common: dict[str, Any] = {
        "optimizer": name, "lr": 0.01, "workers": 1, "global_batch": 32, "microbatch": 8, "evaluate_every": 4,
    }  # fmt: skip
    work = helpers.workload(evaluation=helpers.samples(20))
    whole = train(work, steps=14, **common)
    for steps in (5, 8, 14):
        result = train(work, steps=steps, checkpoint=tmp_path, resume=steps > 5, **common)
    assert result.record.first_step == 8
    assert result.record.weights_sha256 == whole.record.weights_sha256
    assert whole.best_state is not None and result.best_state is not None
    assert all(torch.equal(values, whole.best_state[key]) for key, values in result.best_state.items())


@every_name()
def test_biases_and_norms_do_not_decay(name: str) -> None:
    if name in ("rprop", "kfac"):
        pytest.skip("has no weight decay, and says so")
    model = owned.net()
    plain, decayed = (owned.run_cut(owned.make_plan(model, name, weight_decay=d), model, 1) for d in (1e-9, 0.3))
    for key, values in plain.items():
        assert torch.equal(values, decayed[key]) is (model.get_parameter(key).dim() < 2), key


@every_name()
def test_parameter_groups_have_rates_of_their_own(name: str) -> None:
    """Groups alike change no bit; one with the rate 0 stays where it is, and the others do not."""

    def after(*groups: dict[str, Any]) -> dict[str, Tensor]:
        def split(model: nn.Module) -> list[dict[str, Any]]:
            layers = (model.get_submodule("hidden"), model.get_submodule("out"))
            return [{**own, "params": [*each.parameters()]} for own, each in zip(groups, layers, strict=True)]

        choices = Choices(parameter_groups=split if groups else None)
        settings: dict[str, Any] = {"optimizer": name, "momentum": None, "lr": 0.01, "steps": 4, "global_batch": 25}
        return helpers.run(helpers.prepared(helpers.workload(), choices, **settings)).parameters()

    whole, alike, stopped = after(), after({}, {}), after({}, {"lr": 0.0})
    start = dict(helpers.initial(helpers.prepared(helpers.workload())).named_parameters())
    for key, values in whole.items():
        assert torch.equal(values, alike[key]), key
        if name != "rprop":  # its rate is only the first length of its steps
            assert torch.equal(start[key].detach(), stopped[key]) is key.startswith("out"), key


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "workers"), [soak("kfac", 2), soak("kfac", 3), soak("lamb", 2), ("soap", 3), soak("schedulefreeadamw", 2)]
)
def test_real_workers_give_the_same_bits(name: str, workers: int) -> None:
    settings: dict[str, Any] = {
        "optimizer": name, "lr": 0.02, "global_batch": 27, "microbatch": 4, "steps": 12, "evaluate_every": 5,
    }  # fmt: skip
    work = helpers.workload(evaluation=helpers.samples(20))
    one, several = train(work, workers=1, **settings), train(work, workers=workers, **settings)
    assert several.record.engine == "shared"
    assert several.record.weights_sha256 == one.record.weights_sha256
    assert [dict(e.means) for e in several.record.evaluations] == [dict(e.means) for e in one.record.evaluations]
    assert one.best_state is not None and several.best_state is not None
    assert all(torch.equal(values, one.best_state[key]) for key, values in several.best_state.items())


def test_schedule_free_is_judged_and_saved_by_its_average() -> None:
    """Against the class alone, on the same batches; how often one looks changes nothing."""
    common: dict[str, Any] = {"optimizer": "schedulefreeadamw", "lr": 0.05, "workers": 1, "steps": 9}
    work, _ = quadratic()
    plan = helpers.prepared(work, global_batch=32, microbatch=32, steps=9, optimizer="schedulefreeadamw", lr=0.05,
                            momentum=None)  # fmt: skip
    model = helpers.initial(plan)
    optimizer = catalog.entry("schedulefreeadamw").load()(model.parameters(), lr=0.05)  # type: ignore[call-arg]
    for step in range(9):
        ((inputs, target),) = helpers.microbatches(plan.job, step)
        model.zero_grad()
        nn.functional.mse_loss(model(*inputs), target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    trained = model.get_parameter("weight").detach().clone()
    build.show_averages([optimizer])
    often, once = (train(work, global_batch=32, microbatch=32, evaluate_every=every, **common) for every in (1, 9))
    assert often.record.weights_sha256 == once.record.weights_sha256
    found, averaged = (net.get_parameter("weight").detach() for net in (often.model, model))
    assert helpers.relative(found, averaged) < 1e-5 < helpers.relative(trained, averaged)
    shown, wanted = every_sample(work)
    mean = nn.functional.mse_loss(often.model(*shown).detach(), wanted)
    assert loss_of(often) == pytest.approx(float(mean), rel=1e-5)


def test_lamb_is_the_papers() -> None:
    """The first step has the length lr × norm of the weights; a decay is part of what is scaled."""
    weight = nn.Parameter(torch.full((4, 4), 5.0))  # norm 20
    weight.grad = torch.ones(4, 4)
    before = weight.detach().clone()
    build.by_name("lamb", lr=0.1)([{"params": [weight], "weight_decay": 0.5}]).step()
    assert float((weight.detach() - before).norm()) == pytest.approx(2.0, rel=1e-4)


def test_lars_follows_its_formula_with_momentum_and_decay() -> None:
    random = helpers.generator(1)
    wanted = torch.randn(3, 4, generator=random, dtype=torch.float64)
    weight, bias = nn.Parameter(wanted.clone()), nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = LARS([weight, bias], lr=2.0, momentum=0.5, weight_decay=0.1, trust=0.01)
    velocity = torch.zeros_like(wanted)
    for _ in range(5):
        gradient = torch.randn(3, 4, generator=random, dtype=torch.float64)
        weight.grad, bias.grad = gradient.clone(), torch.zeros_like(bias)
        optimizer.step()
        local = 0.01 * wanted.norm() / (gradient.norm() + 0.1 * wanted.norm())
        velocity = 0.5 * velocity + 2.0 * local * (gradient + 0.1 * wanted)
        wanted = wanted - velocity
    assert helpers.relative(weight.detach(), wanted) < 1e-14


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"momentum": 1.0}, {"trust": -0.1}])
def test_lars_refuses_what_is_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Invalid"):
        LARS([nn.Parameter(torch.zeros(1))], **options)


def test_nesterov_is_sgd_with_nesterovs_momentum() -> None:
    (plan,) = build.parts(helpers.Mlp(), "nesterov", lr=0.1)
    optimizer = build.build(plan, [{"params": [nn.Parameter(torch.zeros(2))]}])
    options = optimizer.param_groups[0]
    assert (options["lr"], options["momentum"], options["nesterov"]) == (0.1, 0.9, True)
    assert space_of("nesterov") == space_of("sgd")
