"""Three lines are enough; and what arrays can be wrong in, each in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import samestep
from samestep.errors import DataError, SamestepError, UsageError
from samestep.run.fit import fit
from tests.helpers import Everything

ONE: dict[str, Any] = {"workers": 1, "steps": 3, "global_batch": 16, "microbatch": 4}


def arrays(num_samples: int = 60) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(num_samples, 12))
    return inputs, (inputs[:, 0] > 0).astype(np.int64) + 2 * (inputs[:, 1] > 0)


def net(num_outputs: int = 4) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, num_outputs))


@pytest.mark.processes
@pytest.mark.soak
def test_three_lines_without_a_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "three.py"
    script.write_text(
        "import numpy as np, samestep\n"
        "from torch import nn\n"
        "X, y = np.random.default_rng(0).normal(size=(64, 4)), np.arange(64) % 2\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.out = nn.Linear(4, 2)\n"
        "    def forward(self, x):\n"
        "        return self.out(x)\n"
        "print('script runs')\n"
        "result = samestep.fit(Net(), X, y, epochs=1, workers=2, global_batch=16, loss=lambda o, t: "
        "nn.functional.cross_entropy(o, t, reduction='none'))\n"
        "print(result.record.engine, result.record.num_samples)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert done.stdout == "script runs\nshared 64\n", done.stderr


def test_it_learns_in_place() -> None:
    inputs, targets = arrays(200)
    model = net()
    result = fit(model, inputs, targets, workers=1, epochs=20, global_batch=32, lr=0.02)
    assert result.model is model
    assert result.record.last_loss is not None
    assert result.record.last_loss < 0.6
    with torch.no_grad():
        answers = model(torch.from_numpy(inputs).float()).argmax(1)
    assert float((answers == torch.from_numpy(targets)).float().mean()) > 0.85
    assert all(parameter.grad is None for parameter in model.parameters())


def digest(inputs: Any, targets: Any, **options: Any) -> str:
    return str(fit(options.pop("model", None) or net(), inputs, targets, **ONE, **options).record.weights_sha256)


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(np.float32), torch.from_numpy, lambda x: x.tolist(),
        np.asfortranarray, lambda x: torch.from_numpy(x).t().contiguous().t(),
        lambda x: torch.from_numpy(x).requires_grad_(),
    ],
)  # fmt: skip
def test_kinds_of_inputs_give_the_same_bits(convert: Any) -> None:
    inputs, targets = arrays()
    assert digest(convert(inputs), targets) == digest(inputs, targets)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint16])
def test_kinds_of_classes_give_the_same_bits(dtype: Any) -> None:
    inputs, targets = arrays()
    assert digest(inputs, targets.astype(dtype)) == digest(inputs, targets)
    assert digest(inputs, (targets > 1)) == digest(inputs, (targets > 1).astype(int))


def test_the_callers_arrays_stay() -> None:
    inputs, targets = arrays()
    before = inputs.copy(), targets.copy()
    digest(inputs, targets)
    assert (before[0] == inputs).all()
    assert (before[1] == targets).all()


def test_bytes_become_floats() -> None:
    inputs = (np.arange(60 * 12) % 251).astype(np.uint8).reshape(60, 12)
    _, targets = arrays()
    assert digest(inputs, targets) == digest(inputs.astype(np.float64), targets)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames_are_arrays(library: str) -> None:
    """Also where truth values stand beside numbers: as one array these would be objects."""
    frames = pytest.importorskip(library)
    inputs, targets = arrays()
    flags = inputs[:, 3:] > 0
    plain = np.concatenate([inputs[:, :3], flags], axis=1)
    columns = {f"x{number}": (inputs if number < 3 else inputs > 0)[:, number] for number in range(12)}
    assert digest(frames.DataFrame(columns), frames.Series(targets)) == digest(plain, targets)
    with pytest.raises(DataError, match="X has dtype object"):
        digest(frames.DataFrame({**columns, "x11": ["text"] * 60}), targets)


def test_truth_values_are_numbers_alone_and_masks_beside_other_inputs() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor, mask: Tensor) -> Any:
            assert mask.dtype == torch.bool
            return self.net(x.masked_fill(mask, 0.0))

    inputs, targets = arrays()
    mask = inputs < 0
    masked = Masked()
    fit(masked, (inputs, mask), targets, **ONE)
    assert samestep.digest(masked.net) == digest(np.where(mask, 0.0, inputs), targets)
    assert digest(mask, targets) == digest(mask.astype(np.float32), targets)


def test_floats_are_values() -> None:
    inputs, _ = arrays()
    result = fit(net(1), inputs, inputs.sum(1, keepdims=True), **ONE)
    assert result.record.last_loss is not None
    assert result.record.last_loss > 1


def test_float64_models() -> None:
    inputs, targets = arrays()
    result = fit(net().double(), inputs, targets, validation=(inputs, targets), **ONE)
    assert next(result.model.parameters()).dtype == torch.float64
    assert result.record.last_evaluation is not None


def test_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 12)
            self.net = net()

        def forward(self, x: Tensor, code: Tensor) -> Tensor:
            scores: Tensor = self.net(x + self.embedding(code))
            return scores

    inputs, targets = arrays()
    assert fit(Two(), (inputs, targets + 1), targets, **ONE).record.num_samples == 48


@pytest.mark.parametrize("given", [[0.5, 1.0, 2.0, 3.0], "balanced"])
def test_class_weights(given: Any) -> None:
    inputs, targets = arrays()
    counts = np.bincount(targets)
    wanted = torch.tensor(given) if given != "balanced" else torch.from_numpy(60 / (4 * counts)).float()
    by_hand = nn.CrossEntropyLoss(weight=wanted)
    assert digest(inputs, targets, class_weights=given) == digest(inputs, targets, loss=by_hand)
    assert digest(inputs, targets, class_weights=given) != digest(inputs, targets)


@pytest.mark.parametrize("given", [[0.5, 1.0, 2.0, 3.0], "balanced"])
def test_class_weights_of_a_float64_model(given: Any) -> None:
    inputs, targets = arrays()
    assert fit(net().double(), inputs, targets, class_weights=given, **ONE).record.end == "finished"


def with_nan(where: tuple[int, int], value: float = float("nan")) -> Any:
    inputs = arrays()[0]
    inputs[where] = value
    return inputs


X, Y = arrays()
WRONG: dict[str, tuple[Any, Any, dict[str, Any], type[SamestepError], str]] = {
    "batch_size": (X, Y, {"batch_size": 3}, UsageError, "global_batch .*microbatch"),
    "unknown setting": (X, Y, {"learning_rate": 3}, UsageError, "'learning_rate' is not a setting"),
    "nan": (with_nan((17, 3)), Y, {}, DataError, r"input 0 of the training data .*first in sample 17"),
    "infinity": (with_nan((5, 0), np.inf), Y, {}, DataError, r"first in sample 5"),
    "both infinities": (
        np.where(np.arange(720).reshape(60, 12) == 400, np.inf, with_nan((2, 2), -np.inf)),
        Y, {}, DataError, r"first in sample 2\)",
    ),
    "nan in validation": (X, Y, {"validation": (with_nan((9, 0)), Y)}, DataError, "of the evaluation data .*sample 9"),
    "nan in y": (X, with_nan((3, 1)), {"loss": nn.MSELoss()}, DataError, "the target of the training data .*sample 3"),
    "label too large": (X, Y + 1, {}, DataError, r"a label is 4 and the model answers for 4 classes \(0 \.\. 3\)"),
    "label negative": (X, Y - 1, {}, DataError, r"a label is -1"),
    "label of validation": (X, Y, {"validation": (X, Y + 3)}, DataError, r"a label is [456] "),
    "lengths": (X, Y[:-1], {}, DataError, "X has 60 samples and y has 59"),
    "shape of validation": (
        X, Y, {"validation": (X[:, :5], Y)}, DataError, r"does not take validation samples of shape \(5,\)",
    ),
    "lengths of validation": (X, Y, {"validation": (X[:9], Y[:8])}, DataError, "validation X has 9 samples"),
    "texts": (X, np.array(list("abcd"))[Y], {}, DataError, "y has dtype <U1, which is not a number"),
    "objects": (X.astype(object), Y, {}, DataError, "X has dtype object"),
    "single number": (X, 3, {}, DataError, "y is a single number"),
    "nothing": (X[:0], Y[:0], {}, DataError, "no samples"),
    "weights with a loss": (
        X, Y, {"loss": nn.CrossEntropyLoss(), "class_weights": "balanced"}, UsageError, "go with the default loss",
    ),
    "weights unknown": (X, Y, {"class_weights": "fair"}, UsageError, "class_weights='fair' is not known"),
    "class without samples": (X, Y * 2, {"class_weights": "balanced"}, DataError, "class 1 has no training sample"),
    "target of no metric": (
        X, Y, {"validation": (X, Y), "target": samestep.Target(metric="f1", value=1.0)}, UsageError, "metric 'f1'",
    ),
    "workers": (X, Y, {"workers": 5}, UsageError, "workers=5 is more than the 4 microbatches"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_line(case: str) -> None:
    inputs, targets, options, kind, text = WRONG[case]
    model = net()
    before = samestep.digest(model)
    with pytest.raises(kind, match=text) as error:
        fit(model, inputs, targets, **{**ONE, **options})
    assert "\n" not in str(error.value)
    assert samestep.digest(model) == before


RAW: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "values of shape (n,) for a model that answers (n, 1)": (X, X.sum(1), {"model": net(1)}),
    "values that do not broadcast": (X, X[:, :3], {"model": net(2)}),
    "classes of shape (n, 1)": (X, Y[:, None], {}),
    "integers for a linear layer": (X.astype(int), Y, {}),
    "columns that the model has no weights for": (X[:, :5], Y, {}),
    "balanced weights with ignored labels": (X, np.where(Y == 0, -100, Y), {"class_weights": "balanced"}),
    "too few class weights": (X, Y, {"class_weights": [1.0, 2.0]}),
}


@pytest.mark.parametrize("case", RAW)
def test_common_slips_are_said_in_one_line(case: str) -> None:
    inputs, targets, options = RAW[case]
    with pytest.raises(SamestepError):
        digest(inputs, targets, **options)


def test_nothing_trainable() -> None:
    with pytest.raises(UsageError, match="no trainable parameter"):
        fit(net().requires_grad_(requires_grad=False), X, Y, **ONE)


def test_a_callable_object_that_cannot_be_hashed_is_a_loss() -> None:
    class Loss:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, output: Tensor, target: Tensor) -> Tensor:
            return nn.functional.cross_entropy(output, target, reduction="none")

    assert digest(X, Y, loss=Loss()) == digest(X, Y, loss=nn.CrossEntropyLoss())


def test_the_helpers_largest_net_trains() -> None:
    targets = np.arange(60) % 5
    assert fit(Everything(), X, targets, **ONE).record.end == "finished"
