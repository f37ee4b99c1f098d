"""A parameter as a view of the flat vector, in its own shape and memory order; and back."""

from __future__ import annotations

from torch import Tensor

from samestep.plan.layout import Place


def view_of(place: Place, flat: Tensor) -> Tensor:
    """The parameter's part of a flat vector, in the parameter's shape.

    With the channels last in memory, a tensor of four dimensions lies in the flat vector as (out, height, width, in).
    """
    values = flat[place.start : place.stop]
    if place.spec.is_channels_last:
        outputs, inputs, height, width = place.spec.shape
        return values.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
    return values.view(place.spec.shape)


def flat_of(place: Place, values: Tensor) -> Tensor:
    """A tensor of the parameter's shape in the order in which the flat vector has it, shape (elements,).

    >>> from samestep.plan.layout import ParameterSpec
    >>> import torch
    >>> place = Place(spec=ParameterSpec(name="w", shape=(2, 2), group=0, is_whole=False), start=0)
    >>> flat_of(place, torch.tensor([[1, 2], [3, 4]]))
    tensor([1, 2, 3, 4])
    """
    ordered = values.permute(0, 2, 3, 1) if place.spec.is_channels_last else values
    return ordered.reshape(-1)
