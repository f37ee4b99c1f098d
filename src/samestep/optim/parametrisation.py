"""Maximal-update parametrisation (μP): a learning rate that was chosen at one width and depth serves others.

With n the width over that of the *base* network, and L the blocks over those of the network that the rates were chosen
for, a parameter's initial values and its learning rate are multiplied with

| weights | initial values | SGD | Adam | Muon |
|---|---|---|---|---|
| input (inputs do not grow; biases, norms, embeddings too) | 1 | n | 1 | √min(1, out / in), over the base's; rows: √n |
| hidden (both sides grow) | 1 / √n | 1 | 1 / n | as above |
| output (outputs do not grow) | 1 / n | 1 / n | 1 / n | as above |
| inside of a residual branch, besides | 1 | 1 | 1 / √L | 1 / √L |
| at a branch's end, besides | 1 / √L | 1 / L | 1 / L | 1 / L |

The first two columns of factors are table 3 of Yang et al. 2021, for which no output needs a multiplier: that of their
table 8, and the 1 / √L of a branch, are folded into initial values and rates, which is the same function of the data
and of the steps, but for Adam's epsilon. Muon's follow from the spectral condition: an update's norm is √(out / in).
Initial values are drawn as the network draws them; then every tensor gets the root mean square that its namesake in the
base network has, times its factor. Weight decay that shrinks weights by rate × decay keeps doing so at the base's pace.

References:
    Yang, Hu et al., "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer", 2021.
    Yang, Yu, Zhu, Hayou, "Tensor Programs VI: Feature Learning in Infinite-Depth Neural Networks", 2023.
    Bordelon et al., "Depthwise Hyperparameter Transfer in Residual Networks: Dynamics and Scaling Limit", 2023.
    Yang, Simon, Bernstein, "A Spectral Condition for Feature Learning", 2023.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from samestep.errors import UsageError
from samestep.optim import catalog
from samestep.optim.build import ParameterGroups

Role = Literal["fixed", "input", "hidden", "output"]
Law = Literal["sgd", "adam", "muon"]

_LAWS: Mapping[Law, frozenset[str]] = {
    "sgd": frozenset({"asgd", "nesterov", "sgd", "schedulefreesgd"}),
    "adam": frozenset(
        {"adabelief", "adagrad", "adam", "adamax", "adamw", "adan", "ademamix", "laprop", "lion", "nadam", "radam",
         "rmsprop", "rprop", "schedulefreeadamw", "yogi"}
    ),
    "muon": frozenset({"muon"}),
}  # fmt: skip
"""What is known to follow a law: a step is as long as the gradient, of the same length for any gradient, or of the same
spectral norm."""

_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)
"""Their weights have outputs first, then inputs."""

_INPUTS_FIRST = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ROWS = (nn.Embedding, nn.EmbeddingBag)
"""Their weights have a row for every input."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How a parameter follows width and depth.

    Args:
        role: Which of its sides grow with the width.
        fan_in: Its inputs over those in the base network.
        fan_out: Its outputs over those in the base network.
        shrinking: √min(1, out / in) over the same in the base network; for what has rows, √fan_out.
        place: Where it stands in a residual block.
        depth: Blocks over those that the rates were chosen for.
        initial: What the initial values were multiplied with.
    """

    role: Role
    fan_in: float = 1.0
    fan_out: float = 1.0
    shrinking: float = 1.0
    place: Literal["outside", "inside", "end"] = "outside"
    depth: float = 1.0
    initial: float = 1.0

    @property
    def spread(self) -> float:
        """The root mean square of the initial values, over that in the base network.

        >>> Scale(role="hidden", fan_in=4.0, fan_out=4.0).spread, Scale(role="output", fan_in=4.0).spread
        (0.5, 0.25)
        """
        across = 1 / self.fan_in if self.role == "output" else 1 / math.sqrt(self.fan_in)
        return across / math.sqrt(self.depth) if self.place == "end" else across

    def rate(self, law: Law) -> float:
        """What the learning rate is multiplied with.

        >>> Scale(role="input", fan_out=4.0).rate("sgd"), Scale(role="hidden", fan_in=4.0, fan_out=4.0).rate("adam")
        (4.0, 0.25)
        """
        if law == "sgd":
            return self.fan_out / self.fan_in / (self.depth if self.place == "end" else 1.0)
        across = self.shrinking if law == "muon" else 1 / self.fan_in
        return across / {"outside": 1.0, "inside": math.sqrt(self.depth), "end": self.depth}[self.place]


@dataclass(frozen=True, kw_only=True)
class Parametrisation:
    """How every trainable parameter of a network follows its base.

    Args:
        scales: By name.
        optimizer: The optimiser's name.
    """

    scales: Mapping[str, Scale]
    optimizer: str

    def rate(self, name: str, parameter: Tensor) -> float:
        """What a parameter's learning rate is multiplied with."""
        return self.scales[name].rate(law_of(self._entry(parameter).name))

    def groups(self, *, lr: float | None, weight_decay: float | None) -> ParameterGroups:
        """Parameter groups with a learning rate each, and a weight decay where there is one.

        Args:
            lr: Of the base network; None: the optimiser's own.
            weight_decay: Of the base network's weights; None: the optimiser's own.
        """

        def split(model: nn.Module) -> Iterator[dict[str, Any]]:
            found: dict[tuple[Any, ...], dict[str, Any]] = {}
            for name, parameter in model.named_parameters():
                if not parameter.requires_grad:
                    continue
                entry, factor = self._entry(parameter), self.rate(name, parameter)
                options = {"lr": entry.lr(lr) * factor}
                decay = _decay(entry, weight_decay, parameter)
                if decay is not None:
                    options["weight_decay"] = decay / factor if entry.decays_by_rate else decay
                found.setdefault(tuple(options.items()), {**options, "params": []})["params"].append(parameter)
            yield from found.values()

        return split

    def _entry(self, parameter: Tensor) -> catalog.Entry:
        """Of the optimiser that gets the parameter: Muon takes matrices only."""
        is_other = self.optimizer == "muon" and parameter.dim() != 2
        return catalog.entry("adamw" if is_other else self.optimizer)

    def as_dict(self, model: nn.Module) -> dict[str, list[Any]]:
        """By name: role, factor of the initial values, factor of the learning rate."""
        named = dict(model.named_parameters())
        return {n: [scale.role, scale.initial, self.rate(n, named[n])] for n, scale in self.scales.items()}

    def lines(self, model: nn.Module) -> list[str]:
        """What was done, in words."""
        rates: dict[str, dict[str, None]] = {}
        for name, parameter in model.named_parameters():
            if name in self.scales:
                text = f"× {self.rate(name, parameter):.4g}"
                rates.setdefault(self.scales[name].role, {}).setdefault(text)
        width = max((max(scale.fan_in, scale.fan_out) for scale in self.scales.values()), default=1.0)
        depth = max((scale.depth for scale in self.scales.values()), default=1.0)
        named: Mapping[str, str] = {"fixed": "weights that do not grow"}
        told = ", ".join(f"{named.get(role, f'{role} weights')} {' or '.join(each)}" for role, each in rates.items())
        sizes = f"width × {width:.4g}, depth × {depth:.4g} of the base network"
        return [f"μP, {sizes}: learning rate of {told}; initial values to match"]


def law_of(optimizer: str) -> Law:
    """How an optimiser's learning rate follows the width.

    Raises:
        UsageError: That is not known.
    """
    for law, names in _LAWS.items():
        if optimizer in names:
            return law
    known = ", ".join(sorted(name for names in _LAWS.values() for name in names))
    raise UsageError(
        f"how the learning rate of {optimizer!r} follows the width of a network is not known; take one of {known}, or "
        "leave out the base network (base_width, base_depth)"
    )


@torch.no_grad()
def apply(model: nn.Module, base: nn.Module, *, optimizer: str, depth_ratio: float) -> Parametrisation:
    """Give a network the initial values of its width and depth, and find out the learning rates.

    Args:
        model: The network, with initial values as it draws them; they are changed in place.
        base: The same network at the width that the learning rate was chosen for, with initial values too.
        optimizer: A name of the catalog.
        depth_ratio: Blocks of the network over those that the learning rate was chosen for.

    Raises:
        UsageError: The networks do not go together, or the optimiser does not go with it.
    """
    law_of(optimizer)
    if not 0 < depth_ratio < math.inf:
        raise UsageError(f"depth_ratio={depth_ratio:g} is not a finite number above 0")
    _check_heads(model, base)
    kinds, places = _kinds(model), _places(model)
    if depth_ratio != 1 and not places:
        raise UsageError(
            f"depth × {depth_ratio:g}: {type(model).__name__} has no residual branches, and the rule for depth is for "
            "these; leave base_depth out, or say in the class of a residual block where its branches end (branch_ends)"
        )
    bases = dict(base.named_parameters())
    scales = {}
    for name, parameter in model.named_parameters():
        if name not in bases or bases[name].dim() != parameter.dim():
            raise UsageError(
                f"the base network has no parameter {name} with {parameter.dim()} dimensions; it must be the same "
                "network in another width, as deep as this one"
            )
        if parameter.requires_grad:
            shapes = tuple(parameter.shape), tuple(bases[name].shape)
            told = {"place": places.get(name, "outside"), "depth": depth_ratio}
            scale = Scale(**{**_sides(name, kinds[name], *shapes), **told})
            factor = _factor(parameter, bases[name], scale.spread)
            scales[name] = Scale(**{**vars(scale), "initial": factor})
            if factor != 1.0:
                parameter.mul_(factor)
    return Parametrisation(scales=scales, optimizer=optimizer)


_Kind = Literal["matrix", "inputs first", "rows", "other"]


def _kinds(model: nn.Module) -> dict[str, _Kind]:
    """What the dimensions of every parameter stand for; by its first name, where it has several."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, _Kind] = {}
    for module in model.modules():
        kind: _Kind = "other"
        for classes, its in ((_MATRICES, "matrix"), (_INPUTS_FIRST, "inputs first"), (_ROWS, "rows")):
            if isinstance(module, classes):
                kind = its  # type: ignore[assignment]
        for parameter in module.parameters(recurse=False):
            name = name_of[id(parameter)]
            if found.setdefault(name, kind) != kind:
                raise UsageError(
                    f"parameter {name} is shared by an embedding and another layer, which are scaled differently over "
                    "width; give each its own"
                )
    return found


def _sides(name: str, kind: _Kind, shape: tuple[int, ...], base: tuple[int, ...]) -> dict[str, Any]:
    """Role and ratios of a parameter from its shape and its base's."""
    if kind == "inputs first" and len(shape) > 1:
        shape, base = (shape[1], shape[0], *shape[2:]), (base[1], base[0], *base[2:])
    ratios = [size / other if other else 1.0 for size, other in zip(shape, base, strict=True)]
    grown = [number for number, ratio in enumerate(ratios) if ratio != 1]
    if not grown:
        return {"role": "fixed"}
    is_matrix = kind in ("matrix", "inputs first") and len(shape) > 1
    if grown == [0, 1]:
        shrinking = _shrinking(shape) / _shrinking(base)
        return {"role": "hidden", "fan_in": ratios[1], "fan_out": ratios[0], "shrinking": shrinking}
    if len(grown) > 1 or (is_matrix and grown[0] > 1):
        raise UsageError(
            f"parameter {name} has shape {shape}, in the base network {base}: only outputs and inputs may grow with "
            "the width"
        )
    if is_matrix and grown == [1]:
        return {"role": "output", "fan_in": ratios[1], "shrinking": _shrinking(shape) / _shrinking(base)}
    fan_out = ratios[grown[0]]
    shrinking = _shrinking(shape) / _shrinking(base) if is_matrix else math.sqrt(fan_out)
    return {"role": "input", "fan_out": fan_out, "shrinking": shrinking}


def _shrinking(shape: tuple[int, ...]) -> float:
    """An update of Muon has the norm √max(1, out / in), and √(out / in) is wanted."""
    return math.sqrt(min(1.0, shape[0] / shape[1]))


def _factor(parameter: Tensor, base: Tensor, spread: float) -> float:
    """What makes a tensor's root mean square `spread` times that of its base; 1 where there is nothing but zeros."""
    own, wanted = (float(values.double().square().mean().sqrt()) for values in (parameter, base))
    return wanted / own * spread if own > 0 else 1.0


def _places(model: nn.Module) -> dict[str, Literal["inside", "end"]]:
    """Parameters of residual branches. A block says in `branch_ends` which of its modules end one."""
    found: dict[str, Literal["inside", "end"]] = {}
    for prefix, block in model.named_modules():
        for end in getattr(block, "branch_ends", ()):
            branch = end.split(".")[0]
            for name, _ in block.get_submodule(branch).named_parameters(prefix=_joined(prefix, branch)):
                found.setdefault(name, "inside")
            for name, _ in block.get_submodule(end).named_parameters(prefix=_joined(prefix, end)):
                found[name] = "end"
    return found


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _check_heads(model: nn.Module, base: nn.Module) -> None:
    bases = dict(base.named_modules())
    for name, module in model.named_modules():
        other = bases.get(name)
        if not (isinstance(module, nn.MultiheadAttention) and isinstance(other, nn.MultiheadAttention)):
            continue
        if module.head_dim != other.head_dim:
            raise UsageError(
                f"{name} has heads of {module.head_dim}, in the base network of {other.head_dim}: scores would grow "
                f"with the width; keep the size of heads and let their number grow: num_heads="
                f"{max(1, module.embed_dim // other.head_dim)}"
            )


def _decay(entry: catalog.Entry, weight_decay: float | None, parameter: Tensor) -> float | None:
    """A parameter's weight decay before it follows the width; None: the optimiser has none."""
    decay = entry.weight_decay(weight_decay)
    return decay if decay is None or parameter.dim() >= 2 else 0.0
