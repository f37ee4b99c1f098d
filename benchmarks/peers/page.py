"""PEERS.md from the records: medians over rounds or repeats with their intervals; who is faster is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.peers.contenders import CASES, REFERENCE, TWIN, WORKLOADS, Case, Contender, of
from benchmarks.peers.measures import TARGET, TARGET_EPOCHS
from benchmarks.peers.parts import PEERS, Records
from benchmarks.peers.parts import every as every_part
from samestep.measure import stats

Lines = list[str]
Moment = tuple[int, int]
"""A repeat and, for step times, a round in it: ratios are taken of numbers of the same moment."""

Numbers = Mapping[str, Mapping[Moment, float]]
"""Per program, a number per moment."""

_DEAD_BELOW = 0.5
"""A test accuracy after an epoch that says that a network did not learn."""

_SINGLE = (
    "torch-loader-1", "torch-loader-2", "torch-indexed-1", "torch-indexed-2", "lightning-1", "accelerate-1",
    "skorch-1", "sklearn-1", "keras-1",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What was measured for a case; a measure that was not taken is empty.

    Args:
        case: The network.
        step_s: Step times, one per round.
        others_frac: Per slot, the share of the cores that other processes took.
        first_step_s: From the command to the first step, one per repeat.
        peak_bytes: Peak memory, one per repeat.
        accuracy: Test accuracies after one epoch, one per repeat.
        threads: Threads inside one operation, of each process that updates weights.
        target: Runs to the target, one per repeat.
    """

    case: Case
    step_s: Numbers
    others_frac: Sequence[float]
    first_step_s: Numbers
    peak_bytes: Numbers
    accuracy: Numbers
    threads: Mapping[str, Sequence[int]]
    target: Mapping[str, Mapping[Moment, dict[str, Any]]]

    @classmethod
    def of(cls, case: Case, records: Records) -> Found:
        slots = _by_program(records.get(("step", case), []), _slots)
        starts = [one for one in records.get(("start", case), []) if one["settings"]["repeat"] > 0]
        memory = _by_program(records.get(("memory", case), []), _whole)
        return cls(
            case=case,
            step_s=_numbers(slots, "step_s"),
            others_frac=[slot["others_frac"] for found in slots.values() for slot in found.values()],
            first_step_s=_numbers(_by_program(starts, _whole), "first_step_s"),
            peak_bytes=_numbers(memory, "peak_bytes"),
            accuracy=_numbers(memory, "accuracy"),
            threads={name: next(iter(found.values()))["threads"] for name, found in memory.items()},
            target=_by_program(records.get(("target", case), []), _whole),
        )

    def target_s(self) -> Numbers:
        """Seconds to the target, of the programs that reached it in every repeat."""
        return {
            name: {moment: run["duration_s"] for moment, run in runs.items()}
            for name, runs in self.target.items()
            if all(run["is_reached"] for run in runs.values())
        }


def render(records: Records) -> str | None:
    """The page; None without a record."""
    every = [record for found in records.values() for record in found]
    if not every:
        return None
    found = [Found.of(case, records) for case in CASES]
    lines = ["# Beside what people use today", "", *_header(every, records, found), "", *_what(), ""]
    for one in found:
        lines += _case(one)
    lines += [*_lines_of_code(), "", *_differences()]
    return "\n".join(lines) + "\n"


Taken = dict[str, dict[Moment, dict[str, Any]]]
Moments = Callable[[dict[str, Any], Any], dict[int, dict[str, Any]]]


def _by_program(records: Sequence[dict[str, Any]], moments: Moments) -> Taken:
    """What all records say of each program, by moment."""
    found: Taken = {}
    for record in records:
        repeat = record["settings"]["repeat"]
        for name, taken in record["programs"].items():
            values = {(repeat, number): value for number, value in moments(record, taken).items()}
            found.setdefault(name, {}).update(values)
    return found


def _slots(record: dict[str, Any], taken: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The slots of a program by round, those of the timing warm-up left out."""
    return {number: slot for number, slot in enumerate(taken) if number >= record["settings"]["warm_up"]}


def _whole(record: dict[str, Any], taken: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {0: taken}


def _numbers(taken: Taken, key: str) -> Numbers:
    return {name: {moment: value[key] for moment, value in found.items()} for name, found in taken.items()}


def _paired(numbers: Numbers, first: str, second: str) -> tuple[list[float], list[float]]:
    """The numbers of two programs at the moments that both have."""
    one, other = numbers.get(first, {}), numbers.get(second, {})
    moments = sorted(one.keys() & other.keys())
    return [one[moment] for moment in moments], [other[moment] for moment in moments]


def _header(every: list[dict[str, Any]], records: Records, found: Sequence[Found]) -> Lines:
    versions = {tuple(record["peers"][name] for name in PEERS) for record in every}
    lines = results.header(every, what=f"{'; '.join(_counts(one) for one in found)}; medians with 95 % intervals")
    lines += [f"- peers: {' · '.join(f'{n} {v}' for n, v in zip(PEERS, values, strict=True))}" for values in versions]
    others = np.array([share for one in found for share in one.others_frac])
    if len(others):
        lines.append(
            f"- other processes took {np.median(others):.1%} of the cores in the median slot, "
            f"{np.quantile(others, 0.9):.1%} in the 90th percentile"
        )
    wanted = Counter((part.measure, part.case) for part in every_part())
    missing = [
        f"{measure} {case} ({count - len(records.get((measure, case), ()))} of {count} parts)"
        for (measure, case), count in wanted.items()
        if len(records.get((measure, case), ())) < count
    ]
    return [*lines, *([f"- **not measured: {', '.join(missing)}**"] if missing else [])]


def _counts(found: Found) -> str:
    """How often each measure was taken of the reference."""
    taken = {
        "rounds of step times": found.step_s,
        "start-ups (one more left out)": found.first_step_s,
        "runs for memory": found.peak_bytes,
        "runs to the target, a seed each": found.target,
    }
    counts = [f"{len(numbers[REFERENCE])} {what}" for what, numbers in taken.items() if REFERENCE in numbers]
    return f"{found.case}: {', '.join(counts) or 'nothing'}, programs in random order"


def _what() -> Lines:
    width = WORKLOADS["cnn"][-1]
    return [
        (
            "The same two networks, trained by each library as its own documentation writes it: `mlp`, 784-256-256-10 "
            f"with ReLU, and `cnn`, samestep's fashion-cnn at width {width} (32 in the original, too slow for this "
            "machine; reduced for everybody alike). Fashion-MNIST, cross-entropy, SGD with learning rate 0.05 and "
            "momentum 0.9, 256 samples a step over all processes. The scripts are in "
            "[`peers/programs/`](peers/programs/); threads are left to each library, except for plain torch, which "
            "is measured with one and with two."
        ),
        "",
        (
            "- *Step*: mean time between two updates of the weights inside an epoch (loader included, evaluation and "
            "the turn of an epoch left out). Exactly one program runs at a time, the others are stopped."
        ),
        "- *Start-up*: from the command until every process has done its first step.",
        (
            f"- *To target*: from the command to its end, which comes at the first evaluation (one per epoch) with a "
            f"test accuracy of {TARGET:g} or more. The target was fixed before anything was measured."
        ),
        (
            "- *Memory*: the largest sum over all processes of the program of their proportional share (Pss), sampled "
            "every 50 ms over one epoch."
        ),
    ]


def _case(found: Found) -> Lines:
    lines = [f"## {found.case}", ""]
    verdicts = [*_verdict(found.step_s, "Step"), *_verdict(found.target_s(), "Run to the target")]
    head = ["program", "step, ms", f"step over {REFERENCE}", "start-up, s"]
    if found.target:
        head += ["to target, s", "epochs"]
    head += ["memory, MB", "processes × threads"]
    lines += [*verdicts, *([""] if verdicts else []), f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for contender in of(found.case):
        lines.append(f"| {' | '.join(_row(contender, found))} |")
    lines += ["", *_trained(found)]
    return [*lines, *_twin(found.step_s), ""]


def _row(contender: Contender, found: Found) -> Lines:
    name = contender.name
    cells = [
        contender.label,
        _median(_values(found.step_s, name), 2, 1e3),
        _ratio(found.step_s, name, REFERENCE),
        _median(_values(found.first_step_s, name), 1),
    ]
    if found.target:
        cells += _target_cells(list(found.target.get(name, {}).values()))
    threads = "/".join(map(str, sorted(set(found.threads.get(name, ()))))) or "?"
    return [*cells, _median(_values(found.peak_bytes, name), 0, 1 / 2**20), f"{contender.processes} × {threads}"]


def _target_cells(runs: Sequence[Mapping[str, Any]]) -> Lines:
    if not runs:
        return ["", ""]
    reached = [run for run in runs if run["is_reached"]]
    if len(reached) < len(runs):
        return [f"reached in {len(reached)} of {len(runs)} runs of {TARGET_EPOCHS} epochs", ""]
    epochs = sorted(round(run["epochs"]) for run in runs)
    return [_median([run["duration_s"] for run in runs], 1), f"{epochs[len(epochs) // 2]} ({epochs[0]}-{epochs[-1]})"]


def _values(numbers: Numbers, name: str) -> list[float]:
    return list(numbers.get(name, {}).values())


def _medians(numbers: Numbers) -> dict[str, float]:
    return {name: float(np.median(_values(numbers, name))) for name in numbers}


def _median(values: Sequence[float], digits: int, factor: float = 1.0) -> str:
    return stats.median(values).scaled(factor).text(digits) if values else ""


def _ratio(numbers: Numbers, name: str, other: str, digits: int = 2) -> str:
    """How many times as much a program takes as another, with its interval."""
    first, second = _paired(numbers, name, other)
    return stats.ratio(first, second).text(digits) if first and name != other else ""


def _verdict(numbers: Numbers, what: str) -> Lines:
    """Samestep as it comes, and at its fastest, against the fastest of the others with one process and with two."""
    middle = {name: value for name, value in _medians(numbers).items() if name != TWIN}
    others = [name for name in middle if not name.startswith("samestep")]
    rivals = {
        "single process": _fastest(middle, [name for name in others if name in _SINGLE]),
        "of the peers with two processes": _fastest(middle, [name for name in others if name not in _SINGLE]),
    }
    fastest = _fastest(middle, [name for name in middle if name not in others])
    ours = {"as it comes": REFERENCE if REFERENCE in middle else None}
    if fastest != REFERENCE:
        ours["at its fastest"] = fastest
    return [
        f"- {what}, samestep {how} ({mine}): {_RELATIONS[stats.relate(*_paired(numbers, mine, rival))]} the fastest "
        f"{kind} ({rival}), which takes {_ratio(numbers, rival, mine)} × as long."
        for how, mine in ours.items()
        if mine is not None
        for kind, rival in rivals.items()
        if rival is not None and _paired(numbers, mine, rival)[0]
    ]


_RELATIONS: Mapping[str, str] = {
    "faster": "**faster than**",
    "slower": "**slower than**",
    "equal": "as fast as",
    "not shown different": "not shown different from",
}


def _fastest(middle: Mapping[str, float], names: Sequence[str]) -> str | None:
    return min(names, key=lambda name: middle[name]) if names else None


def _trained(found: Found) -> Lines:
    """Whether everybody trained the same thing: the accuracies after one epoch."""
    middle = _medians(found.accuracy)
    if not middle:
        return []
    low, high = min(middle, key=lambda name: middle[name]), max(middle, key=lambda name: middle[name])
    lines = [
        f"Test accuracy after one epoch, medians: from {middle[low]:.3f} ({low}) to {middle[high]:.3f} ({high}).",
        "",
    ]
    dead = [name for name, values in found.accuracy.items() if min(values.values()) < _DEAD_BELOW]
    if dead:
        lines[:0] = [f"**Did not learn in a run (test accuracy below {_DEAD_BELOW:g}): {', '.join(dead)}.**", ""]
    return lines


def _twin(step_s: Numbers) -> Lines:
    ratio = _ratio(step_s, TWIN, REFERENCE, 3)
    what = "What the method gets wrong in step times"
    return [f"{what}: a second copy of {REFERENCE} over the first: {ratio}; 1 is right."] if ratio else []


def _lines_of_code() -> Lines:
    lines = [
        "## Lines of user code",
        "",
        (
            "Of the script, without blank lines, comments and docstrings. The network, the arrays and the command "
            "line are shared files and count for nobody. `samestep train` needs no script for a built-in workload."
        ),
        "",
        "| script | lines |",
        "|---|---|",
    ]
    seen = {contender.script or "(samestep train)": contender.num_lines() for contender in of("mlp")}
    return [*lines, *(f"| {script} | {count} |" for script, count in sorted(seen.items(), key=lambda item: item[1]))]


def _differences() -> Lines:
    """What is not the same in the programs."""
    return [
        "## What differs",
        "",
        (
            "- **Feeding.** torch's DataLoader fetches sample by sample and stacks them (plain torch, DDP, Lightning, "
            "Accelerate, skorch: in the training process, as by default); scikit-learn, Keras, samestep and "
            "`torch-indexed` gather whole batches from arrays in memory. `samestep train` keeps the bytes of the "
            "images and scales them per batch; all others hold float32."
        ),
        (
            "- **Data read.** `samestep train` reads and unpacks the original gzip files at start-up; all others load "
            "prepared .npy files. Every rank of DDP, Lightning and Accelerate holds a copy of the data; samestep's "
            "workers share one."
        ),
        (
            "- **Shuffling.** A new order every epoch for everybody, each by its own generator. DDP, Lightning and "
            "Accelerate give each rank half of each epoch. The short last batch is kept by all; Accelerate with two "
            "processes fills it up with samples from the beginning."
        ),
        (
            "- **What a step is.** The whole batch in one forward and backward, or half of it per rank; samestep cuts "
            "the batch into microbatches of 32 by default (an eighth), whose number bounds the workers and fixes the "
            "bits: that costs time on matrices as small as these. With `microbatch 128` it does what DDP does."
        ),
        (
            "- **Initialisation.** torch's for torch, Lightning, Accelerate, skorch and samestep; Glorot's for Keras "
            "and scikit-learn: their first epochs differ, and with them the epochs to the target."
        ),
        (
            "- **Seeds.** 1, 2, ... by repeat, the same for everybody, which draws different numbers in each library. "
            "Not 0: without a warm-up the CNN is at the edge at this learning rate (its loss leaps after 20 steps "
            "whoever trains it), and from seed 0 and samestep's order it dies, in plain torch alike."
        ),
        (
            "- **Numbers.** float32 for all. scikit-learn: `alpha=0`, no Nesterov momentum. SGD is torch's default "
            "implementation; `torch-indexed` and samestep use the fused one."
        ),
        (
            "- **Evaluation.** The whole test set after every epoch; Keras and skorch compute the training metrics "
            "and the validation loss too, because their `fit` does. Lightning without logger, checkpoints and "
            "progress bar, which are on by default: only training is compared."
        ),
        (
            "- **Two processes of Accelerate.** `accelerate launch --cpu --num_processes 2` starts one process; "
            "its documentation asks for MPI. Here torchrun starts them, with `Accelerator(cpu=True)`."
        ),
        (
            "- **Threads.** Chosen by each library and its launcher, and read in the running program; samestep takes "
            "one per worker. `accelerate launch --cpu` without further flags sets one."
        ),
        (
            "- **The end.** Time to the target runs to the end of the command, so that shutting down counts. Who "
            "misses it stops after "
            f"{TARGET_EPOCHS} epochs."
        ),
        (
            "- **The stamps** are set from outside (`peers/probe/`), after each update of the weights; the scripts "
            "know nothing of it."
        ),
    ]
