"""The workloads by name. Names and descriptions come without importing torch; a family is imported when built."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from samestep.errors import UsageError

if TYPE_CHECKING:
    from samestep.run.workload import Workload


@dataclass(frozen=True)
class Entry:
    """A workload that can be built.

    Args:
        name: Its name; the function that builds it has the same with underscores.
        family: The module that it is in.
        description: One line for people.
    """

    name: str
    family: str
    description: str


_ENTRIES = (
    Entry("digits-mlp", "feed_forward", "feed-forward net on scikit-learn's 8 × 8 digits; needs no download"),
    Entry("digits-cnn", "convolutional", "small CNN on scikit-learn's 8 × 8 digits; needs no download"),
    Entry(
        "digits-transformer",
        "transformer",
        "transformer that reads scikit-learn's 8 × 8 digits pixel by pixel; needs no download",
    ),
    Entry("fashion-mlp", "feed_forward", "feed-forward net 784-256-256-10 on Fashion-MNIST"),
    Entry("adult-mlp", "tables", "feed-forward net with embeddings on Adult, a table of mixed columns"),
    Entry("mnist-cnn", "convolutional", "the simple CNN of Shallue et al. (2018) on MNIST"),
    Entry("fashion-cnn", "convolutional", "the simple CNN of Shallue et al. (2018) on Fashion-MNIST"),
    Entry("fashion-resnet", "convolutional", "small ResNet with BatchNorm and dropout on Fashion-MNIST"),
    Entry("fashion-lstm", "recurrent", "LSTM that reads Fashion-MNIST row by row"),
    Entry("shakespeare-transformer", "transformer", "causal transformer on Tiny Shakespeare, by character"),
)


def entries() -> tuple[Entry, ...]:
    """All workloads, the cheapest first."""
    return _ENTRIES


def names() -> tuple[str, ...]:
    """The names of all workloads.

    Example:
        >>> names()[:2]
        ('digits-mlp', 'digits-cnn')
    """
    return tuple(entry.name for entry in _ENTRIES)


def build(
    name: str,
    *,
    width: int | None = None,
    depth: int | None = None,
    base_width: int | None = None,
    base_depth: int | None = None,
) -> Workload:
    """The workload of this name. Its data are read when its `data` is called.

    Args:
        name: One of `names()`.
        width: Size of a layer: units, filters of the first block, size of a vector; None is the workload's own.
        depth: Number of hidden layers or blocks; None is the workload's own.
        base_width: The width that the learning rate was chosen for; None: this one, whatever it is.
        base_depth: The depth that it was chosen for; None: this one.

    Raises:
        UsageError: There is no such workload, or a size is below 1.

    Example:
        >>> build("digits-mlp", width=16).model().state_dict()["0.weight"].shape
        torch.Size([16, 64])
    """
    entry = _entry(name)
    sizes = {"width": width, "depth": depth, "base_width": base_width, "base_depth": base_depth}
    for size_name, size in sizes.items():
        if size is not None and size < 1:
            raise UsageError(f"{size_name}={size} is below 1; take 1 or more, or leave it out for {name}'s own")
    family = import_module(f"samestep.workloads.{entry.family}")
    workload: Workload = getattr(family, name.replace("-", "_"))(width=width, depth=depth)
    if base_width is None and base_depth is None:
        return workload
    from samestep.workloads import bases  # noqa: PLC0415 (torch)

    return bases.based(workload, base_width=base_width, base_depth=base_depth)


def _entry(name: str) -> Entry:
    for entry in _ENTRIES:
        if entry.name == name:
            return entry
    near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(near)}" if near else f"there are: {', '.join(names())}"
    raise UsageError(f"no workload is called {name!r}; {hint}")
