"""Optimisers: by name, by class, or by a callable; and which of a model's parameters each of them gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from samestep.errors import UsageError
from samestep.optim import averaging, catalog

Factory = Callable[[list[dict[str, Any]]], Optimizer]
"""Builds an optimiser over torch parameter groups: dicts with "params" and options of the group's own."""

ParameterGroups = Callable[[nn.Module], Iterable[Mapping[str, Any]]]
"""Splits a module's parameters into torch parameter groups."""

_REFUSED: dict[type[Optimizer], str] = {
    torch.optim.LBFGS: "it evaluates the loss as often as it likes inside of one step",
    torch.optim.SparseAdam: "it needs sparse gradients",
}
_ELEMENT_WISE = frozenset(
    entry.load()
    for entry in catalog.entries()
    if entry.kind == "element-wise" and entry.origin.startswith("torch.optim:")
)
"""Of what a person hands over, torch's own classes: others may have options that make them look further."""

_HAS_FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


@dataclass(frozen=True)
class Part:
    """An optimiser and the parameter groups that it updates.

    Args:
        factory: Builds the optimiser.
        groups: Options of each group; "params" holds the parameters' names.
        kind: What its update looks at; None: what is known of the class decides.
    """

    factory: Factory
    groups: tuple[Mapping[str, Any], ...]
    kind: catalog.Kind | None = None


def is_element_wise(part: Part, optimizer: Optimizer) -> bool:
    """Whether the update of an element looks at nothing but this element's parameter, gradient and state.

    Only what is known to does; a class that we do not know gets whole tensors.
    """
    if part.kind is not None:
        return part.kind == "element-wise"
    return type(averaging.inner(optimizer)) in _ELEMENT_WISE


def by_name(name: str, **options: Any) -> Factory:
    """The factory for a lower-case name; options that are None are left to the class.

    What the `catalog` sets otherwise than the class does is a default, such as momentum 0.9 of ``sgd``. Fused kernels
    are taken where torch has them.

    Raises:
        UsageError: The name is unknown, or the class has no such option.

    Example:
        >>> optimizer = by_name("sgd", lr=0.1, weight_decay=None)([{"params": [nn.Parameter(torch.zeros(2))]}])
        >>> optimizer.defaults["momentum"]
        0.9
    """
    entry = catalog.entry(name)
    kind = entry.load()
    given = {key: value for key, value in options.items() if value is not None}
    for option in given:
        entry.check_option(option)
    if kind in _HAS_FUSED:
        given.setdefault("fused", True)
    given = {**entry.options, **given}
    return partial(kind, **given)


def averages(optimizer: Optimizer) -> bool:
    """Whether it is evaluated with other parameters than it trains: schedule-free ones, which have two modes."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def show_averages(optimizers: Iterable[Optimizer]) -> None:
    """Put the parameters to be evaluated into place; the values that are trained are lost but for their rounding."""
    for optimizer in optimizers:
        if averages(optimizer):
            optimizer.eval()  # type: ignore[attr-defined]


def split_decay(group: Mapping[str, Any], weight_decay: float | None) -> list[dict[str, Any]]:
    """A group as two: weights decay; biases, norms and other tensors of fewer than two dimensions do not.

    A group stays whole where nothing decays, where it says itself what does, or where the class decides (None).
    """
    if weight_decay is None or "weight_decay" in group:
        return [dict(group)]
    if weight_decay == 0:
        return [{**group, "weight_decay": 0.0}]
    halves = (
        {**group, "params": [p for p in group["params"] if p.dim() >= 2], "weight_decay": weight_decay},
        {**group, "params": [p for p in group["params"] if p.dim() < 2], "weight_decay": 0.0},
    )
    return [half for half in halves if half["params"]]


def parts(
    model: nn.Module,
    optimizer: str | Callable[..., Optimizer],
    *,
    lr: float | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    groups: ParameterGroups | None = None,
) -> tuple[Part, ...]:
    """Say which optimiser updates which parameters of a model.

    Args:
        model: The module; frozen parameters are left out, tied ones appear once.
        optimizer: A name, a class of `torch.optim`, or a callable that builds one from parameter groups.
        lr: Learning rate; None leaves the class its own.
        momentum: Only for those that have one.
        weight_decay: Decays weights but not biases and norms, unless `groups` says otherwise; None leaves the
            optimiser its own.
        groups: The caller's own parameter groups, with options as in torch.

    Raises:
        UsageError: The optimiser cannot be used, or the groups do not hold every trainable parameter once.
    """
    options = {"lr": lr, "momentum": momentum}
    if groups is not None:
        wanted = [dict(group) for group in groups(model)]
    else:
        wanted = [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]
    _check_groups(model, wanted)
    if isinstance(optimizer, str):
        return tuple(_named_parts(model, optimizer, wanted, options, weight_decay))
    factory = partial(optimizer, **{key: value for key, value in options.items() if value is not None})
    split = [half for group in wanted for half in split_decay(group, weight_decay)]
    return (Part(factory, tuple(_named(model, split))),)


def averaged(part: Part, share: float) -> Part:
    """A part whose parameters are evaluated as an average over about the last share of the steps.

    Raises:
        UsageError: The share is not above 0 and at most 1.
    """
    if not 0 < share <= 1:
        raise UsageError(f"averaging={share:g} is a share of the steps: take more than 0, and at most 1")
    return replace(part, factory=partial(_averaged, part.factory, share))


def _averaged(factory: Factory, share: float, groups: list[dict[str, Any]]) -> Optimizer:
    return averaging.Averaged(factory(groups), share)


def build(part: Part, groups: Sequence[Mapping[str, Any]]) -> Optimizer:
    """Call a part's factory; what the caller's class refuses becomes one clear line."""
    try:
        optimizer = part.factory([dict(group) for group in groups])
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"the optimizer cannot be built: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise UsageError(f"the optimizer callable returned {type(optimizer).__name__}, not a torch.optim.Optimizer")
    for kind, reason in _REFUSED.items():
        if isinstance(averaging.inner(optimizer), kind):
            raise UsageError(
                f"optimizer {kind.__name__} cannot be used: {reason}; take one of {', '.join(catalog.names())}"
            )
    return optimizer


def _named_parts(
    model: nn.Module,
    name: str,
    groups: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    weight_decay: float | None,
) -> Iterator[Part]:
    """Of an optimiser by name, and of AdamW for what Muon does not take: everything but matrices."""
    if weight_decay:
        catalog.entry(name).check_option("weight_decay")
    if name != "muon":
        taken = [(name, options, list(groups))]
    else:
        others = {"lr": options["lr"]}
        taken = [("muon", options, _of(groups, is_matrix=True)), ("adamw", others, _of(groups, is_matrix=False))]
    for chosen, its_options, its_groups in taken:
        entry = catalog.entry(chosen)
        split = [half for group in its_groups for half in split_decay(group, entry.weight_decay(weight_decay))]
        if split:
            yield Part(by_name(chosen, **its_options), tuple(_named(model, split)), entry.kind)


def _of(groups: Iterable[Mapping[str, Any]], *, is_matrix: bool) -> list[Mapping[str, Any]]:
    """The groups with nothing but their matrices, or without them."""
    found = [{**group, "params": [p for p in group["params"] if (p.dim() == 2) is is_matrix]} for group in groups]
    return [group for group in found if group["params"]]


def _named(model: nn.Module, groups: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in groups:
        yield {**group, "params": tuple(name_of[id(parameter)] for parameter in group["params"])}


def _check_groups(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise UsageError("the model has no trainable parameter: nothing to train")
    seen: set[int] = set()
    for group in groups:
        group["params"] = list(group["params"])
        for parameter in group["params"]:
            if id(parameter) not in trainable:
                raise UsageError("a parameter group holds a tensor that is not a trainable parameter of the model")
            if id(parameter) in seen:
                raise UsageError(f"parameter {trainable[id(parameter)]} is in two parameter groups; leave it in one")
            seen.add(id(parameter))
    missing = [name for key, name in trainable.items() if key not in seen]
    if missing:
        raise UsageError(f"{', '.join(missing[:5])} in no parameter group; add them, or freeze them (requires_grad)")
