"""The towers of CLIP: pictures and captions as vectors of unit length in one space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditions import Tokenizer
from ..conditions.text import TextTransformer
from ..networks.base import GroupNorm, check_count, check_probability, group_norm
from ..networks.convolutions import CONV
from ..networks.embeddings import SinusoidalEmbedding

MOST_LEVEL = 9.0
"""The half log-SNR of a picture without noise, as far as a tower is told."""


class ImageTower(nn.Module):
    """A residual convolutional network that halves the grid from stage to stage; data (B, C, *spatial) to (B, dims) of unit length.

    shape: (C, *spatial) with one to three spatial dimensions.
    dims: of the embedding.
    width: channels of the first stage, doubled from stage to stage. stages: each halves the grid, and has `depth` residual blocks.
    noisy: whether the tower is told the noise level, half the log-SNR, which then scales and shifts each block's channels (Perez et al.
        2018, arXiv:1709.07871).
    dropout: of the last features.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dims: int = 128,
        width: int = 32,
        stages: int = 3,
        depth: int = 2,
        noisy: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        rank = len(self.shape) - 1
        if rank not in CONV:
            raise ValueError(f"shape must be (C, *spatial) with one to three spatial dimensions, got {self.shape}")
        for name, value in (("dims", dims), ("width", width), ("stages", stages), ("depth", depth)):
            check_count(name, value)
        check_probability("dropout", dropout)
        self.options: dict[str, Any] = {"dims": dims, "width": width, "stages": stages, "depth": depth, "noisy": noisy, "dropout": dropout}
        self.dropout = dropout
        widths = [width * 2**stage for stage in range(stages)]
        self.level = nn.Sequential(SinusoidalEmbedding(64), nn.Linear(64, 128), nn.SiLU()) if noisy else None
        self.blocks = nn.ModuleList()
        self.enter = CONV[rank](self.shape[0], width, 4, stride=2, padding=1)
        for stage, channels in enumerate(widths):
            told = 128 if noisy else None
            self.blocks.append(_Block(rank, widths[max(0, stage - 1)], channels, 1 if stage == 0 else 2, told))
            self.blocks.extend(_Block(rank, channels, channels, 1, told) for _ in range(depth - 1))
        self.norm = nn.LayerNorm(widths[-1])
        self.leave = nn.Linear(widths[-1], dims)

    def forward(self, x: Tensor, level: Tensor | None = None) -> Tensor:
        """x: at about unit variance. level: (B,) half log-SNR, of a noisy tower; None: without noise."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        told = None
        if self.level is not None:
            level = x.new_full((len(x),), MOST_LEVEL) if level is None else level.clamp(max=MOST_LEVEL)
            told = self.level(level)
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, told)
        features = F.dropout(self.norm(h.flatten(2).mean(2)), self.dropout, self.training)
        return F.normalize(self.leave(features), dim=1)


class _Block(nn.Module):
    """Two convolutions around which a shortcut leads; `stride` 2 halves the grid."""

    def __init__(self, rank: int, channels: int, out: int, stride: int, told: int | None) -> None:
        super().__init__()
        self.norm_in: GroupNorm = group_norm(channels)
        self.first = CONV[rank](channels, out, 3, stride=stride, padding=1)
        self.norm_out: GroupNorm = group_norm(out)
        self.second = CONV[rank](out, out, 3, padding=1)
        self.short = CONV[rank](channels, out, stride, stride=stride) if stride > 1 or channels != out else nn.Identity()
        self.stride = stride
        self.told = nn.Linear(told, 2 * out) if told is not None else None

    def forward(self, h: Tensor, told: Tensor | None) -> Tensor:
        odd = [pad for size in reversed(h.shape[2:]) for pad in (0, -size % self.stride)]
        h = F.pad(h, odd) if any(odd) else h
        y = self.norm_out(self.first(F.silu(self.norm_in(h))))
        if self.told is not None:
            scale, shift = self.told(told).reshape(len(y), -1, *[1] * (y.ndim - 2)).chunk(2, dim=1)
            y = torch.addcmul(shift, y, 1 + scale)
        return self.short(h) + self.second(F.silu(y))


class TextTower(nn.Module):
    """The text encoder of captions (`conditions.TextTransformer`) with a linear map; texts to (B, dims) of unit length.

    dims: of the embedding.
    words, buckets, length, pieces: of the `Tokenizer`. width, depth, heads, hidden: of the transformer.
    """

    def __init__(
        self,
        dims: int,
        words: Sequence[str],
        buckets: int = 4096,
        length: int = 32,
        pieces: bool = False,
        width: int = 128,
        depth: int = 1,
        heads: int = 4,
        hidden: float = 0.1,
    ) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(words, buckets, length, pieces)
        self.options: dict[str, Any] = {"words": list(words), "buckets": buckets, "length": length, "pieces": pieces}
        self.options |= {"width": width, "depth": depth, "heads": heads, "hidden": hidden}
        self.transformer = TextTransformer(len(self.tokenizer.words), buckets, length, width, depth, heads, hidden)
        self.leave = nn.Linear(width, check_count("dims", dims))

    def forward(self, numbers: Tensor) -> Tensor:
        """numbers: of the tokenizer, (B, L, K)."""
        words, there, text = self.transformer(numbers)
        # The mean of the words beside the whole: in a short training the words' own vectors are what is learned first.
        share = there.to(words.dtype)[:, :, None]
        mean = (words * share).sum(1) / share.sum(1).clamp_min(1.0)
        return F.normalize(self.leave(text + mean), dim=1)


def initial_log_scale() -> Tensor:
    """log(1/0.07), as CLIP begins."""
    return torch.tensor(math.log(1 / 0.07))
