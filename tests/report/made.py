"""Made-up records: a study of two axes and two runs, the same bytes every time."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from samestep.host import records
from samestep.measure.sweep import halving, trial
from samestep.measure.sweep.critical import steps_at
from samestep.measure.sweep.study import Study, moves
from samestep.measure.sweep.trial import Cell, Finished, Trial

WORKERS = (1, 2, 4)
ROUNDS = 10
GROUPS = {"data": 0.04, "compute": 0.7, "waiting": 0.12, "combine + update": 0.1, "machinery": 0.04}


def environment(**host: Any) -> dict[str, Any]:
    facts = {
        "processor": "Made-up CPU",
        "cores": 4,
        "quota_cores": None,
        "instruction_set": "AVX2",
        "memory_mb": 16384,
        "caches": {"L1d_bytes": 32768, "L3_bytes": 33554432},
        "variables": {},
        "load": 0.25,
    }
    return {
        "created": "2025-11-24T10:00:00+00:00",
        "host": {**facts, **host},
        "peaks": {"num_cores": 4, "copy_bytes_per_s_one_core": 1.25e10, "matmul_flop_per_s_all_cores": 2.5e11},
        "versions": {"python": "3.11.7", "torch": "2.13.0", "samestep": "0.2.0"},
        "source_sha256": "5" * 64,
        "git_commit": "abc1234+",
    }


def config(**other: Any) -> dict[str, Any]:
    settings = {
        "workers": 1,
        "global_batch": 256,
        "microbatch": 32,
        "epochs": None,
        "steps": 300,
        "optimizer": "sgd",
        "lr": 0.05,
        "momentum": 0.9,
        "seed": 0,
        "threads_per_worker": 1,
    }
    return settings | other


def study(**other: Any) -> dict[str, Any]:
    """The body of a scale.json: strong and weak scaling on 1, 2 and 4 workers."""
    generator = np.random.default_rng(7)
    programs, slots = [], {}
    for axis in ("strong", "weak"):
        for program, seconds in _programs(axis):
            programs.append(program)
            slots[f"{axis}/{program['name']}"] = [
                _slot(round_, seconds * float(generator.lognormal(0, 0.015)), program["workers"], generator)
                for round_ in range(ROUNDS)
            ]
    body = {
        "environment": environment(),
        "config": config(),
        "study": {"workload": "fashion-mlp", "workers": list(WORKERS), "axes": ["strong", "weak"], "rounds": ROUNDS},
        "programs": programs,
        "slots": slots,
    }
    return body | other


def disturbed(body: dict[str, Any]) -> dict[str, Any]:
    """The same study, measured while another program took a third of the machine from one of its own."""
    for slot in body["slots"]["weak/samestep, 4 workers of 256 samples"]:
        slot["others_frac"] = 0.3
    return body


def _programs(axis: str) -> list[tuple[dict[str, Any], float]]:
    """Programs and the seconds that a step of theirs takes."""

    def program(name: str, kind: str, workers: int, threads: int, copies: int, batch: int) -> dict[str, Any]:
        return {
            "name": name,
            "kind": kind,
            "axis": axis,
            "workers": workers,
            "threads": threads,
            "copies": copies,
            "global_batch": batch,
            "microbatch": 32,
        }

    found = []
    for threads, seconds in ((1, 0.0041), (2, 0.0034)):
        found.append(
            (program(f"torch, {threads} thread{'s' if threads > 1 else ''}", "torch", 1, threads, 1, 256), seconds)
        )
    for count in WORKERS:
        share = 1 / count if axis == "strong" else 1.0
        batch = 256 if axis == "strong" else 256 * count
        noun = "worker" if count == 1 else "workers"
        suffix = "" if batch == 256 else " of 256 samples"
        seconds = 0.0040 * share + 0.00012 * math.log2(count) + 0.0002
        found.append((program(f"samestep, {count} {noun}{suffix}", "samestep", count, 1, 1, batch), seconds))
        if count > 1:
            roof = program(f"roof, {count} programs{suffix}", "roof", count, 1, count, batch)
            found.append((roof, 0.0041 * share + 0.0001 * count))
    return found


def _slot(round_: int, step_s: float, workers: int, generator: np.random.Generator) -> dict[str, Any]:
    steps = (step_s * generator.lognormal(0, 0.05, size=40)).tolist()
    phases = []
    for worker in range(workers):
        tilt = 0.06 * (worker / max(workers - 1, 1) - 0.5)
        parts = GROUPS | {"compute": GROUPS["compute"] + tilt, "waiting": GROUPS["waiting"] - tilt}
        phases.append({name: step_s * share for name, share in parts.items()})
    return {
        "round": round_,
        "step_s": step_s,
        "num_steps": len(steps),
        "others_frac": 0.01,
        "steps_s": steps,
        "phases": phases,
    }


def run(*, workers: int = 1, num_steps: int = 300, seed: int = 0, **other: Any) -> dict[str, Any]:
    """The body of a record.json."""
    generator = np.random.default_rng(seed)
    steps = np.arange(num_steps)
    losses = 2.3 * np.exp(-steps / 90) + 0.25 + 0.05 * generator.standard_normal(num_steps)
    durations = (0.0041 / workers + 0.0003) * np.random.default_rng(workers).lognormal(0, 0.08, size=num_steps)
    marks = list(range(50, num_steps + 1, 50))
    body = {
        "workload": "fashion-mlp",
        "engine": "solo" if workers == 1 else "shared",
        "workers": workers,
        "global_batch": 256,
        "microbatch": 32,
        "steps": num_steps,
        "samples": num_steps * 256,
        "weights_sha256": "ab" * 32,
        "train_loss": float(losses[-1]),
        "eval": {"loss": 0.4, "accuracy": 0.86},
        "wall_s": float(durations.sum()) + 0.8,
        "startup_s": 0.6,
        "samples_per_s": 256 * num_steps / float(durations.sum()),
        "peak_memory_bytes": 350 * 2**20 * workers,
        "end": "finished",
        "notices": [],
        "config": config(workers=workers, steps=num_steps, seed=seed),
        "numerics": {"torch_version": "2.13.0"},
        "first_step": 0,
        "environment": environment(),
        "evaluations": [
            {
                "step": step,
                "means": {"loss": 2.2 * math.exp(-step / 90) + 0.3, "accuracy": 0.9 - 0.7 * math.exp(-step / 60)},
                "is_best": True,
                "duration_s": 0.05,
            }
            for step in marks
        ],
        "breakdown": {
            "step_s": float(durations.mean()),
            "num_steps": num_steps,
            "workers": [{name: float(durations.mean()) * share for name, share in GROUPS.items()}] * workers,
        },
        "step_table": {
            "step": steps.tolist(),
            "loss": losses.tolist(),
            "gradient_norm": np.abs(losses * 0.7).tolist(),
            "num_samples": [256] * num_steps,
            "duration_s": durations.tolist(),
        },
    }
    return body | other


def sweep(**other: Any) -> dict[str, Any]:
    """The body of a sweep.json: AdamW bends at 500 samples; SGD reaches the target at no batch below 1,024."""
    study = Study(
        workload="fashion-mlp",
        optimizers=("adamw", "sgd"),
        batches=(64, 256, 1024, 4096),
        target="error <= 0.1",
        trials=4,
        seeds=5,
        budgets=(50, 100, 200, 400),
        kept=(4, 4, 4, 2),
        num_train=50_000,
        num_choosing=10_000,
        num_reported=10_000,
        has_label_smoothing=False,
        has_averaging=False,
        seed=0,
    )
    found: dict[tuple[Cell, halving.Run], Finished] = {}
    while missing := [
        (cell, run)
        for cell, move in moves(study, {key: one.outcome for key, one in found.items()}).items()
        for run in move.runs
    ]:
        found |= {(cell, run): _finished(cell, run) for cell, run in missing}
    entries = [
        trial.as_entry(Trial(optimizer=cell[0], batch=cell[1], run=run, point=study.points(cell)[run.trial]), one)
        for (cell, run), one in found.items()
    ]
    body = {
        "environment": environment(),
        "config": {"seed": 0, "threads_per_worker": 1, "microbatch": None},
        "study": records.as_plain(asdict(study)),
        "spaces": {},
        "jobs": 2,
        "runs": records.as_plain(entries),
    }
    return body | other


def _finished(cell: Cell, run: halving.Run) -> Finished:
    """Steps follow the law of a known critical batch; trial 3 diverges, the others differ a little."""
    optimizer, batch = cell
    if run.trial == 3:
        return Finished(outcome=halving.Outcome(failure="diverged: a loss is not finite in step 3"), wall_s=0.1)
    noise = 1 + 0.05 * ((run.seed * 7) % 5 - 2) + 0.1 * run.trial
    law = steps_at(batch, 20, 500) * noise
    reached = round(law) if law <= run.steps and (optimizer == "adamw" or batch >= 1024) else None
    steps = reached or run.steps
    best = 0.099 if reached else 0.1 + 0.1 * law / run.steps
    return Finished(
        outcome=halving.Outcome(reached_step=reached, best=best),
        evaluations=((steps, best),),
        num_steps=steps,
        num_samples=steps * batch,
        step_s=0.001 + 1e-5 * batch,
        wall_s=0.5,
        noise_scale=batch + 100.0 * run.seed if optimizer == "adamw" else None,
    )


def write_run(folder: Path, body: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    records.write(folder / "record.json", "run", run() if body is None else body)
    return folder / "record.json"


def write_study(folder: Path, body: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    records.write(folder / "scale.json", "scale", study() if body is None else body)
    return folder / "scale.json"


def write_sweep(folder: Path, body: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    records.write(folder / "sweep.json", "sweep", sweep() if body is None else body)
    return folder / "sweep.json"


def fill(folder: Path) -> Path:
    """A folder with a study and two runs in sub-folders."""
    write_study(folder / "scale")
    write_run(folder / "one", run(workers=1))
    write_run(folder / "two", run(workers=2))
    return folder
