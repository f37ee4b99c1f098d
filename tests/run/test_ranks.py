"""What has to be the same on all ranks."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samestep import Rows, Samples, Workload
from samestep.engine.group import cards
from samestep.engine.group import meeting as meetings
from samestep.engine.group.cards import Card
from samestep.engine.group.meeting import Meeting
from samestep.engine.group.place import Place
from samestep.errors import ToldElsewhere
from samestep.host import provenance
from samestep.run import ranks
from samestep.run.config import Settings, resolve
from samestep.run.ranks import Ranks
from tests import helpers

MACHINES = [("a", 0), ("a", 0), ("a", 2), ("b", 3)]
"""Host and first rank of the machine of four ranks."""


def facts(work: Workload, lr: float = 0.1) -> dict[str, str]:
    plan = helpers.prepared(work, steps=2, lr=lr)
    config = resolve(Settings(workers=1, optimizer="sgd", momentum=0.0, steps=2, lr=lr), work.recipe)
    return ranks.facts(work.name, plan.job, config, plan.numerics(), plan.image)


def difference(*said: dict[str, str]) -> str | None:
    return cards.difference([Card(rank=n, nonce="", host="h", pid=1, facts=each) for n, each in enumerate(said)])


def changed(samples: Samples) -> Samples:
    """As many samples, one of which is another."""
    assert isinstance(samples.target, Rows)
    target = samples.target.tensor.clone()
    target[0] = 1 - target[0].clamp(max=1)
    return replace(samples, target=Rows(values=target))


def test_ranks_that_were_started_alike_agree() -> None:
    work = helpers.workload(evaluation=helpers.samples(16))
    assert difference(facts(work), facts(work)) is None


def test_what_a_person_gave_is_told_before_what_follows_from_it() -> None:
    work = helpers.workload()
    text = difference(facts(work), facts(work, lr=0.2))
    assert text is not None
    assert text.startswith("the ranks do not agree on lr: it is 0.1 on rank 0 (h) and 0.2 on rank 1 (h)")
    text = difference(facts(work), facts(replace(work, name="another", loss=nn.CrossEntropyLoss(label_smoothing=0.1))))
    assert text is not None
    assert text.startswith(f"the ranks do not agree on workload: it is {work.name} on rank 0 (h) and another on rank 1")


@pytest.mark.parametrize(("part", "name"), [("train", "data"), ("evaluation", "evaluation")])
def test_other_data_are_found(part: str, name: str) -> None:
    train, evaluation = helpers.samples(), helpers.samples(16)
    mine = helpers.workload(train=train, evaluation=evaluation)
    theirs = helpers.workload(
        train=changed(train) if part == "train" else train,
        evaluation=changed(evaluation) if part == "evaluation" else evaluation,
    )
    text = difference(facts(mine), facts(theirs))
    assert text is not None
    assert text.startswith(f"the ranks do not agree on {name}: it is ")


def chain(*widths: int, dtype: torch.dtype = torch.float32) -> Workload:
    return helpers.workload(
        lambda: nn.Sequential(*(nn.Linear(*pair) for pair in pairwise((12, *widths, helpers.NUM_CLASSES)))).to(dtype),
        train=helpers.samples(dtype=dtype),
    )


@pytest.mark.parametrize(
    ("mine", "theirs", "text"),
    [
        (chain(8), chain(16), "0.weight: it is float32 (8, 12) on rank 0 (h) and float32 (16, 12) on rank 1 (h) ("),
        (chain(5), chain(5, 5), "2.weight: it is not there on rank 0 (h) and float32 (5, 5) on rank 1 (h) (nor on"),
        (chain(5, 5), chain(5), "2.weight: it is float32 (5, 5) on rank 0 (h) and not there on rank 1 (h) (nor on"),
        (chain(8), chain(8, dtype=torch.float64), "0.weight: it is float32 (8, 12) on rank 0 (h) and float64 (8, 12)"),
    ],
)
def test_the_first_entry_of_the_model_that_differs_is_named(mine: Workload, theirs: Workload, text: str) -> None:
    found = difference(facts(mine), facts(theirs))
    assert found is not None
    assert found.startswith(f"the ranks do not agree on the model's {text}")


def test_a_layer_that_is_frozen_on_one_rank_is_named() -> None:
    def frozen() -> nn.Module:
        net = helpers.Mlp()
        net.hidden.bias.requires_grad = False
        return net

    found = difference(facts(helpers.workload(helpers.Mlp)), facts(helpers.workload(frozen)))
    assert found is not None
    assert found.startswith(
        "the ranks do not agree on the model's hidden.bias: it is float32 (32,) on rank 0 (h) and float32 (32,), not "
        "trained on rank 1 (h)"
    )


def twice(values: Tensor) -> Any:
    return values * 2.0


def thrice(values: Tensor) -> Any:
    return values * 3.0


def own(output: Tensor, target: Tensor) -> Any:
    return nn.functional.cross_entropy(output, target, reduction="none")


def own_doubled(output: Tensor, target: Tensor) -> Any:
    return 2.0 * nn.functional.cross_entropy(output, target, reduction="none")


def with_transform(transform: Any) -> Workload:
    samples = helpers.samples()
    (column,) = samples.inputs
    assert isinstance(column, Rows)
    return helpers.workload(train=replace(samples, inputs=(replace(column, transform=transform),)))


@pytest.mark.parametrize(
    ("functions", "build"),
    [((twice, thrice), with_transform), ((own, own_doubled), lambda loss: helpers.workload(loss=loss))],
)
def test_another_code_of_the_same_name_is_found(
    functions: tuple[Any, Any], build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = functions
    assert difference(facts(build(mine)), facts(build(mine))) is None
    monkeypatch.setattr(theirs, "__qualname__", mine.__qualname__)
    text = difference(facts(build(mine)), facts(build(theirs)))
    assert text is not None
    assert text.startswith("the ranks do not agree on the code of the model, loss, metrics and transforms: it is ")


def test_another_code_of_samestep_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = facts(helpers.workload())
    monkeypatch.setattr(provenance, "source_sha256", lambda: "f" * 64)
    text = difference(mine, facts(helpers.workload()))
    assert text is not None
    assert text.startswith(f"the ranks do not agree on the code of samestep: it is {mine['the code of samestep']}")


def test_another_torch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = facts(helpers.workload())
    monkeypatch.setattr(torch, "__version__", "0.1")
    text = difference(mine, facts(helpers.workload()))
    assert text is not None
    assert text.startswith(f"the ranks do not agree on torch_version: it is {mine['torch_version']} on rank 0")


@pytest.mark.parametrize(("named", "limits"), [(None, (600.0, 120.0)), (300.0, (300.0, 300.0))])
def test_a_named_deadline_is_also_that_of_the_first_connection(
    named: float | None, limits: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "a", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    asked = []

    def connect(place: Place, deadline_s: float, *, reach_s: float) -> Meeting:
        asked.append((deadline_s, reach_s))
        return Meeting(place, None, deadline_s)

    monkeypatch.setattr(meetings, "connect", connect)
    with ranks.told(Settings(deadline_s=named)):
        pass
    assert asked == [limits]


def test_who_is_stopped_before_the_ranks_meet_tells_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "a", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(meetings, "connect", lambda place, deadline_s, *, reach_s: Meeting(place, None, deadline_s))
    told = []

    def fail(self: Meeting, error: BaseException) -> None:
        told.append(type(error))
        raise ToldElsewhere(2)

    monkeypatch.setattr(Meeting, "fail", fail)
    with pytest.raises(ToldElsewhere), ranks.told(Settings()):
        raise KeyboardInterrupt
    assert told == [KeyboardInterrupt]


@pytest.mark.parametrize(
    ("is_restarted", "checkpoint", "is_told"), [(True, None, True), (False, None, False), (True, Path("a"), False)]
)
def test_a_restart_without_checkpoints_begins_anew_and_says_so(
    is_restarted: bool, checkpoint: Path | None, is_told: bool
) -> None:
    work = helpers.workload()
    config = resolve(Settings(workers=1, steps=2, checkpoint=checkpoint), work.recipe)
    place = Place(
        rank=0, world_size=1, local_rank=0, local_size=1, host="a", port=1, hosts_store=True, is_restarted=is_restarted
    )
    prepared = helpers.prepared(work, steps=2)
    found = ranks.readied(prepared, config, Ranks(Meeting(place, None, 5.0)))
    told = found.lines[len(prepared.lines) :]
    assert [line[:40] for line in told] == ["torchrun has started the ranks again, fr"] * is_told


def test_the_memory_of_a_run_is_that_of_all_ranks_of_the_machine() -> None:
    place = Place(rank=1, world_size=4, local_rank=1, local_size=2, host="a", port=1, hosts_store=False)
    meeting = Meeting(place, None, 5.0)
    assert Ranks(meeting).pids_beside() == [], "nobody has met"
    meeting.cards = [
        Card(rank=n, nonce="", host=host, pid=n + 10, first=first) for n, (host, first) in enumerate(MACHINES)
    ]
    assert Ranks(meeting).pids_beside() == [10]
