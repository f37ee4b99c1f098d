"""The owner computes: each rank runs the optimiser on its own segments of the flat vector.

Element-wise optimisers see their share of a parameter group as one flat tensor; the others see whole parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from samestep import torch_private
from samestep.errors import UsageError
from samestep.optim import build
from samestep.optim.build import Part
from samestep.optim.rules import Factors
from samestep.optim.state import Path, UpdatePlan, group_range
from samestep.optim.views import view_of
from samestep.plan.layout import Segment


class OwnedUpdate:
    """A rank's optimisers, over the segments that it owns.

    Args:
        plan: What is updated how.
        segments: What this rank owns.
        flat: The flat vector of parameters, shape (num_elements,).
        state: The memory of every state array, by name.

    Attributes:
        parameters: The segments as the optimiser sees them.
        gradients: Their gradients, in the same shapes.
        padded_gradients: The same memory, flat, with the padding up to the next block.
    """

    def __init__(
        self, plan: UpdatePlan, segments: Sequence[Segment], flat: Tensor, state: Mapping[str, Tensor]
    ) -> None:
        self._plan = plan
        self.segments = tuple(segments)
        self.parameters = [nn.Parameter(_shaped(segment, flat), requires_grad=False) for segment in segments]
        self._gradient = torch.zeros(sum(s.stop - s.start for s in segments), dtype=flat.dtype, device=flat.device)
        self.padded_gradients: list[Tensor] = []
        self.gradients: list[Tensor] = []
        at = 0
        for segment, parameter in zip(self.segments, self.parameters, strict=True):
            size = segment.stop - segment.start
            piece = self._gradient[at : at + size]
            parameter.grad = piece if segment.place is None else view_of(replace(segment.place, start=0), piece)
            self.padded_gradients.append(piece)
            self.gradients.append(parameter.grad)
            at += size
        self._views = [state_views(plan, segment, state) for segment in segments]
        self._optimizers = [build.build(part, groups) for part, groups in self._grouped() if groups]
        self._steps = [torch_private.plain_step(optimizer) for optimizer in self._optimizers]
        self._rates = [
            [(group["lr"], group.get("weight_decay")) for group in optimizer.param_groups]
            for optimizer in self._optimizers
        ]
        self._kept = [(parameter, optimizer) for optimizer in self._optimizers for parameter in _members(optimizer)]
        self._kept.sort(key=lambda item: next(i for i, p in enumerate(self.parameters) if p is item[0]))
        self._unused: list[Tensor] = []

    def leave_alone(self, names: frozenset[str]) -> None:
        """Never update these parameters: no microbatch uses them."""
        self._unused = []
        for segment, parameter in zip(self.segments, self.parameters, strict=True):
            if segment.place is not None:
                if segment.place.spec.name in names:
                    parameter.grad = None
                continue
            for place in self._plan.layout.places:
                start, stop = max(place.start, segment.start), min(place.stop, segment.stop)
                if place.spec.name in names and start < stop:
                    self._unused.append(parameter.data[start - segment.start : stop - segment.start])

    def step(self, factors: Factors) -> None:
        """Update the segments from their gradients, with rates times `factors`."""
        kept = [values.clone() for values in self._unused]
        for optimizer, rates, step in zip(self._optimizers, self._rates, self._steps, strict=True):
            for group, (rate, decay) in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factors.lr
                if decay and factors.weight_decay != 1.0:
                    group["weight_decay"] = decay * factors.weight_decay
            try:
                step()
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                raise UsageError(f"optimizer {type(optimizer).__name__} failed: {error}") from error
        for values, before in zip(self._unused, kept, strict=True):
            values.copy_(before)
        self._share_state()

    def show_averages(self) -> None:
        """Put the parameters that are to be evaluated where the trained ones were."""
        trained = [parameter.detach().clone() for parameter in self.parameters]
        build.show_averages(self._optimizers)
        for parameter, values in zip(self.parameters, trained, strict=True):
            if parameter.grad is None:  # left alone: it has no average
                parameter.copy_(values)

    def show_trained(self, trained: Sequence[Tensor]) -> None:
        """Put the trained parameters back, bit for bit."""
        for optimizer in self._optimizers:
            if build.averages(optimizer):
                optimizer.train()  # type: ignore[attr-defined]
        for parameter, values in zip(self.parameters, trained, strict=True):
            parameter.copy_(values)

    def write_scalars(self, table: Tensor) -> None:
        """Write the state's numbers that this rank knows; who shares a group writes the same numbers."""
        for index, holder, key in self._scalar_holders():
            value = holder[key]
            table[index] = float(value)

    def restore(self, scalars: Tensor) -> None:
        """Take up the state that lies in memory."""
        for (parameter, optimizer), views in zip(self._kept, self._views, strict=True):
            for path, view in views.items():
                _set(optimizer.state[parameter], path, view)
        for empty in self._plan.empties:
            for parameter, optimizer in self._of_unit(empty.unit):
                _set(optimizer.state[parameter], empty.path, [] if empty.is_list else {})
        for index, scalar in enumerate(self._plan.scalars):
            for parameter, optimizer in self._of_unit(scalar.unit):
                value = _typed(float(scalars[index]), scalar.dtype)
                group = self._group_holding(optimizer, parameter)
                if isinstance(value, Tensor) and (group.get("fused") or group.get("capturable")):
                    value = value.to(parameter.device)  # as torch keeps it
                if scalar.path[0] == "":
                    group[scalar.path[1]] = value
                else:
                    _set(optimizer.state[parameter], scalar.path, value)

    def _share_state(self) -> None:
        """Move arrays that the optimiser has just made, or replaced, to their place in memory."""
        for (parameter, optimizer), views in zip(self._kept, self._views, strict=True):
            state = optimizer.state[parameter]
            for path, view in views.items():
                value = _get(state, path)
                if value is not view and value is not None:
                    view.copy_(value)
                    _set(state, path, view)

    def _scalar_holders(self) -> Iterator[tuple[int, Any, Any]]:
        for index, scalar in enumerate(self._plan.scalars):
            for parameter, optimizer in self._of_unit(scalar.unit)[:1]:
                if scalar.path[0] == "":
                    yield index, self._group_holding(optimizer, parameter), scalar.path[1]
                elif optimizer.state[parameter]:
                    yield index, _get(optimizer.state[parameter], scalar.path[:-1]), scalar.path[-1]

    def _of_unit(self, unit: int | str) -> list[tuple[Tensor, Optimizer]]:
        return [kept for kept, segment in zip(self._kept, self.segments, strict=True) if _unit(segment, unit)]

    def _group_holding(self, optimizer: Optimizer, parameter: Tensor) -> dict[str, Any]:
        return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))

    def _grouped(self) -> Iterator[tuple[Part, list[dict[str, Any]]]]:
        number = 0
        for part in self._plan.parts:
            groups = []
            for group in part.groups:
                owned = [p for p, s in zip(self.parameters, self.segments, strict=True) if s.group == number]
                if owned:
                    groups.append({**group, "params": owned})
                number += 1
            yield part, groups


def state_views(plan: UpdatePlan, segment: Segment, state: Mapping[str, Tensor]) -> dict[Path, Tensor]:
    """Where the optimiser state of a segment lies in the memory of every state array, by its place in the state."""
    views = {}
    for array in plan.arrays:
        if segment.place is None and array.unit == segment.group:
            start, _ = group_range(plan.layout, segment.group)
            views[array.path] = state[array.name][segment.start - start : segment.stop - start]
        elif segment.place is not None and array.unit == segment.place.spec.name:
            views[array.path] = state[array.name]
    return views


def _unit(segment: Segment, unit: int | str) -> bool:
    if isinstance(unit, int):
        return segment.group == unit
    return segment.place is not None and segment.place.spec.name == unit


def _shaped(segment: Segment, flat: Tensor) -> Tensor:
    return flat[segment.start : segment.stop] if segment.place is None else view_of(segment.place, flat)


def _members(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _typed(value: float, dtype: str) -> Any:
    if dtype in ("int", "float", "bool"):
        return {"int": int, "float": float, "bool": bool}[dtype](value)
    return torch.tensor(value, dtype=getattr(torch, dtype))


def _get(state: Any, path: Path) -> Any:
    for key in path:
        if isinstance(state, dict) and key not in state:
            return None
        state = state[key]
    return state


def _set(state: Any, path: Path, value: Any) -> None:
    for key, following in pairwise(path):
        if isinstance(state, dict):
            state = state.setdefault(key, [] if isinstance(following, int) else {})
        else:
            while len(state) <= key:
                state.append([] if isinstance(following, int) else {})
            state = state[key]
    if isinstance(state, list):
        while len(state) <= path[-1]:
            state.append(None)
    state[path[-1]] = value
