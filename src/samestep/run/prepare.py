"""From a workload and a configuration to a job: everything is decided here, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from samestep import torch_private
from samestep.data import augment
from samestep.data.columns import Column, Dataset, Rows, Samples, Windows
from samestep.data.pack.mapped import Mapped
from samestep.engine import losses, numerics, randomness
from samestep.engine.device import opening
from samestep.engine.device.seam import Kind
from samestep.engine.events import Trace
from samestep.engine.flat import plan_buffers, settle_constants, trainable, write_buffers, write_parameters
from samestep.engine.job import KEPT_BY_REPLICAS, Evaluation, Image, Job
from samestep.errors import DataError, UsageError
from samestep.optim import build, catalog, rounds, schedules, state
from samestep.optim.adascale import AdaScale
from samestep.optim.doubling import Doubling
from samestep.plan.batch import BatchPlan
from samestep.plan.layout import check_world_size
from samestep.plan.local import check_workers
from samestep.plan.order import Order
from samestep.plan.pipeline import check_team
from samestep.run import curvature, identity, local, networks, sizes, weights
from samestep.run.config import Config, Settings
from samestep.run.evaluate import judge_for, parse_target
from samestep.run.workload import Target, Workload

_LARGEST_EVALUATION_MICROBATCH = 256

_LOOKED_AT_ONCE = 4096
"""Samples whose every value is looked at together: no second copy of the data."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What can be given from Python only.

    Args:
        optimizer: A class of `torch.optim`, or a callable that builds one from parameter groups.
        lr_schedule: Factor of the learning rate as a function of progress (share of all samples seen, 0..1).
        parameter_groups: model -> torch parameter groups.
        trace: Where every rank writes down what it does when; changes no bit.
        device: "twin" runs on the CPU what runs on a GPU otherwise, for who works on that; None: as configured.
    """

    optimizer: Callable[..., Optimizer] | None = None
    lr_schedule: schedules.Schedule | None = None
    parameter_groups: build.ParameterGroups | None = None
    trace: Trace | None = None
    device: Kind | None = None


@dataclass(frozen=True)
class Prepared:
    """A job, the state it starts from, and what decides its bits.

    Args:
        job: The job.
        image: The state before the first step.
        numerics: By field name; computed when asked for, since it reads all data.
        config: The configuration, with what the data decide of it.
        lines: What was done to learning rates and initial values, what a person should know of the stages, and what
            else is to be said, in words.
    """

    job: Job
    image: Image
    numerics: Callable[[], dict[str, Any]]
    config: Config
    lines: tuple[str, ...] = ()


def prepare(workload: Workload, config: Config, choices: Choices, *, has_callbacks: bool) -> Prepared:
    """Decide everything.

    Raises:
        UsageError: Something cannot be done as asked.
        DataError: The data are missing or hold what no network can learn from.
    """
    kind = choices.device or config.device
    of_device = opening.open_device(kind).numerics()
    data = _load(workload)
    config = sizes.fitted(config, data.train.num_samples)
    switches = numerics.read(config.threads_per_worker)
    with numerics.applied(switches), randomness.preserved():
        model, scaled = networks.network(workload, config)
    if config.weights is not None:
        weights.load_into(model, config.weights)
    parameters = trainable(model)
    settle_constants(model)
    dtype = next(iter(parameters.values())).dtype
    loss = _weighted(workload.loss, data.train, config, dtype)
    parts = networks.parts(model, config, scaled, optimizer=choices.optimizer, groups=choices.parameter_groups)
    update = state.plan_update(parts, dict(parameters), is_channels_last=config.channels_last)
    batches = sizes.plan(config, data.train.num_samples)
    is_curved = choices.optimizer is None and config.optimizer == "kfac"
    summed = losses.summed(loss, is_late=kind != "cpu" or config.compile != "off")
    curved = curvature.plan(model, config, batches, summed) if is_curved else None
    update = update if curved is None else curvature.with_state(update, curved, dtype)
    job = Job(
        model=model,
        update=update,
        buffers=plan_buffers(model, dtype),
        dtype="float32" if dtype == torch.float32 else "float64",
        batches=batches,
        order=Order(num_samples=data.train.num_samples, seed=config.seed, block=config.shuffle_block),
        samples=data.train if config.augment is None else augmented(data.train, augment.parse(config.augment)),
        loss=summed,
        class_check=_class_check(loss),
        metrics=dict(workload.metrics),
        evaluation=_evaluation(data, config, batches),
        judge=judge_for(tuple(workload.metrics), _target(workload, config, data)),
        rule=_rule(config) if curved is None else curvature.rule(curved),
        schedule=choices.lr_schedule or schedules.by_name(config.lr_schedule, config.lr_warmup),
        num_steps=config.steps or max(1, round((config.epochs or 0) * batches.steps_per_epoch)),
        seed=config.seed,
        stages=None,
        switches=switches,
        has_callbacks=has_callbacks,
        noise_every=config.noise_every,
        gain=_gain(config, batches),
        doubling=_doubling(config, batches, choices),
        curvature=curved,
        trace=choices.trace,
        **_way(config, kind),
    )
    job, said = _staged(job, config)
    job = local.localised(job, config)
    decided_by = partial(identity.numerics, job, loss, choices.lr_schedule, config, scaled, of_device)
    scales = scaled.lines(model) if scaled else []
    lines = (*sizes.lines(batches), *config.rate_lines, *scales, *curvature.lines(job, config, workload), *said)
    lines = (*lines, *_precision_lines(config, kind))
    return Prepared(job, _first_image(job), decided_by, config, lines)


def _staged(job: Job, config: Config) -> tuple[Job, list[str]]:
    """The job, cut into stages where there are some; and what a person should know of them."""
    if config.stages == 1:
        return job, []
    from samestep.run import staging  # noqa: PLC0415 (torch.fx, where there are stages)

    stages, said = staging.staged(job, config)
    return replace(job, stages=stages), said


def _precision_lines(config: Config, kind: Kind) -> list[str]:
    if config.precision != "bf16" or kind != "cpu" or torch_private.has_bf16_kernels():
        return []
    text = (
        "warning: precision='bf16', and this CPU has no fast kernels for it: a step takes several times as long as "
        "with fp32; leave it out, or take a CPU with AVX-512 or AMX for bfloat16"
    )
    return [text]


def _way(config: Config, kind: Kind) -> dict[str, Any]:
    """How passes are carried out."""
    return {
        "precision": config.precision,
        "is_channels_last": config.channels_last,
        "is_backprop_concurrent": config.backprop == "concurrent",
        "device": kind,
        "compiler": None if config.compile == "off" else config.compile,
        "has_graphs": config.graphs == "auto",
        "wait_timeout_s": config.deadline_s,
    }


def world_size_of(settings: Settings, config: Config, job: Job) -> int:
    """The workers that a job has; a number that was asked for has to fit.

    Raises:
        UsageError: There are fewer microbatches than workers were asked for, or stages do not fit the workers.
    """
    num_microbatches = job.batches.num_microbatches
    is_all = job.batches.global_batch >= job.batches.num_samples
    if settings.workers in (None, "auto"):
        return min(config.workers, num_microbatches * config.stages)
    if job.local is not None:
        check_workers(config.workers, num_microbatches)
    elif config.stages == 1:
        check_world_size(config.workers, num_microbatches, is_all_data=is_all)
    else:
        check_team(config.workers, config.stages, num_microbatches, is_all_data=is_all)
    return config.workers


def _first_image(job: Job) -> Image:
    image = Image.empty(job)
    write_parameters(job.update.layout, dict(job.model.named_parameters()), image.arrays["parameters"])
    write_buffers(job.buffers, job.model, image.arrays["tracked"], image.arrays["others"])
    for name in ("used", f"{KEPT_BY_REPLICAS}used"):
        if name in image.arrays:
            image.arrays[name].fill_(1)
    return image


def _load(workload: Workload) -> Dataset:
    data = workload.data()
    if not isinstance(data, Dataset):
        raise UsageError(f"the data function returned {type(data).__name__}, not a samestep Dataset")
    for part, samples in (("training", data.train), ("evaluation", data.evaluation)):
        if samples is not None:
            check_finite(samples, part)
    return data


def augmented(samples: Samples, changes: tuple[augment.Change, ...]) -> Samples:
    """The samples with changes applied to their first input.

    Raises:
        UsageError: It is not one that such changes go with.
    """
    first, *others = samples.inputs
    if not isinstance(first, Rows) or first.tensor.dim() < 2:
        raise UsageError("augment changes pictures and rows of numbers; this workload's first input is neither")
    is_picture = first.tensor.dim() >= 3
    for change in changes:
        if isinstance(change, augment.Noise) == (is_picture or not first.tensor.is_floating_point()):
            fitting = "pictures" if is_picture else "rows of numbers"
            raise UsageError(f"augment: {type(change).__name__.lower()} does not go with {fitting}")
    return Samples((replace(first, changes=changes), *others), samples.target)


def check_finite(samples: Samples, part: str) -> None:
    """Refuse NaN and infinity in the columns, and say where the first one is."""
    for number, column in enumerate(samples.inputs):
        _check_finite(column, f"input {number} of the {part} data")
    _check_finite(samples.target, f"the target of the {part} data")


def _check_finite(column: Column, what: str) -> None:
    if not isinstance(column, Rows | Windows) or isinstance(column.values, Mapped):
        return  # what is packed was looked at when it was packed
    values = column.values
    if not values.is_floating_point():
        return
    # A sum is not finite as soon as one value is not, or where it overflows; only then is it worth looking further.
    if values.numel() == 0 or math.isfinite(float(values.sum())):
        return
    first = 0
    for part in values.split(_LOOKED_AT_ONCE):  # type: ignore[no-untyped-call]
        rows = (~torch.isfinite(part)).reshape(len(part), -1).any(dim=1).nonzero()
        if len(rows):
            raise DataError(
                f"{what} holds NaN or infinity (first in sample {first + int(rows[0])}); fill or drop such samples "
                "before training"
            )
        first += len(part)


def _evaluation(data: Dataset, config: Config, batches: BatchPlan) -> Evaluation | None:
    if data.evaluation is None:
        return None
    # Enough microbatches for every worker; a function of the configuration, never of the machine.
    share = -(-data.evaluation.num_samples // batches.num_microbatches)
    return Evaluation(
        samples=data.evaluation,
        microbatch=min(share, max(_LARGEST_EVALUATION_MICROBATCH, config.microbatch)),
        every_steps=config.evaluate_every or batches.steps_per_epoch,
    )


def _target(workload: Workload, config: Config, data: Dataset) -> Target | None:
    target = workload.target if config.until is None else parse_target(config.until)
    if target is not None and data.evaluation is None:
        raise UsageError(f"a target ({target.metric}) needs evaluation data, and {workload.name} has none")
    return target


def _rule(config: Config) -> rounds.Rule:
    if config.sam_radius is not None:
        return rounds.SharpnessAware(radius=config.sam_radius, clip_norm=config.clip_norm)
    return rounds.Plain(clip_norm=config.clip_norm)


def _gain(config: Config, batches: BatchPlan) -> AdaScale | None:
    if config.batch_rule != "adascale":
        return None
    base = config.first_batch if config.base_batch is None else config.base_batch
    return AdaScale(base_batch=base, global_batch=config.first_batch, num_training_samples=batches.num_samples)


def _doubling(config: Config, batches: BatchPlan, choices: Choices) -> Doubling | None:
    if not config.is_batch_growing:
        return None
    if choices.optimizer is not None and config.batch_rule == "auto":
        raise UsageError(
            "global_batch='auto' and an optimizer of your own: say how its learning rate follows the batch, with "
            "batch_rule='linear', 'sqrt' or 'none'"
        )
    assert config.noise_every is not None, "checked with the settings"
    return Doubling(
        max_batch=config.max_batch or batches.num_samples,
        every=config.noise_every,
        num_training_samples=batches.num_samples,
        rule=config.rule,
        decays_by_rate=choices.optimizer is None and catalog.entry(config.optimizer).decays_by_rate,
    )


def _weighted(loss: Any, samples: Samples, config: Config, dtype: torch.dtype) -> Any:
    """The loss with balanced class weights, where they are asked for."""
    if config.class_weights is None:
        return loss
    if type(loss) is not nn.CrossEntropyLoss or not isinstance(samples.target, Rows):
        raise UsageError("class_weights='balanced' needs nn.CrossEntropyLoss and one class per sample as target")
    return nn.CrossEntropyLoss(
        weight=balanced_weights(samples.target.tensor).to(dtype),
        ignore_index=loss.ignore_index,
        label_smoothing=loss.label_smoothing,
    )


def balanced_weights(labels: Tensor) -> Tensor:
    """Weights that make every class count alike: samples / (classes × samples of the class).

    >>> balanced_weights(torch.tensor([0, 0, 0, 1]))
    tensor([0.6667, 2.0000], dtype=torch.float64)
    """
    if bool((labels < 0).any()):
        raise DataError("balanced class weights need labels of 0 and more; give the weights themselves, one per class")
    counts = torch.bincount(labels)
    if bool((counts == 0).any()):
        missing = int((counts == 0).nonzero()[0])
        raise DataError(f"class {missing} has no training sample, so its balanced weight would be infinite")
    return len(labels) / (len(counts) * counts.double())


def _class_check(loss: Any) -> Callable[[Any, Tensor], None] | None:
    if not losses.has_class_targets(loss):
        return None
    return partial(_check_classes, losses.ignored_class(loss), losses.class_axis(loss))


def _check_classes(ignored: int, axis: int, output: Any, target: Tensor) -> None:
    if isinstance(output, Tensor) and output.dim() > 1 and not target.is_floating_point():
        losses.check_class_targets(target, output.shape[axis], ignored)
