"""What an optimiser keeps (its *state*), found out beforehand: it takes two steps on dummies.

So every array of it can be given a place in shared memory, where it outlives its owner.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from samestep import torch_private
from samestep.errors import UsageError
from samestep.optim import apart, build
from samestep.optim.build import Part
from samestep.plan.layout import FlatLayout, ParameterSpec, flat_layout

Path = tuple[Any, ...]
"""Keys that lead to something in an optimiser's state."""

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
    path: Path
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
    path: Path
    dtype: str


@dataclass(frozen=True)
class StateEmpty:
    """An empty list or dict in optimiser state; SOAP keeps one for each dimension that it does not precondition.

    Args:
        unit: What it belongs to: a group's number, or a whole parameter's name.
        path: Keys that lead to it.
        is_list: Otherwise it is a dict.
    """

    unit: int | str
    path: Path
    is_list: bool


_StateItem = StateArray | StateScalar | StateEmpty


@dataclass(frozen=True)
class UpdatePlan:
    """Everything about the update that does not depend on the rank.

    Args:
        parts: The optimisers, over numbered groups.
        layout: Where the parameters lie.
        arrays: State arrays, to be placed in shared memory.
        scalars: State numbers; number i is kept at index i.
        empties: State that holds nothing, but has to be there.
        averages: Whether other parameters are evaluated than are trained (see `build.averages`).
    """

    parts: tuple[Part, ...]
    layout: FlatLayout
    arrays: tuple[StateArray, ...]
    scalars: tuple[StateScalar, ...]
    empties: tuple[StateEmpty, ...] = ()
    averages: bool = False

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
    averages = False
    for part in parts:
        dummy = build.build(part, [{**g, "params": [nn.Parameter(torch.zeros(4, 4))]} for g in part.groups])
        is_whole = not build.is_element_wise(part, dummy)
        averages |= build.averages(dummy)
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
    items = [item for probe in probes for item in probe.run(layout)]
    for probe in probes:
        if probe.is_whole and probe.part.kind is None:
            apart.check(probe.part, {name: tuple(values.shape) for name, values in parameters.items()}, dtype)
    return UpdatePlan(
        parts,
        layout,
        tuple(item for item in items if isinstance(item, StateArray)),
        tuple(item for item in items if isinstance(item, StateScalar)),
        tuple(item for item in items if isinstance(item, StateEmpty)),
        averages,
    )


@dataclass(frozen=True)
class _Probe:
    """Lets an optimiser take two steps on dummies and reads what it then keeps."""

    part: Part
    first_group: int
    is_whole: bool
    dtype: torch.dtype

    def run(self, layout: FlatLayout) -> Iterator[_StateItem]:
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
        self, unit: int | str, path: Path, value: Any, parameter: Tensor, layout: FlatLayout
    ) -> Iterator[_StateItem]:
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
        elif isinstance(value, list | dict):
            yield StateEmpty(unit, path, isinstance(value, list))
        elif value is not None:
            kind = type(value).__name__
            raise UsageError(f"the optimizer keeps a {kind} ({name}), which cannot be saved; keep tensors or numbers")


def group_range(layout: FlatLayout, group: int) -> tuple[int, int]:
    """First element of a group in the flat vector, and one past its last."""
    segments = [segment for segment in layout.segments if segment.group == group]
    return min(segment.start for segment in segments), max(segment.stop for segment in segments)


def _numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if isinstance(value, bool | int | float)}


def _dtype_name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _leaves(state: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    items = state.items() if isinstance(state, dict) else enumerate(state)
    for key, value in items:
        if isinstance(value, dict | list) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value
