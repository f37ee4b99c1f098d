"""Losses as (sum, weight): their quotient is torch's mean, whole and in any split."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from samestep.engine import losses
from samestep.engine.losses import TokenLoss, summed
from samestep.errors import DataError, UsageError
from tests.helpers import generator

N, C = 12, 5
SCORES = torch.randn(N, C, generator=generator(1), dtype=torch.float64)
SIGNS = torch.randn(N, C, generator=generator(2), dtype=torch.float64).sign()
SHARES = torch.rand(N, C, generator=generator(3), dtype=torch.float64)
CLASSES = torch.arange(N) % C
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.25], dtype=torch.float64)
MAPS = torch.randn(N, C, 2, 3, generator=generator(4), dtype=torch.float64)
CLASS_MAPS = torch.arange(N * 6).view(N, 2, 3) % C
PROBABILITIES = SHARES / SHARES.sum(1, keepdim=True)

LOSSES: dict[str, tuple[Callable[..., Any], Tensor, Tensor]] = {
    "cross-entropy": (nn.CrossEntropyLoss(), SCORES, CLASSES),
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHTS), SCORES, CLASSES),
    "ignored": (nn.CrossEntropyLoss(ignore_index=3), SCORES, CLASSES),
    "ignored by default": (nn.CrossEntropyLoss(), SCORES, torch.where(CLASSES == 1, -100, CLASSES)),
    "both": (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=3), SCORES, CLASSES),
    "smoothed": (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=3, label_smoothing=0.1), SCORES, CLASSES),
    "maps": (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=2), MAPS, CLASS_MAPS),
    "probabilities": (nn.CrossEntropyLoss(), SCORES, PROBABILITIES),
    "weighted probabilities": (nn.CrossEntropyLoss(weight=WEIGHTS), SCORES, PROBABILITIES),
    "nll": (nn.NLLLoss(weight=WEIGHTS), SCORES.log_softmax(1), CLASSES),
    "mse": (nn.MSELoss(), SCORES, SHARES),
    "l1": (nn.L1Loss(), SCORES, SHARES),
    "smooth l1": (nn.SmoothL1Loss(beta=0.3), SCORES, SHARES),
    "huber": (nn.HuberLoss(delta=0.3), SCORES, SHARES),
    "bce": (nn.BCELoss(), SCORES.sigmoid(), SHARES),
    "bce with logits": (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), SCORES, SHARES),
    "soft margin": (nn.SoftMarginLoss(), SCORES, SIGNS),
    "poisson": (nn.PoissonNLLLoss(full=True), SCORES, SHARES * 9),
    "kl mean": (nn.KLDivLoss(reduction="mean"), SCORES.log_softmax(1), PROBABILITIES),
    "kl batchmean": (nn.KLDivLoss(reduction="batchmean"), SCORES.log_softmax(1), PROBABILITIES),
    "multi margin": (nn.MultiMarginLoss(weight=WEIGHTS), SCORES, CLASSES),
    "multi-label margin": (nn.MultiLabelMarginLoss(), SCORES, torch.randint(0, C, (N, C), generator=generator(5))),
    "multi-label soft margin": (nn.MultiLabelSoftMarginLoss(), SCORES, (SHARES > 0.5).double()),
    "function cross_entropy": (functional.cross_entropy, SCORES, CLASSES),
    "function mse_loss": (functional.mse_loss, SCORES, SHARES),
    "per sample": (lambda o, t: functional.cross_entropy(o, t, reduction="none"), SCORES, CLASSES),
    "mean over samples": (functional.cross_entropy, SCORES, CLASSES),
}
SPLITS = [(0, 12), (0, 1, 12), (0, 5, 8, 12), (0, 4, 8, 12)]


def mean_of(loss: Callable[..., Any], output: Tensor, target: Tensor, split: tuple[int, ...]) -> float:
    total, weight = 0.0, 0.0
    sum_of = summed(loss)
    for start, stop in itertools.pairwise(split):
        value, part = sum_of(output[start:stop], target[start:stop], stop - start)
        total, weight = total + float(value), weight + part
    return total / weight


@pytest.mark.filterwarnings("ignore:reduction:UserWarning")  # torch on KLDivLoss's mean
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("split", SPLITS)
def test_the_quotient_of_the_sums_is_torchs_mean(name: str, split: tuple[int, ...]) -> None:
    loss, output, target = LOSSES[name]
    wanted = loss(output, target)
    wanted = wanted.mean() if wanted.dim() else wanted
    assert mean_of(loss, output, target, split) == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("name", ["class weights", "ignored", "both"])
def test_a_mean_of_means_differs(name: str) -> None:
    loss, output, target = LOSSES[name]
    parts = [(0, 5), (5, 8), (8, 12)]
    means = sum((b - a) * float(loss(output[a:b], target[a:b])) for a, b in parts) / N
    assert abs(means - float(loss(output, target))) > 1e-3


@pytest.mark.parametrize("module", [nn.MSELoss(reduction="sum"), nn.CrossEntropyLoss(reduction="sum")])
def test_sums_become_means(module: nn.Module) -> None:
    target = SHARES if isinstance(module, nn.MSELoss) else CLASSES
    wanted = type(module)()(SCORES, target)
    assert mean_of(module, SCORES, target, (0, 5, 12)) == pytest.approx(float(wanted), rel=1e-12)
    assert module.reduction == "sum"  # the caller's own loss stays as it is


def test_everything_ignored_has_no_weight() -> None:
    total, weight = summed(nn.CrossEntropyLoss(ignore_index=0))(SCORES, torch.zeros(N, dtype=torch.int64), N)
    assert (float(total), weight) == (0.0, 0)


def test_a_pair_is_taken_as_it_is() -> None:
    total, weight = summed(lambda o, t: (o.sum(), torch.tensor(7.0)))(SCORES, CLASSES, N)
    assert (float(total), weight) == (float(SCORES.sum()), 7.0)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda o, t: (o.sum(), 1.0, 2.0), "returned 3 values; return a pair"),
        (lambda o, t: o.sum(0), r"returned shape \(5,\) for 12 samples"),
        (nn.MSELoss(reduction="none"), None),
    ],
)
def test_what_a_function_may_return(loss: Any, text: str | None) -> None:
    if text is None:
        assert float(summed(loss)(SCORES, SHARES, N)[1]) == N * C
        return
    with pytest.raises(UsageError, match=text):
        summed(loss)(SCORES, CLASSES, N)


@pytest.mark.parametrize(
    "module", [nn.CosineEmbeddingLoss(), nn.CTCLoss(), nn.TripletMarginLoss(), nn.GaussianNLLLoss()]
)
def test_losses_whose_mean_we_cannot_take_are_refused(module: nn.Module) -> None:
    with pytest.raises(UsageError, match=rf"loss {type(module).__name__} is not one whose mean we can take"):
        summed(module)


def test_a_broadcast_is_refused() -> None:
    with pytest.raises(UsageError, match=r"answers with shape \(12, 1\) and the target has shape \(12,\)"):
        summed(nn.MSELoss())(SCORES[:, :1], SHARES[:, 0], N)


def test_labels_outside_of_the_classes() -> None:
    losses.check_class_targets(torch.tensor([0, 4, -100]), 5, -100)
    for label in (5, -1):
        with pytest.raises(DataError, match=rf"a label is {label} and the model answers for 5 classes \(0 \.\. 4\)"):
            losses.check_class_targets(torch.tensor([0, label]), 5, -100)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [((torch.tensor(3), 4), (3.0, 4.0)), (torch.tensor([1, 0, 1]), (2.0, 3.0)), (0.5, (6.0, 12.0)),
     (torch.tensor(0.5), (6.0, 12.0))],
)  # fmt: skip
def test_metrics_as_sums(value: Any, wanted: tuple[float, float]) -> None:
    assert losses.as_sums(value, N) == wanted


@pytest.mark.parametrize("loss", [TokenLoss(), TokenLoss(ignore_index=1, label_smoothing=0.1)])
def test_tokens_are_those_of_cross_entropy_with_their_classes_last(loss: TokenLoss) -> None:
    wanted = nn.CrossEntropyLoss(ignore_index=loss.ignore_index, label_smoothing=loss.label_smoothing)
    found = [summed(each)(scores, CLASS_MAPS, N) for each, scores in ((loss, MAPS.movedim(1, -1)), (wanted, MAPS))]
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-14)
    assert found[0][1] == found[1][1]


def test_targets_of_tokens_are_drawn_from_the_networks_own_shares() -> None:
    scores = torch.tensor([[4.0, 2.0, 1.0], [0.0, 0.0, 1.0]], dtype=torch.float64).log().clamp(min=-50)
    output = scores.expand(5000, 2, 3)
    given = torch.zeros(5000, 2, dtype=torch.int64)
    given[0, 0] = -100
    drawn = losses.sampled_targets(summed(TokenLoss()), output, given, generator(6))
    assert drawn.shape == given.shape
    assert int(drawn[0, 0]) == -100
    shares = nn.functional.one_hot(drawn[1:], 3).double().mean(0)
    assert torch.allclose(shares, scores.softmax(-1), atol=0.03)
    assert losses.draws_targets(summed(TokenLoss()))
    assert not losses.draws_targets(summed(lambda output, target: output.sum(1)))


LABELS = torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("loss", "columns", "is_quick"),
    [
        (nn.CrossEntropyLoss(), [LABELS, LABELS], True),
        (nn.NLLLoss(ignore_index=3), [LABELS], True),
        (TokenLoss(), [LABELS], True),
        (nn.CrossEntropyLoss(ignore_index=2), [LABELS], False),
        (nn.CrossEntropyLoss(), [LABELS, torch.tensor([0, -100])], False),
        (nn.CrossEntropyLoss(), [LABELS, None], False),
        (nn.CrossEntropyLoss(weight=WEIGHTS), [LABELS], False),
        (nn.CrossEntropyLoss(), [PROBABILITIES], False),
        (nn.MSELoss(), [LABELS], False),
    ],
)
def test_ignored_targets_are_not_looked_for_where_there_are_none(
    loss: nn.Module, columns: list[Tensor | None], is_quick: bool
) -> None:
    found = losses.without_ignored(summed(loss), columns)
    assert (getattr(found, "weight", None) is losses._count_targets) == is_quick


def test_columns_too_long_to_look_through_are_looked_at_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_MOST_LOOKED_AT", len(LABELS) - 1)
    assert getattr(losses.without_ignored(summed(nn.CrossEntropyLoss()), [LABELS]), "weight", None) is (
        losses._weigh_classes
    )
