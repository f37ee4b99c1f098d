"""Networks for sequences."""

from __future__ import annotations

import torch
from torch import nn

from samestep.workloads.recurrent import Change


class Nothing(nn.Module):
    """Says that nothing changes."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.new_zeros(len(rows), 1)


def test_a_change_is_added_to_the_last_known_value() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    marks = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    rows = torch.stack([torch.full((4, 3), 9.0), values, marks], dim=2)
    assert Change(Nothing(), column=1, mark=2)(rows).tolist() == [[3.0], [2.0], [1.0], [0.0]]
    assert Change(Nothing(), column=1)(rows).tolist() == [[3.0], [0.0], [0.0], [0.0]]
