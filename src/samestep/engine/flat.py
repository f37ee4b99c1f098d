"""A model over flat memory: parameters are views of one vector, gradients are gathered into another.

Buffers: a microbatch starts from the step's buffers, whatever ran before on the same worker. What it changes in the
*tracked* ones (floating point, in the parameters' dtype) is part of its contribution, and the weighted mean of the
changes is applied once a step. All *other* buffers (integers, other dtypes) take what microbatch 0 made of them.
Large buffers are constants: nothing that torch's layers change is that large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samestep import torch_private
from samestep.data.feed import aligned
from samestep.errors import UsageError
from samestep.optim.views import view_of
from samestep.plan.layout import BLOCK, FlatLayout, Range, round_up

_LARGEST_TRACKED = 1 << 16
"""Elements; torch's batch norm changes its buffers without telling autograd, but has never so many features."""


@dataclass(frozen=True)
class BufferPlace:
    """Where a buffer lies: an element of the tracked vector, or a byte of the others' memory."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    num_elements: int


@dataclass(frozen=True)
class BufferPlan:
    """What is done with each buffer.

    Args:
        tracked: In the tracked vector, by element.
        others: In the others' memory, by byte.
        constants: Names of those that are never changed.
        num_tracked: Elements of the tracked vector; whole blocks.
        num_other_bytes: Size of the others' memory.
    """

    tracked: tuple[BufferPlace, ...]
    others: tuple[BufferPlace, ...]
    constants: tuple[str, ...]
    num_tracked: int
    num_other_bytes: int


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """A model's trainable parameters by name, tied ones once.

    Raises:
        UsageError: The parameters cannot lie in one flat vector on a CPU.
    """
    for name, module in model.named_modules():
        if getattr(module, "sparse", False) and isinstance(module, nn.Embedding | nn.EmbeddingBag):
            raise UsageError(
                f"module {name} makes sparse gradients, which cannot be added in a flat vector: sparse=False"
            )
    found = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise UsageError(f"parameter {name} has no shape yet; run the lazy module once in the model factory")
        if parameter.device.type != "cpu":
            raise UsageError(f"parameter {name} is on {parameter.device}; build the model on the CPU")
        if parameter.requires_grad:
            found[name] = parameter
    dtypes = {parameter.dtype for parameter in found.values()}
    if not dtypes:
        raise UsageError("the model has no trainable parameter: nothing to train")
    if len(dtypes) > 1 or next(iter(dtypes)) not in (torch.float32, torch.float64):
        kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise UsageError(
            f"the parameters' dtype is {kinds}; all must be float32, or all float64 "
            "(for bfloat16 arithmetic keep them float32 and take precision='bf16')"
        )
    return found


def settle_constants(model: nn.Module) -> None:
    """Give frozen parameters and buffers plain memory, on 64-byte boundaries: as workers will have them.

    The bits of a product depend on the layout and the alignment of what goes into it.
    """
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = aligned(parameter.data.contiguous())
    for name, places in _find_buffers(model).items():
        buffer = model.get_buffer(name)
        settled = aligned(buffer.contiguous())
        if settled is not buffer:
            for module, key in places:
                module._buffers[key] = settled


def plan_buffers(model: nn.Module, dtype: torch.dtype) -> BufferPlan:
    """Sort a model's buffers into tracked, others and constants."""
    tracked: list[BufferPlace] = []
    others: list[BufferPlace] = []
    constants: list[str] = []
    at_tracked = at_others = 0
    for name, buffer in model.named_buffers():
        shape, size = tuple(buffer.shape), buffer.numel()
        kind = str(buffer.dtype).removeprefix("torch.")
        if size > _LARGEST_TRACKED:
            constants.append(name)
        elif buffer.dtype == dtype:
            tracked.append(BufferPlace(name, shape, kind, at_tracked, size))
            at_tracked = round_up(at_tracked + size, 16)
        else:
            others.append(BufferPlace(name, shape, kind, at_others, size))
            at_others = round_up(at_others + size * buffer.element_size(), 64)
    return BufferPlan(tuple(tracked), tuple(others), tuple(constants), round_up(at_tracked, BLOCK), at_others)


@dataclass(frozen=True)
class Buffers:
    """Memory of a model's changing buffers, and every buffer's view of it.

    Args:
        tracked: The tracked ones' vector.
        others: The others' memory.
        views: By name.
    """

    tracked: Tensor
    others: Tensor
    views: Mapping[str, Tensor]


class FlatModel:
    """A module whose trainable parameters are views of a flat vector and whose buffers are handled as planned.

    Args:
        model: The module.
        layout: Where its parameters lie.
        buffers: What is done with its buffers.
        parameters: The flat vector, shape (layout.num_elements,).
        step_tracked: The step's tracked buffers, shape (buffers.num_tracked,), the same for all ranks.
        step_others: The step's other buffers, shape (buffers.num_other_bytes,), uint8, the same for all ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: FlatLayout,
        buffers: BufferPlan,
        *,
        parameters: Tensor,
        step_tracked: Tensor,
        step_others: Tensor,
    ) -> None:
        self.module = model
        self.layout = layout
        self.parameters = [model.get_parameter(place.spec.name) for place in layout.places]
        self._plan = buffers
        self._step_tracked, self._step_others = step_tracked, step_others
        for parameter, place in zip(self.parameters, layout.places, strict=True):
            parameter.data = view_of(place, parameters)
            parameter.grad = None
        self._slots = _find_buffers(model)
        self._constants = {
            name: (model.get_buffer(name), model.get_buffer(name)._version) for name in buffers.constants
        }
        self._buffers = self.fresh_buffers()

    def begin_microbatch(self) -> None:
        """Start from the step's buffers, in the memory that the microbatch before has used."""
        if self._plan.num_tracked:
            self._buffers.tracked.copy_(self._step_tracked)
        if self._plan.num_other_bytes:
            self._buffers.others.copy_(self._step_others)

    def fresh_buffers(self) -> Buffers:
        """Start from the step's buffers in new memory: a microbatch before this one may not be done with its own."""
        tracked, others = self._step_tracked.clone(), self._step_others.clone()
        views = {place.name: _tracked_view(place, tracked) for place in self._plan.tracked}
        views |= {place.name: _other_view(place, others) for place in self._plan.others}
        found = Buffers(tracked, others, views)
        self.use_buffers(found)
        return found

    def use_buffers(self, buffers: Buffers) -> None:
        """Let the module work with these."""
        self._buffers = buffers
        for name, view in buffers.views.items():
            for module, key in self._slots[name]:
                module._buffers[key] = view

    def replaced(self) -> list[str]:
        """Names of buffers that the last forward pass has put a new tensor in the place of."""
        views = self._buffers.views
        places = {name: self._slots[name][0] for name in views}
        return [name for name, (module, key) in places.items() if module._buffers[key] is not views[name]]

    def buffers_now(self) -> tuple[Tensor, Tensor]:
        """Copies of the microbatch's tracked buffers, and of the others' memory."""
        return self._buffers.tracked.clone(), self._buffers.others.clone()

    def show_buffers(self, tracked: Tensor, others: Tensor) -> None:
        """Let it look as if a microbatch had left these values in the buffers."""
        self.use_buffers(self._buffers)
        self._buffers.tracked.copy_(tracked)
        self._buffers.others.copy_(others)

    def gradients(self) -> list[Tensor | None]:
        """What the last backward pass gave, one per parameter of the layout."""
        return [parameter.grad for parameter in self.parameters]

    def set_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """What `gradients` has given is there again."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    def write_squares(self, row: NDArray[np.float64], numbers: Sequence[int]) -> None:
        """Write the squared Euclidean norms of what the last backward pass gave; 0 where it gave nothing.

        Args:
            row: One place a parameter of the layout.
            numbers: Which of them.
        """
        given = [number for number in numbers if self.parameters[number].grad is not None]
        row[list(numbers)] = 0.0
        if given:
            gradients = [gradient for number in given if (gradient := self.parameters[number].grad) is not None]
            norms = torch.stack(torch_private.norms(gradients)).numpy(force=True)
            row[given] = np.square(norms, dtype=np.float64)

    def drop_gradients(self) -> None:
        """Forget what the last backward pass left."""
        for parameter in self.parameters:
            parameter.grad = None

    def used_parameters(self) -> Tensor:
        """Which parameters the backward pass gave a gradient to, uint8, shape (parameters,)."""
        return torch.tensor([parameter.grad is not None for parameter in self.parameters], dtype=torch.uint8)

    def take_buffer_changes(self, target: Tensor, weight: float, part: Sequence[Range], *, is_added: bool) -> None:
        """Write weight × (what this microbatch changed in the tracked buffers), or add it to what `target` holds.

        Args:
            target: Shape (buffers.num_tracked,).
            weight: The microbatch's.
            part: Which elements.
            is_added: Add instead of writing.
        """
        self.collect_replaced()
        for start, stop in part:
            after, before = self._buffers.tracked[start:stop], self._step_tracked[start:stop]
            # What did not change must give 0 also where it is infinite (masks).
            change = torch.where(after == before, 0.0, after - before)
            if is_added:
                target[start:stop].add_(change.mul_(weight))  # two roundings, as between ranks: add_(alpha=) may fuse
            else:
                torch.mul(change, weight, out=target[start:stop])

    def take_others(self, part: Sequence[Range]) -> list[Tensor]:
        """What this microbatch made of the other buffers: of each of some ranges of their bytes."""
        return [self._buffers.others[start:stop].clone() for start, stop in part]

    def collect_replaced(self) -> None:
        """A module may assign a new tensor to its buffer: take its values and put the view back."""
        for name, places in self._slots.items():
            module, key = places[0]
            current = module._buffers[key]
            if name in self._constants:
                original, version = self._constants[name]
                if current is not original or original._version != version:
                    raise UsageError(
                        f"buffer {name} has {original.numel():,} elements and is changed in the forward pass; buffers "
                        f"of more than {_LARGEST_TRACKED:,} elements are taken as constants: keep it elsewhere"
                    )
            elif current is not self._buffers.views[name]:
                assert current is not None
                self._buffers.views[name].copy_(current.detach())
                for module, key in places:
                    module._buffers[key] = self._buffers.views[name]


def write_parameters(layout: FlatLayout, values: Mapping[str, Tensor], flat: Tensor) -> None:
    """Copy parameters, by name, into the flat vector."""
    for place in layout.places:
        view_of(place, flat).copy_(values[place.spec.name].detach())


def write_buffers(plan: BufferPlan, model: nn.Module, tracked: Tensor, others: Tensor) -> None:
    """Copy a model's buffers into the tracked vector and the others' memory."""
    for place in plan.tracked:
        _tracked_view(place, tracked).copy_(model.get_buffer(place.name))
    for place in plan.others:
        _other_view(place, others).copy_(model.get_buffer(place.name))


def load_model(
    model: nn.Module, layout: FlatLayout, plan: BufferPlan, flat: Tensor, tracked: Tensor, others: Tensor
) -> None:
    """Give a model parameters and buffers of its own, with the values that lie in flat memory."""
    for place in layout.places:
        parameter = model.get_parameter(place.spec.name)
        parameter.data = view_of(place, flat).clone(memory_format=torch.contiguous_format)
        parameter.grad = None
    slots = _find_buffers(model)
    values = {item.name: _tracked_view(item, tracked) for item in plan.tracked}
    values |= {item.name: _other_view(item, others) for item in plan.others}
    for name, view in values.items():
        own = view.clone()
        for module, key in slots[name]:
            module._buffers[key] = own


def _find_buffers(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Every buffer's first name, and all places where modules hold it."""
    names = {id(buffer): name for name, buffer in model.named_buffers()}
    found: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in names.values()}
    for module in model.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None:
                found[names[id(buffer)]].append((module, key))
    return found


def _tracked_view(place: BufferPlace, tracked: Tensor) -> Tensor:
    return tracked[place.start : place.start + place.num_elements].view(place.shape)


def _other_view(place: BufferPlace, others: Tensor) -> Tensor:
    dtype: torch.dtype = getattr(torch, place.dtype)
    if place.num_elements == 0:
        return torch.empty(place.shape, dtype=dtype, device=others.device)
    return others[place.start : place.start + place.num_elements * dtype.itemsize].view(dtype).view(place.shape)
