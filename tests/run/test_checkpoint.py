"""Checkpoints: whole, hashed, of one run; the newest whole one is taken, and only by the run that it belongs to."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep.data.columns import Rows, Samples, Scale
from samestep.engine.job import Image
from samestep.errors import StateError, UsageError
from samestep.run import checkpoint
from samestep.run.train import train
from tests import helpers
from tests.helpers import Cnn, Everything, Mlp

NUMERICS = {"model": "net", "lr": 0.1, "shape": (3, 4)}


def image(step: int) -> Image:
    arrays = {"parameters": torch.arange(5.0) + step, "tracked": torch.zeros(0), "others": torch.zeros(2).byte()}
    best = {"parameters": torch.full((5,), float(step))}
    return Image(step, arrays, torch.tensor([1.5, step], dtype=torch.float64), torch.zeros(4).double(), best)


def write(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.write(folder, image(step), NUMERICS, {"last_loss": step / 10})


def read(folder: Path, numerics: dict[str, Any] | None = None) -> tuple[checkpoint.Saved | None, list[str]]:
    notices: list[str] = []
    return checkpoint.read_newest(folder, numerics or NUMERICS, image(0), notices.append), notices


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    write(tmp_path, 3)
    saved, notices = read(tmp_path)
    assert saved is not None
    assert (saved.image.step, saved.history["last_loss"], notices) == (3, 0.3, [])
    for name, values in image(3).arrays.items():
        assert torch.equal(saved.image.arrays[name], values)
    assert torch.equal(saved.image.scalars, image(3).scalars)
    assert torch.equal(saved.image.best["parameters"], image(3).best["parameters"])


def test_three_are_kept_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 10, 9, 100)
    names = sorted(path.name for path in tmp_path.iterdir())
    stems = ["step-000000009", "step-000000010", "step-000000100"]
    assert names == sorted(f"{stem}.{ending}" for stem in stems for ending in ("json", "safetensors"))


def test_what_a_killed_run_left_is_swept_up(tmp_path: Path) -> None:
    write(tmp_path, 1)
    left = [tmp_path / f".step-000000002.{ending}.4711.part" for ending in ("safetensors", "json")]
    left.append(tmp_path / "step-000000003.safetensors")  # its header was to come, and would have made it count
    for path in left:
        path.write_bytes(b"half")
    (tmp_path / "notes.part").write_text("a person's own")
    with checkpoint.owned(tmp_path):
        assert not any(path.exists() for path in left)
        assert (tmp_path / "notes.part").exists()
        saved, _ = read(tmp_path)
        assert saved is not None and saved.image.step == 1


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert read(tmp_path) == (None, [])
    assert not checkpoint.exists(tmp_path)


def damage(folder: Path, kind: str, step: int = 2) -> None:
    header, arrays = (folder / f"step-{step:09d}.{ending}" for ending in ("json", "safetensors"))
    if kind == "flipped":
        data = bytearray(arrays.read_bytes())
        data[-1] ^= 1
        arrays.write_bytes(data)
    elif kind == "cut":
        arrays.write_bytes(arrays.read_bytes()[:-3])
    elif kind == "missing":
        arrays.unlink()
    elif kind == "header cut":
        header.write_bytes(header.read_bytes()[:-20])
    elif kind == "header empty":
        header.write_bytes(b"")
    elif kind == "header binary":
        header.write_bytes(b"\xff\xfe\x00")
    elif kind == "header of another kind":
        header.write_bytes(b"[1, 2]")
    elif kind == "header of another format by one bit":
        header.write_bytes(header.read_bytes().replace(b'"format": 1', b'"format": 3'))
    else:
        content = json.loads(header.read_bytes())
        del content["numerics"]
        header.write_text(json.dumps(content))


KINDS = ["flipped", "cut", "missing", "header cut", "header empty", "header binary", "header of another kind",
         "header of another format by one bit"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_newest_one_is_passed_over(kind: str, tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    damage(tmp_path, kind)
    saved, notices = read(tmp_path)
    assert saved is not None
    assert saved.image.step == 1
    assert len(notices) == 1
    assert notices[0].startswith("checkpoint step-000000002 is damaged (")


def test_a_header_without_its_keys_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    damage(tmp_path, "header without numerics")
    saved, _ = read(tmp_path)
    assert saved is not None
    assert saved.image.step == 1


def test_no_whole_one(tmp_path: Path) -> None:
    write(tmp_path, 1, 2)
    damage(tmp_path, "flipped", 1)
    damage(tmp_path, "missing", 2)
    with pytest.raises(StateError, match=r"none of the 2 checkpoints in .* is whole"):
        read(tmp_path)


def test_another_format_is_not_damage(tmp_path: Path) -> None:
    write(tmp_path, 1)
    path = tmp_path / "step-000000001.json"
    header = {**json.loads(path.read_bytes()), "format": 99}
    del header["header_sha256"]
    path.write_text(json.dumps({**header, "header_sha256": checkpoint._header_hash(header)}))
    with pytest.raises(StateError, match="has format 99 and this version reads 1"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({**NUMERICS, "lr": 0.2}, r"with lr=0\.1 and this one has lr=0\.2"),
        ({"model": "net", "shape": (3, 4)}, r"with lr=0\.1 and this one has lr=None"),
        ({**NUMERICS, "seed": 1}, r"with seed=None and this one has seed=1"),
    ],
)
def test_other_numerics_are_refused_by_name(wanted: dict[str, Any], text: str, tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(StateError, match=text):
        read(tmp_path, wanted)


def test_long_numerics_are_shown_where_they_differ(tmp_path: Path) -> None:
    texts = ["x" * 100 + f"lr: {rate}" + "y" * 100 for rate in ("0.1", "0.2")]
    with pytest.raises(StateError, match=r"optimizer=\S*lr: 0\.1\S* and this one has optimizer=\S*lr: 0\.2"):
        checkpoint.compare_numerics({"optimizer": texts[0]}, {"optimizer": texts[1]}, tmp_path)


def test_older_ones_are_of_a_cpu(tmp_path: Path) -> None:
    write(tmp_path, 1)
    assert read(tmp_path, {**NUMERICS, "device": "cpu", "compile": "off"})[0] is not None
    with pytest.raises(StateError, match="with device=cpu and this one has device=cuda"):
        read(tmp_path, {**NUMERICS, "device": "cuda"})


# Through `train`.

BASE: dict[str, Any] = {"workers": 1, "global_batch": 32, "microbatch": 8, "lr": 0.05, "optimizer": "adamw"}


def everything() -> Any:
    # 76 samples: no microbatch of one sample, for batch norm.
    return helpers.workload(Everything, train=helpers.samples(76), evaluation=helpers.samples(20))


def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(tmp_path: Path) -> None:
    wanted = train(everything(), steps=9, **BASE)
    train(everything(), steps=5, **BASE, checkpoint=tmp_path)
    found = train(everything(), steps=9, **BASE, checkpoint=tmp_path, resume=True)
    assert found.record.first_step == 5
    assert found.record.weights_sha256 == wanted.record.weights_sha256
    assert [e.step for e in found.record.evaluations] == [3, 5, 6, 9]


def test_a_checkpoint_by_the_clock_is_of_the_step_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken in the middle of a run on one worker."""
    taken: dict[int, Tensor] = {}
    plain_write = checkpoint.write

    def spy(folder: Path, state: Image, *rest: Any) -> Path:
        taken[state.step] = state.arrays["parameters"].clone()
        return plain_write(folder, state, *rest)

    monkeypatch.setattr(checkpoint, "write", spy)
    train(helpers.workload(), steps=400, **BASE, checkpoint=tmp_path, checkpoint_every_s=0.01)
    step = min(taken)
    assert step < 400, "the machine is too fast for this test"
    plan = helpers.prepared(helpers.workload(), **{**BASE, "steps": step, "momentum": None})
    assert torch.equal(helpers.run(plan).image.arrays["parameters"], taken[step])


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"lr": 0.06}, "optimizer"), ({"seed": 1}, "seed"), ({"microbatch": 4}, "microbatch"),
        ({"global_batch": 64}, "global_batch"), ({"optimizer": "sgd"}, "optimizer"), ({"clip_norm": 1.0}, "rule"),
        ({"lr_schedule": "cosine"}, "lr_schedule"), ({"threads_per_worker": 2}, "intra_op_threads"),
        ({"precision": "bf16"}, "precision"), ({"last_batch": "drop"}, "last_batch"),
        ({"class_weights": "balanced"}, "loss"), ({"channels_last": True}, "channels_last"),
    ],
)  # fmt: skip
def test_a_run_with_other_bits_cannot_resume(changed: dict[str, Any], name: str, tmp_path: Path) -> None:
    train(helpers.workload(), steps=2, **BASE, checkpoint=tmp_path)
    with pytest.raises(StateError, match=rf"of a run with {name}="):
        train(helpers.workload(), **{**BASE, "steps": 3, "checkpoint": tmp_path, "resume": True, **changed})


def scaled(factor: float) -> Samples:
    samples = helpers.samples()
    (column,) = samples.inputs
    assert isinstance(column, Rows)
    return replace(samples, inputs=(replace(column, transform=Scale(factor=factor)),))


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (lambda: helpers.workload(Cnn), "model"),
        (lambda: helpers.workload(lambda: Mlp(0.5)), "model"),
        (lambda: helpers.workload(train=helpers.samples(ignored=0)), "data"),
        (lambda: helpers.workload(train=scaled(0.5)), "transforms"),
        (lambda: helpers.workload(loss=nn.CrossEntropyLoss(label_smoothing=0.1)), "loss"),
    ],
)
def test_another_model_or_other_data_cannot_resume(work: Any, name: str, tmp_path: Path) -> None:
    train(helpers.workload(), steps=2, **BASE, checkpoint=tmp_path)
    with pytest.raises(StateError, match=rf"of a run with {name}="):
        train(work(), steps=3, **BASE, checkpoint=tmp_path, resume=True)


def test_the_number_of_workers_and_steps_may_change(tmp_path: Path) -> None:
    train(helpers.workload(), steps=2, **BASE, checkpoint=tmp_path)
    options = {**BASE, "workers": "auto", "microbatch": 8}
    result = train(helpers.workload(), steps=2, **options, checkpoint=tmp_path, resume=True)
    assert result.record.num_steps == 2


def test_a_folder_with_checkpoints_is_not_overwritten(tmp_path: Path) -> None:
    train(helpers.workload(), steps=2, **BASE, checkpoint=tmp_path)
    with pytest.raises(UsageError, match="holds checkpoints of a run; go on from them with resume"):
        train(helpers.workload(), steps=2, **BASE, checkpoint=tmp_path)


def test_resuming_from_nothing_starts_and_says_so(tmp_path: Path) -> None:
    result = train(helpers.workload(), steps=2, **BASE, checkpoint=tmp_path, resume=True)
    assert result.record.notices == [f"no checkpoint in {tmp_path} yet: starting from the beginning"]


def test_a_damaged_checkpoint_is_noted_and_the_bits_are_the_same(tmp_path: Path) -> None:
    wanted = train(helpers.workload(), steps=6, **BASE)
    train(helpers.workload(), steps=2, **BASE, checkpoint=tmp_path)
    train(helpers.workload(), steps=4, **BASE, checkpoint=tmp_path, resume=True)
    damage(tmp_path, "flipped", 4)
    found = train(helpers.workload(), steps=6, **BASE, checkpoint=tmp_path, resume=True)
    assert found.record.first_step == 2
    assert found.record.weights_sha256 == wanted.record.weights_sha256
    assert "is damaged (its bytes do not match its hash)" in found.record.notices[0]


@pytest.mark.processes
def test_a_folder_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys, filelock\n"
        f"with filelock.FileLock({str(tmp_path / '.lock')!r}):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(StateError, match=r"another run is writing to .*; wait for its end or name another folder"):
            train(helpers.workload(), steps=2, **BASE, checkpoint=tmp_path)
        other.communicate()
    train(helpers.workload(), steps=2, **BASE, checkpoint=tmp_path)


def test_what_goes_wrong_while_a_folder_is_owned_is_not_blamed_on_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no such device"), checkpoint.owned(tmp_path / "c"):
        raise OSError("no such device")
    with checkpoint.owned(tmp_path / "c"), pytest.raises(StateError, match="another run is writing"):
        checkpoint.owned(tmp_path / "c").__enter__()
