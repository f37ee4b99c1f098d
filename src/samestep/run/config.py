"""The configuration of a run: what may be set, where defaults come from, and what of it decides the bits."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from samestep.errors import UsageError
from samestep.host.cores import num_cores
from samestep.optim import catalog, doubling
from samestep.optim.catalog import RuleName
from samestep.optim.rules import BatchChange, Rates
from samestep.plan.batch import LastBatch, default_microbatch
from samestep.plan.schedules import Schedule
from samestep.run import sizes, syncing
from samestep.run.checks import at_least, check
from samestep.run.defaults import DEFAULT_EPOCHS, DEFAULTS, OF_GROWTH, OPTIMIZER_RECIPE
from samestep.run.types import check_types

Workers = int | Literal["auto"]
GlobalBatch = int | Literal["auto", "full"]
LrSchedule = Literal["constant", "linear", "cosine"]
BatchRule = Literal["auto", "linear", "sqrt", "adascale", "none"]
Precision = Literal["fp32", "bf16"]
Backprop = Literal["ordinary", "concurrent"]
Engine = Literal["shared", "group"]
Device = Literal["cpu", "cuda"]
Compiler = Literal["off", "inductor", "aot_eager"]
Graphs = Literal["auto", "off"]
NoiseLooks = int | Literal["off"]
OuterQuantise = Literal["none", "int8"]


@dataclass(frozen=True, kw_only=True)
class NumericSettings:
    """Settings that decide the bits of the result. None: the workload's recipe decides, then the default."""

    global_batch: GlobalBatch | None = None
    """Samples per optimiser step, over all workers; full: all; auto: it doubles while the critical batch is larger."""

    initial_batch: int | None = None
    """The first global batch, where it is auto; default: the workload's. Steps are counted in this one."""

    max_batch: int | None = None
    """No global batch is larger, where it is auto; default: the training set."""

    microbatch: int | None = None
    """Samples in one forward and backward; default: an eighth of the global batch, or of the data where it has more."""

    epochs: float | None = None
    """How often the training data are gone through."""

    steps: int | None = None
    """Optimiser steps; instead of epochs."""

    optimizer: str | None = None
    """Lower-case name: sgd, adamw, muon, lamb, soap, ...; samestep optimizers lists them."""

    lr: float | None = None
    """Learning rate; default: the optimiser's own."""

    momentum: float | None = None
    """Momentum, for optimisers that have one; sgd has 0.9 by default."""

    weight_decay: float | None = None
    """Weight decay of weights; biases and norms do not decay; default: the optimiser's own."""

    base_batch: int | None = None
    """The global batch that lr and weight_decay were chosen for; they follow this run's batch by a rule."""

    batch_rule: BatchRule | None = None
    """How they follow: auto (what suits the optimiser), linear, sqrt, adascale or none."""

    sync: str | None = None
    """step: workers meet in every step; local:H: replicas train H steps by themselves, then meet (DiLoCo)."""

    replicas: int | None = None
    """With local:H: how many replicas share a step, and the most workers; default 4."""

    outer_lr: float | None = None
    """With local:H: learning rate of the Nesterov update by the replicas' mean change; default 0.7."""

    outer_momentum: float | None = None
    """With local:H: its momentum; default 0.9."""

    outer_quantise: OuterQuantise | None = None
    """With local:H: int8 rounds to 8 bits what replicas change and what their meetings do; default none."""

    averaging: float | None = None
    """Weights are evaluated and saved as their average over about the last share (0..1) of the steps."""

    lr_schedule: LrSchedule | None = None
    """How the learning rate falls with the samples seen."""

    lr_warmup: float | None = None
    """Share of the run (0..1) in which the learning rate rises to its value."""

    clip_norm: float | None = None
    """Longest gradient; a longer one is scaled down."""

    class_weights: Literal["balanced"] | None = None
    """balanced: every class counts alike, however many samples it has."""

    sam_radius: float | None = None
    """Sharpness-aware minimisation with this radius: two rounds a step."""

    seed: int | None = None
    """Seed of initialisation, order and dropout."""

    threads_per_worker: int | None = None
    """Threads inside one operation; part of what decides the bits."""

    precision: Precision | None = None
    """fp32, or bf16 autocast."""

    device: Device | None = None
    """What the network is trained on: cpu, or cuda (a GPU)."""

    compile: Compiler | None = None
    """torch.compile for the forward pass and the loss: inductor, aot_eager (to find faults with), or off."""

    channels_last: bool | None = None
    """Images with their channels last in memory."""

    augment: str | None = None
    """Changes of the training samples, new in every epoch: shift=PIXELS,flip,cutout=PIXELS,noise=DEVIATION."""

    shuffle_block: int | None = None
    """Samples that are read together, for data larger than memory; default: every sample goes anywhere."""

    last_batch: LastBatch | None = None
    """Keep or drop the short last batch of an epoch."""

    width: int | None = None
    """Width of the workload's network."""

    depth: int | None = None
    """Depth of the workload's network."""

    base_width: int | None = None
    """The width that lr and weight_decay were chosen for; initial values and rates follow this width (μP)."""

    base_depth: int | None = None
    """The depth that they were chosen for; for networks of residual blocks."""

    weights: Path | None = None
    """Start from these weights (safetensors)."""


@dataclass(frozen=True, kw_only=True)
class Settings(NumericSettings):
    """All that a person may set; what is added here never changes the bits of the trained network."""

    workers: Workers | None = None
    """Worker processes, or auto: one per core, at most one per microbatch."""

    engine: Engine | None = None
    """How workers meet: shared (memory of one machine), or group (torch.distributed; several machines, torchrun)."""

    deadline_s: float | None = None
    """Longest wait of a worker for another one, in seconds; default 600."""

    machines: int | None = None
    """With the group engine, for trying out: its workers on this machine behave as on so many machines; default 1."""

    backprop: Backprop | None = None
    """How weight gradients are computed: ordinary, or concurrent (by a thread beside the chain of input gradients)."""

    graphs: Graphs | None = None
    """On a GPU: auto (the passes of a microbatch are captured as a CUDA graph, where the model allows it), or off."""

    stages: int | None = None
    """Pieces that the network is cut into, one worker each; the workers are a multiple of it."""

    schedule: Schedule | None = None
    """Order of the stages' passes: 1f1b (few activations in memory), gpipe, interleaved or zbv (shorter waits, with
    more exchanges)."""

    chunks: int | None = None
    """Pieces of the network that every stage holds: 2 or more with interleaved (default 2), 2 with zbv, else 1."""

    cut: str | None = None
    """Modules that begin the second, third, ... piece, comma separated; default: measured times are balanced."""

    noise_scale: NoiseLooks | None = None
    """One step of so many is looked at for the noise scale, which estimates the critical batch; default 16; or off."""

    evaluate_every: int | None = None
    """Steps between evaluations; default: an epoch."""

    until: str | None = None
    """Stop at the first evaluation that reaches it: accuracy=0.95 (at least), loss=0.3 (at most)."""

    checkpoint: Path | None = None
    """Folder for checkpoints."""

    checkpoint_every_s: float | None = None
    """Seconds between checkpoints."""

    resume: bool | None = None
    """Go on from the newest whole checkpoint in the folder."""

    out: Path | None = None
    """Folder for the run's record, configuration and weights.safetensors."""

    log: str | None = None
    """Loggers, comma separated: csv:DIR, tensorboard:DIR, mlflow:EXPERIMENT, wandb:PROJECT; csv and tensorboard without
    a folder write into the run's."""

    profile: Path | None = None
    """File for a trace of what every worker did when (Chrome's format; open it in ui.perfetto.dev)."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The resolved configuration: every field has its value, and says what it does in `Settings`."""

    workers: int
    global_batch: GlobalBatch
    initial_batch: int | None
    max_batch: int | None
    microbatch: int
    epochs: float | None
    steps: int | None
    optimizer: str
    lr: float | None
    momentum: float | None
    weight_decay: float | None
    base_batch: int | None
    batch_rule: BatchRule
    sync: str
    replicas: int | None
    outer_lr: float | None
    outer_momentum: float | None
    outer_quantise: OuterQuantise | None
    averaging: float | None
    lr_schedule: LrSchedule
    lr_warmup: float
    clip_norm: float | None
    class_weights: Literal["balanced"] | None
    sam_radius: float | None
    seed: int
    threads_per_worker: int
    precision: Precision
    device: Device
    compile: Compiler
    channels_last: bool
    augment: str | None
    shuffle_block: int | None
    last_batch: LastBatch
    engine: Engine
    deadline_s: float
    machines: int
    backprop: Backprop
    graphs: Graphs
    stages: int
    schedule: Schedule
    chunks: int
    cut: str | None
    noise_scale: NoiseLooks
    evaluate_every: int | None
    width: int | None
    depth: int | None
    base_width: int | None
    base_depth: int | None
    until: str | None
    checkpoint: Path | None
    checkpoint_every_s: float
    resume: bool
    weights: Path | None
    out: Path | None
    log: str | None
    profile: Path | None
    is_microbatch_default: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        check(self)

    @property
    def is_batch_growing(self) -> bool:
        """Whether the global batch grows on the way."""
        return self.global_batch == "auto"

    @property
    def first_batch(self) -> int:
        """The global batch, or the first one where it grows."""
        batch = self.initial_batch if self.global_batch == "auto" else self.global_batch
        assert isinstance(batch, int), "filled by resolve"
        return batch

    def fixed_batch(self, why: str) -> int:
        """The global batch, for what cannot have one that grows.

        Raises:
            UsageError: It does.
        """
        if self.is_batch_growing:
            raise UsageError(f"global_batch='auto': {why}; give a number")
        return self.first_batch

    @property
    def rates(self) -> Rates:
        """Learning rate and weight decay of this run's global batch; the fields have those of the base batch."""
        change = self._batch_change
        if change is None:
            return Rates(lr=self.lr, weight_decay=self.weight_decay)
        return change.rates(catalog.entry(self.optimizer), self.lr, self.weight_decay)

    @property
    def rate_lines(self) -> list[str]:
        """What the batch rule did, in words; nothing without a base batch."""
        change = self._batch_change
        if change is None:
            return []
        return change.lines(catalog.entry(self.optimizer), self.weight_decay, self.lr_warmup)

    @property
    def _batch_change(self) -> BatchChange | None:
        if self.base_batch is None:
            return None
        return BatchChange(base_batch=self.base_batch, global_batch=self.first_batch, rule=self.rule)

    @property
    def rule(self) -> RuleName | Literal["adascale"]:
        """How the rates follow the batch."""
        return catalog.entry(self.optimizer).rule if self.batch_rule == "auto" else self.batch_rule

    @property
    def noise_every(self) -> int | None:
        """One step of so many is looked at for the noise scale; None: none is. AdaScale has to see every step."""
        if self.batch_rule == "adascale":
            return 1
        return None if self.noise_scale == "off" else self.noise_scale

    def as_dict(self) -> dict[str, Any]:
        """As plain values for JSON and TOML."""
        values = {name: value for name, value in asdict(self).items() if name != "is_microbatch_default"}
        return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}


def resolve(settings: Settings, recipe: Mapping[str, Any]) -> Config:
    """Fill what a person left open from the workload's recipe, then from the defaults.

    Somebody who asks for another optimiser than the recipe's does not get the recipe's learning rate with it, nor its
    clipping where the optimiser takes none.

    Raises:
        UsageError: A value is out of range, or two contradict each other.
    """
    check_types(settings)
    names = {field.name for field in fields(Settings)}
    unknown = [name for name in recipe if name not in names]
    if unknown:
        raise UsageError(
            f"the recipe sets {', '.join(unknown)}, which is not a setting; known: {', '.join(sorted(names))}"
        )
    given = {field.name: getattr(settings, field.name) for field in fields(Settings)}
    if given["steps"] is not None and given["epochs"] is not None:
        raise UsageError(
            f"steps={given['steps']} and epochs={given['epochs']:g} contradict each other; give one of them"
        )
    usable = _with_batches(given, recipe)
    has_rule = given["batch_rule"] not in (None, "auto") and usable["global_batch"] != "auto"
    if has_rule and given["base_batch"] is None and recipe.get("base_batch") is None:
        raise UsageError(
            f"batch_rule={given['batch_rule']!r} needs base_batch, the global batch that lr was chosen for; give both"
        )
    if given["optimizer"] is not None and given["optimizer"] != recipe.get("optimizer", DEFAULTS["optimizer"]):
        for name in OPTIMIZER_RECIPE:
            usable.pop(name, None)
        if not catalog.entry(given["optimizer"]).is_clipped:
            usable.pop("clip_norm", None)
    if given["steps"] is not None or given["epochs"] is not None:
        usable.pop("steps", None)
        usable.pop("epochs", None)
    values = {name: _first(given[name], usable.get(name), DEFAULTS.get(name)) for name in names}
    if values["steps"] is None and values["epochs"] is None:
        values["epochs"] = DEFAULT_EPOCHS
    first = values["initial_batch" if values["global_batch"] == "auto" else "global_batch"]
    sizes.check_known(first)
    at_least("global_batch", first, 1)
    syncing.fill(values, given)
    is_default = values["microbatch"] is None
    if is_default:
        values["microbatch"] = default_microbatch(first)
    at_least("microbatch", values["microbatch"], 1)
    if values["chunks"] is None:
        values["chunks"] = 2 if values["schedule"] in ("interleaved", "zbv") else 1
    if values["workers"] == "auto":
        most = num_cores() if sys.platform != "win32" and values["device"] == "cpu" else 1
        at_least("stages", values["stages"], 1)
        num_replicas = min(most // values["stages"], values["replicas"] or -(-first // values["microbatch"]))
        values["workers"] = max(1, num_replicas) * values["stages"]
    return Config(**values, is_microbatch_default=is_default)


def _with_batches(given: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe, with what a batch that grows begins with, or without what only such a batch has.

    Raises:
        UsageError: This was asked for, and the batch does not grow.
    """
    own = _first(recipe.get("global_batch"), DEFAULTS["global_batch"])
    if _first(given["global_batch"], own) == "auto":
        first = DEFAULTS["global_batch"] if own == "auto" else own
        return {"noise_scale": doubling.LOOKS_EVERY, "initial_batch": first, **recipe, "global_batch": "auto"}
    for name in OF_GROWTH:
        if given[name] is not None:
            raise UsageError(
                f"{name}={given[name]} is for a batch that grows: take global_batch='auto', or leave it out"
            )
    return {name: value for name, value in {"global_batch": own, **recipe}.items() if name not in OF_GROWTH}


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
