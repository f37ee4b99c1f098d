"""Recurrent networks of several layers, run layer by layer: the same bits, and a pipeline may cut between two of them.

torch runs the layers of an `nn.LSTM`, `nn.GRU` or `nn.RNN` one after the other within one operation, with a dropout
between two. Here each is a module of its own, with the parameters of the whole, and with the dropout before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

_KINDS = (nn.LSTM, nn.GRU, nn.RNN)


def has_layers(module: nn.Module) -> bool:
    """Whether a module is a recurrent network of torch's with several layers, and nothing is hooked onto it.

    >>> has_layers(nn.LSTM(3, 4, num_layers=2)), has_layers(nn.LSTM(3, 4))
    (True, False)
    """
    has_hooks = bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
    return type(module) in _KINDS and int(getattr(module, "num_layers", 0)) > 1 and not has_hooks


class Layer(nn.Module):
    """One layer of a recurrent network; between two of them time comes first.

    Args:
        whole: The network, which decides whether this is training.
        number: Of the layer.

    Example:
        >>> whole = nn.LSTM(3, 4, num_layers=2)
        >>> first, second = Layer(whole, 0), Layer(whole, 1)
        >>> x = torch.randn(5, 2, 3)
        >>> torch.equal(second(first(x)[0])[0], whole(x)[0])
        True
    """

    def __init__(self, whole: nn.RNNBase, number: int) -> None:
        super().__init__()
        self._of = (whole,)  # not as a module: the parameters of the other layers are not this one's
        self._number = number
        self._alone = _alone(whole, number)

    @property
    def whole(self) -> nn.RNNBase:
        """The network."""
        return self._of[0]

    @property
    def is_last(self) -> bool:
        """Whether no layer follows."""
        return self._number == self.whole.num_layers - 1

    def forward(self, values: Any) -> tuple[Any, ...]:
        """What the layer gives, and its last states, flat: one, or with an LSTM two."""
        whole = self.whole
        self._alone.train(whole.training)
        if self._number > 0:
            values = self._dropped(values)
        elif whole.batch_first:
            values = _turned(values)
        output, states = self._alone(values)
        if self.is_last and whole.batch_first:
            output = _turned(output)
        return output, *(states if isinstance(states, tuple) else (states,))

    def _dropped(self, values: Any) -> Any:
        """The masks of a call are drawn one after the other, and those of earlier layers come first."""
        rate = self.whole.dropout
        if rate == 0 or not self.whole.training:
            return values
        if isinstance(values, PackedSequence):
            return PackedSequence(self._masked(values.data, rate), *values[1:])
        return self._masked(values, rate)

    def _masked(self, values: Tensor, rate: float) -> Tensor:
        for _ in range(self._number - 1):
            torch.dropout(values.detach(), rate, train=True)
        return torch.dropout(values, rate, train=True)


def _alone(whole: nn.RNNBase, number: int) -> nn.RNNBase:
    """A network of one layer with the parameters of one of the whole's."""
    num_directions = 2 if whole.bidirectional else 1
    options: dict[str, Any] = {"bias": whole.bias, "bidirectional": whole.bidirectional, "device": "meta"}
    if isinstance(whole, nn.LSTM):
        options["proj_size"] = whole.proj_size
    if isinstance(whole, nn.RNN):
        options["nonlinearity"] = whole.nonlinearity
    width = whole.input_size if number == 0 else num_directions * (whole.proj_size or whole.hidden_size)
    kind: Any = type(whole)
    found: nn.RNNBase = kind(width, whole.hidden_size, **options)
    for name, _ in list(found.named_parameters()):
        setattr(found, name, getattr(whole, name.replace("_l0", f"_l{number}")))
    return found


def _turned(values: Any) -> Any:
    """Batches and time change places; there are none in a single sequence, and packed ones know by themselves."""
    return values.transpose(0, 1) if isinstance(values, Tensor) and values.dim() == 3 else values
