"""A survey: which layers of a model would run how under concurrent back-propagation, found out by running it once.

One microbatch is run forward and backward as in training. Nothing is guessed from the types of modules: what a layer
calls, how large that is and who else uses its weights shows only when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from samestep.engine import numerics, randomness
from samestep.engine.backprop.concurrent import Concurrent, Decision, Left
from samestep.engine.events import Phase
from samestep.engine.flat import FlatModel
from samestep.engine.helpers import Helpers
from samestep.engine.job import Image, Job
from samestep.engine.loading import Loading
from samestep.engine.passes import Passes

_UNUSED = "not used by this microbatch"
_RECURRENT = "a recurrent layer is one call of torch's with one backward node: its weight gradients cannot leave it"
_NORM = "a norm of torch's, whose weight gradients come with those of its input"

_KINDS: Mapping[str, str] = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _RECURRENT),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _RECURRENT),
    **dict.fromkeys(("batch_norm", "group_norm", "instance_norm", "rms_norm"), _NORM),
}
"""By name of torch's function: why it is left to torch, where more can be said than that it is not known."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """An operation with trained weights, and who computes their gradients.

    Args:
        path: Of the module that calls it; "" is the model itself.
        operation: Name of torch's function; "" for parameters that nothing uses.
        parameters: Their names in the model.
        num_calls: Calls in the forward pass of a microbatch.
        work: About how many multiplications the gradients of the weights take, all calls together; None: not known.
        reason: Why it is left to torch; None: helpers compute it beside the chain of input gradients.
    """

    path: str
    operation: str
    parameters: tuple[str, ...]
    num_calls: int
    work: float | None
    reason: str | None

    @property
    def is_concurrent(self) -> bool:
        return self.reason is None


def survey(job: Job, image: Image) -> tuple[Layer, ...]:
    """Run the first microbatch of a job forward and backward, with a helper.

    Args:
        job: Its module is used, and keeps its parameters as views of the image.
        image: The state before the first step.

    Returns:
        The layers in the order of the forward pass, then the parameters that it does not use.
    """
    model = FlatModel(
        job.model,
        job.update.layout,
        job.buffers,
        parameters=image.arrays["parameters"],
        step_tracked=image.arrays["tracked"],
        step_others=image.arrays["others"],
    )
    names = {id(job.model.get_parameter(place.spec.name)): place.spec.name for place in job.update.layout.places}
    loading, helpers = Loading(job, 1, 0), Helpers(1, job.switches.intra_op_threads)
    try:
        with numerics.applied(job.switches), randomness.preserved(), _paths(job.model) as path:
            notes = _Notes(names, path)
            passes = Passes(job, model, loading, Concurrent(model.parameters, helpers, notes.see), notes.enter)
            microbatch = job.batches.microbatches(0)[0]
            try:
                passes.begin(0, 0, [microbatch], loading.again(0, microbatch))
                for _ in passes.train(lambda piece: {}):
                    pass
            finally:
                passes.close()
                model.drop_gradients()
    finally:
        helpers.close()
        loading.close()
    return notes.layers()


class _Notes:
    """What is seen in a forward pass.

    Args:
        names: Of the trained parameters, by identity.
        path: The modules that are being run, the innermost last.
    """

    def __init__(self, names: Mapping[int, str], path: Sequence[str]) -> None:
        self._names, self._path = names, path
        self._found: dict[tuple[str, str, tuple[str, ...], str | None], list[float | None]] = {}

    def enter(self, phase: Phase, step: int) -> None:
        """A microbatch that is repeated, since something shares its weights, is seen anew."""
        if phase is Phase.FORWARD:
            self._found.clear()

    def see(
        self,
        func: Callable[..., Any],
        arguments: Sequence[Any],
        options: Mapping[str, Any],
        decision: Decision,
        output: Any,
    ) -> None:
        used = tuple(self._names[id(each)] for each in _tensors([arguments, options]) if id(each) in self._names)
        if not used or not any(each.grad_fn is not None for each in _tensors(output)):
            return  # it has no weights, or asks for no more than their shape
        call, left = decision
        operation = getattr(func, "__name__", str(func))
        reason = None if left is None else str(left)
        if left is Left.UNKNOWN:
            reason = _KINDS.get(operation, reason)
        key = (self._path[-1], operation, used, reason)
        self._found.setdefault(key, []).append(None if call is None else call.work())

    def layers(self) -> tuple[Layer, ...]:
        """One for each operation of each module; calls of the same kind are taken together."""
        found = [
            Layer(
                path=path,
                operation=operation,
                parameters=used,
                num_calls=len(work),
                work=None if None in work else sum(filter(None, work)),
                reason=reason,
            )
            for (path, operation, used, reason), work in self._found.items()
        ]
        seen = {name for layer in found for name in layer.parameters}
        unused = tuple(name for name in self._names.values() if name not in seen)
        for name in unused:
            path = name.rpartition(".")[0]
            found.append(Layer(path=path, operation="", parameters=(name,), num_calls=0, work=None, reason=_UNUSED))
        return tuple(found)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


@contextmanager
def _paths(model: nn.Module) -> Iterator[Sequence[str]]:
    """The paths of the modules that are being run, the innermost last."""
    running = [""]
    handles = []
    for path, module in model.named_modules():
        if path:
            handles.append(module.register_forward_pre_hook(partial(_entered, running, path)))
            handles.append(module.register_forward_hook(partial(_left, running), always_call=True))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def _entered(running: list[str], path: str, module: nn.Module, arguments: Any) -> None:
    running.append(path)


def _left(running: list[str], module: nn.Module, arguments: Any, output: Any) -> None:
    running.pop()
