"""A transformer over patches, for 1-D, 2-D and 3-D data of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Network, check_count, check_probability, zeroed
from .embeddings import ConditionEmbedding


def position_table(grid: Sequence[int], width: int) -> Tensor:
    """Sines and cosines of each axis's coordinate, side by side: (tokens, width), float32."""
    axes = len(grid)
    columns = []
    for coordinate in torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in grid], indexing="ij"):
        pairs = max(1, width // (2 * axes))
        frequencies = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angles = coordinate.reshape(-1, 1) * frequencies
        columns += [angles.sin(), angles.cos()]
    table = torch.cat(columns, dim=1)[:, :width]
    return F.pad(table, (0, width - table.shape[1])).float()


class TransformerBlock(nn.Module):
    """Self-attention and a perceptron, each behind an adaptive layer norm whose gate starts at zero (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, hidden: int, condition: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.modulation = zeroed(nn.Linear(condition, 6 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_b, scale_b, gate_b = self.modulation(condition)[:, None].chunk(6, dim=2)
        y = torch.addcmul(shift_a, self.norm(h), 1 + scale_a)
        q, k, v = self.qkv(y).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = self.mix(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = torch.addcmul(h, gate_a, F.dropout(y, self.dropout, self.training))
        y = self.inner(torch.addcmul(shift_b, self.norm(h), 1 + scale_b))
        y = self.outer(F.dropout(F.gelu(y, approximate="tanh"), self.dropout, self.training))
        return torch.addcmul(h, gate_b, y)


class PatchTransformer(Network):
    """Diffusion transformer: patches as tokens, adaptive layer norm (Peebles and Xie 2023, arXiv:2212.09748).

    Sizes that `patch` does not divide are padded with zeros inside and cropped again. See `Network` for the call.

    Args:
        shape: (C, *spatial) with one to three spatial dimensions.
        classes: number of classes or None.
        out_channels: channels of the result; as many as the input if None.
        patch: edge of a patch, the same along each axis.
        width: width of the tokens, a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
        expansion: hidden width of the perceptrons over `width`.
        dropout: probability in [0, 1), after attention and inside the perceptrons.
        label_dropout: probability of the null label in training.
    """

    spatial_ranks = (1, 2, 3)

    def __init__(
        self,
        shape: Sequence[int],
        classes: int | None = None,
        out_channels: int | None = None,
        *,
        patch: int = 2,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        expansion: int = 4,
        dropout: float = 0.0,
        label_dropout: float = 0.1,
    ) -> None:
        options = {
            "patch": check_count("patch", patch),
            "width": check_count("width", width, 2),
            "depth": check_count("depth", depth),
            "heads": check_count("heads", heads),
            "expansion": check_count("expansion", expansion),
            "dropout": check_probability("dropout", dropout),
            "label_dropout": check_probability("label_dropout", label_dropout),
        }
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got width={width}, heads={heads}")
        super().__init__(shape, classes, out_channels, options)
        self.patch = patch
        self.grid = [math.ceil(size / patch) for size in self.shape[1:]]
        volume = patch ** len(self.grid)
        self.condition = ConditionEmbedding(width, self.classes, label_dropout)
        self.enter = nn.Linear(self.shape[0] * volume, width)
        self.position = nn.Parameter(position_table(self.grid, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, expansion * width, width, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.leave = zeroed(nn.Linear(width, self.out_channels * volume))

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        self.check_input(x, c)
        condition = self.condition(c, label)
        h = self.enter(self.to_patches(x)) + self.position
        for block in self.blocks:
            h = block(h, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=2)
        return self.from_patches(self.leave(torch.addcmul(shift, self.norm(h), 1 + scale)))

    def to_patches(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) -> (B, tokens, C patch^axes)."""
        axes = len(self.grid)
        padding = [n * self.patch - size for n, size in zip(self.grid, x.shape[2:], strict=True)]
        if any(padding):
            x = F.pad(x, [amount for pad in reversed(padding) for amount in (0, pad)])
        for axis, n in enumerate(self.grid):
            x = x.unflatten(2 + 2 * axis, (n, self.patch))
        # (B, C, n_1, p_1, n_2, p_2, ...) -> (B, n_1, n_2, ..., C, p_1, p_2, ...)
        counts, edges = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
        return x.permute(0, *counts, 1, *edges).flatten(1, axes).flatten(2)

    def from_patches(self, h: Tensor) -> Tensor:
        """(B, tokens, out_channels patch^axes) -> (B, out_channels, *spatial), the inverse of `to_patches`."""
        axes = len(self.grid)
        h = h.unflatten(2, (self.out_channels, *[self.patch] * axes)).unflatten(1, self.grid)
        order = [axis for pair in zip(range(1, 1 + axes), range(2 + axes, 2 + 2 * axes), strict=True) for axis in pair]
        h = h.permute(0, 1 + axes, *order)
        for axis in range(axes):
            h = h.flatten(2 + axis, 3 + axis)
        for axis, size in enumerate(self.shape[1:]):
            h = h.narrow(2 + axis, 0, size)
        return h
