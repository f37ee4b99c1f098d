"""Answers of a trained model for new samples."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from samestep.data.columns import Rows, Samples
from samestep.data.feed import Feed
from samestep.errors import DataError, UsageError
from samestep.plan.batch import cut
from samestep.plan.order import Order
from samestep.run import weights
from samestep.run.workload import Workload

_MICROBATCH = 256


def predict(model: nn.Module, samples: Samples) -> Tensor:
    """The model's outputs, in the order of the samples, in evaluation mode.

    Args:
        model: A trained module.
        samples: What to answer for; the targets are not looked at.

    Returns:
        The outputs, shape (num_samples, ...).

    Example:
        >>> inputs = Rows(values=torch.ones(3, 2))
        >>> predict(nn.Linear(2, 4), Samples((inputs,), inputs)).shape
        torch.Size([3, 4])
    """
    feed = Feed(samples, Order(num_samples=samples.num_samples, seed=0, is_shuffled=False))
    modes = [(module, module.training) for module in model.modules()]
    outputs: list[Any] = []
    model.eval()
    try:
        with torch.no_grad():
            for microbatch in cut(0, samples.num_samples, _MICROBATCH):
                batch = feed.load(0, microbatch.start, microbatch.stop)
                outputs.append(model(*batch.inputs))
    finally:
        for module, mode in modes:
            module.training = mode
    return torch.cat(outputs)


def predict_table(workload: Workload, weights_file: Path, inputs: Sequence[Path] | None) -> str:
    """Answers as CSV: for classes the class and its probability, otherwise the outputs.

    Args:
        workload: What was trained.
        weights_file: Its weights.
        inputs: One ``.npy`` file per input of the model; None: the workload's evaluation part.
    """
    model = workload.model()
    weights.load_into(model, weights_file)
    outputs = predict(model, _evaluation_part(workload)) if inputs is None else _answer(model, inputs)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    if workload.class_names:
        writer.writerow(["sample", "class", "name", "probability"])
        probabilities, classes = outputs.softmax(dim=-1).max(dim=-1)
        for number, (code, probability) in enumerate(
            zip(classes.flatten().tolist(), probabilities.flatten().tolist(), strict=True)
        ):
            writer.writerow([number, code, workload.class_names[code], f"{probability:.6f}"])
    else:
        rows = outputs.flatten(start_dim=1) if outputs.dim() > 1 else outputs.unsqueeze(1)
        writer.writerow(["sample", *(f"output{number}" for number in range(rows.shape[1]))])
        for number, values in enumerate(rows.tolist()):
            writer.writerow([number, *values])
    return stream.getvalue()


def _evaluation_part(workload: Workload) -> Samples:
    data = workload.data()
    if data.evaluation is None:
        raise UsageError(f"{workload.name} has no evaluation part; give the inputs as .npy files with --input")
    return data.evaluation


def _answer(model: nn.Module, paths: Sequence[Path]) -> Tensor:
    try:
        return predict(model, _read(paths, next((p.dtype for p in model.parameters()), torch.float32)))
    except (RuntimeError, TypeError, IndexError) as error:
        names = ", ".join(map(str, paths))
        raise DataError(f"the model cannot answer for {names}: {error}") from error


def _read(paths: Sequence[Path], dtype: torch.dtype) -> Samples:
    """Floating-point columns are cast to the model's dtype."""
    columns = []
    for path in paths:
        try:
            with path.open("rb") as file:
                values = torch.from_numpy(np.load(file, allow_pickle=False))
            columns.append(Rows(values=values.to(dtype) if values.is_floating_point() else values))
        except FileNotFoundError:
            raise DataError(f"there is no file {path}") from None
        except (OSError, zipfile.BadZipFile) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path} cannot be read: {reason}") from None
        except (ValueError, TypeError, EOFError, AttributeError) as error:
            raise DataError(f"{path} is not a .npy file of numbers: {error}") from None
    return Samples(tuple(columns), columns[0])
