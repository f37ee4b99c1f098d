"""What is left of a run: its module with parameters of its own, and the values that are to be kept."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from samestep.engine import flat
from samestep.engine.job import Image, Job
from samestep.optim.owners import evaluated_parameters


def load(job: Job, image: Image) -> None:
    """Give the module the values that the run ended with."""
    parameters = evaluated_parameters(job.update, image.arrays, image.scalars, step=image.step)
    _load(job, {**image.arrays, "parameters": parameters})


def best_state(job: Job, image: Image) -> dict[str, Tensor] | None:
    """The `state_dict` at the best evaluation, where there is one; the module has its last values afterwards."""
    if not image.best:
        return None
    _load(job, image.best)
    best = {name: values.clone() for name, values in job.model.state_dict().items()}
    load(job, image)
    return best


def _load(job: Job, arrays: Mapping[str, Tensor]) -> None:
    flat.load_model(
        job.model, job.update.layout, job.buffers, arrays["parameters"], arrays["tracked"], arrays["others"]
    )
