"""Concurrent back-propagation: the chain of input gradients on the training thread, weight gradients on others.

The gradient of a layer's weights needs the gradient of its output, and nothing below needs it. So it is left to helper
threads as soon as its operands are known, while the chain goes on. When the chain has reached its end, the training
thread helps with what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from functools import partial, reduce
from typing import Any, Protocol

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

_IDLE_PASSES = 3
"""Passes in which nothing was left to helpers, after which a network is not watched any longer: that costs, too."""


class Left(StrEnum):
    """Why a call is left to torch."""

    UNKNOWN = "an operation that is not known here"
    FORM = "called in a way that is not known here"
    NO_GRAPH = "computed without a graph, again in the backward pass, or with what it saves moved elsewhere"
    SMALL = "too small to be worth the handing over"
    NOT_TRAINED = "its weight is frozen, or computed from others"
    HOOKS = "hooks wait for the gradient of its weight"
    SHARED = "something that is left to torch uses its weight, too"


Decision = tuple[Call | None, Left | None]
"""What a call is, where it is known; and why it is left to torch. None: it is not."""

Seen = Callable[[Callable[..., Any], Sequence[Any], Mapping[str, Any], Decision, Any], None]
"""Told of a call in a forward pass: function, arguments, options, what was decided, and the output."""


class Takers(Protocol):
    """Who is given tasks."""

    def give(self, task: Task[Any]) -> None:
        """Leave a task to them."""

    def finish(self) -> None:
        """Return when all tasks are done."""


Deferred = tuple[Parameters, bool, Task[Parameters]]
"""A weight and a bias; whether they were cast; and what gives their gradients."""


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
        seen: Told of every call; nobody by default.
        least_work: Multiplications, below which a layer is left to torch; default: what is worth a thread.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        helpers: Takers,
        seen: Seen | None = None,
        least_work: int | None = None,
    ) -> None:
        self._parameters = {id(parameter): parameter for parameter in parameters}
        self._least_work = _WORTH_A_THREAD if least_work is None else least_work
        self._shared: set[int] = set()
        self._helpers = helpers
        self._deferred: list[Deferred] = []
        self._targets: dict[int, Tensor] = {}
        self._num_idle = 0
        self.watch: AbstractContextManager[object] = Watch(self, seen)
        """A context for a forward pass, the layers of which are noticed."""

    def begin(self, targets: Mapping[int, Tensor]) -> None:
        """A microbatch begins; what an earlier one has left is dropped.

        Args:
            targets: Where gradients go, by the identity of their parameter; of all others into new memory.
        """
        self._helpers.finish()
        self._deferred.clear()
        self._targets = dict(targets)

    def decide(self, func: Callable[..., Any], arguments: Sequence[Any], options: Mapping[str, Any]) -> Decision:
        """Whether the gradients of a call's weights can be left to helpers."""
        read = KNOWN.get(func)
        if read is None:
            return None, Left.UNKNOWN
        if not torch.is_grad_enabled() or torch_private.has_saved_tensors_hooks():
            return None, Left.NO_GRAPH
        try:
            call = read(*arguments, **options)
        except TypeError:  # torch says what is wrong with it
            return None, Left.FORM
        if call is None:
            return None, Left.FORM
        if call.work() < self._least_work:
            return call, Left.SMALL
        return call, self._why_not(call.weight) or (None if call.bias is None else self._why_not(call.bias))

    def defer(self, call: Call, parameters: Parameters, gradient: Tensor) -> None:
        """Leave the gradients of a call's weight and bias to the helpers."""
        weight, bias = (None if each is None else self._targets.pop(id(each), None) for each in parameters)
        task = Task(partial(call.weight_gradients, gradient, weight, bias))
        self._deferred.append((parameters, call.weight.dtype != parameters[0].dtype, task))
        self._helpers.give(task)

    def take(self) -> list[Deferred]:
        """What was left to the helpers since the last time; it does not belong to this microbatch any more."""
        taken, self._deferred = self._deferred, []
        return taken

    def put(self, taken: Sequence[Deferred]) -> None:
        """What was taken belongs to this microbatch."""
        self._deferred += taken

    def finish(self) -> bool:
        """Wait for the helpers, and give the parameters their gradients.

        Returns:
            Whether they are those of the ordinary way. Where something that is not known also uses a parameter, they
            may have to be added in another order: from now on it is left to torch, and the microbatch is repeated.
        """
        self._helpers.finish()
        self._num_idle = 0 if self._deferred else self._num_idle + 1
        if self._num_idle == _IDLE_PASSES:
            self.watch = nullcontext()
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
        self._shared |= mixed
        if mixed:
            return False
        for each, (first, *others) in found.items():
            parameter = self._parameters[each]
            parameter.grad = reduce(Tensor.add_, others, first).to(parameter.dtype)
        return True

    def _why_not(self, parameter: Tensor) -> Left | None:
        if id(parameter) not in self._parameters:
            return Left.NOT_TRAINED
        if id(parameter) in self._shared:
            return Left.SHARED
        return Left.HOOKS if torch_private.has_hooks(parameter) else None


class Watch(TorchFunctionMode):
    """Sees every function of torch that a forward pass calls, and takes those that it knows.

    Args:
        concurrent: Who takes them.
        seen: Told of every call, if anybody.
    """

    def __init__(self, concurrent: Concurrent, seen: Seen | None) -> None:
        super().__init__()
        self._concurrent, self._seen = concurrent, seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in _OPENED:
            with self:
                return _OPENED[func](*args, **options)
        call, left = decision = self._concurrent.decide(func, args, options)
        if call is None or left is not None:
            output = func(*args, **options)
        else:
            output = _Deferred.apply(self._concurrent, call, call.input, call.weight, call.bias)  # type: ignore[no-untyped-call]
        if self._seen is not None:
            self._seen(func, args, options, decision, output)
        return output


class _Deferred(torch.autograd.Function):
    """The node of a call: its backward pass gives the gradient of the input, and leaves those of the weights."""

    @staticmethod
    def forward(ctx: Any, concurrent: Concurrent, call: Call, *tensors: Tensor | None) -> Tensor:
        ctx.concurrent, ctx.parameters, ctx.dtype = concurrent, (call.weight, call.bias), call.input.dtype
        if torch.is_autocast_enabled("cpu"):
            call = call.cast(torch.get_autocast_dtype("cpu"))
        output, ctx.call = call.forward()
        ctx.save_for_backward(call.input, call.weight)  # torch complains where they are changed before they are used
        return output

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
