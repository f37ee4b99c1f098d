"""Metrics of a microbatch, as (sum, weight): the mean over all samples or tokens is their quotient, in any split."""

from __future__ import annotations

from torch import Tensor


def accuracy(output: Tensor, target: Tensor) -> tuple[Tensor, int]:
    """How many classes are right: ``sum(argmax(output) == target)``, and of how many.

    Args:
        output: Scores, the classes in the last dimension: shape (n, classes), or (n, t, classes) for sequences.
        target: Classes, shape (n,) or (n, t), int64.

    Returns:
        The number of right answers (a tensor without dimensions), and the number of answers.

    Example:
        >>> import torch
        >>> accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        (tensor(1), 2)
    """
    return (output.argmax(dim=-1) == target).sum(), target.numel()
