"""What a command works on: a workload by name, one of a user's file, or one made for some data; and in which way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

from samestep.data.settings import DataSettings
from samestep.errors import UsageError
from samestep.run import sizes
from samestep.run.config import NumericSettings, Settings, resolve

if TYPE_CHECKING:
    from samestep.measure.candidates import Choice
    from samestep.run.workload import Workload
    from samestep.workloads.networks import Network

Model = Literal["mlp", "cnn", "lstm", "transformer"]


@dataclass(frozen=True)
class Chosen:
    """What a command works on.

    Args:
        build: Makes the workload.
        network: What was chosen for data alone.
    """

    build: Callable[[], Workload]
    network: Network | None = None


def choose(
    name: str | None, data: str | None, model: Model | None, about: DataSettings, settings: NumericSettings
) -> Chosen:
    """The workload of that name; or one made for some data."""
    if (name is None) == (data is None):
        raise UsageError("give a WORKLOAD (see samestep workloads), or data to learn from with --data, and not both")
    if data is None:
        if model is not None or about.given():
            given = ", ".join([*about.given(), *(["model"] if model else [])])
            raise UsageError(f"{given}: such settings go with --data, and {name} brings its own data and model")
        return Chosen(partial(workload_of, cast("str", name), settings))
    from samestep.cli import packs  # noqa: PLC0415
    from samestep.cli.teller import Teller  # noqa: PLC0415
    from samestep.data import making  # noqa: PLC0415
    from samestep.workloads import from_data, networks  # noqa: PLC0415

    with Teller() as teller:
        packed = making.in_cache(data, about, teller.packing)
        for line in packs.lines(packed):
            teller.line(line)
    network = networks.choose(packed, model=model, width=settings.width, depth=settings.depth)
    network = replace(network, base_width=settings.base_width, base_depth=settings.base_depth)
    build = partial(from_data.workload, packed, network)
    with Teller() as teller:
        for line in _lines(network, build(), settings):
            teller.line(line)
    return Chosen(build, network)


def _lines(network: Network, built: Workload, settings: NumericSettings) -> Iterator[str]:
    """What was chosen beside the data, a line each; what a person has said of it is taken as said."""
    yield f"network: {network.model}, width {network.width}, depth {network.depth}"
    yield f"loss: {_word(built.loss)}; evaluated by {', '.join(built.metrics)}"
    _, known = sizes.settled(built, Settings(**vars(settings)))
    config = resolve(known, built.recipe)
    rate = "its own" if config.lr is None else f"{config.lr:g}"
    length = f"{config.steps:,} steps" if config.steps is not None else f"{config.epochs:g} epochs"
    yield (
        f"optimiser: {config.optimizer}, learning rate {rate} ({config.lr_schedule}), "
        f"global batch {config.global_batch}, {length}"
    )
    if config.shuffle_block is not None:
        yield f"order: blocks of {config.shuffle_block:,} samples"


def _word(loss: object) -> str:
    """A loss by its name.

    >>> from torch import nn
    >>> _word(nn.MSELoss())
    'MSELoss'
    """
    return getattr(loss, "__name__", type(loss).__name__)


def choose_way(chosen: Chosen, settings: Settings, allow_threads: bool, measure_again: bool) -> Choice:
    """How to carry a run out, with the table that it was chosen from on stderr."""
    from samestep.cli import plans  # noqa: PLC0415
    from samestep.cli.teller import Teller  # noqa: PLC0415
    from samestep.measure import choosing  # noqa: PLC0415

    with Teller() as teller:
        choice = choosing.choose(
            chosen.build, settings, teller, allows_threads=allow_threads, measures_again=measure_again
        )
    plans.print_choice(choice)
    return choice


def workload_of(name: str, settings: NumericSettings) -> Workload:
    """A built-in workload, or that of a user's file."""
    from samestep.workloads import catalog, files  # noqa: PLC0415

    if ".py:" in name:
        return files.load(name)
    sizes = {each: getattr(settings, each) for each in ("width", "depth", "base_width", "base_depth")}
    return catalog.build(name, **sizes)
