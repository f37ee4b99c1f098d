"""The network that a run starts from, and the optimisers that update it: the same for all who train a workload."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from samestep.engine import randomness
from samestep.errors import UsageError
from samestep.optim import build, catalog, parametrisation
from samestep.optim.parametrisation import Parametrisation
from samestep.run.config import Config
from samestep.run.workload import Workload


def network(workload: Workload, config: Config) -> tuple[nn.Module, Parametrisation | None]:
    """A workload's network with its initial values; where it has a base network, they follow its width.

    Draws from torch's default generator, and leaves it seeded.

    Raises:
        UsageError: There is no module, or it does not go with its base network.
    """
    model = _drawn(workload.model, config.seed)
    if workload.base_model is None:
        if config.base_width is not None or config.base_depth is not None:
            raise UsageError(
                f"base_width and base_depth need a network that can be built in another width, and {workload.name} "
                "does not say how: give the workload a base_model"
            )
        if workload.depth_ratio != 1:
            raise UsageError(f"depth_ratio={workload.depth_ratio:g} needs a base_model; give the workload one")
        return model, None
    base = _drawn(workload.base_model, config.seed)
    depth_ratio = workload.depth_ratio
    return model, parametrisation.apply(model, base, optimizer=config.optimizer, depth_ratio=depth_ratio)


def parts(
    model: nn.Module,
    config: Config,
    scaled: Parametrisation | None,
    *,
    optimizer: Callable[..., Optimizer] | None = None,
    groups: build.ParameterGroups | None = None,
) -> tuple[build.Part, ...]:
    """Which optimiser updates what at which rates.

    Args:
        model: The network.
        config: Of the run.
        scaled: What `network` gave.
        optimizer: A class of the caller's instead of the configuration's name.
        groups: The caller's own parameter groups.

    Raises:
        UsageError: Rates that follow batch or width are asked for with an optimiser or groups of the caller's.
    """
    if (optimizer or groups) is not None and (config.base_batch is not None or scaled is not None):
        name = "the base network" if config.base_batch is None else f"base_batch={config.base_batch}"
        raise UsageError(
            f"{name} changes the rates of an optimizer by name; with an optimizer or parameter groups of your own, "
            "give them the rates for this run"
        )
    rates = config.rates
    if scaled is not None:
        groups = scaled.groups(lr=rates.lr, weight_decay=rates.weight_decay)
    found = build.parts(
        model,
        optimizer or config.optimizer,
        lr=rates.lr,
        momentum=config.momentum,
        weight_decay=rates.weight_decay,
        groups=groups,
    )
    share = config.averaging
    if share is None and optimizer is None:
        share = catalog.entry(config.optimizer).averaging
    return found if share is None else tuple(build.averaged(part, share) for part in found)


def _drawn(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    randomness.seed_initialisation(seed)
    model = factory()
    if not isinstance(model, nn.Module):
        raise UsageError(f"the model factory returned {type(model).__name__}, not a torch.nn.Module")
    return model
