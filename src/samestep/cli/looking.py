"""Commands that pack data, and that show what there is: data, machine, workloads, optimisers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from samestep.cli import tables
from samestep.cli.app import UNSET_DATA, ConfigFile, GivenAboutData, Json, app, print_json


@app.command
def pack(
    source: str,
    folder: Path,
    /,
    *,
    about: GivenAboutData = UNSET_DATA,
    config: ConfigFile = None,
) -> int:
    """Pack a source into a folder that is mapped into memory as it is; nothing is done where it is packed already.

    Parameters
    ----------
    source
        A table (CSV, TSV, Parquet, Arrow, .npy, .npz; also .gz, .zip, .tar.gz, or a folder of tables with the same
        columns), a folder of pictures or of IDX files, a text (.txt, or any with --text), a data set that Hugging
        Face's datasets has saved, or kaggle:OWNER/SET.
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


data_app = App(name="data", help="Look at data.")
app.command(data_app)


@data_app.command
def show(
    source: str,
    /,
    *,
    rows: Annotated[int, Parameter(help="First rows or samples to print.")] = 5,
    check: Annotated[bool, Parameter(converter=None, help="Read every byte and compare it with its hash.")] = False,
    about: GivenAboutData = UNSET_DATA,
    config: ConfigFile = None,
) -> int:
    """Print what is in a pack: its columns, first samples, classes, missing values and sizes.

    Parameters
    ----------
    source
        A pack; or what is to be packed, which goes into the user's cache, where train --data finds it again.
    """
    from samestep.cli import packs  # noqa: PLC0415
    from samestep.cli.teller import Teller  # noqa: PLC0415
    from samestep.data import making  # noqa: PLC0415
    from samestep.data.pack import reader  # noqa: PLC0415

    with Teller() as teller:
        packed = making.in_cache(source, about, teller.packing)
    if check:
        reader.check(packed)
    packs.print_pack(packed, rows)
    return 0


@app.command
def env(*, json: Json = False) -> int:
    """Print what belongs in a bug report: versions, processor, memory, settings."""
    from samestep.host.facts import describe  # noqa: PLC0415

    facts = describe()
    if json:
        print_json(facts)
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


@app.command
def optimizers() -> int:
    """List the optimisers: what each looks at, the rule by which its learning rate follows the batch, its source."""
    from samestep.optim import catalog  # noqa: PLC0415

    for entry in catalog.entries():
        print(f"{entry.name:18} {entry.looks_at:13} {entry.rule:7} {entry.source}")
    return 0
