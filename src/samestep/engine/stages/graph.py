"""A module's forward pass as a chain of operations that can be run piece by piece.

`torch.fx` traces it. What has blocks in it is opened, blocks themselves and torch's modules are single operations, run
as they are: so the bits are those of the module. Of torch's recurrent networks every layer is one. A module that cannot
be traced cannot be cut.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from samestep.engine.randomness import KeyedRandomness
from samestep.engine.stages.layers import Layer, has_layers
from samestep.errors import UsageError

Values = MutableMapping[fx.Node, Any]
"""What operations and inputs have given, by their node."""

Runner = Callable[[Mapping[fx.Node, Any]], Any]
"""Computes an operation from the values that it needs."""

_DRAWING = frozenset(
    {
        "dropout", "alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "rrelu",
        "gumbel_softmax", "bernoulli", "bernoulli_", "multinomial", "normal", "normal_", "rand", "rand_like",
        "randint", "randint_like", "randn", "randn_like", "randperm", "uniform_",
    }
)  # fmt: skip
"""Functions and methods that draw random numbers."""


@dataclass(frozen=True)
class Graph:
    """A forward pass.

    Args:
        module: Whose.
        inputs: Nodes of the inputs, in order.
        operations: The chain.
        result: What the forward pass returns: a node, or nodes in tuples, lists and dicts.
        layers: Of recurrent networks, which are operations and no modules of the module; by name.
    """

    module: nn.Module
    inputs: tuple[fx.Node, ...]
    operations: tuple[fx.Node, ...]
    result: Any
    layers: Mapping[str, Layer]

    @property
    def drawing(self) -> tuple[int, ...]:
        """The operations that draw random numbers and are no modules."""
        return tuple(number for number, operation in enumerate(self.operations) if _draws(operation))

    def crossing(self, edge: int) -> tuple[fx.Node, ...]:
        """The values that are made before an edge and needed behind it; edge e lies before operation e."""
        made = dict.fromkeys(self.operations[:edge])
        needed = [node for operation in self.operations[edge:] for node in operation.all_input_nodes]
        needed += _nodes_in(self.result)
        wanted = {node for node in needed if node in made}
        return tuple(node for node in made if node in wanted)

    def run(self, values: Values, start: int, stop: int, *, keeps_all: bool = True) -> None:
        """Compute the operations ``start .. stop - 1`` from the values that they need.

        Args:
            values: What there is; what is computed goes there, too.
            start: First operation.
            stop: One past the last.
            keeps_all: Otherwise a value is dropped when no operation needs it any more.
        """
        for number in range(start, stop):
            values[self.operations[number]] = self._runners[number](values)
            if not keeps_all:
                for node in self._dropped[number]:
                    values.pop(node, None)

    def output(self, values: Mapping[fx.Node, Any]) -> Any:
        """What the forward pass returns."""
        return fx.map_arg(self.result, values.__getitem__)

    def parameters(self, start: int, stop: int) -> Iterator[nn.Parameter]:
        """Those that the operations ``start .. stop - 1`` use, each once an operation."""
        for operation in self.operations[start:stop]:
            if operation.op == "call_module":
                yield from self._module_of(operation).parameters()
            elif operation.op == "get_attr":
                value = self._attribute(operation)
                if isinstance(value, nn.Parameter):
                    yield value

    def buffers(self, start: int, stop: int) -> Iterator[Tensor]:
        """Those of the modules that are called by the operations ``start .. stop - 1``."""
        for operation in self.operations[start:stop]:
            if operation.op == "call_module":
                yield from self._module_of(operation).buffers()

    def resembles(self, other: Graph) -> bool:
        """Whether another graph is the same chain, but for constants: so it is cut at the same edges."""
        return _shape(self) == _shape(other)

    def name(self, number: int) -> str:
        """What an operation is called: the module's name where it is the first call of one."""
        operation = self.operations[number]
        is_first = all(each.target != operation.target for each in self.operations[:number])
        return str(operation.target) if operation.op == "call_module" and is_first else operation.name

    def draw_from(self, randomness: KeyedRandomness) -> None:
        """Let layers of recurrent networks draw what the networks would draw, which are never called themselves."""
        for layer in self.layers.values():
            randomness.hook_layer(layer, layer.whole, is_last=layer.is_last)

    @cached_property
    def _runners(self) -> tuple[Runner, ...]:
        """What computes each operation, looked up once."""
        return tuple(_bound(self._target(operation), operation) for operation in self.operations)

    @cached_property
    def _dropped(self) -> tuple[tuple[fx.Node, ...], ...]:
        """By operation: the values that it is the last to use."""
        last = {node: number for number, each in enumerate(self.operations) for node in (*each.all_input_nodes, each)}
        found: list[list[fx.Node]] = [[] for _ in self.operations]
        for node in last.keys() - set(_nodes_in(self.result)):
            found[last[node]].append(node)
        return tuple(map(tuple, found))

    def _target(self, operation: fx.Node) -> Callable[..., Any]:
        match operation.op:
            case "call_module":
                return self._module_of(operation)
            case "call_method":
                return _method(str(operation.target))
            case "get_attr":
                return partial(self._attribute, operation)  # buffers are replaced from microbatch to microbatch
            case _:
                assert callable(operation.target)
                return operation.target

    def _module_of(self, operation: fx.Node) -> nn.Module:
        name = str(operation.target)
        return self.layers.get(name) or self.module.get_submodule(name)

    def _attribute(self, operation: fx.Node) -> Any:
        path, _, name = str(operation.target).rpartition(".")
        return getattr(self.module.get_submodule(path), name)


def traced(module: nn.Module, num_inputs: int = 1, *, is_training: bool = True) -> Graph:
    """The chain of a module's operations, in training or in evaluation.

    Args:
        module: The network.
        num_inputs: How many inputs it is called with; ``forward(self, *inputs)`` does not say.
        is_training: Its mode.

    Raises:
        UsageError: It cannot be traced.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        raise UsageError("the network has hooks on itself, and stages run its parts alone; put them on its layers")
    was_training = module.training
    module.train(is_training)
    try:
        return _traced(module, num_inputs)
    finally:
        module.train(was_training)


def _traced(module: nn.Module, num_inputs: int) -> Graph:
    parameters = inspect.signature(module.forward).parameters.values()
    takes_any = [each.kind for each in parameters] == [inspect.Parameter.VAR_POSITIONAL]
    inputs: Any = (fx.PH,) * num_inputs if takes_any else None  # type: ignore[attr-defined]
    try:
        graph = _chain(module, _Tracer(are_blocks_opened=True), inputs)
        if not graph.drawing:  # what a block draws by itself is keyed by the block, which would not run as a whole
            return graph
    except Exception:
        pass
    try:
        return _chain(module, _Tracer(are_blocks_opened=False), inputs)
    except Exception as error:
        raise UsageError(
            f"the network cannot be cut into stages, for its forward pass cannot be traced: {error}; put what looks at "
            "values into a module of its own, which runs as it is, or take stages=1"
        ) from error


def _chain(module: nn.Module, tracer: _Tracer, inputs: Any) -> Graph:
    nodes = list(tracer.trace(module, inputs).nodes)
    return Graph(
        module,
        tuple(node for node in nodes if node.op == "placeholder"),
        tuple(node for node in nodes if node.op not in ("placeholder", "output")),
        next(node.args[0] for node in nodes if node.op == "output"),
        tracer.layers,
    )


def _shape(graph: Graph) -> tuple[Any, ...]:
    numbers = {node: number for number, node in enumerate((*graph.inputs, *graph.operations))}
    chain = [(node.op, node.target, [numbers[each] for each in node.all_input_nodes]) for node in graph.operations]
    return chain, fx.map_arg(graph.result, numbers.__getitem__)


def _method(name: str) -> Callable[..., Any]:
    """What calls a method of its first argument."""

    def call(this: Any, *arguments: Any, **options: Any) -> Any:
        return getattr(this, name)(*arguments, **options)

    return call


def _bound(target: Callable[..., Any], operation: fx.Node) -> Runner:
    """What calls an operation's target with its arguments; most are values only, without constants or options."""
    nodes = [each for each in operation.args if isinstance(each, fx.Node)]
    if operation.kwargs or len(nodes) < len(operation.args):

        def general(values: Mapping[fx.Node, Any]) -> Any:
            arguments, options = fx.map_arg((operation.args, operation.kwargs), values.__getitem__)
            return target(*arguments, **options)

        return general
    if len(nodes) == 1:
        node = nodes[0]
        return lambda values: target(values[node])
    return lambda values: target(*[values[node] for node in nodes])


class _Tracer(fx.Tracer):
    """Opens what has blocks in it.

    Args:
        are_blocks_opened: Modules of a person's own too, where they hold lists of blocks; the whole and plain
            sequences are opened always.

    Attributes:
        layers: Of the recurrent networks that it has met, by name.
    """

    def __init__(self, *, are_blocks_opened: bool) -> None:
        super().__init__()
        self._are_blocks_opened = are_blocks_opened
        self.layers: dict[str, Layer] = {}
        self._met: dict[str, tuple[nn.RNNBase, int]] = {}
        self._parts: list[fx.Node] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if type(m) is nn.Sequential:
            return bool(m._forward_hooks or m._forward_pre_hooks)
        return not (self._are_blocks_opened and _holds_blocks(m))

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if isinstance(m, nn.RNNBase) and has_layers(m) and not kwargs and [type(each) for each in args] == [fx.Proxy]:
            return self._call_layers(m, args[0])
        if type(m) is nn.TransformerEncoder and (options := _of_encoder(m, args, kwargs)) is not None:
            return self._call_encoder(m, args[0], options)
        return super().call_module(m, forward, args, kwargs)

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        graph = super().trace(root, concrete_args)
        for node in reversed(self._parts):  # what nobody asked for would travel through all stages behind
            if not node.users:
                graph.erase_node(node)
        self.layers = {name: Layer(*place) for name, place in self._met.items()}
        return graph

    def _call_layers(self, whole: nn.RNNBase, value: fx.Proxy) -> tuple[fx.Proxy, Any]:
        """A recurrent network layer by layer: what it gives, and the last states of all layers."""
        states: list[list[fx.Proxy]] = []
        for number in range(whole.num_layers):
            name = f"{self.path_of_module(whole)}.l{number}"
            self._met[name] = whole, number  # made later: while tracing, a module's parameters are nodes
            found: Any = self.create_proxy("call_module", name, (value,), {})
            value, *own = (found[place] for place in range(3 if isinstance(whole, nn.LSTM) else 2))
            states.append(own)
            self._parts += [each.node for each in (value, *own)]
        groups = [list(each) for each in zip(*states, strict=True)]
        joined = [self.create_proxy("call_function", torch.cat, (each,), {}) for each in groups]
        self._parts += [each.node for each in joined]
        return value, tuple(joined) if len(joined) > 1 else joined[0]

    def _call_encoder(self, whole: nn.TransformerEncoder, value: Any, options: dict[str, Any]) -> Any:
        """torch's encoder layer by layer, each called as the whole would call it."""
        path = self.path_of_module(whole)
        for number in range(len(whole.layers)):
            value = self.create_proxy("call_module", f"{path}.layers.{number}", (value,), options)
        return value if whole.norm is None else self.create_proxy("call_module", f"{path}.norm", (value,), {})


def _of_encoder(whole: nn.TransformerEncoder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """What each layer of torch's encoder is called with beside its input; None where only the whole knows.

    It knows whether padding makes nested tensors of its input, and, where nobody has said, whether a mask is causal.
    """
    mask, is_causal = kwargs.get("mask"), kwargs.get("is_causal")
    is_plain = len(args) == 1 and kwargs.keys() <= {"mask", "is_causal"} and isinstance(args[0], fx.Proxy)
    hooks = whole._forward_hooks, whole._forward_pre_hooks, whole._backward_hooks, whole._backward_pre_hooks
    if not is_plain or any(hooks) or (mask is not None and not isinstance(is_causal, bool)):
        return None
    return {"src_mask": mask, "is_causal": is_causal is True, "src_key_padding_mask": None}


def _holds_blocks(module: nn.Module) -> bool:
    is_own = not type(module).__module__.startswith("torch.nn.")
    lists = (each for each in module.children() if isinstance(each, nn.ModuleList | nn.Sequential))
    return is_own and any(len(list(block.children())) > 0 for each in lists for block in each)


def _draws(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method"):
        return False
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in _DRAWING


def _nodes_in(result: Any) -> Sequence[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(result, found.append)
    return found
