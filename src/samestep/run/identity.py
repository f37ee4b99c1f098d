"""What decides the bits of a run, in words: kept with its checkpoints, and compared when it is resumed.

Ranks that were started apart compare it, too, before the first step.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samestep.data.columns import Rows, Samples, Stretches, Windows
from samestep.data.pack.mapped import Mapped
from samestep.engine import losses
from samestep.engine.job import Job
from samestep.optim import averaging, build, schedules
from samestep.optim.parametrisation import Parametrisation
from samestep.optim.state import UpdatePlan
from samestep.run import local, weights
from samestep.run.config import Config


def numerics(
    job: Job,
    loss: Any,
    given: schedules.Schedule | None,
    config: Config,
    scaled: Parametrisation | None,
    of_device: Mapping[str, Any],
) -> dict[str, Any]:
    """What decides the bits of a run, by field name; it reads all data.

    Args:
        job: What is run.
        loss: As the workload has it.
        given: A schedule of the learning rate, in the place of the configuration's.
        config: The resolved configuration.
        scaled: Where a network of another size was scaled to the one that the settings were chosen for.
        of_device: What of the device decides bits.
    """
    schedule = given or config.lr_schedule
    trained = job.local or job  # what the steps themselves go by
    return {
        "model": _model_text(job.model),
        "data": data_digest(job.samples),
        "transforms": _transforms_text(job.samples),
        "loss": _loss_text(loss),
        "seed": job.seed,
        "global_batch": job.batches.global_batch,
        "microbatch": job.batches.microbatch,
        "last_batch": job.batches.last_batch,
        "augment": config.augment,
        "shuffle_block": config.shuffle_block,
        **({"parametrisation": scaled.as_dict(job.model)} if scaled is not None else {}),
        "optimizer": _optimizer_text(trained.update),
        **({"averaging": config.averaging} if config.averaging is not None else {}),
        "rule": str(trained.rule),
        **local.numerics(job, config, _optimizer_text(job.update)),
        **({"gain": str(job.gain)} if job.gain is not None else {}),
        **({"doubling": str(job.doubling)} if job.doubling is not None else {}),
        "lr_schedule": schedule if isinstance(schedule, str) else _name(schedule),
        "lr_warmup": config.lr_warmup,
        "scheduled_steps": None if schedule == "constant" and not config.lr_warmup else job.num_steps,
        "precision": job.precision,
        "channels_last": job.is_channels_last,
        "compile": config.compile,
        **of_device,
        **job.switches.as_dict(),
    }


def _model_text(model: nn.Module) -> str:
    text = repr([(name, str(v.dtype), tuple(v.shape)) for name, v in model.state_dict().items()])
    trained = repr([name for name, parameter in model.named_parameters() if parameter.requires_grad])
    return f"{type(model).__name__} {hashlib.sha256((text + trained + repr(model)).encode()).hexdigest()[:16]}"


def entries(model: nn.Module) -> dict[str, str]:
    """The type and shape of each entry of a model's state, by name; and which are not trained.

    >>> entries(nn.Linear(2, 3))
    {'weight': 'float32 (3, 2)', 'bias': 'float32 (3,)'}
    """
    parameters = model.named_parameters(remove_duplicate=False)
    trained = {name for name, parameter in parameters if parameter.requires_grad}
    return {
        name: f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}"
        + ("" if name in trained else ", not trained")
        for name, values in model.state_dict().items()
    }


def data_digest(samples: Samples) -> str:
    """How many samples there are, and a digest of their values."""
    sha = hashlib.sha256()
    for column in (*samples.inputs, samples.target):
        if isinstance(column, Stretches):
            sha.update(_content_digest(column.starts) + repr((column.length, column.offset)).encode())
        if isinstance(column, Rows | Windows | Stretches):
            values = column.values
            sha.update(f"{column.tensor.dtype}{tuple(values.shape)}".encode())
            sha.update(_content_digest(values))
        if isinstance(column, Windows):
            sha.update(repr((column.length, column.stride, column.offset, column.num_samples)).encode())
    return f"{samples.num_samples} samples {sha.hexdigest()[:16]}"


def code_digest(job: Job) -> str:
    """A digest of the source of what a person has written, as far as it lies in files."""
    given = [losses.given(job.loss), *job.metrics.values(), *_transforms(job.samples)]
    things = {type(module) for module in job.model.modules()} | {_plain(each) for each in given if each is not None}
    sha = hashlib.sha256()
    for thing in sorted(things, key=lambda each: f"{each.__module__}.{each.__qualname__}"):
        if not thing.__module__.startswith(("torch.", "samestep.")):
            try:
                sha.update(inspect.getsource(thing).encode())
            except (OSError, TypeError):
                sha.update(thing.__qualname__.encode())
    return sha.hexdigest()[:16]


def _plain(function: Any) -> Any:
    return function if hasattr(function, "__qualname__") else type(function)


def _transforms(samples: Samples) -> list[Any]:
    """What is applied to each column when it is read."""
    return [getattr(column, "transform", None) for column in (*samples.inputs, samples.target)]


def _transforms_text(samples: Samples) -> str:
    """Ours with their numbers, a person's own by its name."""
    found = _transforms(samples)
    return ", ".join(repr(each) if each is None or is_dataclass(each) else _name(each) for each in found)


def _content_digest(values: Tensor | Mapped) -> bytes:
    """SHA-256 of the bytes; of packed values it is known."""
    if isinstance(values, Mapped):
        return bytes.fromhex(values.sha256)
    return hashlib.sha256(weights.to_bytes(values.contiguous())).digest()


def _loss_text(loss: Any) -> str:
    if isinstance(loss, nn.Module):
        options = {key: value for key, value in vars(loss).items() if not key.startswith("_") and key != "training"}
        state = {name: tensor.tolist() for name, tensor in loss.state_dict().items()}
        return f"{type(loss).__name__} {options} {state}"
    return _name(loss)


def _optimizer_text(update: UpdatePlan) -> str:
    texts = []
    for part in update.parts:
        dummies = [{**group, "params": [nn.Parameter(torch.zeros(4, 4))]} for group in part.groups]
        optimizer = build.build(part, dummies)
        options = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        texts.append(f"{type(averaging.inner(optimizer)).__name__} {options}")
    return "; ".join(texts)


def _name(function: Any) -> str:
    return str(_plain(function).__qualname__)
