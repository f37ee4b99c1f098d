"""Concurrent back-propagation: the chain of input gradients on the training thread, weight gradients on others.

The gradient of a layer's weights needs the gradient of its output, and nothing below needs it. So it is left to helper
threads as soon as its operands are known, while the chain goes on. When the chain has reached its end, the training
thread helps with what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from samestep import torch_private
from samestep.engine.backprop.operations import KNOWN, Call, Parameters
from samestep.engine.helpers import Alone, Helpers, Task

_OPENED = {
    functional.multi_head_attention_forward: torch_private.open_to_modes(functional.multi_head_attention_forward)
}
"""Functions of torch whose calls inside are looked at: the projections of attention."""

_WORTH_A_THREAD = 1 << 20
"""Multiplications, below which a layer is left to torch."""


class Ordinary:
    """Back-propagation as torch does it."""

    watch: AbstractContextManager[object] = nullcontext()

    def begin(self, targets: Mapping[int, Tensor]) -> None:
        """A microbatch begins."""

    def finish(self) -> bool:
        """The gradients are there."""
        return True


class Concurrent:
    """Back-propagation of a model's microbatches with helpers.

    Args:
        parameters: Those whose gradients may be left to helpers.
        helpers: The threads.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], helpers: Helpers) -> None:
        self._parameters = {id(parameter): parameter for parameter in parameters}
        self._helpers = helpers
        self._deferred: list[tuple[Parameters, bool, Task[Parameters]]] = []
        self._targets: dict[int, Tensor] = {}
        self.watch = Watch(self)
        """A context for a forward pass, the layers of which are noticed."""

    def begin(self, targets: Mapping[int, Tensor]) -> None:
        """A microbatch begins; what an earlier one has left is dropped.

        Args:
            targets: Where gradients go, by the identity of their parameter; of all others into new memory.
        """
        self._helpers.finish()
        self._deferred.clear()
        self._targets = dict(targets)

    def call_of(self, func: Callable[..., Any], arguments: Sequence[Any], options: Mapping[str, Any]) -> Call | None:
        """A call whose weights' gradients can be left to helpers; None: it is left to torch."""
        read = KNOWN.get(func)
        if read is None or not torch.is_grad_enabled() or torch_private.has_saved_tensors_hooks():
            return None
        try:
            call = read(*arguments, **options)
        except TypeError:  # torch says what is wrong with it
            return None
        if call is None or call.work() < _WORTH_A_THREAD:
            return None
        weights = [each for each in (call.weight, call.bias) if each is not None]
        return call if all(map(self._is_ours, weights)) else None

    def defer(self, call: Call, parameters: Parameters, gradient: Tensor) -> None:
        """Leave the gradients of a call's weight and bias to the helpers."""
        weight, bias = (None if each is None else self._targets.pop(id(each), None) for each in parameters)
        task = Task(partial(call.weight_gradients, gradient, weight, bias))
        self._deferred.append((parameters, call.weight.dtype != parameters[0].dtype, task))
        self._helpers.give(task)

    def finish(self) -> bool:
        """Wait for the helpers, and give the parameters their gradients.

        Returns:
            Whether they are those of the ordinary way. Where something that is not known also uses a parameter, they
            may have to be added in another order: from now on it is left to torch, and the microbatch is repeated.
        """
        self._helpers.finish()
        found: dict[int, list[Tensor]] = {}
        was_cast = set()
        for parameters, is_cast, task in self._deferred:
            for parameter, gradient in zip(parameters, task.result(), strict=True):
                if parameter is not None and gradient is not None:
                    found.setdefault(id(parameter), []).append(gradient)
                    was_cast |= {id(parameter)} if is_cast else set()
        self._deferred.clear()
        # Autocast keeps one copy of a weight, in which it adds what several uses give, in the copy's dtype.
        mixed = {each for each in was_cast if len(found[each]) > 1}
        mixed |= {each for each in found if self._parameters[each].grad is not None}
        for each in mixed:
            del self._parameters[each]
        if mixed:
            return False
        for each, (first, *others) in found.items():
            parameter = self._parameters[each]
            parameter.grad = reduce(Tensor.add_, others, first).to(parameter.dtype)
        return True

    def _is_ours(self, parameter: Tensor) -> bool:
        return id(parameter) in self._parameters and not torch_private.has_hooks(parameter)


class Watch(TorchFunctionMode):
    """Sees every function of torch that a forward pass calls, and takes those that it knows.

    Args:
        concurrent: Who takes them.
    """

    def __init__(self, concurrent: Concurrent) -> None:
        super().__init__()
        self._concurrent = concurrent

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in _OPENED:
            with self:
                return _OPENED[func](*args, **options)
        call = self._concurrent.call_of(func, args, options)
        if call is None:
            return func(*args, **options)
        return _Deferred.apply(self._concurrent, call, call.input, call.weight, call.bias)  # type: ignore[no-untyped-call]


class _Deferred(torch.autograd.Function):
    """The node of a call: its backward pass gives the gradient of the input, and leaves those of the weights."""

    @staticmethod
    def forward(ctx: Any, concurrent: Concurrent, call: Call, *tensors: Tensor | None) -> Tensor:
        ctx.concurrent, ctx.parameters, ctx.dtype = concurrent, (call.weight, call.bias), call.input.dtype
        if torch.is_autocast_enabled("cpu"):
            call = call.cast(torch.get_autocast_dtype("cpu"))
        ctx.call = call
        ctx.save_for_backward(call.input, call.weight)  # torch complains where they are changed before they are used
        return call.output()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        assert ctx.saved_tensors
        call, ctx.call = ctx.call, None
        ctx.concurrent.defer(call, ctx.parameters, gradient)
        input_gradient = call.input_gradient(gradient).to(ctx.dtype) if ctx.needs_input_grad[2] else None
        return None, None, input_gradient, None, None


def backprop_for(parameters: Sequence[nn.Parameter], hands: Alone | Helpers) -> Ordinary | Concurrent:
    """Concurrent where there are helpers."""
    return Concurrent(parameters, hands) if isinstance(hands, Helpers) else Ordinary()
