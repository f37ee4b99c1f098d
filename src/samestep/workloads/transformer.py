"""Transformers: a causal language model of characters, and a reader of a picture's pixels."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from samestep.data import images, texts
from samestep.data.columns import Dataset, Samples, Windows
from samestep.engine.losses import TokenLoss
from samestep.errors import DataError, UsageError
from samestep.run.metrics import accuracy
from samestep.run.workload import Workload

NUM_SYMBOLS = 65
"""Different characters in Tiny Shakespeare."""

CONTEXT = 64
"""Characters of a window."""

_NUM_HEADS = 4


class Attention(nn.Module):
    """Self-attention: ``softmax(q k' / sqrt(d)) v`` over all places, or over this and earlier ones, in every head.

    Vaswani et al., "Attention is all you need", 2017.

    Args:
        width: Size of a place's vector, a multiple of `num_heads`.
        num_heads: Heads.
        base_width: The width that scores are scaled for: √(base_width / width) besides, so that they do not grow with
            the width (Yang et al. 2021, definition 4.1); None: this one.
        is_causal: A place sees none of those after it.
    """

    def __init__(self, width: int, *, num_heads: int, base_width: int | None = None, is_causal: bool = True) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.num_heads = num_heads
        self.score_scale = None if base_width in (None, width) else (base_width * num_heads) ** 0.5 / width
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, t, width) to the same."""
        query, key, value = self.inputs(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        heads = functional.scaled_dot_product_attention(
            query, key, value, is_causal=self.is_causal, scale=self.score_scale
        )
        mixed: Tensor = self.output(heads.transpose(1, 2).flatten(start_dim=2))
        return mixed


class Block(nn.Module):
    """Attention, then two dense layers, each normalised before and added to what came in, with dropout.

    Radford et al., "Language models are unsupervised multitask learners", 2019.

    Args:
        width: Size of a place's vector.
        num_heads: Heads of the attention.
        dropout: Share of what is added that is left out.
        base_width: See `Attention`.
        is_causal: See `Attention`.
    """

    branch_ends = ("attention.1.output", "dense.3")
    """See `optim.parametrisation`."""

    def __init__(
        self, width: int, *, num_heads: int, dropout: float, base_width: int | None = None, is_causal: bool = True
    ) -> None:
        super().__init__()
        attention = Attention(width, num_heads=num_heads, base_width=base_width, is_causal=is_causal)
        self.attention = nn.Sequential(nn.LayerNorm(width), attention, nn.Dropout(dropout))
        self.dense = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, t, width) to the same."""
        x = x + self.attention(x)
        summed: Tensor = x + self.dense(x)
        return summed


class Symbols(nn.Module):
    """The vectors that a transformer starts from: one learned per symbol plus one per place.

    Args:
        num_symbols: Different symbols.
        context: Places, at most.
        width: Size of a vector.
    """

    def __init__(self, num_symbols: int, *, context: int, width: int) -> None:
        super().__init__()
        self.symbol = nn.Embedding(num_symbols, width)
        self.place = nn.Parameter(torch.empty(context, width))
        nn.init.normal_(self.symbol.weight, std=0.02)
        nn.init.normal_(self.place, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes of shape (n, t), t up to `context`, to vectors of shape (n, t, width)."""
        vectors: Tensor = self.symbol(codes) + self.place[: codes.shape[1]]
        return vectors


def language_model(
    *, num_symbols: int, context: int, width: int, depth: int, dropout: float, base_width: int | None = None
) -> nn.Sequential:
    """Codes of shape (n, t) to the scores of each next symbol, shape (n, t, num_symbols).

    Args:
        num_symbols: Different symbols.
        context: Places that it can look back to.
        width: Size of a place's vector, a multiple of 4 (there are 4 heads).
        depth: Blocks.
        dropout: Share left out of what each half block adds.
        base_width: See `Attention`.

    Raises:
        UsageError: The width cannot be cut into heads.
    """
    _check_heads(width)
    blocks = (Block(width, num_heads=_NUM_HEADS, dropout=dropout, base_width=base_width) for _ in range(depth))
    return nn.Sequential(
        Symbols(num_symbols, context=context, width=width), *blocks, nn.LayerNorm(width), nn.Linear(width, num_symbols)
    )


class Pixels(nn.Module):
    """A picture as a sequence of its pixels: each with its eight neighbours made a vector, plus one learned per place.

    Convolutions before a transformer: Xiao et al., "Early convolutions help transformers see better", 2021.

    Args:
        num_places: Pixels of a picture.
        width: Size of a vector.
    """

    def __init__(self, num_places: int, *, width: int) -> None:
        super().__init__()
        self.value = nn.Conv2d(1, width, 3, padding=1)
        self.place = nn.Parameter(torch.empty(num_places, width))
        nn.init.normal_(self.place, std=0.02)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures of shape (n, 1, height, width) to vectors of shape (n, height × width, size)."""
        vectors: Tensor = self.value(pictures).flatten(start_dim=2).transpose(1, 2) + self.place
        return vectors


class MeanOfPlaces(nn.Module):
    """Vectors of shape (n, t, width) to their mean over the places, shape (n, width)."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x.mean(dim=1)


def pixel_reader(
    *, num_places: int, width: int, depth: int, dropout: float, num_classes: int, base_width: int | None = None
) -> nn.Sequential:
    """Pictures of shape (n, 1, height, width) to scores of shape (n, num_classes); every pixel sees every other.

    Chen et al., "Generative pretraining from pixels", 2020, whose last layer averages over the places, too.

    Args:
        num_places: Pixels of a picture.
        width: Size of a place's vector, a multiple of 4 (there are 4 heads).
        depth: Blocks.
        dropout: Share left out of what each half block adds.
        num_classes: Scores to give.
        base_width: See `Attention`.

    Raises:
        UsageError: The width cannot be cut into heads.
    """
    _check_heads(width)
    blocks = (
        Block(width, num_heads=_NUM_HEADS, dropout=dropout, base_width=base_width, is_causal=False)
        for _ in range(depth)
    )
    ends = (nn.LayerNorm(width), MeanOfPlaces(), nn.Linear(width, num_classes))
    return nn.Sequential(Pixels(num_places, width=width), *blocks, *ends)


def _check_heads(width: int) -> None:
    if width % _NUM_HEADS:
        nearest = width + -width % _NUM_HEADS
        raise UsageError(f"width={width} is not a multiple of {_NUM_HEADS}, the number of heads; the next is {nearest}")


def digits_transformer(*, width: int | None = None, depth: int | None = None) -> Workload:
    """The embedded digits, pixel by pixel; vectors of size `width` (64, a multiple of 4), `depth` blocks (2)."""
    return Workload(
        name="digits-transformer",
        model=partial(
            pixel_reader, num_places=64, width=width or 64, depth=depth or 2, dropout=0.0,
            num_classes=images.NUM_CLASSES,
        ),
        data=partial(images.dataset, "digits", shape=(1, 8, 8)),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": accuracy},
        class_names=images.DIGIT_NAMES,
        recipe={
            "global_batch": 64, "epochs": 20, "optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.01,
            "lr_schedule": "cosine", "lr_warmup": 0.1, "clip_norm": 1.0,
        },
    )  # fmt: skip


def shakespeare_transformer(*, width: int | None = None, depth: int | None = None) -> Workload:
    """Tiny Shakespeare, character by character; vectors of size `width` (128, a multiple of 4), `depth` blocks (2)."""
    return Workload(
        name="shakespeare-transformer",
        model=partial(
            language_model, num_symbols=NUM_SYMBOLS, context=CONTEXT, width=width or 128, depth=depth or 2, dropout=0.1
        ),
        data=_shakespeare,
        loss=TokenLoss(),
        metrics={"accuracy": accuracy},
        recipe={
            "global_batch": 64, "epochs": 6, "optimizer": "adamw", "lr": 4e-3, "weight_decay": 0.1,
            "lr_schedule": "cosine", "lr_warmup": 0.1, "clip_norm": 1.0,
        },
    )  # fmt: skip


def _shakespeare() -> Dataset:
    """The last tenth of the characters is the evaluation part; windows do not overlap."""
    text = texts.tiny_shakespeare()
    if len(text.symbols) > NUM_SYMBOLS:
        raise DataError(f"tinyshakespeare: {len(text.symbols)} different characters, at most {NUM_SYMBOLS} expected")
    codes = torch.from_numpy(text.codes)
    cut = len(codes) - len(codes) // 10
    return Dataset(_windows(codes[:cut]), _windows(codes[cut:]))


def _windows(codes: Tensor) -> Samples:
    """Windows of `CONTEXT` characters, one after the other; the target is the window one character further."""
    num_samples = (len(codes) - 1) // CONTEXT
    if num_samples == 0:
        raise DataError(f"tinyshakespeare: a part of {len(codes)} characters, a window needs {CONTEXT + 1}")
    window = partial(Windows, values=codes, length=CONTEXT, stride=CONTEXT, num_samples=num_samples)
    return Samples((window(offset=0),), window(offset=1))
