"""How good networks are that are trained from data alone, beside scikit-learn and plain torch on rows of the same data.

python -m benchmarks.data_accuracy               what has no result yet, then write the page
python -m benchmarks.data_accuracy --cases adult measure only these
python -m benchmarks.data_accuracy --page        only write the page from the results
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import samestep
from benchmarks import results
from benchmarks.data_accuracy_text import CharRnn
from benchmarks.results import Result
from benchmarks.rounds import say
from samestep.data import making
from samestep.data.columns import Samples
from samestep.data.settings import DataSettings
from samestep.data.sources import DATA_VARIABLE
from samestep.workloads import from_data, networks

FOLDER = results.FOLDER / "data_accuracy"
MODULE = "benchmarks.data_accuracy"
PAGE = results.ROOT / "benchmarks" / "DATA_ACCURACY.md"

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Data, what is learned of them, and who else learns it.

    Args:
        source: Below the folder of data sets.
        settings: Of the data.
        run: Settings of the run.
        peers: By name; each is fitted to rows of the same training part, as many numbers a row.
        most: Of more training rows than that peers get every n-th, for all would take them too long.
    """

    source: str
    settings: Mapping[str, Any]
    run: Mapping[str, Any] = field(default_factory=dict)
    peers: Mapping[str, Callable[[], Any]]
    most: int = 100_000


def _sklearn(module: str, name: str, **options: Any) -> Callable[[], Any]:
    """Builds a model of scikit-learn, which has no types."""
    return lambda: getattr(import_module(f"sklearn.{module}"), name)(**options)


_MLP = {"hidden_layer_sizes": (128, 128), "early_stopping": True, "random_state": 0}
_CLASSIFIERS: Mapping[str, Callable[[], Any]] = {
    "LogisticRegression": _sklearn("linear_model", "LogisticRegression", max_iter=500),
    "MLPClassifier (128, 128)": _sklearn("neural_network", "MLPClassifier", **_MLP),
    "HistGradientBoosting": _sklearn("ensemble", "HistGradientBoostingClassifier", random_state=0),
}
_REGRESSORS: Mapping[str, Callable[[], Any]] = {
    "Ridge": _sklearn("linear_model", "Ridge"),
    "MLPRegressor (128, 128)": _sklearn("neural_network", "MLPRegressor", **_MLP),
    "HistGradientBoosting": _sklearn(
        "ensemble", "HistGradientBoostingRegressor", loss="absolute_error", random_state=0
    ),
}
CASES: Mapping[str, Case] = {
    "adult": Case(source="adult/adult.data.gz", settings={"target": "column14"}, peers=_CLASSIFIERS),
    "covertype": Case(
        source="covertype-sample/covtype_sample92962.csv.gz", settings={"target": "Cover_Type"}, peers=_CLASSIFIERS
    ),
    "beijing-air": Case(
        source="beijing-air/PRSA_Data_20130301-20170228.tar.gz",
        settings={"target": "PM2.5", "horizon": 6, "window": 24, "series": "station", "kinds": "No=ignore"},
        peers=_REGRESSORS,
        most=120_000,
    ),
    "fashion-mnist": Case(
        source="fashion-mnist",
        settings={},
        peers={
            "LogisticRegression": _sklearn("linear_model", "LogisticRegression", max_iter=100),
            "MLPClassifier (128, 128)": _sklearn("neural_network", "MLPClassifier", **_MLP),
        },
    ),
    "tiny-shakespeare": Case(
        source="tinyshakespeare/input.txt",
        settings={},
        peers={"plain torch, LSTM 2 × 128": lambda: CharRnn(num_symbols=65, epochs=8)},
    ),
}


def measure(case: Case) -> Result:
    """Train ours and the peers'; what each reaches on the evaluation part."""
    source = str(Path(os.environ[DATA_VARIABLE]) / case.source)
    with tempfile.TemporaryDirectory(prefix="samestep-accuracy-") as name:
        pack, _ = making.ensure(source, Path(name) / "pack", DataSettings(**case.settings), lambda *told: None)
        network = networks.choose(pack)
        workload = from_data.workload(pack, network)
        result = samestep.train(workload, **case.run)
        found = {"samestep": dict(result.record.last_evaluation or {})}
        data = workload.data()
        assert data.evaluation is not None
        sizes = [each["values"] for each in network.schema.get("categories", [])]
        num_codes = [2 + len(values) for values in sizes]
        train, test = _arrays(data.train, num_codes, case.most), _arrays(data.evaluation, num_codes, 1 << 62)
        metric = workload.metrics.get("mae")
        deviation = metric.deviation if isinstance(metric, from_data.AbsoluteError) else None
        for peer, build in case.peers.items():
            say(f"{case.source}: {peer}")
            found[peer] = _score(build().fit(*train).predict(test[0]), test[1], deviation)
        counts = [len(train[1]), len(test[1])]
        return {"found": found, "counts": counts, "num_train": data.train.num_samples, "config": result.record.config}


def _score(answers: npt.NDArray[Any], target: npt.NDArray[Any], deviation: float | None) -> dict[str, float]:
    if deviation is None:
        return {"accuracy": float((answers == target).mean())}
    return {"mae": float(np.abs(answers - target).mean() * deviation)}


def _arrays(samples: Samples, num_codes: Sequence[int], most: int) -> Arrays:
    """All inputs of a sample as one row of numbers, categories as marks; at most so many rows, spread over all."""
    import torch  # noqa: PLC0415

    step = max(1, -(-samples.num_samples // most))
    indices = torch.arange(0, samples.num_samples, step)
    columns = []
    for column in samples.inputs:
        values = column.gather(indices)
        if not values.is_floating_point() and num_codes:
            marks = zip(values.T, num_codes, strict=True)
            values = torch.cat([torch.nn.functional.one_hot(each, num) for each, num in marks], dim=1).float()
        columns.append(values.flatten(1))
    return torch.cat(columns, dim=1).numpy(), samples.target.gather(indices).flatten().numpy()


def page(found: Mapping[str, Result]) -> str:
    """The page."""
    lines = ["# What is reached from data alone", "", *results.header(list(found.values()), what="one run each"), ""]
    lines += [
        (
            "`samestep train --data` with its own choices, and scikit-learn (of the text: plain torch) on rows of the "
            "same training part, encoded the same way: on all of them, or, where that takes too long, on every n-th. "
            "All are evaluated on the same rows. Accuracy is a share of them; mae is in the target's own unit."
        ),
        "",
    ]
    lacking = [name for name in CASES if name not in found]
    lines += [f"Not measured: {', '.join(lacking)}.", ""] if lacking else []
    for name, result in found.items():
        metric = "mae" if "mae" in result["found"]["samestep"] else "accuracy"
        lines += [f"## {name}", "", _rows_in_words(CASES[name], result), ""]
        lines += [f"| program | {metric} |", "|---|---|"]
        lines += [f"| {each} | {values[metric]:.4f} |" for each, values in result["found"].items()]
        lines.append("")
    return "\n".join(lines)


def _rows_in_words(case: Case, result: Result) -> str:
    """How many rows everybody had."""
    train, test = result["counts"]
    whole = result.get("num_train")  # older results do not hold it
    if whole is None:
        limit = f"all, or every n-th of more than {case.most:,}; ours had all"
        return f"{train:,} rows to train the peers on ({limit}), {test:,} to evaluate on."
    fewer = f", of which the peers had {train:,}" if train < whole else ""
    return f"{whole:,} rows to train on{fewer}; {test:,} to evaluate on."


def main(words: Sequence[str] | None = None) -> int:
    parser = results.parser(MODULE, __doc__, PAGE, cases=CASES)
    arguments = parser.parse_args(words)
    if not arguments.page and DATA_VARIABLE not in os.environ:
        parser.error(f"{DATA_VARIABLE} names no folder of data sets")
    cases = {name: ({"case": name, **case.settings}, partial(measure, case)) for name, case in CASES.items()}
    return results.run_cases(cases, arguments, FOLDER, page, module=MODULE)


if __name__ == "__main__":
    sys.exit(main())
