"""Commands that train, and that answer with what was trained."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from samestep.cli import chosen, tables
from samestep.cli.app import (
    UNSET,
    UNSET_DATA,
    ConfigFile,
    DataSource,
    GivenAboutData,
    GivenSettings,
    Json,
    ModelOf,
    app,
    fail,
    print_json,
    speaks,
    stdout_kept,
)
from samestep.errors import UsageError
from samestep.run import sizes
from samestep.run.config import NumericSettings
from samestep.run.toml import as_toml

if TYPE_CHECKING:
    from samestep.engine.crew import Crew
    from samestep.measure.candidates import Choice
    from samestep.run.config import Settings
    from samestep.run.outline import Outline
    from samestep.run.ranks import Ranks
    from samestep.run.session import Result
    from samestep.run.workload import Workload


@app.command
def train(
    workload: str | None = None,
    /,
    *,
    data: DataSource = None,
    model: ModelOf = None,
    about: GivenAboutData = UNSET_DATA,
    settings: GivenSettings = UNSET,
    parallel: Annotated[
        Literal["auto"] | None,
        Parameter(help="auto: measure ways to carry the run out, take the best one, remember it; never other bits."),
    ] = None,
    allow_threads: Annotated[
        bool, Parameter(converter=None, help="auto may take more threads in one process, which give other bits.")
    ] = False,
    measure_again: Annotated[bool, Parameter(converter=None, help="auto passes over what it remembers.")] = False,
    config: ConfigFile = None,
    json: Json = False,
    print_config: Annotated[bool, Parameter(converter=None)] = False,
    print_plan: Annotated[bool, Parameter(converter=None)] = False,
) -> int:
    """Train a workload.

    Parameters
    ----------
    workload
        A built-in name (see samestep workloads), or FILE.py:FUNCTION, a function that returns a Workload.
    print_config
        Print the resolved configuration as TOML and stop.
    print_plan
        Print how the run would be carried out and stop: workers, microbatches, slices, and which layers run
        concurrently.
    """
    from samestep.run.ahead import started_ahead  # noqa: PLC0415

    is_run = not (print_config or print_plan)
    with (
        stdout_kept(),
        started_ahead(settings) if is_run and parallel is None else nullcontext() as ahead,
    ):
        from samestep import torch_private  # noqa: PLC0415
        from samestep.measure.candidates import check_asked  # noqa: PLC0415
        from samestep.run import ranks  # noqa: PLC0415
        from samestep.run.outline import outline  # noqa: PLC0415
        from samestep.run.prepare import Choices  # noqa: PLC0415

        torch_private.without_compiler_import()
        with ranks.told(settings) if is_run else nullcontext() as others:
            check_asked(parallel, allow_threads=allow_threads, measure_again=measure_again)
            work = chosen.choose(workload, data, model, about, settings)
            built = work.build()
            choice = None
            if parallel is not None:
                choice = chosen.choose_way(work, settings, allow_threads, measure_again)
                settings = choice.candidate.applied_to(settings)
            if print_plan:
                planned = outline(built, settings, Choices())
            elif not print_config:
                result = _run(built, settings, ahead, others)
                if work.network is not None and settings.out is not None and result.is_first:
                    work.network.save(settings.out)
    if is_run:
        if result.is_first:
            _print_result(result, choice, settings.out, is_json=json)
    elif speaks():
        _print_planned(planned, is_json=json) if print_plan else _print_config(built, settings)
    return 0


def _print_config(built: Workload, settings: Settings) -> None:
    from samestep.run.config import resolve  # noqa: PLC0415

    built, settings = sizes.settled(built, settings)
    print(as_toml(resolve(settings, built.recipe).as_dict()))


def _print_planned(planned: Outline, *, is_json: bool) -> None:
    from samestep.cli import plans  # noqa: PLC0415

    print_json(planned.as_dict()) if is_json else plans.print_outline(planned)


def _run(built: Workload, settings: Settings, ahead: Crew | None, others: Ranks | None) -> Result:
    """Train in this process, which is there for nothing else."""
    from samestep.run.prepare import Choices  # noqa: PLC0415
    from samestep.run.progress import for_stderr  # noqa: PLC0415
    from samestep.run.train import run  # noqa: PLC0415

    choices, progress = Choices(), for_stderr()
    return run(built, settings, choices=choices, progress=progress, ahead=ahead, known=others, leave=_leave)


def _leave(text: str, code: int) -> None:
    """End the process, whose main thread is inside a kernel and cannot be asked to."""
    os._exit(fail(text, code))


def _print_result(result: Result, choice: Choice | None, out: Path | None, *, is_json: bool) -> None:
    from samestep.cli import plans  # noqa: PLC0415

    summary = result.record.summary()
    if choice is not None:
        summary["parallel"] = plans.choice_as_dict(choice)
    if is_json:
        print_json(summary)
    else:
        tables.print_summary(summary, out)


@app.command
def predict(
    workload: str,
    /,
    *,
    weights: Annotated[
        Path | None, Parameter(help="Trained weights (safetensors); those of the run, for a RUN.")
    ] = None,
    input: Annotated[  # noqa: A002
        tuple[Path, ...] | None,
        Parameter(
            help="One .npy file per input of the model, default: the evaluation part; for a RUN a table, arrays, "
            "pictures or a text."
        ),
    ] = None,
    out: Annotated[Path | None, Parameter(help="CSV file to write; default: stdout.")] = None,
    width: int | None = None,
    depth: int | None = None,
    base_width: int | None = None,
) -> int:
    """Answer with trained weights: one line of CSV per sample.

    Parameters
    ----------
    workload
        A built-in name, FILE.py:FUNCTION, or RUN: the folder that train --data --out has written.
    """
    from samestep.run.predict import predict_table  # noqa: PLC0415
    from samestep.workloads import answers  # noqa: PLC0415

    with stdout_kept():
        if Path(workload).is_dir():
            if input is None or len(input) != 1 or any((weights, width, depth, base_width)):
                raise UsageError(f"{workload} is a run: give one --input to answer for, and nothing else but --out")
            table = answers.answer(Path(workload), input[0], lambda text: print(text, file=sys.stderr))
        elif weights is None:
            raise UsageError(f"--weights is missing: which weights of {workload} are to answer?")
        else:
            sizes = NumericSettings(width=width, depth=depth, base_width=base_width)
            table = predict_table(chosen.workload_of(workload, sizes), weights, input)
    if out is None:
        sys.stdout.write(table)
    else:
        from samestep.host.files import write_atomically  # noqa: PLC0415

        write_atomically(out, table.encode())
        print(f"{out}: {table.count(chr(10)) - 1} answers", file=sys.stderr)
    return 0
