"""Three lines are enough: a model, arrays, `fit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samestep.data.columns import Dataset, Rows, Samples
from samestep.engine.flat import trainable
from samestep.engine.losses import check_class_targets, class_axis, has_class_targets, ignored_class, summed
from samestep.engine.randomness import preserved
from samestep.errors import DataError, SamestepError, UsageError
from samestep.run.metrics import accuracy
from samestep.run.prepare import balanced_weights, check_finite
from samestep.run.progress import Progress
from samestep.run.session import Callback, Result
from samestep.run.train import train
from samestep.run.workload import Loss, Metric, Target, Workload


def fit(
    model: nn.Module,
    X: Any,  # noqa: N803 (the name that users of array libraries know)
    y: Any,
    *,
    validation: tuple[Any, Any] | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    class_weights: Sequence[float] | Literal["balanced"] | None = None,
    target: Target | None = None,
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> Result:
    """Train a model on arrays, in place, on as many workers as there are cores.

    Args:
        model: The module; it is trained in place.
        X: The inputs, shape (num_samples, ...): NumPy array, tensor, data frame; or a tuple of them, one for each
            argument of the model. Floating-point inputs are cast to the model's dtype.
        y: The targets, shape (num_samples, ...). Integers are classes; floating-point targets are values.
        validation: ``(X, y)`` to evaluate on after every epoch.
        loss: Default: cross-entropy for classes, mean squared error for values.
        metrics: By name; default: accuracy for classes.
        class_weights: One weight per class, or "balanced"; for classes with the default loss.
        target: Stop when the validation reaches it.
        callbacks: See `train`.
        progress: See `train`.
        **settings: Any field of `Settings`: ``workers``, ``global_batch``, ``epochs``, ``optimizer``, ``lr``, ...

    Returns:
        The trained model, the run's record, and the best state.

    Raises:
        UsageError: Something cannot be done as asked; also for ``batch_size``, which could mean two things.
        DataError: The arrays cannot be used.

    Example:
        >>> X, y = np.random.default_rng(0).normal(size=(100, 4)), np.arange(100) % 2
        >>> result = fit(nn.Linear(4, 2), X, y, epochs=1, workers=1)
        >>> result.record.num_samples
        100
    """
    dtype = next(iter(trainable(model).values())).dtype
    train_samples = _samples(X, y, dtype, "")
    has_classes = isinstance(train_samples.target, Rows) and not train_samples.target.tensor.is_floating_point()
    if loss is None:
        weight = _class_weights(class_weights, train_samples, dtype)
        loss = nn.CrossEntropyLoss(weight=weight) if has_classes else nn.MSELoss()
    elif class_weights is not None:
        raise UsageError("class_weights go with the default loss; give your loss its weights itself")
    if metrics is None:
        metrics = {"accuracy": accuracy} if has_classes and isinstance(loss, nn.CrossEntropyLoss) else {}
    check_finite(train_samples, "training")
    _rehearse(model, train_samples, loss, "")
    evaluation = None if validation is None else _samples(*validation, dtype, "validation ")
    if evaluation is not None:
        _rehearse(model, evaluation, loss, "validation ")
    workload = Workload(
        name=f"fit {type(model).__name__}",
        model=lambda: model,
        data=lambda: Dataset(train_samples, evaluation),
        loss=loss,
        metrics=metrics,
        target=target,
    )
    return train(workload, callbacks=callbacks, progress=progress, **settings)


def _rehearse(model: nn.Module, samples: Samples, loss: Loss, what: str) -> None:
    """Let the model and the loss meet two samples, so that a misfit is one clear line before anything starts."""
    indices = torch.arange(min(2, samples.num_samples))
    modes = [(module, module.training) for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    inputs = tuple(column.gather(indices) for column in samples.inputs)
    shapes = ", ".join(str(tuple(x.shape[1:])) for x in inputs)
    model.eval()
    try:
        with preserved(), torch.no_grad():
            try:
                output = model(*inputs)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise DataError(f"the model does not take {what}samples of shape {shapes}: {error}") from error
            target = samples.target.gather(indices)
            try:
                summed(loss)(output, target, len(indices))
            except (RuntimeError, ValueError, IndexError) as error:
                if isinstance(error, SamestepError):
                    raise
                if isinstance(output, Tensor) and has_class_targets(loss):
                    num_classes = output.shape[class_axis(loss)] if output.dim() > 1 else 1
                    check_class_targets(target, num_classes, ignored_class(loss))
                answer = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
                raise DataError(
                    f"the loss does not take the model's answers of shape {answer} a sample with {what}y of shape "
                    f"{tuple(target.shape[1:])} a sample: {error}"
                ) from error
    finally:
        for module, mode in modes:
            module.training = mode
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def _samples(inputs: Any, targets: Any, dtype: torch.dtype, what: str) -> Samples:
    columns = inputs if isinstance(inputs, tuple) else (inputs,)
    tensors = tuple(_tensor(column, dtype, f"{what}X", is_mask=len(columns) > 1) for column in columns)
    target = _tensor(targets, dtype, f"{what}y")
    for tensor in tensors:
        if len(tensor) != len(target):
            raise DataError(f"{what}X has {len(tensor)} samples and y has {len(target)}; every sample needs both")
    return Samples(tuple(Rows(values=tensor) for tensor in tensors), Rows(values=target))


def _tensor(values: Any, dtype: torch.dtype, what: str, *, is_mask: bool = False) -> Tensor:
    """As a contiguous tensor: floating point, bytes and truth values in the model's dtype, integers as int64.

    Args:
        values: An array, a tensor or a data frame.
        dtype: The model's.
        what: They are, for errors; what ends with "y" are targets, where bytes and truth values are classes.
        is_mask: Truth values stay such: they stand beside other inputs.
    """
    if not isinstance(values, Tensor):
        array = _array(values)
        if array.dtype.kind not in "fiub":
            raise DataError(
                f"{what} has dtype {array.dtype}, which is not a number; turn texts and categories into numbers first"
            )
        # No copy where it can be helped; torch refuses negative strides and warns of arrays that cannot be written.
        values = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    tensor: Tensor = values.detach()
    if tensor.dim() == 0:
        raise DataError(f"{what} is a single number; give an array with one row per sample")
    if tensor.is_floating_point():
        tensor = tensor.to(dtype)
    elif what.endswith("y") or tensor.dtype not in (torch.uint8, torch.bool):
        tensor = tensor.to(torch.int64)
    elif not (is_mask and tensor.dtype == torch.bool):
        tensor = tensor.to(dtype)
    return tensor.contiguous()


def _array(values: Any) -> NDArray[Any]:
    """As an array; of a data frame with numbers and truth values some libraries make one of objects."""
    array = np.asarray(values)
    if array.dtype == object and hasattr(values, "columns"):
        with suppress(TypeError, KeyError):  # of names, where it is a frame
            columns = [np.asarray(values[name]) for name in values.columns]
            if all(column.ndim == 1 and column.dtype.kind in "fiub" for column in columns):
                return np.stack(columns, axis=1)
    return array


def _class_weights(weights: Sequence[float] | str | None, samples: Samples, dtype: torch.dtype) -> Tensor | None:
    if weights is None:
        return None
    if isinstance(weights, str):
        if weights != "balanced":
            raise UsageError(f"class_weights={weights!r} is not known; take 'balanced', or one weight per class")
        assert isinstance(samples.target, Rows)
        return balanced_weights(samples.target.tensor).to(dtype)
    return torch.tensor(weights, dtype=dtype)
