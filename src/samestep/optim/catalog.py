"""The optimisers that have a name: where each comes from, what it looks at, and how its rate follows the batch.

An optimiser is *element-wise* where the update of an element looks at nothing but this element's parameter, gradient
and state: any cut of the flat vector then gives the same bits. All others own *whole tensors*. One that looks at
several tensors at once (a norm over all parameters) is neither, and is refused. `kfac` finds its step in rounds of its
own, in which all ranks see the same; what is left to the class is element-wise.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from samestep.errors import UsageError

if TYPE_CHECKING:  # the command line reads the names before torch is imported
    from torch.optim import Optimizer

Kind = Literal["element-wise", "whole tensor"]
RuleName = Literal["linear", "sqrt", "none"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A named optimiser.

    Args:
        name: What ``--optimizer`` takes.
        origin: MODULE:CLASS; imported when it is asked for.
        kind: What its update looks at.
        rule: How its learning rate follows the global batch, unless a person says otherwise.
        decays_by_rate: Whether a step shrinks the weights by learning rate × weight decay; otherwise the decay goes
            through the optimiser's own scaling, as part of the gradient.
        averaging: Share of the steps that the evaluated weights are averaged over, unless a person says otherwise.
        has_rounds: Whether its class only takes the step that further rounds have found, from all of the network.
        is_clipped: Whether its gradient may be clipped; it may not where the length of a step is tried out.
        options: What we set otherwise than the class does.
        source: Authors, title, year.
    """

    name: str
    origin: str
    kind: Kind = "element-wise"
    rule: RuleName = "sqrt"
    decays_by_rate: bool = False
    averaging: float | None = None
    has_rounds: bool = False
    is_clipped: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def looks_at(self) -> str:
        """What a step looks at, for people."""
        return "whole network" if self.has_rounds else self.kind

    def load(self) -> type[Optimizer]:
        """Its class."""
        module, _, name = self.origin.partition(":")
        found: type[Optimizer] = getattr(importlib.import_module(module), name)
        return found

    def check_option(self, option: str) -> None:
        """Refuse an option that the class does not have.

        Raises:
            UsageError: It has no such option.
        """
        parameters = inspect.signature(self.load()).parameters.values()
        accepted = [item.name for item in parameters if item.kind is not item.VAR_KEYWORD]
        if option not in accepted:
            raise UsageError(f"optimizer {self.name!r} has no option {option!r}; it has {', '.join(accepted[1:])}")

    def averages(self) -> bool:
        """Whether it is judged by an average of its own, as the schedule-free ones are."""
        return callable(getattr(self.load(), "eval", None))

    def lr(self, asked: float | None) -> float:
        """The learning rate that is asked for; its own where nobody names one."""
        if asked is not None:
            return asked
        return float(self.options.get("lr", inspect.signature(self.load()).parameters["lr"].default))

    def weight_decay(self, asked: float | None) -> float | None:
        """The weight decay of weights that is asked for; its own where nobody names one, None where it has none."""
        if asked is not None:
            return asked
        parameter = inspect.signature(self.load()).parameters.get("weight_decay")
        return None if parameter is None else float(self.options.get("weight_decay", parameter.default))


_NO_DECAY = {"weight_decay": 0.0}
_PAPER_LAMB = {**_NO_DECAY, "adam_debias": True, "weight_decouple": False}
"""The library's defaults are not the paper's: its first step is ten times too long (it divides the learning rate by
1 - beta1), and the decay is no part of what is scaled."""

_MUON = "Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024"
_FREE = "Defazio et al., The Road Less Scheduled, 2024"

_ENTRIES = (
    Entry(name="adabelief", origin="pytorch_optimizer:AdaBelief", options=_NO_DECAY, decays_by_rate=True,
          source="Zhuang et al., AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients, 2020"),
    Entry(name="adadelta", origin="torch.optim:Adadelta",
          source="Zeiler, ADADELTA: An Adaptive Learning Rate Method, 2012"),
    Entry(name="adafactor", origin="torch.optim:Adafactor", kind="whole tensor", decays_by_rate=True,
          source="Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, 2018"),
    Entry(name="adagrad", origin="torch.optim:Adagrad",
          source="Duchi, Hazan, Singer, Adaptive Subgradient Methods, 2011"),
    Entry(name="adam", origin="torch.optim:Adam",
          source="Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015"),
    Entry(name="adamax", origin="torch.optim:Adamax",
          source="Kingma and Ba, Adam: A Method for Stochastic Optimization, 2015"),
    Entry(name="adamw", origin="torch.optim:AdamW", decays_by_rate=True,
          source="Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019"),
    Entry(name="adan", origin="pytorch_optimizer:Adan", options=_NO_DECAY, decays_by_rate=True,
          source="Xie et al., Adan: Adaptive Nesterov Momentum Algorithm, 2022"),
    Entry(name="ademamix", origin="pytorch_optimizer:AdEMAMix", options={**_NO_DECAY, "weight_decouple": True},
          decays_by_rate=True,
          source="Pagliardini, Ablin, Grangier, The AdEMAMix Optimizer: Better, Faster, Older, 2024"),
    Entry(name="asgd", origin="torch.optim:ASGD", rule="linear", decays_by_rate=True,
          source="Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992"),
    Entry(name="kfac", origin="samestep.optim.kfac.rule:Kfac", rule="none", averaging=0.25,
          has_rounds=True, is_clipped=False,
          source="Martens, Grosse, Optimizing Neural Networks with Kronecker-factored Approximate Curvature, 2015"),
    Entry(name="lamb", origin="samestep.optim.lamb:LAMB", kind="whole tensor", options=_PAPER_LAMB,
          source="You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, 2020"),
    Entry(name="laprop", origin="pytorch_optimizer:LaProp", options=_NO_DECAY, decays_by_rate=True,
          source="Ziyin, Wang, Ueda, LaProp: Separating Momentum and Adaptivity in Adam, 2020"),
    Entry(name="lars", origin="samestep.optim.lars:LARS", kind="whole tensor",
          source="You, Gitman, Ginsburg, Large Batch Training of Convolutional Networks, 2017"),
    Entry(name="lion", origin="pytorch_optimizer:Lion", options=_NO_DECAY, decays_by_rate=True,
          source="Chen et al., Symbolic Discovery of Optimization Algorithms, 2023"),
    Entry(name="muon", origin="torch.optim:Muon", kind="whole tensor", decays_by_rate=True, source=_MUON),
    Entry(name="nadam", origin="torch.optim:NAdam",
          source="Dozat, Incorporating Nesterov Momentum into Adam, 2016"),
    Entry(name="nesterov", origin="torch.optim:SGD", rule="linear", decays_by_rate=True,
          options={"momentum": 0.9, "nesterov": True},
          source="Sutskever et al., On the importance of initialization and momentum in deep learning, 2013"),
    Entry(name="novograd", origin="pytorch_optimizer:NovoGrad", kind="whole tensor", options=_NO_DECAY,
          source="Ginsburg et al., Stochastic Gradient Methods with Layer-wise Adaptive Moments, 2019"),
    Entry(name="radam", origin="torch.optim:RAdam",
          source="Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, 2020"),
    Entry(name="rmsprop", origin="torch.optim:RMSprop", source="Tieleman and Hinton, Lecture 6.5, 2012"),
    Entry(name="rprop", origin="torch.optim:Rprop", rule="none",
          source="Riedmiller and Braun, A direct adaptive method: the RPROP algorithm, 1993"),
    Entry(name="schedulefreeadamw", origin="pytorch_optimizer:ScheduleFreeAdamW", decays_by_rate=True,
          source=_FREE),
    Entry(name="schedulefreesgd", origin="pytorch_optimizer:ScheduleFreeSGD", rule="linear",
          decays_by_rate=True, source=_FREE),
    Entry(name="sgd", origin="torch.optim:SGD", rule="linear", decays_by_rate=True, options={"momentum": 0.9},
          source="Polyak, Some methods of speeding up the convergence of iteration methods, 1964"),
    Entry(name="shampoo", origin="pytorch_optimizer:Shampoo", kind="whole tensor", options=_NO_DECAY,
          source="Gupta, Koren, Singer, Shampoo: Preconditioned Stochastic Tensor Optimization, 2018"),
    Entry(name="soap", origin="pytorch_optimizer:SOAP", kind="whole tensor", options=_NO_DECAY, decays_by_rate=True,
          source="Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam, 2024"),
    Entry(name="stableadamw", origin="pytorch_optimizer:StableAdamW", kind="whole tensor", options=_NO_DECAY,
          decays_by_rate=True,
          source="Wortsman et al., Stable and low-precision training for large-scale vision-language models, 2023"),
    Entry(name="yogi", origin="pytorch_optimizer:Yogi", options=_NO_DECAY, decays_by_rate=True,
          source="Zaheer et al., Adaptive Methods for Nonconvex Optimization, 2018"),
)  # fmt: skip
_BY_NAME = {entry.name: entry for entry in _ENTRIES}

_ALL_AT_ONCE = "it looks at all parameters at once, so its bits would depend on who owns which"
_LICENCE = "its licence (CC BY-NC-SA) forbids commercial use"
_REFUSED = {
    "lbfgs": "it evaluates the loss as often as it likes inside of one step",
    "sparseadam": "it needs sparse gradients",
    "prodigy": _ALL_AT_ONCE,
    "dadaptadam": _ALL_AT_ONCE,
    "dadaptsgd": _ALL_AT_ONCE,
    "ranger21": _ALL_AT_ONCE,
    "adahessian": "it needs the graph of the gradient",
    "sophiah": "it needs the graph of the gradient",
    "sam": "it is no optimiser here but a step of two rounds: sam_radius",
    "fromage": _LICENCE,
    "nero": _LICENCE,
}


def names() -> tuple[str, ...]:
    """What ``--optimizer`` takes."""
    return tuple(sorted(_BY_NAME))


def entries() -> tuple[Entry, ...]:
    """All of them, by name."""
    return tuple(_BY_NAME[name] for name in names())


def entry(name: str) -> Entry:
    """The optimiser of a lower-case name.

    Raises:
        UsageError: There is none, or it cannot be used here.

    Example:
        >>> entry("lamb").kind, entry("sgd").rule
        ('whole tensor', 'linear')
    """
    if name in _REFUSED:
        raise UsageError(f"optimizer {name!r} cannot be used: {_REFUSED[name]}; take one of {', '.join(names())}")
    if name not in _BY_NAME:
        near = difflib.get_close_matches(name, _BY_NAME, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"optimizer {name!r} is not known; {hint}Known: {', '.join(names())}")
    return _BY_NAME[name]
