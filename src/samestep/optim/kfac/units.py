"""What of a network has which curvature: its *units*, and where their factors lie in one flat vector.

* linear (Linear, Conv1d, Conv2d): weight and bias together, ``A ⊗ G`` from the layer's inputs and the gradients of its
  outputs (Martens and Grosse 2015; Grosse and Martens 2016 for convolutions).
* matrix (embeddings, LSTM and GRU, attention's projections): ``A ⊗ G`` from a microbatch's sampled gradient S alone.
  The labels are the network's own, so the rows' gradients are independent with mean 0, and E[S Sᵀ] = tr(A) G,
  E[Sᵀ S] = tr(G) A.
* diagonal (norms, biases that stand alone, sides above `LARGEST_SIDE`): E[S²] is the Fisher matrix's diagonal.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from torch import nn

from samestep.plan.batch import BatchPlan
from samestep.plan.layout import FlatLayout, ParameterSpec, Place, flat_layout

LARGEST_SIDE = 4096
"""Larger factors are neither kept nor inverted."""

Kind = Literal["linear", "matrix", "diagonal"]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Parameters that share a curvature block.

    Args:
        kind: What is known of it.
        module: Path of the module; of a linear unit.
        weight: Name of the parameter.
        bias: Name of the bias that belongs to it; of a linear unit.
        num_inputs: Side of A, with one more for a bias; of a diagonal, its elements.
        num_outputs: Side of G; of a diagonal 1.
    """

    kind: Kind
    module: str
    weight: str
    bias: str | None
    num_inputs: int
    num_outputs: int

    @property
    def cost(self) -> int:
        """Multiplications of its inverses, about."""
        if self.kind == "diagonal":
            return self.num_inputs
        sides = self.num_inputs + self.num_outputs
        return self.num_inputs**3 + self.num_outputs**3 + self.num_inputs * self.num_outputs * sides

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of its factors."""
        if self.kind == "diagonal":
            return ((self.num_inputs,),)
        return (self.num_inputs, self.num_inputs), (self.num_outputs, self.num_outputs)


def units_of(model: nn.Module) -> tuple[Unit, ...]:
    """The units of a model: each trainable parameter is in one of them."""
    uses = Counter(id(parameter) for module in model.modules() for parameter in module._parameters.values())
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found: list[Unit] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) or not _is_linear(module):
            continue
        weight, bias = module.weight, module.bias
        if id(weight) not in names or uses[id(weight)] > 1:
            continue
        has_bias = bias is not None and id(bias) in names and uses[id(bias)] == 1
        outputs, inputs = weight.shape[0], weight[0].numel() + has_bias
        if max(outputs, inputs) > LARGEST_SIDE:
            continue
        own_bias = names.pop(id(bias)) if has_bias else None
        found.append(
            Unit(kind="linear", module=path, weight=names.pop(id(weight)), bias=own_bias, num_inputs=inputs,
                 num_outputs=outputs)
        )  # fmt: skip
    left = set(names.values())
    found += [_alone(name, parameter) for name, parameter in model.named_parameters() if name in left]
    return tuple(found)


def _is_linear(module: nn.Linear | nn.Conv1d | nn.Conv2d) -> bool:
    """Whether hooks see what its weight is multiplied with."""
    if isinstance(module, nn.Linear):
        return type(module) is nn.Linear
    is_plain = type(module) in (nn.Conv1d, nn.Conv2d) and module.groups == 1
    return is_plain and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _alone(name: str, parameter: nn.Parameter) -> Unit:
    rows = parameter.shape[0] if parameter.dim() > 1 else 1
    columns = parameter.numel() // max(rows, 1)
    if parameter.dim() > 1 and min(rows, columns) > 1 and max(rows, columns) <= LARGEST_SIDE:
        return Unit(kind="matrix", module="", weight=name, bias=None, num_inputs=columns, num_outputs=rows)
    return Unit(kind="diagonal", module="", weight=name, bias=None, num_inputs=parameter.numel(), num_outputs=1)


def factor_layout(units: tuple[Unit, ...]) -> FlatLayout:
    """Where the factors lie, two of a unit, one of a diagonal."""
    return flat_layout(
        [
            ParameterSpec(name=f"{number}/{side}", shape=shape, group=0, is_whole=False)
            for number, unit in enumerate(units)
            for side, shape in enumerate(unit.shapes)
        ]
    )


def factor_places(units: tuple[Unit, ...], layout: FlatLayout) -> tuple[tuple[Place, ...], ...]:
    """The factors' places, unit by unit."""
    places = iter(layout.places)
    return tuple(tuple(next(places) for _ in unit.shapes) for unit in units)


def shares(units: tuple[Unit, ...], num_dampings: int, world_size: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Who inverts what: (unit, damping) pairs of every rank; the costliest first, to whoever has least.

    Example:
        >>> unit = Unit(kind="diagonal", module="", weight="w", bias=None, num_inputs=4, num_outputs=1)
        >>> shares((unit,), 3, 2)
        (((0, 0), (0, 2)), ((0, 1),))
    """
    jobs = [(number, damping) for number in range(len(units)) for damping in range(num_dampings)]
    found: list[list[tuple[int, int]]] = [[] for _ in range(world_size)]
    load = [0] * world_size
    for number, damping in sorted(jobs, key=lambda job: (-units[job[0]].cost, job)):
        rank = load.index(min(load))
        found[rank].append((number, damping))
        load[rank] += units[number].cost
    return tuple(tuple(sorted(jobs)) for jobs in found)


def rows_of_each(num_rows: int, num_microbatches: int) -> int:
    """Rows that a microbatch gives so that all together give `num_rows`, or a little more.

    >>> rows_of_each(4096, 8)
    512
    """
    return math.ceil(num_rows / num_microbatches)


EVERY_STEP, EVERY_FEW = 10, 4
"""Factors, and so inverses, are new in each of the first steps, where the network changes most, then every few."""


def refreshed_at(step: int) -> int:
    """The step whose factors are the newest at a step.

    >>> [refreshed_at(step) for step in (0, 9, 10, 12, 15, 16)]
    [0, 9, 9, 12, 12, 16]
    """
    return step if step < EVERY_STEP else max(EVERY_STEP - 1, step - step % EVERY_FEW)


@dataclass(frozen=True, kw_only=True)
class CurvaturePlan:
    """Everything about curvature that does not depend on the rank.

    Args:
        units: Of the network.
        factors: Where their factors lie.
        factor_rows: Samples of a step that give factors.
        trial_rows: Samples that products and losses are taken on.
        has_fresh_rows: Whether these are a later step's, not the step's own; slopes, too, are then taken on them.
    """

    units: tuple[Unit, ...]
    factors: FlatLayout
    factor_rows: int = 4096
    trial_rows: int = 8192
    has_fresh_rows: bool = False

    def trial_source(self, batches: BatchPlan, step: int) -> int:
        """The step whose samples a step is tried on: the next one, but not an epoch's short last one."""
        if not self.has_fresh_rows:
            return step
        is_short = batches.num_samples_of(step + 1) < min(self.trial_rows, batches.global_batch)
        return step + 2 if is_short else step + 1


FACTORS, PREVIOUS, DECIDED = "state/kfac/factors", "state/kfac/previous", "state/kfac/decided"
"""Names of the state that is kept beside the parameters: the factors' running means, the step before, the number of
steps that the means have seen."""
