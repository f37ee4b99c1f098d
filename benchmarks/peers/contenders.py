"""Who is compared: a command each, as the library's documentation starts it."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROGRAMS = HERE / "programs"
TOOLS = ROOT / ".venv-peers" / "bin"

Case = Literal["mlp", "cnn"]
CASES: tuple[Case, ...] = ("mlp", "cnn")
WORKLOADS: Mapping[Case, tuple[str, ...]] = {"mlp": ("fashion-mlp",), "cnn": ("fashion-cnn", "--width", "8")}
"""What samestep's command line is asked for; the same networks as in `programs/nets.py`."""

NUM_SAMPLES, GLOBAL_BATCH = 60_000, 256
STEPS_PER_EPOCH = -(-NUM_SAMPLES // GLOBAL_BATCH)
NEVER = 2.0
"""A target that no accuracy reaches."""

_RECIPE = ("--optimizer", "sgd", "--lr", "0.05", "--momentum", "0.9", "--lr-schedule", "constant", "--lr-warmup", "0")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to train.

    Args:
        name: What it is called in records.
        label: What it is called on the page.
        library: Whose update of the weights is a step, see `probe/sitecustomize.py`.
        launcher: What starts it.
        script: Its file in `programs`; None: samestep's command line needs none.
        options: What is passed beside the task.
        processes: How many update weights.
        threads: Threads inside one operation; None: whatever the library and its launcher choose.
        cases: What it can train.
    """

    name: str
    label: str
    library: Literal["torch", "keras", "sklearn", "samestep"]
    launcher: Literal["python", "torchrun", "accelerate", "samestep"] = "python"
    script: str | None = None
    options: tuple[str, ...] = ()
    processes: int = 1
    threads: int | None = None
    cases: tuple[Case, ...] = CASES

    def command(self, case: Case, *, epochs: int, target: float, seed: int) -> list[str]:
        """The command line that trains a case until the target is reached, or for so many epochs."""
        task = ["--epochs", str(epochs), "--seed", str(seed)]
        if self.script is None:
            batch = ("--global-batch", str(GLOBAL_BATCH))
            words = [str(TOOLS / "samestep"), "train", *WORKLOADS[case], *_RECIPE, *batch, *self.options, *task]
            return [*words, "--until", f"accuracy={target:g}", "--json"]
        launch = {
            "python": ["python"],
            "torchrun": ["torchrun", "--standalone", f"--nproc-per-node={self.processes}"],
            "accelerate": ["accelerate", "launch", "--cpu"],
        }[self.launcher]
        tool = [str(TOOLS / launch[0]), *launch[1:]]
        return [*tool, str(PROGRAMS / self.script), case, *self.options, *task, "--target", f"{target:g}"]

    def environment(self, before: Mapping[str, str]) -> dict[str, str]:
        """The environment it runs in: threads are set for it, or left to it."""
        kept = {name: value for name, value in before.items() if name not in _THREAD_VARIABLES}
        return kept if self.threads is None else kept | dict.fromkeys(_THREAD_VARIABLES, str(self.threads))

    def as_dict(self) -> dict[str, Any]:
        """What decides what it does, as plain values, with a digest of its script."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("label", "cases")}
        return {**kept, "script_digest": _digest(self.script)}

    def num_lines(self) -> int:
        """Lines of the script that are code: no blank lines, comments, docstrings."""
        return 0 if self.script is None else _num_code_lines((PROGRAMS / self.script).read_text())


def _plain(script: str, label: str) -> list[Contender]:
    return [
        Contender(
            name=f"torch-{script}-{threads}",
            label=f"torch, {label}, {threads} thread{'s' if threads > 1 else ''}",
            library="torch",
            script=f"torch_{script}.py",
            threads=threads,
        )
        for threads in (1, 2)
    ]


def _lightning(name: str, label: str, *, processes: int, options: tuple[str, ...] = ()) -> Contender:
    return Contender(
        name=f"lightning-{name}",
        label=f"Lightning, {label}",
        library="torch",
        script="lightning_fit.py",
        processes=processes,
        options=options,
    )


def _samestep(*options: str, workers: int, suffix: str = "", note: str = "") -> list[Contender]:
    """Its Python interface and its command line; `options` are for both."""
    words = ("--workers", str(workers), *options)
    many = "1 worker" if workers == 1 else f"{workers} workers"
    fit = Contender(
        name=f"samestep-fit-{workers}{suffix}",
        label=f"samestep.fit, {many}{note}",
        library="samestep",
        script="samestep_fit.py",
        options=words,
        processes=workers,
    )
    train = Contender(
        name=f"samestep-train-{workers}{suffix}",
        label=f"samestep train, {many}{note}",
        library="samestep",
        launcher="samestep",
        options=words,
        processes=workers,
    )
    return [fit, train]


CONTENDERS: tuple[Contender, ...] = (
    *_plain("loader", "DataLoader"),
    *_plain("indexed", "indexing, fused SGD"),
    Contender(
        name="ddp-2", label="torch, DDP on Gloo, 2 ranks", library="torch", launcher="torchrun", script="ddp.py",
        processes=2,
    ),
    _lightning("1", "1 device", processes=1),
    _lightning("ddp-2", "ddp, 2 devices", processes=2, options=("--workers", "2", "--strategy", "ddp")),
    _lightning("spawn-2", "ddp_spawn, 2 devices", processes=2, options=("--workers", "2", "--strategy", "ddp_spawn")),
    Contender(
        name="accelerate-1", label="Accelerate, accelerate launch --cpu", library="torch", launcher="accelerate",
        script="accelerate_loop.py",
    ),
    Contender(
        name="accelerate-2", label="Accelerate, torchrun, 2 processes", library="torch", launcher="torchrun",
        script="accelerate_loop.py", processes=2,
    ),
    Contender(name="skorch-1", label="skorch", library="torch", script="skorch_fit.py"),
    Contender(
        name="sklearn-1", label="scikit-learn, MLPClassifier", library="sklearn", script="sklearn_mlp.py",
        cases=("mlp",),
    ),
    Contender(name="keras-1", label="Keras 3 on torch", library="keras", script="keras_fit.py"),
    *_samestep(workers=1),
    *_samestep(workers=2),
    *_samestep("--microbatch", "128", workers=2, suffix="-m128", note=", microbatch 128"),
)  # fmt: skip

REFERENCE = "samestep-fit-2"
"""What the others are divided by."""

TWIN = f"{REFERENCE}-twin"
"""A second copy of it: how far apart two programs come out that are the same."""


def of(case: Case) -> list[Contender]:
    """Who can train a case."""
    return [contender for contender in CONTENDERS if case in contender.cases]


def _digest(script: str | None) -> str | None:
    """Of the code that is run, comments left out, so that a changed script is measured again."""
    if script is None:
        return None
    found = hashlib.sha256()
    for path in (PROGRAMS / script, *(PROGRAMS / name for name in ("task.py", "nets.py", "keras_nets.py"))):
        found.update(ast.dump(ast.parse(path.read_text())).encode())
    return found.hexdigest()[:16]


def _num_code_lines(text: str) -> int:
    """
    >>> _num_code_lines('''"A docstring."\\n\\n# a comment\\nx = [\\n    1,\\n]\\n''')
    3
    """
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in silent]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    return len(lines - _docstring_lines(ast.parse(text)))


def _docstring_lines(module: ast.Module) -> set[int]:
    owners = [module, *(node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.ClassDef))]
    return {
        line
        for owner in owners
        if ast.get_docstring(owner) is not None
        for line in range(owner.body[0].lineno, (owner.body[0].end_lineno or 0) + 1)
    }
