"""The parts that are measured one by one, and their records on disk."""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import contenders, measures
from benchmarks.peers.contenders import ROOT, TOOLS, Case, Contender
from benchmarks.peers.measures import Plan, Say, Stage, Values
from samestep.data import idx, sources

FOLDER = ROOT / "benchmarks" / "results" / "peers"
PEERS = ("torch", "lightning", "accelerate", "skorch", "scikit-learn", "keras", "numpy")

_FIRST_SEED = 1
"""Seed 0 is a bad one for the CNN: at this learning rate it dies, in plain torch too."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure and how often it is taken.

    Args:
        take: Measures some programs once.
        repeats: How often, by case.
        shares: In how many parts a repeat is cut, by case; 1 where it is not named. A part takes five minutes at most.
    """

    take: Callable[[Sequence[Contender], Stage, Plan, Say], Values]
    repeats: Mapping[Case, int]
    shares: Mapping[Case, int] = field(default_factory=dict)


MEASURES: Mapping[str, Measure] = {
    "step": Measure(take=measures.step_time, repeats={"mlp": 2, "cnn": 2}),
    "start": Measure(take=measures.start_up, repeats={"mlp": 7, "cnn": 4}),
    "memory": Measure(take=measures.memory, repeats={"mlp": 3, "cnn": 3}, shares={"cnn": 2}),
    "target": Measure(take=measures.time_to_target, repeats={"mlp": 6}, shares={"mlp": 2}),
}
"""The first repeat of "start" warms the file cache and is left out of all statistics."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One repeat of a measure for a case, or a share of its programs."""

    measure: str
    case: Case
    repeat: int
    share: int = 0

    @property
    def num_shares(self) -> int:
        return MEASURES[self.measure].shares.get(self.case, 1)

    @property
    def name(self) -> str:
        return f"{self.measure}-{self.case}-{self.repeat}" + ("abcdef"[self.share] if self.num_shares > 1 else "")

    @property
    def seed(self) -> int:
        return _FIRST_SEED + self.repeat

    def programs(self) -> list[Contender]:
        """A repeat's programs in random order, or a share of them."""
        every = contenders.of(self.case)
        shuffled = random.Random(self.seed).sample(every, len(every))
        return shuffled[self.share :: self.num_shares]

    def settings(self, plan: Plan) -> Values:
        """What a record must have been made with to count as this part."""
        programs = [contender.as_dict() for contender in self.programs()]
        dealt = plan.as_dict() if self.measure == "step" else {}
        goal = {"target": measures.TARGET, "most_epochs": measures.TARGET_EPOCHS} if self.measure == "target" else {}
        settings = {"part": self.name, "repeat": self.repeat, "seed": self.seed, **dealt, **goal, "programs": programs}
        plain: Values = json.loads(json.dumps(settings))
        return plain


def every() -> list[Part]:
    """All parts, in the order in which they are measured."""
    return [
        Part(measure=name, case=case, repeat=repeat, share=share)
        for name, measure in MEASURES.items()
        for case, repeats in measure.repeats.items()
        for repeat in range(repeats)
        for share in range(measure.shares.get(case, 1))
    ]


def read(folder: Path, part: Part) -> Values | None:
    """A part's record, if there is one."""
    path = folder / f"{part.name}.json"
    if not path.exists():
        return None
    record: Values = json.loads(path.read_text())
    return record


def is_done(folder: Path, part: Part, plan: Plan) -> bool:
    record = read(folder, part)
    return record is not None and record["settings"] == part.settings(plan)


def run(folder: Path, part: Part, plan: Plan, say: Say) -> None:
    """Measure a part and write its record."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="samestep-peers-") as name:
        stage = Stage(folder=Path(name), case=part.case, seed=part.seed)
        write_data(stage.folder)
        take = MEASURES[part.measure].take
        measured = take(part.programs(), stage, plan, lambda text: say(f"{part.name}: {text}"))
    # Imports torch, to describe the machine: only now, when nothing is measured any more.
    results = import_module("benchmarks.results")
    record = results.new(
        part.settings(plan),
        {"peers": versions(), "programs": measured},
        module="benchmarks.peers",
        duration_s=time.monotonic() - start,
    )
    results.write(folder / f"{part.name}.json", record)


def write_data(folder: Path) -> None:
    """Fashion-MNIST as .npy files: inputs as float32 in 0..1, shape (n, 784), labels as int64."""
    for part, name in (("train", "train"), ("t10k", "test")):
        images = idx.read(sources.find("fashion-mnist", f"{part}-images-idx3-ubyte.gz"), num_dims=3)
        labels = idx.read(sources.find("fashion-mnist", f"{part}-labels-idx1-ubyte.gz"), num_dims=1)
        np.save(folder / f"x_{name}.npy", images.reshape(len(images), -1).astype(np.float32) / 255)
        np.save(folder / f"y_{name}.npy", labels.astype(np.int64))


def versions() -> dict[str, str]:
    """The versions that the programs run with."""
    lines = f"from importlib.metadata import version\nfor name in {PEERS}: print(version(name))"
    words = [str(TOOLS / "python"), "-c", lines]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return dict(zip(PEERS, done.stdout.split(), strict=True))


def needs_what() -> str | None:
    """What has to be there before anything can be measured, and is not."""
    if not (TOOLS / "python").exists():
        return (
            "the peers live in a virtual environment of their own, which is missing. Make it with\n"
            "  python3 -m venv .venv-peers\n"
            "  .venv-peers/bin/python -m pip install -r benchmarks/peers/requirements.txt\n"
            "  .venv-peers/bin/python -m pip install --no-deps -e ."
        )
    return None


Records = dict[tuple[str, Case], list[dict[str, Any]]]


def collect(folder: Path) -> Records:
    """All records by measure and case, in the order of their repeats."""
    found: Records = {}
    for part in every():
        record = read(folder, part)
        if record is not None:
            found.setdefault((part.measure, part.case), []).append(record)
    return found
