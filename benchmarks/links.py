"""A step over links of known rates, beside what its computation and its bytes take; two hosts, interleaved.

python -m benchmarks.links                  what has no result yet, then write the page
python -m benchmarks.links --cases mlp      measure only these
python -m benchmarks.links --page           only write the page from the results

Two hosts with one rank each: network namespaces on this machine (which needs root), joined by links that are slowed.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks import on_hosts, results
from benchmarks.results import Result
from benchmarks.rounds import say
from samestep.measure import stats
from tests.faults import hosts

MODULE = "benchmarks.links"
FOLDER = results.FOLDER / "links"
PAGE = results.ROOT / "benchmarks" / "LINKS.md"
RATES: Mapping[str, float | None] = {"unlimited": None, "1gbit": 1e9, "100mbit": 1e8}
"""Bits a second each way; None: as quick as this machine's memory."""

ROUNDS, LEFT_OUT = 6, 5
MOST = 1.10
_LIMIT_S = 300.0

CASES: Mapping[str, list[str]] = {
    "mlp": ["fashion-mlp", "--global-batch", "256", "--microbatch", "128", "--steps", "60"],
    "cnn": ["fashion-cnn", "--width", "16", "--global-batch", "256", "--microbatch", "128", "--steps", "25"],
}
_COMMON = ["--optimizer", "sgd", "--lr", "0.01", "--noise-scale", "off"]


def measure(case: str) -> Result:
    """Rounds; in each, one training with every rate, in random order."""
    found: dict[str, list[dict[str, Any]]] = {rate: [] for rate in RATES}
    for number in range(ROUNDS):
        for rate in random.Random(number).sample([*RATES], len(RATES)):
            say(f"{case}, round {number + 1} of {ROUNDS}: {rate}")
            with hosts.hosts(2) as machines:
                for machine in machines:
                    if RATES[rate] is not None:
                        machine.slow(rate)
                found[rate].append(_told(on_hosts.train(machines, [*CASES[case], *_COMMON], limit_s=_LIMIT_S)))
    return {"found": found}


def _told(record: Mapping[str, Any]) -> dict[str, Any]:
    steps = record["step_table"]["duration_s"]
    sent, exchanges = record["sent_bytes"], ("contributions", "early contributions", "update")
    return {
        "step_s": statistics.median(steps[LEFT_OUT:]),
        "sent_bytes": sum(sent.get(name, 0) for name in exchanges) / len(steps),
        "early_bytes": sent.get("early contributions", 0) / len(steps),
        "weights_sha256": record["weights_sha256"],
    }


def page(found: Mapping[str, Result]) -> str:
    """The page."""
    what = f"{ROUNDS} rounds a case, in each one training with every rate in random order; medians with 95 % intervals"
    lines = [
        "# Steps over slow links",
        "",
        *results.header(list(found.values()), what=what),
        "",
        (
            "Two hosts (network namespaces of one machine) with one rank and one thread each; `tc tbf` limits what "
            "goes out of either. *Bytes* is what rank 0 sends a step, contributions and parameters; of these, *early* "
            "went during the backward pass; *on the link* is what all take at the rate, without what Ethernet, IP and "
            "TCP add. The step without a limit stands for all that is not the link. *Bound*: the larger of computation "
            "and early bytes, and the other bytes, which cannot overlap with it (docs/design/group.md). *Sum*: "
            "computation and bytes one after the other. *Larger*: what overlapping everything would bring at most."
        ),
        "",
        (
            "| case | rate | step, ms | bytes | early | on the link, ms | step over bound [95 %] | over sum | "
            "over the larger |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    bounds = []
    for case, result in found.items():
        free = [each["step_s"] for each in result["found"]["unlimited"]]
        for name, rate in RATES.items():
            told = result["found"][name]
            steps = [each["step_s"] for each in told]
            sent, early = told[0]["sent_bytes"], told[0]["early_bytes"]
            row = [case, name, f"{statistics.median(steps) * 1e3:.1f}", f"{sent:,.0f}", f"{early / sent:.0%}"]
            if rate is None:
                row += ["", "", "", ""]
            else:
                on_link, on_link_early = 8 * sent / rate, 8 * early / rate
                over_bound = stats.ratio(steps, [max(each, on_link_early) + on_link - on_link_early for each in free])
                bounds.append(over_bound.value)
                over_sum = stats.ratio(steps, [each + on_link for each in free])
                over_larger = stats.ratio(steps, [max(each, on_link) for each in free])
                row += [f"{on_link * 1e3:.1f}", over_bound.text(2), over_sum.text(2), over_larger.text(2)]
            lines.append(f"| {' | '.join(row)} |")
    digests = {
        case: {each["weights_sha256"] for some in r["found"].values() for each in some} for case, r in found.items()
    }
    same = "yes" if all(len(some) == 1 for some in digests.values()) else "**no**"
    verdict = results.verdict(max(bounds), MOST, is_least=False)
    return "\n".join(
        [
            *lines,
            "",
            f"The largest step over bound, at most {MOST:g}: {verdict}.",
            f"Same bits at all rates: {same}.",
            "",
        ]
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = results.parser(MODULE, __doc__, PAGE, cases=CASES)
    arguments = parser.parse_args(words)
    if not arguments.page and (reason := hosts.why_not()) is not None:
        parser.error(reason)
    settings = {name: {"words": [*given, *_COMMON], "rounds": ROUNDS} for name, given in CASES.items()}
    cases = {name: (each, partial(measure, name)) for name, each in settings.items()}
    return results.run_cases(cases, arguments, FOLDER, page, module=MODULE)


if __name__ == "__main__":
    sys.exit(main())
