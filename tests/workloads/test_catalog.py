"""Every workload builds, runs on a few samples, has the sizes that were asked for, and is found by its name."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from samestep.data import texts
from samestep.data.columns import Dataset, Rows, Samples
from samestep.engine import losses
from samestep.engine.losses import TokenLoss
from samestep.errors import DataError, UsageError
from samestep.run.metrics import accuracy
from samestep.run.train import train
from samestep.run.workload import Workload
from samestep.workloads import catalog, transformer

RECIPE_KEYS = {
    "global_batch", "epochs", "optimizer", "lr", "momentum", "weight_decay", "lr_schedule", "lr_warmup", "clip_norm",
}  # fmt: skip

SIZES: dict[str, tuple[int, int, list[tuple[int, ...]]]] = {
    # Training samples, evaluation samples, shapes of a sample's inputs.
    "digits-mlp": (1_618, 179, [(64,)]),
    "digits-cnn": (1_618, 179, [(1, 8, 8)]),
    "digits-transformer": (1_618, 179, [(1, 8, 8)]),
    "fashion-mlp": (60_000, 10_000, [(784,)]),
    "adult-mlp": (32_561, 16_281, [(6,), (8,)]),
    "mnist-cnn": (60_000, 10_000, [(1, 28, 28)]),
    "fashion-cnn": (60_000, 10_000, [(1, 28, 28)]),
    "fashion-resnet": (60_000, 10_000, [(1, 28, 28)]),
    "fashion-lstm": (60_000, 10_000, [(28, 28)]),
}

PARAMETERS = {  # of the default sizes, by hand
    "fashion-mlp": 785 * 256 + 257 * 256 + 257 * 10,
    "mnist-cnn": 26 * 32 + 801 * 64 + 3137 * 1024 + 1025 * 10,
    "fashion-lstm": 4 * 128 * (28 + 128 + 2) + 129 * 10,
}

DATA_FOLDERS = {  # where a workload that comes without data looks for them
    "adult-mlp": "adult", "mnist-cnn": "mnist", "fashion-mlp": "fashion-mnist", "fashion-cnn": "fashion-mnist",
    "fashion-resnet": "fashion-mnist", "fashion-lstm": "fashion-mnist", "shakespeare-transformer": "tinyshakespeare",
}  # fmt: skip

every_workload = pytest.mark.parametrize("name", catalog.names())


def num_parameters(module: nn.Module) -> int:
    """Elements of all parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def kinds_of(net: nn.Module) -> list[str]:
    """The classes of its modules that hold no others, in their order."""
    return [type(each).__name__ for each in net.modules() if not [*each.children()]]


def write_idx(path: Path, values: npt.NDArray[np.uint8]) -> None:
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(head + values.tobytes()))


def made_up_samples(name: str, num_samples: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inputs and targets in the shapes of a workload, without its data."""
    generator = torch.Generator().manual_seed(0)
    if name == "shakespeare-transformer":
        codes = torch.randint(65, (num_samples, transformer.CONTEXT + 1), generator=generator)
        return (codes[:, :-1],), codes[:, 1:]
    inputs = [torch.rand(num_samples, *shape, generator=generator) for shape in SIZES[name][2]]
    if name == "adult-mlp":
        inputs[1] = torch.randint(3, (num_samples, 8), generator=generator)
    return tuple(inputs), torch.randint(2, (num_samples,), generator=generator)


def loss_sum(loss: Callable[..., Any], output: Tensor, target: Tensor) -> Tensor:
    """The summed loss, from a mean or from a pair (sum, weight)."""
    value = loss(output, target)
    total: Tensor = value[0] if isinstance(value, tuple) else value * len(target)
    return total


class TestNames:
    def test_names_do_not_import_torch(self) -> None:
        script = "import sys; from samestep.workloads import catalog; catalog.names(); print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.strip() == "False"

    def test_descriptions_are_one_line(self) -> None:
        for entry in catalog.entries():
            assert entry.description
            assert "\n" not in entry.description

    @pytest.mark.parametrize(("asked", "near"), [("fashion_mlp", "fashion-mlp"), ("mnist", "mnist-cnn")])
    def test_an_unknown_name_gets_the_nearest(self, asked: str, near: str) -> None:
        with pytest.raises(UsageError, match=near) as info:
            catalog.build(asked)
        assert "\n" not in str(info.value)

    def test_a_name_like_no_other_gets_all(self) -> None:
        with pytest.raises(UsageError) as info:
            catalog.build("zzz")
        assert all(name in str(info.value) for name in catalog.names())


class TestBuild:
    @every_workload
    def test_forward_loss_and_gradient(self, name: str) -> None:
        workload = catalog.build(name)
        module = workload.model()
        inputs, target = made_up_samples(name, 4)
        output = module(*inputs)
        loss_sum(workload.loss, output, target).backward()  # type: ignore[no-untyped-call]
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
        right, weight = workload.metrics["accuracy"](output, target)
        assert weight == target.numel()
        assert 0 <= right <= weight

    @every_workload
    def test_kfac_takes_a_step_without_the_clipping_of_the_recipe(self, name: str) -> None:
        inputs, target = made_up_samples(name, 16)
        data = Dataset(Samples(tuple(Rows(values=each) for each in inputs), Rows(values=target)), None)
        work = replace(catalog.build(name, width=8, depth=1), data=lambda: data, target=None)
        record = train(work, optimizer="kfac", global_batch=16, steps=1, workers=1).record
        assert len(record.steps) == 1
        is_clipped = "clip_norm" in work.recipe
        assert record.config["clip_norm"] is None
        assert sum("clip_norm=1 is left out" in line for line in record.notices) == is_clipped

    @every_workload
    def test_width_and_depth_change_the_parameters(self, name: str) -> None:
        sizes = ((None, None), (24, None), (24, 1), (24, 3))
        models = (catalog.build(name, width=width, depth=depth).model() for width, depth in sizes)
        default, narrow, shallow, deep = map(num_parameters, models)
        assert narrow != default
        assert shallow != deep

    @pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
    def test_default_sizes(self, name: str, count: int) -> None:
        assert num_parameters(catalog.build(name).model()) == count

    @pytest.mark.parametrize("name", ["mnist-cnn", "fashion-cnn"])
    def test_the_simple_cnn_is_that_of_its_paper(self, name: str) -> None:
        """5 × 5 convolutions of 32 and 64 filters, each with ReLU and 2 × 2 max-pooling, a layer of 1,024 units."""
        net = catalog.build(name).model()
        assert kinds_of(net) == [*["Conv2d", "MaxPool2d", "ReLU"] * 2, "Flatten", "Linear", "ReLU", "Linear"]
        convolutions = [each for each in net.modules() if isinstance(each, nn.Conv2d)]
        assert [(each.out_channels, each.kernel_size) for each in convolutions] == [(32, (5, 5)), (64, (5, 5))]
        assert [each.kernel_size for each in net.modules() if isinstance(each, nn.MaxPool2d)] == [2, 2]
        dense = [each for each in net.modules() if isinstance(each, nn.Linear)]
        assert [each.out_features for each in dense] == [1024, 10]

    def test_the_feed_forward_net_of_fashion_has_no_dropout(self) -> None:
        net = catalog.build("fashion-mlp").model()
        assert kinds_of(net) == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
        assert [each.out_features for each in net.modules() if isinstance(each, nn.Linear)] == [256, 256, 10]

    def test_the_residual_net_normalises_and_drops_before_its_last_layer(self) -> None:
        net = catalog.build("fashion-resnet").model()
        kinds = kinds_of(net)
        assert kinds[-2:] == ["Dropout", "Linear"]
        assert kinds.count("BatchNorm2d") == kinds.count("Conv2d") > 0
        assert [each.p > 0 for each in net.modules() if isinstance(each, nn.Dropout)] == [True]

    def test_the_language_model_has_dropout(self) -> None:
        net = catalog.build("shakespeare-transformer").model()
        (codes,), _ = made_up_samples("shakespeare-transformer", 2)
        assert not torch.equal(net(codes), net(codes)), "two draws"
        net.eval()
        assert torch.equal(net(codes), net(codes))

    @pytest.mark.parametrize("name", ["mnist-cnn", "fashion-cnn", "fashion-mlp", "fashion-resnet", "fashion-lstm"])
    def test_pixels_are_divided_by_255(self, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        pixels = np.arange(60 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(60, 28, 28)
        labels = (np.arange(60) % 10).astype(np.uint8)
        folder = tmp_path / ("mnist" if name.startswith("mnist") else "fashion-mnist")
        folder.mkdir()
        for part in ("train", "t10k"):
            write_idx(folder / f"{part}-images-idx3-ubyte.gz", pixels)
            write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
        monkeypatch.setenv("SAMESTEP_DATA", str(tmp_path))
        (column,) = catalog.build(name).data().train.inputs
        found = column.gather(torch.arange(60)).flatten(1)
        torch.testing.assert_close(found, torch.from_numpy(pixels).flatten(1) / 255)

    @every_workload
    @pytest.mark.parametrize("size", [{"width": 0}, {"depth": 0}, {"width": -3}])
    def test_a_size_below_one_is_refused(self, name: str, size: dict[str, int]) -> None:
        with pytest.raises(UsageError, match=r"is below 1") as info:
            catalog.build(name, **size)
        assert "\n" not in str(info.value)

    def test_more_blocks_than_pixels_are_refused(self) -> None:
        with pytest.raises(UsageError, match=r"depth=5: 28 × 28 pixels halve 4 times; take 1 to 4"):
            catalog.build("mnist-cnn", depth=5).model()

    @pytest.mark.parametrize("name", ["shakespeare-transformer", "digits-transformer"])
    def test_a_width_that_heads_do_not_divide_is_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match=r"width=30 .* the next is 32"):
            catalog.build(name, width=30).model()

    @every_workload
    def test_a_seed_decides_the_model(self, name: str) -> None:
        workload = catalog.build(name)
        states = []
        for seed in (7, 7, 8):
            torch.manual_seed(seed)
            states.append(torch.cat([value.detach().flatten() for value in workload.model().parameters()]))
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])

    @every_workload
    def test_a_workload_can_be_pickled(self, name: str) -> None:
        copy = pickle.loads(pickle.dumps(catalog.build(name)))
        assert isinstance(copy, Workload)
        assert copy.name == name

    @every_workload
    def test_recipe(self, name: str) -> None:
        recipe = catalog.build(name).recipe
        assert {"global_batch", "epochs", "optimizer", "lr"} <= set(recipe) <= RECIPE_KEYS
        assert 64 <= recipe["global_batch"] <= 256
        assert 0 <= recipe.get("lr_warmup", 0) < 1

    def test_the_language_model_looks_back_only(self) -> None:
        module = catalog.build("shakespeare-transformer").model().eval()
        (codes,), _ = made_up_samples("shakespeare-transformer", 2)
        changed = codes.clone()
        changed[:, 10] = (changed[:, 10] + 1) % 65
        with torch.inference_mode():
            before, after = module(codes), module(changed)
        torch.testing.assert_close(before[:, :10], after[:, :10])
        assert not torch.allclose(before[:, 10:], after[:, 10:])

    def test_the_reader_of_pixels_looks_everywhere(self) -> None:
        module = catalog.build("digits-transformer").model().eval()
        (pictures,), _ = made_up_samples("digits-transformer", 2)
        assert isinstance(module, nn.Sequential)
        first_block = module[:2]
        changed = pictures.clone()
        changed[0, 0, 7, 7] += 1.0
        with torch.inference_mode():
            difference = (first_block(pictures) - first_block(changed)).abs().amax(dim=2)
        assert difference[0].all(), "the last pixel reaches every place"
        assert not difference[1].any()

    def test_the_pooled_relu_of_the_paper(self) -> None:
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        pool = nn.MaxPool2d(2)
        assert torch.equal(pool(x).relu(), pool(x.relu()))


class TestLosses:
    def test_token_loss_and_accuracy_count_tokens(self) -> None:
        target = torch.tensor([[0, 1, 2], [2, 1, 0]])
        output = 20.0 * nn.functional.one_hot(target, 3)
        output[0, 0] = torch.tensor([0.0, 20.0, 0.0])
        total, weight = losses.summed(TokenLoss())(output, target, 2)
        assert total.item() == pytest.approx(20.0)
        assert torch.equal(total, nn.functional.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="sum"))
        assert weight == 6
        right, count = accuracy(output, target)
        assert (right.item(), count) == (5, 6)


class TestData:
    @every_workload
    def test_columns(self, name: str) -> None:
        if not name.startswith("digits") and not os.environ.get("SAMESTEP_DATA"):
            pytest.skip("needs SAMESTEP_DATA")
        workload = catalog.build(name)
        data = workload.data()
        assert data.evaluation is not None
        for part in (data.train, data.evaluation):
            self.check_part(workload, part)
        if name in SIZES:
            assert (data.train.num_samples, data.evaluation.num_samples) == SIZES[name][:2]

    def check_part(self, workload: Workload, part: Samples) -> None:
        indices = torch.tensor([0, part.num_samples // 2, part.num_samples - 1])
        inputs = tuple(column.gather(indices) for column in part.inputs)
        target = part.target.gather(indices)
        assert target.dtype == torch.int64
        if workload.name in SIZES:
            assert [tuple(rows.shape[1:]) for rows in inputs] == SIZES[workload.name][2]
            classes = set(part.target.gather(torch.arange(part.num_samples)).tolist())
            assert classes == set(range(len(workload.class_names)))
        else:
            assert torch.equal(inputs[0][:, 1:], target[:, :-1])
        output = workload.model().eval()(*inputs)
        assert loss_sum(workload.loss, output, target).isfinite()

    @pytest.mark.parametrize("name", [name for name in catalog.names() if not name.startswith("digits")])
    def test_missing_data_are_named_with_the_place_to_put_them(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SAMESTEP_DATA", str(tmp_path / "named"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        with pytest.raises(DataError, match="not found") as info:
            catalog.build(name).data()
        message = str(info.value)
        assert "\n" not in message
        for place in (tmp_path / "named", tmp_path / "cache" / "samestep" / "data"):
            assert str(place / DATA_FOLDERS[name]) in message

    def test_the_language_model_is_evaluated_on_the_last_tenth(self) -> None:
        """Windows of the text that share no character."""
        if not os.environ.get("SAMESTEP_DATA"):
            pytest.skip("needs SAMESTEP_DATA")
        text = texts.tiny_shakespeare()
        data = catalog.build("shakespeare-transformer").data()
        assert data.evaluation is not None
        context = transformer.CONTEXT
        assert data.train.num_samples == (1_115_394 - 111_539 - 1) // context
        assert data.evaluation.num_samples == (111_539 - 1) // context
        for part, first in ((data.train, 0), (data.evaluation, 1_115_394 - 111_539)):
            every = torch.arange(part.num_samples)
            wanted = torch.from_numpy(text.codes[first : first + part.num_samples * context + 1])
            assert torch.equal(part.inputs[0].gather(every).flatten(), wanted[:-1])
            assert torch.equal(part.target.gather(every).flatten(), wanted[1:])
