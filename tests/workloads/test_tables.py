"""Networks for tables."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from samestep.workloads.tables import TableNet, Waves


def number_by_number(waves: Waves, numbers: Tensor) -> Tensor:
    """What `Waves` computes, as its paper writes it: one number after the other."""
    rows = []
    for row in numbers:
        features = []
        for column, number in enumerate(row):
            angles = 2 * math.pi * waves.frequencies[column] * number
            inputs = torch.cat((torch.cos(angles), torch.sin(angles)))
            features.append(torch.relu(inputs @ waves.weight[column] + waves.bias[column, 0]))
        rows.append(torch.cat(features))
    return torch.stack(rows)


def test_waves_are_computed_for_every_column_on_its_own() -> None:
    waves, numbers = Waves(3, num_frequencies=4, size=2).double(), torch.randn(5, 3, dtype=torch.float64)
    found = waves(numbers)
    assert found.shape == (5, waves.num_outputs) == (5, 6)
    torch.testing.assert_close(found, number_by_number(waves, numbers), rtol=1e-12, atol=1e-12)
    numbers[:, 1] += 1.0
    other = waves(numbers)
    assert torch.equal(other[:, :2], found[:, :2])
    assert torch.equal(other[:, 4:], found[:, 4:])
    assert not torch.equal(other[:, 2:4], found[:, 2:4])


@pytest.mark.parametrize("cardinalities", [(), (3, 4)])
@pytest.mark.parametrize("in_waves", [(), (2, 0)])
def test_a_table_net_takes_what_there_is(cardinalities: tuple[int, ...], in_waves: tuple[int, ...]) -> None:
    net = TableNet(num_numeric=3, cardinalities=cardinalities, width=8, depth=1, num_classes=2, in_waves=in_waves)
    columns = [torch.randn(5, 3)]
    if cardinalities:
        columns.append(torch.tensor([[0, 3], [2, 0], [1, 1], [2, 3], [0, 0]]))
    assert net(*columns).shape == (5, 2)
    assert hasattr(net, "waves") == bool(in_waves)
    assert hasattr(net, "embedding") == bool(cardinalities)


def test_a_sudden_change_along_a_column_is_learned_from_waves() -> None:
    """Where plain numbers take far longer: the sign of a quick oscillation."""

    def error(in_waves: tuple[int, ...]) -> float:
        torch.manual_seed(0)
        numbers = torch.rand(512, 1) * 4 - 2
        target = (torch.sin(12 * numbers[:, 0]) > 0).long()
        net = TableNet(num_numeric=1, cardinalities=(), width=16, depth=1, num_classes=2, in_waves=in_waves)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        for _ in range(300):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(numbers), target).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return float((net(numbers).argmax(dim=1) != target).float().mean())

    assert error((0,)) < 0.05
    assert error(()) > 0.2
