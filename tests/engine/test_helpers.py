"""Helpers share the work with the training thread, raise what goes wrong, and end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from samestep.engine.helpers import Helpers, Task


@pytest.fixture
def helpers() -> Iterator[Helpers]:
    made = Helpers(2, 1)
    yield made
    made.close()
    assert not any(thread.name == "samestep-helper" for thread in threading.enumerate())


def slow() -> int:
    threading.Event().wait(0.02)
    return threading.get_ident()


def test_all_hands_share_the_work(helpers: Helpers) -> None:
    tasks = [Task(slow) for _ in range(12)]
    for task in tasks:
        helpers.give(task)
    helpers.finish()
    found = {task.result() for task in tasks}
    assert threading.get_ident() in found
    assert len(found) == helpers.num_hands == 3


def test_results_come_in_the_order_of_the_functions(helpers: Helpers) -> None:
    assert helpers.run([lambda: 1, lambda: 2, lambda: 3, lambda: 4]) == [1, 2, 3, 4]
    assert helpers.run([]) == []


def test_what_goes_wrong_is_raised_when_all_have_ended(helpers: Helpers) -> None:
    done: list[int] = []

    def fail() -> None:
        raise ValueError("no luck")

    def note() -> None:
        threading.Event().wait(0.05)
        done.append(1)

    with pytest.raises(ValueError, match="no luck"):
        helpers.run([fail, note, note])
    assert done == [1, 1]
    assert helpers.run([lambda: 7]) == [7]


def test_nothing_is_recorded_for_a_backward_pass(helpers: Helpers) -> None:
    weight = torch.ones(3, requires_grad=True)
    assert not any(found.requires_grad for found in helpers.run([lambda: weight * 2] * 5))


def test_threads_inside_operations_are_as_asked(helpers: Helpers) -> None:
    assert helpers.run([torch.get_num_threads] * 6)[1:] == [1] * 5
