"""What a run leaves in a folder: its weights, its configuration, its record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from samestep.host import files, peaks, provenance
from samestep.run import weights
from samestep.run.config import Config
from samestep.run.progress import Progress
from samestep.run.record import Record
from samestep.run.toml import as_toml
from samestep.run.workload import Workload


def code_sha256(workload: Workload, model: nn.Module) -> str | None:
    """The digest of the files that a person's own workload and model are written in; None where all of it is ours.

    Args:
        workload: What is trained.
        model: Its module.
    """
    kinds = {type(module) for module in model.modules()}
    return provenance.code_sha256([workload.model, workload.data, workload.loss, *workload.metrics.values(), *kinds])


def write(folder: Path, record: Record, config: Config, model: nn.Module, best: Mapping[str, Tensor] | None) -> None:
    """Write everything that is known of a run that has ended.

    Args:
        folder: It is there.
        record: What happened.
        config: The resolved configuration.
        model: With the weights that the run ended with.
        best: The `state_dict` at the best evaluation, where there is one.

    Raises:
        StateError: The disk is full, or the folder cannot be written.
    """
    metadata = {"workload": record.workload, "weights_sha256": record.weights_sha256}
    weights.save(model.state_dict(), folder / "weights.safetensors", metadata)
    if best is not None:
        weights.save(best, folder / "best.safetensors", {"workload": record.workload})
    files.write_atomically(folder / "config.toml", (as_toml(config.as_dict()) + "\n").encode())
    record.write(folder)


def complete(folder: Path, record: Record, progress: Progress) -> None:
    """Write the record anew with the machine's peaks, where nobody has measured them on this machine before.

    It takes two seconds of the whole machine, so it comes last: nothing waits for it, and nothing is lost with it.

    Args:
        folder: With the record.
        record: What happened.
        progress: Who is told.
    """
    if peaks.cached() is not None or not peaks.are_wanted():
        return
    progress.stop()  # what draws would take time from what is measured
    progress.line(
        "measuring what this machine can copy and multiply, once for all runs on it (about 2 s; "
        f"{peaks.VARIABLE}=off leaves it out) ..."
    )
    record.write(folder, peaks.measure())
