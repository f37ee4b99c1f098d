"""Keyed randomness: what a module draws depends on (seed, step, round, microbatch, module path, call number).

torch's modules draw from the process-wide default generator. A hook re-seeds it (about 1 microsecond) before each
module that may draw, so a mask depends neither on who computes nor on what ran before. Python's and NumPy's
generators inside a model are outside of this promise.

On a GPU, and in a compiled model, there are no hooks: what runs there runs as a whole, always in the same order, so it
is enough to seed once for each microbatch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from samestep import torch_private
from samestep.errors import UsageError
from samestep.plan import keys
from samestep.plan.pipeline import Drawn

_MODEL_KEY = keys.name_key("model initialisation")


@contextmanager
def preserved(generators: Sequence[torch.Generator] = (torch.default_generator,)) -> Iterator[None]:
    """Give the caller's generators back as they were."""
    states = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def seed_initialisation(seed: int) -> None:
    """Seed the default generator for building a model."""
    torch.default_generator.manual_seed(keys.mix(_MODEL_KEY, seed))


class KeyedRandomness:
    """Hooks on a model's modules that make its randomness keyed.

    Args:
        model: Its drawing modules get hooks, until `close`.
        seed: The run's seed.
        generators: What they draw from; hooks seed the first.
        has_hooks: Whether every module has a key of its own, or a microbatch one for all of them.
    """

    def __init__(
        self,
        model: nn.Module,
        seed: int,
        generators: Sequence[torch.Generator] = (torch.default_generator,),
        *,
        has_hooks: bool = True,
    ) -> None:
        self._seed = seed
        self._generator, self._others = generators[0], tuple(generators[1:])
        self._round, self._round_key = (-1, -1), 0
        self._base = 0
        self._calls: list[int] = []
        self._open: list[list[int]] = []  # of the modules being run: [key, drawing children run so far]
        self._places: dict[int, tuple[int, int]] = {}  # by module: its number, and the key of its path
        self._handles: list[RemovableHandle] = []
        for path, module in model.named_modules():
            if has_hooks and path and may_draw(module):  # the model itself starts from the microbatch's own key
                self._hook(module, keys.name_key(path))

    def begin(self, step: int, round_number: int, microbatch: int) -> None:
        """Key everything that follows by this microbatch."""
        if (step, round_number) != self._round:
            self._round = (step, round_number)
            self._round_key = keys.key(self._seed, step, round_number)
        self._base = keys.mix(self._round_key, microbatch)
        if self._calls:
            self._calls = [0] * len(self._calls)
            self._open[:] = [[self._base, 0]]
        self._generator.manual_seed(self._base)
        for generator in self._others:
            generator.manual_seed(self._base)

    @property
    def drawn(self) -> Drawn:
        """What modules inside of the model have done since the microbatch began."""
        return Drawn(self._open[0][1] if self._open else 0, tuple(self._calls))

    def skip(self, drawn: Drawn) -> None:
        """Go on as if this had been done since the microbatch began."""
        self._calls = list(drawn.calls)
        if drawn.num_modules:
            self._open[:] = [[self._base, drawn.num_modules]]
            self._generator.manual_seed(keys.mix(self._base, drawn.num_modules))

    def hook_layer(self, layer: nn.Module, whole: nn.Module, *, is_last: bool) -> None:
        """Let a layer that runs in the place of a part of a module draw where a call of that module begins to draw.

        Args:
            layer: It draws, itself, what earlier layers would have drawn.
            whole: The module, with all its layers.
            is_last: Whether the call ends with this one.
        """
        if id(whole) not in self._places:
            return
        number, path_key = self._places[id(whole)]

        def before(layer: nn.Module, arguments: Any) -> None:
            self._generator.manual_seed(self._key(path_key, self._calls[number]))

        def after(layer: nn.Module, arguments: Any, output: Any) -> None:
            self._calls[number] += 1
            self._go_on()

        self._handles.append(layer.register_forward_pre_hook(before))
        if is_last:
            self._handles.append(layer.register_forward_hook(after))

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, module: nn.Module, path_key: int) -> None:
        number = len(self._calls)
        self._calls.append(0)
        self._places[id(module)] = number, path_key

        def before(module: nn.Module, arguments: Any) -> None:
            if torch_private.is_in_backward():
                call = self._recomputed_call(number, module)
            else:
                call = self._calls[number]
                self._calls[number] = call + 1
            opened = self._key(path_key, call)
            self._open.append([opened, 0])
            self._generator.manual_seed(opened)

        def after(module: nn.Module, arguments: Any, output: Any) -> None:
            self._open.pop()
            self._go_on()

        self._handles.append(module.register_forward_pre_hook(before))
        self._handles.append(module.register_forward_hook(after))

    def _key(self, path_key: int, call: int) -> int:
        return keys.mix(keys.mix(self._base, path_key), call)

    def _go_on(self) -> None:
        """A module has run: what the surrounding one draws next is keyed by itself again."""
        parent = self._open[-1]
        parent[1] += 1
        self._generator.manual_seed(keys.mix(*parent))

    def _recomputed_call(self, number: int, module: nn.Module) -> int:
        """Activation checkpointing runs a module again during backward: it must draw what it drew before."""
        if self._calls[number] != 1:
            raise UsageError(
                f"activation checkpointing recomputes {type(module).__name__}, which draws random numbers and is "
                f"called {self._calls[number]} times a forward; which call is meant cannot be told: use one module "
                "for each call"
            )
        return 0


def may_draw(module: nn.Module) -> bool:
    """Whether a module may draw random numbers in its own forward: a dropout of torch's, or a class we do not know."""
    if not type(module).__module__.startswith("torch.nn."):
        return True
    rate = getattr(module, "dropout", None) if isinstance(module, nn.RNNBase | nn.MultiheadAttention) else None
    if rate is None:
        rate = getattr(module, "p", 0.0) if isinstance(module, nn.modules.dropout._DropoutNd) else 0.0
    return rate > 0 or isinstance(module, nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d)
