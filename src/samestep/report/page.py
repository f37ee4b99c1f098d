"""The page: everything in one file that needs nothing from outside."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from samestep.host import files
from samestep.report import facts, palette, raw, records, runs, studies, svg, sweeps, text
from samestep.report.records import Found
from samestep.report.shapes import Part, Section, Verdict
from samestep.report.studies import Analysed
from samestep.report.sweeps import Swept
from samestep.version import __version__

_OF_STUDIES = (
    "A speed-up holds for this machine, this network and this global batch; on another it has to be measured again.",
    "Intervals cover 95 % of the chance in the rounds that were measured, not what another day or machine would add.",
)
_OF_RUNS = (
    "The times of a run are one measurement, without an interval; which of two is faster, `samestep scale` measures.",
)


_OF_SWEEPS = (
    "Steps to a target hold for this network, these data, this target and so many trials; more may find fewer.",
    "Steps to the target are read at evaluations, every 5 % of a run's budget; times are those of runs side by side.",
)


def write(folder: Path, *, said: Sequence[str] = ()) -> Path:
    """Write FOLDER/report.html from every record under a folder.

    The page is one file: it works offline and asks for nothing. The same records give the same bytes.

    Args:
        folder: Where `record.json` (runs), `scale.json` (scaling studies) and `sweep.json` (sweeps) are looked for, in
            sub-folders too.
        said: Sentences that stand above all others.

    Returns:
        The page's path.

    Raises:
        UsageError: There is no record, or one cannot be read; with the file and the field.
        StateError: The page cannot be written.
    """
    path = folder / "report.html"
    found = records.find(folder)
    files.write_atomically(path, html(found, text.clean(folder.resolve().name or "records"), said).encode())
    return path


def html(found: Found, name: str, said: Sequence[str] = ()) -> str:
    """The page of these records.

    Args:
        found: At least one record.
        name: What the page is called.
        said: Sentences that stand above all others.
    """
    analysed = [studies.analyse(study) for study in found.studies]
    swept = [sweeps.analyse(sweep) for sweep in found.sweeps]
    style, script = palette.css() + _file("style.css"), _file("script.js")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_file("template.html.j2")).render(
        name=name,
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        hatches=svg.hatches(),
        subtitle=_subtitle(found),
        verdicts=[
            *(Verdict(subject=name, sentence=text.clean(each)) for each in said),
            *_verdicts(found, analysed, swept),
        ],
        alerts=[*(alert for each in analysed for alert in studies.alerts(each)), *facts.alerts(found)],
        sections=_sections(found, analysed, swept),
        downloads=raw.downloads(found),
        version=__version__,
    )


def _verdicts(found: Found, analysed: list[Analysed], swept: list[Swept]) -> list[Verdict]:
    return [
        *(verdict for each in analysed for verdict in studies.verdicts(each)),
        *(sweeps.verdict(each) for each in swept),
        *runs.verdicts(found.runs),
    ]


def _sections(found: Found, analysed: list[Analysed], swept: list[Swept]) -> list[Section]:
    is_only = len(analysed) == 1
    return [
        *(studies.section(each, number, is_only=is_only) for number, each in enumerate(analysed, 1)),
        *(sweeps.section(each, number) for number, each in enumerate(swept, 1)),
        *([runs.section(found.runs)] if found.runs else []),
        facts.configuration(found),
        facts.machine(found),
        _caveats(found, analysed, swept),
        raw.section(found),
    ]


def _caveats(found: Found, analysed: list[Analysed], swept: list[Swept]) -> Section:
    notes = [
        *(caveat for each in analysed for caveat in studies.caveats(each)),
        *(caveat for each in swept for caveat in sweeps.caveats(each)),
        *runs.caveats(found.runs),
        *(_OF_STUDIES if analysed else ()),
        *(_OF_SWEEPS if swept else ()),
        *(_OF_RUNS if found.runs else ()),
    ]
    return Section(name="caveats", title="Caveats", parts=[Part(notes=notes)])


def _subtitle(found: Found) -> str:
    """How many records of what, from when."""
    counts = [(len(found.studies), "scaling stud"), (len(found.sweeps), "sweep"), (len(found.runs), "run")]
    said = []
    for amount, noun in counts:
        if amount:
            many = {"scaling stud": "ies" if amount > 1 else "y"}.get(noun, "s" if amount > 1 else "")
            said.append(f"{amount} {noun}{many}")
    days = sorted({str(each.environment["created"])[:10] for each in found.all if each.environment.get("created")})
    when = [text.clean(f"{days[0]} to {days[-1]}" if len(days) > 1 else days[0])] if days else []
    return ", ".join([*said, *when])


def _file(name: str) -> str:
    return (resources.files("samestep.report") / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    """What a content security policy calls an inline style or script."""
    return f"sha256-{b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
