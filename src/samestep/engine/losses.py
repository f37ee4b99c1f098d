"""Losses as sums: every microbatch gives (sum, weight), so the step's mean is over the global batch by construction.

torch's mean losses divide by something that the microbatch alone knows (samples, elements, unmasked tokens, class
weights). Averaging such means over microbatches is wrong as soon as the divisors differ; here the division happens
once, by the weights of the whole global batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from samestep.errors import DataError, UsageError

SummedLoss = Callable[[Any, Tensor, int], tuple[Tensor, Any]]
"""summed(output, target, num_samples) -> (sum, weight); the weight: a number, or a tensor that nobody has read yet."""

_Weight = Callable[[Any, Tensor, Tensor], Any]

_MOST_LOOKED_AT = 1 << 24
"""Targets that are looked at beforehand, all at once: some milliseconds."""


class TokenLoss(nn.CrossEntropyLoss):
    """The cross-entropy of every token, in nats, with the classes on the last axis.

    `nn.CrossEntropyLoss` wants them on the second one, where no network that answers place by place has them.

    Example:
        >>> loss = TokenLoss()(torch.zeros(2, 7, 4), torch.zeros(2, 7, dtype=torch.int64))
        >>> round(float(loss), 4)  # log 4
        1.3863
    """

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Scores of shape (n, t, num_symbols) and codes of shape (n, t) to the mean, or the sum, over n × t tokens."""
        return super().forward(output.flatten(0, -2), target.flatten())


CROSS_ENTROPIES = (nn.CrossEntropyLoss, TokenLoss)
"""Those whose settings say all about them, so that another one can be made from them."""


def class_axis(loss: Any) -> int:
    """The axis of an answer that has the classes."""
    return -1 if isinstance(loss, TokenLoss) else 1


def summed(loss: Callable[[Any, Tensor], Any], *, is_late: bool = False) -> SummedLoss:
    """Turn a loss into its sum and the weight that a mean divides by.

    Args:
        loss: A torch loss (module or function of `torch.nn.functional`) with reduction "mean" or "sum"; or a
            function that returns per-sample losses of shape (n,), a pair (sum, weight), or a tensor without
            dimensions, taken as the mean over the samples of the microbatch.
        is_late: Whether the weight may stay a tensor, so that nobody has to wait for it.

    Raises:
        UsageError: A torch loss whose mean cannot be taken over a global batch.

    Example:
        >>> total, weight = summed(nn.MSELoss())(torch.zeros(2, 3), torch.ones(2, 3), 2)
        >>> float(total), weight
        (6.0, 6)
    """
    module = _module_of(loss)
    if module is None or module.reduction == "none":
        return _FunctionLoss(loss, is_late)
    if type(module) is nn.KLDivLoss and module.reduction == "batchmean":
        weight: _Weight = _count_samples
    elif isinstance(module, nn.CrossEntropyLoss | nn.NLLLoss):
        weight = _weigh_classes_late if is_late else _weigh_classes
    elif type(module) in _PER_ELEMENT:
        weight = _count_elements
    elif type(module) in _PER_SAMPLE:
        weight = _count_samples
    else:
        raise UsageError(
            f"loss {type(module).__name__} is not one whose mean we can take over the global batch; write a function "
            "loss(output, target) that returns per-sample losses of shape (n,), or a pair (sum, weight)"
        )
    if module.reduction not in ("mean", "batchmean", "sum"):
        raise UsageError(f"loss reduction {module.reduction!r} is not known; take 'mean' or 'none'")
    total = copy.copy(module)
    total.reduction = "sum"
    return _TorchLoss(total, weight)


def given(loss: SummedLoss) -> Any:
    """What a loss of `summed` was made from."""
    if isinstance(loss, _TorchLoss):
        return loss.module
    return loss.function if isinstance(loss, _FunctionLoss) else loss


def has_class_targets(loss: Callable[[Any, Tensor], Any]) -> bool:
    """Whether targets are class indices that an index outside of the classes would crash."""
    module = _module_of(loss)
    return isinstance(module, nn.CrossEntropyLoss | nn.NLLLoss)


def ignored_class(loss: Callable[[Any, Tensor], Any]) -> int:
    """The class index that a loss with class targets passes over."""
    return int(_module_of(loss).ignore_index)


_FUNCTIONS: dict[Callable[..., Any], Callable[[], nn.Module]] = {
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.nll_loss: nn.NLLLoss,
    functional.mse_loss: nn.MSELoss,
    functional.l1_loss: nn.L1Loss,
    functional.smooth_l1_loss: nn.SmoothL1Loss,
    functional.huber_loss: nn.HuberLoss,
    functional.binary_cross_entropy: nn.BCELoss,
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    functional.soft_margin_loss: nn.SoftMarginLoss,
}
_PER_ELEMENT = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.SoftMarginLoss,
    nn.PoissonNLLLoss,
    nn.KLDivLoss,
)
_LIKELIHOODS = (nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.BCEWithLogitsLoss)
_PER_SAMPLE = (nn.MultiLabelMarginLoss, nn.MultiMarginLoss, nn.MultiLabelSoftMarginLoss)


def _module_of(loss: Callable[[Any, Tensor], Any]) -> Any:
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        return loss
    build = next((build for function, build in _FUNCTIONS.items() if function is loss), None)
    return None if build is None else build()


@dataclass(frozen=True)
class _TorchLoss:
    module: nn.Module
    weight: _Weight

    def __call__(self, output: Any, target: Tensor, num_samples: int) -> tuple[Tensor, Any]:
        weight = self.weight(self.module, output, target)
        return self.module(output, target), weight


@dataclass(frozen=True)
class _FunctionLoss:
    function: Callable[[Any, Tensor], Any]
    is_late: bool = False

    def __call__(self, output: Any, target: Tensor, num_samples: int) -> tuple[Tensor, Any]:
        value = self.function(output, target)
        if isinstance(value, tuple):
            if len(value) != 2:
                raise UsageError(f"the loss returned {len(value)} values; return a pair (sum, weight)")
            return value[0], value[1] if self.is_late else float(value[1])
        if not isinstance(value, Tensor):
            raise UsageError(f"the loss returned {type(value).__name__}; return one loss per sample, or (sum, weight)")
        if value.dim() == 0:
            return value * num_samples, float(num_samples)
        if value.shape[0] != num_samples:
            raise UsageError(
                f"the loss returned shape {tuple(value.shape)} for {num_samples} samples; return one loss per "
                f"sample (shape ({num_samples},)), or a pair (sum, weight)"
            )
        return value.sum(), float(value.numel())


def _count_samples(module: Any, output: Any, target: Tensor) -> float:
    return float(output.shape[0]) if output.dim() > 1 else 1.0


def _count_elements(module: Any, output: Any, target: Tensor) -> float:
    if output.shape == target.shape:
        return int(output.numel())
    raise UsageError(
        f"the model answers with shape {tuple(output.shape)} and the target has shape {tuple(target.shape)}; "
        "give both the same shape (a broadcast would compare every answer with every target)"
    )


def _weigh_classes(module: Any, output: Any, target: Tensor) -> float:
    """What torch's mean divides by: the class weights of the targets that are not ignored."""
    if target.is_floating_point():  # class probabilities: the mean is over samples (and positions)
        return float(output.numel() // output.shape[class_axis(module)])
    if module.weight is None:
        return float(target.numel() - int(np.count_nonzero(target.numpy() == module.ignore_index)))
    kept = target[target != module.ignore_index]
    return math.fsum(module.weight[kept].double().tolist())


def _count_targets(module: Any, output: Any, target: Tensor) -> float:
    return float(target.numel())


def _weigh_classes_late(module: Any, output: Any, target: Tensor) -> Any:
    """The same, as a tensor where it depends on the targets."""
    if target.is_floating_point():
        return _weigh_classes(module, output, target)
    is_kept = target != module.ignore_index
    if module.weight is None:
        return is_kept.sum()
    return (module.weight[torch.where(is_kept, target, 0)].double() * is_kept).sum()


def placed(loss: SummedLoss, where: torch.device) -> SummedLoss:
    """A loss whose own tensors are on a device."""
    if isinstance(loss, _TorchLoss):
        return replace(loss, module=copy.deepcopy(loss.module).to(where))
    if isinstance(loss, _FunctionLoss) and isinstance(loss.function, nn.Module):
        return replace(loss, function=copy.deepcopy(loss.function).to(where))
    return loss


def without_ignored(loss: SummedLoss, targets: Iterable[Tensor | None]) -> SummedLoss:
    """A loss that does not look for ignored targets in every microbatch, where there are none in all columns.

    Args:
        loss: From `summed`.
        targets: All that it will be given, column by column; None: not known.
    """
    if not isinstance(loss, _TorchLoss) or loss.weight is not _weigh_classes or loss.module.weight is not None:
        return loss
    for target in targets:
        if target is None or target.is_floating_point() or target.numel() > _MOST_LOOKED_AT:
            return loss
        if bool((target == loss.module.ignore_index).any()):
            return loss
    return replace(loss, weight=_count_targets)


def check_class_targets(target: Tensor, num_classes: int, ignore_index: int) -> None:
    """Refuse class indices that the model has no output for."""
    outside = (target != ignore_index) & ((target < 0) | (target >= num_classes))
    if bool(outside.any()):
        value = int(target[outside][0])
        raise DataError(
            f"a label is {value} and the model answers for {num_classes} classes (0 .. {num_classes - 1}); "
            "widen the model's last layer or mend the labels"
        )


def is_straight(loss: SummedLoss) -> bool:
    """Whether the loss has no second derivative, wherever it has a first."""
    return isinstance(loss, _TorchLoss) and isinstance(loss.module, nn.L1Loss)


def draws_targets(loss: SummedLoss) -> bool:
    """Whether `sampled_targets` draws them: whether the loss is a log-likelihood that is known to be one."""
    return isinstance(loss, _TorchLoss) and isinstance(loss.module, _LIKELIHOODS)


def sampled_targets(loss: SummedLoss, output: Any, target: Tensor, generator: torch.Generator) -> Tensor:
    """Targets drawn from what the network itself believes; the given ones for losses that are no log-likelihood.

    The covariance of the gradients is then the Fisher matrix (Martens 2014, section 9.1).

    Args:
        loss: From `summed`.
        output: The network's answer.
        target: What of it is passed over stays so.
        generator: Where the draws come from.
    """
    module = loss.module if isinstance(loss, _TorchLoss) else None
    if isinstance(module, nn.CrossEntropyLoss | nn.NLLLoss):
        scores = output.detach().movedim(class_axis(module), -1)
        chances = scores.exp() if isinstance(module, nn.NLLLoss) else scores.softmax(-1)
        drawn = torch.multinomial(chances.reshape(-1, chances.shape[-1]), 1, generator=generator)
        drawn = drawn.view(chances.shape[:-1])
        if not target.is_floating_point():
            drawn = torch.where(target == module.ignore_index, target, drawn)
    elif isinstance(module, nn.MSELoss):
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype)
        drawn = output.detach() + noise * math.sqrt(0.5)
    elif isinstance(module, nn.BCEWithLogitsLoss):
        drawn = torch.bernoulli(output.detach().sigmoid(), generator=generator)
    else:
        drawn = target
    return drawn


def as_sums(value: Any, num_samples: int) -> tuple[float, float]:
    """A metric's answer as (sum, weight)."""
    if isinstance(value, tuple):
        return float(value[0]), float(value[1])
    if isinstance(value, Tensor) and value.dim() > 0:
        return float(value.to(torch.float64).sum()), float(value.numel())
    return float(value) * num_samples, float(num_samples)
