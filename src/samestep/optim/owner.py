"""The owner computes: each rank runs the optimiser on its own segments of the flat vector.

Element-wise optimisers see their share of a parameter group as one flat tensor; the others see whole parameters.
What an optimiser keeps (its *state*) is found out beforehand, by letting it take two steps on dummies, so that
every array of it can be given a place in shared memory: it outlives its owner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from samestep import torch_private
from samestep.errors import UsageError
from samestep.optim import build
from samestep.optim.build import Part
from samestep.optim.views import view_of
from samestep.plan.layout import FlatLayout, ParameterSpec, Segment, flat_layout

_Path = tuple[Any, ...]
_DUMMY_ELEMENTS = 16


@dataclass(frozen=True)
class StateArray:
    """An array of optimiser state.

    Args:
        name: Name of its region.
        unit: What it belongs to: a group's number, or a whole parameter's name.
        path: Keys that lead to it in the optimiser's state.
        dtype: Name of its dtype.
        shape: Its shape; of an element-wise group, all of the group's elements.
    """

    name: str
    unit: int | str
    path: _Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StateScalar:
    """A number of optimiser state, such as the count of steps; stored as float64.

    Args:
        unit: What it belongs to: a group's number, or a whole parameter's name.
        path: Keys that lead to it; an empty first key means the group's own options.
        dtype: Name of the dtype of a tensor without dimensions, or "int" or "float".
    """

    unit: int | str
    path: _Path
    dtype: str


@dataclass(frozen=True)
class UpdatePlan:
    """Everything about the update that does not depend on the rank.

    Args:
        parts: The optimisers, over numbered groups.
        layout: Where the parameters lie.
        arrays: State arrays, to be placed in shared memory.
        scalars: State numbers; number i is kept at index i.
    """

    parts: tuple[Part, ...]
    layout: FlatLayout
    arrays: tuple[StateArray, ...]
    scalars: tuple[StateScalar, ...]

    @property
    def groups(self) -> tuple[tuple[Part, Mapping[str, Any]], ...]:
        return tuple((part, group) for part in self.parts for group in part.groups)


def plan_update(
    parts: tuple[Part, ...], parameters: Mapping[str, Tensor], *, is_channels_last: bool = False
) -> UpdatePlan:
    """Lay the parameters out and find out what state the optimisers keep.

    Args:
        parts: See `build.parts`.
        parameters: Trainable parameters by name.
        is_channels_last: Whether tensors of four dimensions have their second one last in memory.

    Raises:
        UsageError: An optimiser is refused, fails, or keeps something that is neither number nor tensor.
    """
    dtype = next(iter(parameters.values())).dtype
    specs: list[ParameterSpec] = []
    probes: list[_Probe] = []
    first_group = 0
    for part in parts:
        dummy = build.build(part, [{**g, "params": [nn.Parameter(torch.zeros(4, 4))]} for g in part.groups])
        is_whole = not build.is_element_wise(dummy)
        for number, group in enumerate(part.groups, start=first_group):
            for name in group["params"]:
                shape = tuple(parameters[name].shape)
                specs.append(
                    ParameterSpec(
                        name=name,
                        shape=shape,
                        group=number,
                        is_whole=is_whole,
                        is_channels_last=is_channels_last and len(shape) == 4,
                    )
                )
        probes.append(_Probe(part, first_group, is_whole, dtype))
        first_group += len(part.groups)
    layout = flat_layout(specs)
    arrays: list[StateArray] = []
    scalars: list[StateScalar] = []
    for probe in probes:
        for item in probe.run(layout):
            (arrays if isinstance(item, StateArray) else scalars).append(item)  # type: ignore[arg-type]
    return UpdatePlan(parts, layout, tuple(arrays), tuple(scalars))


@dataclass(frozen=True)
class _Probe:
    """Lets an optimiser take two steps on dummies and reads what it then keeps."""

    part: Part
    first_group: int
    is_whole: bool
    dtype: torch.dtype

    def run(self, layout: FlatLayout) -> Iterator[StateArray | StateScalar]:
        units = self._units(layout)
        generator = torch.Generator().manual_seed(0)
        for unit in units.values():
            unit.grad = torch.randn(unit.shape, generator=generator, dtype=self.dtype) * 1e-3
        groups = [
            {**group, "params": [p for key, p in units.items() if self._group_of(key, layout) == number]}
            for number, group in enumerate(self.part.groups, start=self.first_group)
        ]
        optimizer = build.build(self.part, groups)
        options = [_numbers(group) for group in optimizer.param_groups]
        try:
            step = torch_private.plain_step(optimizer)
            step()
            step()
        except Exception as error:
            raise UsageError(f"optimizer {type(optimizer).__name__} failed on its first steps: {error}") from error
        for key, parameter in units.items():
            for path, value in _leaves(optimizer.state[parameter]):
                yield from self._item(key, path, value, parameter, layout)
        for number, (group, before) in enumerate(zip(optimizer.param_groups, options, strict=True)):
            for name, value in _numbers(group).items():
                if before.get(name) != value and name != "lr":
                    yield StateScalar(number + self.first_group, ("", name), type(value).__name__)

    def _units(self, layout: FlatLayout) -> dict[int | str, nn.Parameter]:
        groups = range(self.first_group, self.first_group + len(self.part.groups))
        if not self.is_whole:
            return {number: nn.Parameter(torch.zeros(_DUMMY_ELEMENTS, dtype=self.dtype)) for number in groups}
        return {
            place.spec.name: nn.Parameter(torch.zeros(place.spec.shape, dtype=self.dtype))
            for place in layout.places
            if place.spec.group in groups
        }

    def _group_of(self, key: int | str, layout: FlatLayout) -> int:
        if isinstance(key, int):
            return key
        return next(place.spec.group for place in layout.places if place.spec.name == key)

    def _item(
        self, unit: int | str, path: _Path, value: Any, parameter: Tensor, layout: FlatLayout
    ) -> Iterator[StateArray | StateScalar]:
        name = "/".join(str(word) for word in ("state", unit, *path))
        if isinstance(value, Tensor) and value.dim() > 0:
            shape = tuple(value.shape)
            if isinstance(unit, int):
                assert shape == tuple(parameter.shape), (unit, path, shape)
                start, stop = group_range(layout, unit)
                shape = (stop - start,)
            yield StateArray(name, unit, path, _dtype_name(value), shape)
        elif isinstance(value, Tensor):
            yield StateScalar(unit, path, _dtype_name(value))
        elif isinstance(value, bool | int | float):
            yield StateScalar(unit, path, type(value).__name__)
        elif value is not None:
            kind = type(value).__name__
            raise UsageError(f"the optimizer keeps a {kind} ({name}), which cannot be saved; keep tensors or numbers")


def group_range(layout: FlatLayout, group: int) -> tuple[int, int]:
    """First element of a group in the flat vector, and one past its last."""
    segments = [segment for segment in layout.segments if segment.group == group]
    return min(segment.start for segment in segments), max(segment.stop for segment in segments)


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
        self._gradient = torch.zeros(sum(s.stop - s.start for s in segments), dtype=flat.dtype)
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
        self._views = [self._state_views(segment, state) for segment in segments]
        self._optimizers = [build.build(part, groups) for part, groups in self._grouped() if groups]
        self._steps = [torch_private.plain_step(optimizer) for optimizer in self._optimizers]
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self._optimizers]
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

    def step(self, lr_factor: float) -> None:
        """Update the segments from their gradients, with every learning rate times `lr_factor`."""
        kept = [values.clone() for values in self._unused]
        for optimizer, rates, step in zip(self._optimizers, self._rates, self._steps, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * lr_factor
            try:
                step()
            except Exception as error:
                raise UsageError(f"optimizer {type(optimizer).__name__} failed: {error}") from error
        for values, before in zip(self._unused, kept, strict=True):
            values.copy_(before)
        self._share_state()

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
        for index, scalar in enumerate(self._plan.scalars):
            for parameter, optimizer in self._of_unit(scalar.unit):
                value = _typed(float(scalars[index]), scalar.dtype)
                if scalar.path[0] == "":
                    self._group_holding(optimizer, parameter)[scalar.path[1]] = value
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

    def _state_views(self, segment: Segment, state: Mapping[str, Tensor]) -> dict[_Path, Tensor]:
        views = {}
        for array in self._plan.arrays:
            if segment.place is None and array.unit == segment.group:
                start, _ = group_range(self._plan.layout, segment.group)
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


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if isinstance(value, bool | int | float)}


def _dtype_name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _typed(value: float, dtype: str) -> Any:
    if dtype in ("int", "float", "bool"):
        return {"int": int, "float": float, "bool": bool}[dtype](value)
    return torch.tensor(value, dtype=getattr(torch, dtype))


def _leaves(state: Any, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _get(state: Any, path: _Path) -> Any:
    for key in path:
        if isinstance(state, dict) and key not in state:
            return None
        state = state[key]
    return state


def _set(state: Any, path: _Path, value: Any) -> None:
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
