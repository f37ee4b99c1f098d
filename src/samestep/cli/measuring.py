"""Commands that compare and measure trainings, and write the page about them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from samestep.cli import chosen, tables
from samestep.cli.app import (
    UNSET_DATA,
    UNSET_NUMERICS,
    ConfigFile,
    DataSource,
    GivenAboutData,
    GivenNumerics,
    Json,
    ModelOf,
    app,
    print_json,
    refuse_ranks,
    stdout_kept,
)


@app.command
def verify(
    workload: str | None = None,
    /,
    *,
    data: DataSource = None,
    model: ModelOf = None,
    about: GivenAboutData = UNSET_DATA,
    workers: Annotated[
        tuple[int, ...] | None,
        Parameter(help="Numbers of workers, comma separated; default: 1,2, and 1 with --against."),
    ] = None,
    against: Annotated[
        Literal["torch", "ddp"] | None,
        Parameter(help="Also train with plain torch, or with DistributedDataParallel on two ranks."),
    ] = None,
    settings: GivenNumerics = UNSET_NUMERICS,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Train once per number of workers, and with a peer, and compare every tensor.

    Exits with 1 where a number of workers gives other bits, or a peer differs by more than rounding.
    """
    refuse_ranks("verify")
    from samestep import torch_private  # noqa: PLC0415
    from samestep.measure.verify import default_workers  # noqa: PLC0415
    from samestep.measure.verify import verify as run_verify  # noqa: PLC0415
    from samestep.run.progress import for_stderr  # noqa: PLC0415

    torch_private.without_compiler_import()
    with stdout_kept():
        counts = default_workers(against) if workers is None else workers
        work = chosen.choose(workload, data, model, about, settings)
        verdict = run_verify(work.build, settings, counts, for_stderr(), peer=against)
    if json:
        print_json(tables.verdict_as_dict(verdict))
    else:
        tables.print_verdict(verdict)
    return 0 if verdict.is_passed else 1


@app.command
def scale(
    workload: str | None = None,
    /,
    *,
    data: DataSource = None,
    model: ModelOf = None,
    about: GivenAboutData = UNSET_DATA,
    out: Annotated[Path, Parameter(help="Folder for the study's record and page; an interrupted study goes on there.")],
    workers: Annotated[tuple[int, ...], Parameter(help="Numbers of workers, comma separated.")] = (1, 2),
    weak: Annotated[
        bool, Parameter(converter=None, help="Also measure with the batch growing with the workers.")
    ] = False,
    repeats: Annotated[
        int,
        Parameter(help="Rounds, each with new processes and one value of a program; more narrow the intervals."),
    ] = 6,
    slot_s: Annotated[float, Parameter(help="Seconds of a slot, at least.")] = 0.5,
    settings: GivenNumerics = UNSET_NUMERICS,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Measure whether parallel training pays: against the best single process, the machine's roof and one worker."""
    refuse_ranks("scale")
    from samestep.cli.teller import Teller  # noqa: PLC0415
    from samestep.measure import scale as study_of  # noqa: PLC0415
    from samestep.report import page  # noqa: PLC0415

    with stdout_kept(), Teller() as teller:
        build = chosen.choose(workload, data, model, about, settings).build
        study, resolved = study_of.plan_study(build(), settings, workers, is_weak=weak, rounds=repeats, slot_s=slot_s)
        record = study_of.measure(build, settings, study, resolved, out, teller)
        findings = study_of.analyse(record)
        path = page.write(out)
    if json:
        print_json(tables.findings_as_dict(findings, path))
    else:
        tables.print_findings(findings, path)
    return 0


@app.command
def sweep(
    workload: str,
    /,
    *,
    batches: Annotated[
        tuple[int | Literal["full"], ...], Parameter(help="Global batches, comma separated; full: all training rows.")
    ],
    optimizers: Annotated[tuple[str, ...], Parameter(help="Optimisers by name, comma separated.")],
    target: Annotated[str, Parameter(help="When a run has reached its goal: val_error<=0.10, val_loss<=0.3, ...")],
    out: Annotated[Path, Parameter(help="Folder for the record, the runs and the page; an interrupted sweep goes on.")],
    trials: Annotated[int, Parameter(help="Settings tried for every optimiser and batch.")] = 16,
    seeds: Annotated[int, Parameter(help="Fresh seeds of the chosen settings.")] = 5,
    first_steps: Annotated[int | None, Parameter(help="Steps of the shortest runs, about; default: 8.")] = None,
    most_steps: Annotated[
        int | None, Parameter(help="Steps of the longest runs; default: as the recipe, at the smallest batch.")
    ] = None,
    rows: Annotated[
        int | None, Parameter(help="Training rows used, a sixth of them to choose by; default: all.")
    ] = None,
    label_smoothing: Annotated[bool, Parameter(converter=None, help="Search label smoothing too.")] = False,
    average_weights: Annotated[bool, Parameter(converter=None, help="Search weight averaging too.")] = False,
    jobs: Annotated[int | None, Parameter(help="Runs side by side; default: one per core.")] = None,
    settings: GivenNumerics = UNSET_NUMERICS,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Measure steps to a target against the batch, with tuned settings for every optimiser and batch."""
    refuse_ranks("sweep")
    from samestep import torch_private  # noqa: PLC0415
    from samestep.cli import sweeps  # noqa: PLC0415
    from samestep.cli.teller import Teller  # noqa: PLC0415
    from samestep.measure.sweep import result, study  # noqa: PLC0415
    from samestep.report import page  # noqa: PLC0415

    torch_private.without_compiler_import()
    with stdout_kept(), Teller() as teller:
        wishes = study.Wishes(
            batches=batches,
            optimizers=optimizers,
            goal=target,
            trials=trials,
            seeds=seeds,
            first_steps=first_steps,
            most_steps=most_steps,
            rows=rows,
            has_label_smoothing=label_smoothing,
            has_averaging=average_weights,
        )
        planned = study.plan(partial(chosen.workload_of, workload, settings), settings, wishes)
        findings = result.analyse(study.measure(planned, out, teller, jobs=jobs))
        path = page.write(out)
    if json:
        print_json(sweeps.as_dict(findings, path))
    else:
        sweeps.show(findings, path)
    return 0


@app.command
def demo(*, out: Annotated[Path, Parameter(help="Folder for the records and the page.")] = Path("runs/demo")) -> int:
    """Train on the embedded digits: plain torch, one worker, one worker per core; compare, and write a page."""
    refuse_ranks("demo")
    from samestep.demo import WORKLOAD, demonstrate  # noqa: PLC0415
    from samestep.run.progress import for_stderr  # noqa: PLC0415
    from samestep.workloads import catalog  # noqa: PLC0415

    outcome = demonstrate(lambda: catalog.build(WORKLOAD), for_stderr(), out)
    tables.print_outcome(outcome)
    return 0 if outcome.is_same else 1


@app.command
def report(folder: Path, /) -> int:
    """Write one page, FOLDER/report.html, about all runs and studies in a folder; it needs no network.

    Parameters
    ----------
    folder
        What train --out, scale --out and sweep --out have written, one or several of them, also in sub-folders.
    """
    from samestep.report import page  # noqa: PLC0415

    print(page.write(folder))
    return 0
