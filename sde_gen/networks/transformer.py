"""A transformer over patches, for 1-D, 2-D and 3-D data of any size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import CrossAttention, Network, attend, attention_flops, check_count, check_probability, product_flops, zeroed
from .embeddings import ConditionEmbedding, Ports
from .patches import fold, patch_grid, unfold


def position_table(grid: Sequence[int], width: int) -> Tensor:
    """Sines and cosines of each axis's coordinate, side by side: (tokens, width), float32."""
    axes = len(grid)
    columns = []
    for coordinate in torch.meshgrid(*[torch.arange(n, dtype=torch.float64, device="cpu") for n in grid], indexing="ij"):
        pairs = max(1, width // (2 * axes))
        frequencies = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64, device="cpu") / pairs)
        angles = coordinate.reshape(-1, 1) * frequencies
        columns += [angles.sin(), angles.cos()]
    table = torch.cat(columns, dim=1)[:, :width]
    return F.pad(table, (0, width - table.shape[1])).to(torch.get_default_device(), torch.float32)


class TransformerBlock(nn.Module):
    """Self-attention and a perceptron, each behind an adaptive layer norm whose gate starts at zero (adaLN-Zero), and between them
    attention to the conditions' tokens where there are any (`cross`)."""

    def __init__(self, width: int, heads: int, hidden: int, condition: int, dropout: float, cross: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.modulation = zeroed(nn.Linear(condition, 6 * width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        self.cross = CrossAttention(width, condition, heads) if cross else None

    def forward(self, h: Tensor, ports: Ports) -> Tensor:
        shift_a, scale_a, gate_a, shift_b, scale_b, gate_b = self.modulation(ports.vector)[:, None].chunk(6, dim=2)
        y = torch.addcmul(shift_a, self.norm(h), 1 + scale_a)
        q, k, v = self.qkv(y).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = self.mix(attend(q, k, v).transpose(1, 2).flatten(2))
        h = torch.addcmul(h, gate_a, F.dropout(y, self.dropout, self.training))
        if self.cross is not None and ports.tokens is not None:
            h = h + self.cross(h, *ports.tokens)
        y = self.inner(torch.addcmul(shift_b, self.norm(h), 1 + scale_b))
        y = self.outer(F.dropout(F.gelu(y, approximate="tanh"), self.dropout, self.training))
        return torch.addcmul(h, gate_b, y)


class PatchTransformer(Network):
    """Diffusion transformer: patches as tokens, adaptive layer norm (Peebles and Xie 2023, arXiv:2212.09748).

    Sizes that `patch` does not divide are padded with zeros inside and cropped again. See `Network` for the call.

    Args:
        shape: (C, *spatial) with one to three spatial dimensions.
        conditions: what it may be told (see `Network`).
        out_channels: channels of the result; as many as the input if None.
        patch: edge of a patch, the same along each axis.
        width: width of the tokens, a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
        expansion: hidden width of the perceptrons over `width`.
        dropout: probability in [0, 1), after attention and inside the perceptrons.
    """

    spatial_ranks = (1, 2, 3)

    def __init__(
        self,
        shape: Sequence[int],
        conditions: int | Mapping[str, Mapping[str, Any]] | None = None,
        out_channels: int | None = None,
        *,
        patch: int = 2,
        width: int = 128,
        depth: int = 6,
        heads: int = 4,
        expansion: int = 4,
        dropout: float = 0.0,
    ) -> None:
        options = {
            "patch": check_count("patch", patch),
            "width": check_count("width", width, 2),
            "depth": check_count("depth", depth),
            "heads": check_count("heads", heads),
            "expansion": check_count("expansion", expansion),
            "dropout": check_probability("dropout", dropout),
        }
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got width={width}, heads={heads}")
        super().__init__(shape, conditions, out_channels, options)
        self.patch = patch
        self.grid = patch_grid(self.shape[1:], patch)
        volume = patch ** len(self.grid)
        self.condition = ConditionEmbedding(width, self.conditions, self.shape[1:])
        self.enter = nn.Linear((self.shape[0] + self.condition.map_channels) * volume, width)
        self.position = nn.Parameter(position_table(self.grid, width))
        cross = self.condition.has_tokens
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, expansion * width, width, dropout, cross) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = zeroed(nn.Linear(width, 2 * width))
        self.leave = zeroed(nn.Linear(width, self.out_channels * volume))

    def flops(self) -> int:
        tokens, width = math.prod(self.grid), self.position.shape[1]
        blocks = [block for block in self.blocks.children() if isinstance(block, TransformerBlock)]
        once: list[nn.Module] = [self.condition, self.modulation, *(block.modulation for block in blocks)]
        once += [block.cross.key_value for block in blocks if block.cross is not None]  # counted for one token
        of_condition = sum(product_flops(module) for module in once)
        attention = len(blocks) * attention_flops(tokens, width)
        return tokens * (product_flops(self) - of_condition) + of_condition + attention

    def tokens(self) -> int:
        return math.prod(self.grid)

    @classmethod
    def cheaper(cls, shape: Sequence[int], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Larger and larger patches."""
        patch = options.get("patch", 2)
        while patch < max(shape[1:], default=1):
            patch *= 2
            yield options | {"patch": patch}

    def forward(self, x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
        self.check_input(x, c)
        ports = self.condition(c, cond)
        tokens = fold(ports.beside(x), self.patch).flatten(2).transpose(1, 2)  # (B, tokens, C patch^axes)
        h = self.enter(tokens) + self.position
        for block in self.blocks:
            h = block(h, ports)
        shift, scale = self.modulation(ports.vector)[:, None].chunk(2, dim=2)
        h = self.leave(torch.addcmul(shift, self.norm(h), 1 + scale))
        return unfold(h.transpose(1, 2).unflatten(2, self.grid), self.patch, self.shape[1:])
