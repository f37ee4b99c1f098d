"""A global batch beside the number of training samples: all of them, or more than there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from samestep.errors import UsageError
from samestep.plan.batch import BatchPlan, default_microbatch

if TYPE_CHECKING:
    from samestep.data.columns import Dataset
    from samestep.run.config import Config, Settings
    from samestep.run.workload import Workload


def settled(workload: Workload, settings: Settings) -> tuple[Workload, Settings]:
    """With a global batch of all training samples as a number; the data, which tell it, are made once for both."""
    if settings.global_batch != "full":
        return workload, settings
    from samestep.data.columns import Dataset  # noqa: PLC0415 (torch: settings are read before it is there)

    data = workload.data()
    if not isinstance(data, Dataset):
        return workload, settings  # said where data are checked
    return replace(workload, data=_always(data)), replace(settings, global_batch=data.train.num_samples)


def check_known(first_batch: Any) -> None:
    """Refuse a batch of all samples where nobody has counted them.

    Raises:
        UsageError: It is "full".
    """
    if first_batch == "full":
        raise UsageError("global_batch='full' is for train, which counts the training samples; here, give a number")


def fitted(config: Config, num_samples: int) -> Config:
    """The configuration with a default microbatch of the samples that there are.

    A function of batch and data, never of the machine. A microbatch that somebody has named stays, and so does the
    default of a batch that is not larger than the data.
    """
    if not config.is_microbatch_default or config.is_batch_growing or config.first_batch <= num_samples:
        return config
    return replace(config, microbatch=default_microbatch(num_samples))


def plan(config: Config, num_samples: int) -> BatchPlan:
    """How an epoch is cut, at the beginning.

    Raises:
        UsageError: Sizes do not go together.
    """
    return BatchPlan(
        num_samples=num_samples,
        global_batch=config.first_batch,
        microbatch=config.microbatch,
        last_batch=config.last_batch,
    )


def lines(batches: BatchPlan) -> list[str]:
    """What is to be said of the batch, in words."""
    if batches.global_batch <= batches.num_samples:
        return []
    text = f"global_batch {batches.global_batch:,} is more than the {batches.num_samples:,} training samples"
    return [f"{text}: every step is a whole epoch of them"]


def _always(data: Dataset) -> Callable[[], Dataset]:
    return lambda: data
