"""The command line: parses, calls, prints; no logic of its own."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError

from samestep.cli import chosen, flags, tables
from samestep.data.settings import DataSettings
from samestep.errors import Interrupted, SamestepError, UsageError, WorkerError
from samestep.run.config import NumericSettings, Settings
from samestep.version import __version__

_UNSET = Settings()
_UNSET_NUMERICS = NumericSettings()
_UNSET_DATA = DataSettings()

app = App(
    name="samestep",
    help="Train a neural network in parallel: the same network, bit for bit, on any number of workers.",
    version=__version__,
    config=flags.from_file,
    default_parameter=Parameter(negative=(), negative_iterable=(), show_env_var=False, converter=flags.convert_value),
    help_formatter="plain",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)

_Settings = Annotated[Settings, Parameter(name="*")]
_NumericSettings = Annotated[NumericSettings, Parameter(name="*")]
_DataSettings = Annotated[DataSettings, Parameter(name="*")]
_Data = Annotated[str | None, Parameter(help="A file, folder, archive or pack to learn from; no WORKLOAD then.")]
_ModelOf = Annotated[chosen.Model | None, Parameter(help="The network for --data; default: what suits it.")]
_ConfigFile = Annotated[Path | None, Parameter(help="TOML file with the same names; flags win.")]
_Json = Annotated[bool, Parameter(negative=(), converter=None, help="Print one JSON object on stdout, nothing else.")]


@app.command
def train(
    workload: str | None = None,
    /,
    *,
    data: _Data = None,
    model: _ModelOf = None,
    about: _DataSettings = _UNSET_DATA,
    settings: _Settings = _UNSET,
    config: _ConfigFile = None,
    json: _Json = False,
    print_config: Annotated[bool, Parameter(converter=None)] = False,
) -> int:
    """Train a workload.

    Parameters
    ----------
    workload
        A built-in name (see samestep workloads), or FILE.py:FUNCTION, a function that returns a Workload.
    print_config
        Print the resolved configuration as TOML and stop.
    """
    from samestep import torch_private  # noqa: PLC0415
    from samestep.run.config import as_toml, resolve  # noqa: PLC0415
    from samestep.run.prepare import Choices  # noqa: PLC0415
    from samestep.run.progress import for_stderr  # noqa: PLC0415
    from samestep.run.train import run  # noqa: PLC0415

    torch_private.without_compiler_import()
    with redirect_stdout(sys.stderr):  # what the workload's own code prints
        picked = chosen.choose(workload, data, model, about, settings)
        built = picked.build()
        if not print_config:
            result = run(built, settings, choices=Choices(), progress=for_stderr())
            if picked.network is not None and settings.out is not None:
                picked.network.save(settings.out)
    if print_config:
        print(as_toml(resolve(settings, built.recipe).as_dict()))
        return 0
    summary = result.record.summary()
    if json:
        _print_json(summary)
    else:
        tables.print_summary(summary, settings.out)
    return 0


@app.command
def verify(
    workload: str | None = None,
    /,
    *,
    data: _Data = None,
    model: _ModelOf = None,
    about: _DataSettings = _UNSET_DATA,
    workers: Annotated[
        tuple[int, ...] | None,
        Parameter(help="Numbers of workers, comma separated; default: 1,2, and 1 with --against."),
    ] = None,
    against: Annotated[
        Literal["torch", "ddp"] | None,
        Parameter(help="Also train with plain torch, or with DistributedDataParallel on two ranks."),
    ] = None,
    settings: _NumericSettings = _UNSET_NUMERICS,
    config: _ConfigFile = None,
    json: _Json = False,
) -> int:
    """Train once per number of workers, and with a peer, and compare every tensor.

    Exits with 1 where a number of workers gives other bits, or a peer differs by more than rounding.
    """
    from samestep import torch_private  # noqa: PLC0415
    from samestep.measure.verify import default_workers  # noqa: PLC0415
    from samestep.measure.verify import verify as run_verify  # noqa: PLC0415
    from samestep.run.progress import for_stderr  # noqa: PLC0415

    torch_private.without_compiler_import()
    with redirect_stdout(sys.stderr):  # what the workload's own code prints
        counts = default_workers(against) if workers is None else workers
        picked = chosen.choose(workload, data, model, about, settings)
        verdict = run_verify(picked.build, settings, counts, for_stderr(), peer=against)
    if json:
        _print_json(tables.verdict_as_dict(verdict))
    else:
        tables.print_verdict(verdict)
    return 0 if verdict.is_passed else 1


@app.command
def scale(
    workload: str | None = None,
    /,
    *,
    data: _Data = None,
    model: _ModelOf = None,
    about: _DataSettings = _UNSET_DATA,
    out: Annotated[Path, Parameter(help="Folder for the study's record and page; an interrupted study goes on there.")],
    workers: Annotated[tuple[int, ...], Parameter(help="Numbers of workers, comma separated.")] = (1, 2),
    weak: Annotated[
        bool, Parameter(converter=None, help="Also measure with the batch growing with the workers.")
    ] = False,
    repeats: Annotated[int, Parameter(help="Slots of every program; more make the intervals narrower.")] = 10,
    slot_s: Annotated[float, Parameter(help="Seconds of a slot, at least.")] = 0.5,
    settings: _NumericSettings = _UNSET_NUMERICS,
    config: _ConfigFile = None,
    json: _Json = False,
) -> int:
    """Measure whether parallel training pays: against the best single process, the machine's roof and one worker."""
    from samestep.cli.teller import Teller  # noqa: PLC0415
    from samestep.measure import scale as study_of  # noqa: PLC0415
    from samestep.report import page  # noqa: PLC0415

    with redirect_stdout(sys.stderr), Teller() as teller:  # what the workload's own code prints
        build = chosen.choose(workload, data, model, about, settings).build
        study, resolved = study_of.plan_study(build(), settings, workers, is_weak=weak, rounds=repeats, slot_s=slot_s)
        record = study_of.measure(build, settings, study, resolved, out, teller)
        findings = study_of.analyse(record)
        path = page.write(out)
    if json:
        _print_json(tables.findings_as_dict(findings, path))
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
    jobs: Annotated[int | None, Parameter(help="Runs side by side; default: one per core.")] = None,
    settings: _NumericSettings = _UNSET_NUMERICS,
    config: _ConfigFile = None,
    json: _Json = False,
) -> int:
    """Measure steps to a target against the batch, with tuned settings for every optimiser and batch."""
    from samestep import torch_private  # noqa: PLC0415
    from samestep.cli import sweeps  # noqa: PLC0415
    from samestep.cli.teller import Teller  # noqa: PLC0415
    from samestep.measure.sweep import result, study  # noqa: PLC0415
    from samestep.report import page  # noqa: PLC0415

    torch_private.without_compiler_import()
    with redirect_stdout(sys.stderr), Teller() as teller:  # what the workload's own code prints
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
        )
        planned = study.plan(partial(chosen.workload_of, workload, settings), settings, wishes)
        findings = result.analyse(study.measure(planned, out, teller, jobs=jobs))
        path = page.write(out)
    if json:
        _print_json(sweeps.as_dict(findings, path))
    else:
        sweeps.show(findings, path)
    return 0


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


@app.command
def demo(*, out: Annotated[Path, Parameter(help="Folder for the records and the page.")] = Path("runs/demo")) -> int:
    """Train on the embedded digits: plain torch, one worker, one worker per core; compare, and write a page."""
    from samestep.demo import WIDTH, WORKLOAD, demonstrate  # noqa: PLC0415
    from samestep.run.progress import for_stderr  # noqa: PLC0415
    from samestep.workloads import catalog  # noqa: PLC0415

    outcome = demonstrate(lambda: catalog.build(WORKLOAD, width=WIDTH), for_stderr(), out)
    tables.print_outcome(outcome)
    return 0 if outcome.is_same else 1


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
            help="One .npy file per input of the model, default: the evaluation part; for a RUN a table or pictures."
        ),
    ] = None,
    out: Annotated[Path | None, Parameter(help="CSV file to write; default: stdout.")] = None,
    width: int | None = None,
    depth: int | None = None,
) -> int:
    """Answer with trained weights: one line of CSV per sample.

    Parameters
    ----------
    workload
        A built-in name, FILE.py:FUNCTION, or RUN: the folder that train --data --out has written.
    """
    from samestep.run.predict import predict_table  # noqa: PLC0415
    from samestep.workloads import answers  # noqa: PLC0415

    if Path(workload).is_dir():
        if input is None or len(input) != 1 or (weights, width, depth) != (None, None, None):
            raise UsageError(f"{workload} is a run: give one --input to answer for, and nothing else but --out")
        table = answers.answer(Path(workload), input[0])
    elif weights is None:
        raise UsageError(f"--weights is missing: which weights of {workload} are to answer?")
    else:
        table = predict_table(chosen.workload_of(workload, NumericSettings(width=width, depth=depth)), weights, input)
    if out is None:
        sys.stdout.write(table)
    else:
        from samestep.host.files import write_atomically  # noqa: PLC0415

        write_atomically(out, table.encode())
        print(f"{out}: {table.count(chr(10)) - 1} answers", file=sys.stderr)
    return 0


@app.command
def pack(
    source: str,
    folder: Path,
    /,
    *,
    about: _DataSettings = _UNSET_DATA,
    config: _ConfigFile = None,
) -> int:
    """Pack a source into a folder that is mapped into memory as it is; nothing is done where it is packed already.

    Parameters
    ----------
    source
        A table (CSV, TSV; also .gz, .zip, .tar.gz), or a folder of tables with the same columns.
    folder
        Where the pack goes.
    """
    from samestep.cli import packs  # noqa: PLC0415
    from samestep.cli.teller import Teller  # noqa: PLC0415
    from samestep.data import making  # noqa: PLC0415

    with Teller() as teller:
        packed, is_new = making.ensure(source, folder, about, teller.packing)
    if not is_new:
        print(f"{folder}: {source} has not changed since it was packed")
    for line in packs.lines(packed):
        print(line)
    return 0


data_app = App(name="data", help="Look at packed data.")
app.command(data_app)


@data_app.command
def show(
    folder: Path,
    /,
    *,
    rows: Annotated[int, Parameter(help="First rows to print.")] = 5,
    check: Annotated[bool, Parameter(converter=None, help="Read every byte and compare it with its hash.")] = False,
) -> int:
    """Print what is in a pack: its columns, first rows, classes, missing values and sizes."""
    from samestep.cli import packs  # noqa: PLC0415
    from samestep.data.pack.reader import open_pack  # noqa: PLC0415

    packed = open_pack(folder, is_checked=check or None)
    packs.print_pack(packed, rows)
    return 0


@app.command
def env(*, json: _Json = False) -> int:
    """Print what belongs in a bug report: versions, processor, memory, settings."""
    from samestep.host.facts import describe  # noqa: PLC0415

    facts = describe()
    if json:
        _print_json(facts)
    else:
        for name, value in facts.items():
            print(f"{name:16} {tables.as_text(value)}")
    return 0


@app.command
def workloads() -> int:
    """List the built-in workloads."""
    from samestep.workloads import catalog  # noqa: PLC0415

    for entry in catalog.entries():
        print(f"{entry.name:26} {entry.description}")
    return 0


def _print_json(values: dict[str, Any]) -> None:
    print(json_format.dumps(values))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; a mistake of the caller's is one line on stderr and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return cast("int | None", app(words)) or 0
    except CycloptsError as error:
        chain = " ".join(["samestep", *(error.command_chain or ())])
        if not isinstance(error, UnknownCommandError) and chain == "samestep" and words and words[0] in app:
            chain = f"samestep {words[0]}"
        return _fail(f"{flags.describe(error, app)}; see {chain} --help", 2)
    except Interrupted as error:
        return _fail(str(error), 128 + error.signum)
    except WorkerError as error:
        sys.stderr.write(error.trace)
        return _fail(str(error), 1)
    except SamestepError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except BrokenPipeError:  # the reader of our output has left
        sys.stderr.close()
        return 1


def _fail(text: str, code: int) -> int:
    line = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    print(f"samestep: {line}", file=sys.stderr)
    return code
