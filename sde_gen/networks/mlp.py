"""A residual multilayer perceptron, for vectors and for anything small enough to be flattened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .base import CrossAttention, Network, check_count, check_probability, product_flops, zeroed
from .embeddings import ConditionEmbedding, Ports


class ResidualBlock(nn.Module):
    """`h + gate * W_2 dropout(SiLU(W_1 (norm(h) (1 + scale) + shift)))` with scale, shift and gate from the condition, after attention
    to the conditions' tokens where there are any (`heads`)."""

    def __init__(self, width: int, hidden: int, condition: int, dropout: float, heads: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(condition, 3 * width))
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        self.dropout = dropout
        self.cross = None if heads is None else CrossAttention(width, condition, heads)

    def forward(self, h: Tensor, ports: Ports) -> Tensor:
        if self.cross is not None and ports.tokens is not None:
            h = h + self.cross(h[:, None], *ports.tokens)[:, 0]
        shift, scale, gate = self.modulation(ports.vector).chunk(3, dim=1)
        y = F.silu(self.inner(self.norm(h) * (1 + scale) + shift))
        return h + gate * self.outer(F.dropout(y, self.dropout, self.training))


class MLP(Network):
    """Residual MLP with adaptive layer norm in each block (the conditioning of Peebles and Xie 2023, arXiv:2212.09748).

    Data of any shape are flattened and shaped back. See `Network` for the call. The default size was chosen on the 8x8 digits;
    with their 1,500 training images `dropout=0.1` halved the share of samples near a training image (one run each).

    Args:
        shape: (D,), or (C, *spatial).
        conditions: what it may be told (see `Network`).
        out_channels: channels (for vectors: length) of the result; as many as the input if None.
        width: width of the residual stream.
        depth: number of blocks.
        expansion: hidden width of a block over `width`.
        dropout: probability in [0, 1), inside the blocks.
    """

    def __init__(
        self,
        shape: Sequence[int],
        conditions: int | Mapping[str, Mapping[str, Any]] | None = None,
        out_channels: int | None = None,
        *,
        width: int = 256,
        depth: int = 4,
        expansion: int = 2,
        dropout: float = 0.0,
    ) -> None:
        options = {
            "width": check_count("width", width, 2),
            "depth": check_count("depth", depth),
            "expansion": check_count("expansion", expansion),
            "dropout": check_probability("dropout", dropout),
        }
        super().__init__(shape, conditions, out_channels, options)
        self.condition = ConditionEmbedding(width, self.conditions, self.shape[1:])
        self.enter = nn.Linear(math.prod(self.shape) + self.condition.map_channels * math.prod(self.shape[1:]), width)
        heads = next(n for n in (4, 2, 1) if width % n == 0) if self.condition.has_tokens else None
        self.blocks = nn.ModuleList(ResidualBlock(width, expansion * width, width, dropout, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.leave = zeroed(nn.Linear(width, math.prod(self.out_shape)))

    def flops(self) -> int:
        return product_flops(self)

    def forward(self, x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
        self.check_input(x, c)
        ports = self.condition(c, cond)
        h = self.enter(ports.beside(x).flatten(1))
        for block in self.blocks:
            h = block(h, ports)
        return self.leave(self.norm(h)).unflatten(1, self.out_shape)
