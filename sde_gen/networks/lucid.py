"""The U-Net of the library denoising-diffusion-pytorch: RMS norms, patches for halving, and linear attention with learned memories."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import CrossAttention, Network, attend, attention_flops, product_flops, zeroed
from .embeddings import ConditionEmbedding
from .resampled import checked
from .resampled_blocks import LevelFeatures


class ChannelNorm(nn.Module):
    """Each position's channels scaled to a root mean square of 1, times a learned factor for each (Zhang and Sennrich 2019,
    arXiv:1910.07467)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * (self.factor * math.sqrt(len(self.factor)))[:, None, None]


class Block(nn.Module):
    """Two convolutions, each before its norm and SiLU; the condition scales and shifts behind the first norm."""

    def __init__(self, channels: int, out_channels: int, condition: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.modulation = nn.Linear(condition, 2 * out_channels)
        self.conv1, self.norm1 = nn.Conv2d(channels, out_channels, 3, padding=1), ChannelNorm(out_channels)
        self.conv2, self.norm2 = nn.Conv2d(out_channels, out_channels, 3, padding=1), ChannelNorm(out_channels)
        self.shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        y = F.silu(torch.addcmul(shift, self.norm1(self.conv1(x)), 1 + scale))
        y = F.silu(self.norm2(self.conv2(F.dropout(y, self.dropout, self.training))))
        return y + self.shortcut(x)


class MemoryAttention(nn.Module):
    """Attention of all positions to all of them and to `memory` learned pairs of key and value, added to its input.

    linear: softmax over the channels of a query and over the positions of the keys in the place of that of their products, so that the cost
    grows with the positions and not with their square (Shen et al. 2018, arXiv:1812.01243); then normed once more.
    """

    def __init__(self, channels: int, heads: int, head_channels: int, memory: int, linear: bool) -> None:
        super().__init__()
        self.heads, self.linear = heads, linear
        inside = heads * head_channels
        self.norm = ChannelNorm(channels)
        self.memory = nn.Parameter(torch.randn(2, heads, memory, head_channels))
        self.qkv = nn.Conv2d(channels, 3 * inside, 1, bias=False)
        self.mix = nn.Conv2d(inside, channels, 1)
        self.norm_out = ChannelNorm(channels) if linear else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(3, 4).unbind(1)
        memory = self.memory.to(k.dtype)[:, None].expand(-1, len(x), -1, -1, -1)
        k, v = torch.cat([memory[0], k], dim=2), torch.cat([memory[1], v], dim=2)
        y = self._linear(q, k, v) if self.linear else attend(q, k, v)
        y = y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:])
        return x + self.norm_out(self.mix(y))

    @staticmethod
    def _linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q.softmax(3) * q.shape[3] ** -0.5) @ (k.softmax(2).transpose(2, 3) @ v)


class LucidEmbedding(ConditionEmbedding):
    """SiLU(W_2 GELU(W_1 features(c)) + the conditions' vectors)."""

    level: LevelFeatures  # type: ignore[assignment]

    def __init__(self, level: LevelFeatures, features: int, width: int, conditions: Mapping[str, Any], spatial: Sequence[int]) -> None:
        super().__init__(width, conditions, spatial)
        self.level = level
        self.linear1, self.linear2 = nn.Linear(features, width), nn.Linear(width, width)

    def of_level(self, c: Tensor) -> Tensor:
        found: Tensor = self.linear2(F.gelu(self.linear1(self.level(c).to(self.linear1.weight.dtype))))
        return found


class LucidUNet(Network):
    """The Unet of denoising-diffusion-pytorch (MIT): the same function for the same weights, for pictures of any size: those that
    2^(levels - 1) does not divide are padded with zeros behind, and cropped again. See `Network` for the call; weights are loaded by
    `sde_gen.load_external`.

    Args:
        shape: (C, H, W).
        conditions: what it may be told (see `Network`); tokens are attended to in the middle.
        out_channels: channels of the result; as many as the input if None (twice as many where the variance is learned).
        width: channels of the first level, even.
        multipliers: channels behind each level over `width`; as many levels as entries.
        attention: levels with full attention, 0 being the first; the others have linear attention, and the middle always full.
        heads, head_channels: number of attention heads, and channels of each.
        memory: learned pairs of key and value in each attention.
        clock_scale, clock_shift: the network's clock is clock_scale c + clock_shift, see `SongUNet`.
        dropout: probability in [0, 1), inside the residual blocks.
    """

    spatial_ranks = (2,)

    def __init__(
        self,
        shape: Sequence[int],
        conditions: int | Mapping[str, Mapping[str, Any]] | None = None,
        out_channels: int | None = None,
        *,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        attention: Sequence[int] = (2,),
        heads: int = 4,
        head_channels: int = 32,
        memory: int = 4,
        clock_scale: float = 60.0,
        clock_shift: float = 600.0,
        dropout: float = 0.0,
    ) -> None:
        options = checked(locals())
        if not multipliers:
            raise ValueError("multipliers must name at least one level, got none")
        if any(level >= len(multipliers) for level in attention):
            raise ValueError(f"attention must name levels in 0..{len(multipliers) - 1}, got {list(attention)}")
        super().__init__(shape, conditions, out_channels, options)
        level_features = LevelFeatures(width, "positional", clock_scale, clock_shift)
        self.embedding = LucidEmbedding(level_features, width, 4 * width, self.conditions, self.shape[1:])
        channels = [width, *(width * multiplier for multiplier in multipliers)]

        def block(into: int, out: int) -> Block:
            return Block(into, out, 4 * width, dropout)

        def attending(at: int, level: int | None) -> MemoryAttention:
            return MemoryAttention(at, heads, head_channels, memory, level is not None and level not in attention)

        self.enter = nn.Conv2d(self.shape[0] + self.embedding.map_channels, width, 7, padding=3)
        self.encoder, self.down, self.decoder, self.up = (nn.ModuleList() for _ in range(4))
        last = len(multipliers) - 1
        for level, (here, below) in enumerate(itertools.pairwise(channels)):
            self.encoder.append(nn.ModuleList([block(here, here), block(here, here), attending(here, level)]))
            self.down.append(nn.Conv2d(here, below, 3, padding=1) if level == last else nn.Conv2d(4 * here, below, 1))
            self.decoder.append(nn.ModuleList([block(below + here, below), block(below + here, below), attending(below, level)]))
            self.up.append(nn.Conv2d(below, here, 3, padding=1))
        h = channels[-1]
        self.middle = nn.ModuleList([block(h, h), attending(h, None), block(h, h)])
        self.cross = CrossAttention(h, self.embedding.width, math.gcd(h, heads)) if self.embedding.has_tokens else None
        self.leave = nn.ModuleList([block(2 * width, width), zeroed(nn.Conv2d(width, self.out_channels, 1))])

    def padded(self) -> tuple[int, int]:
        """Height and width of the first level."""
        unit = 2 ** (len(self.encoder) - 1)
        height, width = self.shape[1:]
        return -(-height // unit) * unit, -(-width // unit) * unit

    def forward(self, x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
        self.check_input(x, c)
        ports = self.embedding(c, cond)
        height, width = self.padded()
        first = h = self.enter(F.pad(ports.beside(x), (0, width - self.shape[2], 0, height - self.shape[1])))
        skips, told, last = [], ports.vector, len(self.encoder) - 1
        for level, (stage, down) in enumerate(zip(self.encoder, self.down, strict=True)):
            one, two, attention = stage.children()
            h = one(h, told)
            skips.append(h)
            h = attention(two(h, told))
            skips.append(h)
            h = down(h if level == last else F.pixel_unshuffle(h, 2))
        one, attention, two = self.middle
        h = attention(one(h, told))
        if self.cross is not None and ports.tokens is not None:
            y = self.cross(h.flatten(2).transpose(1, 2), *ports.tokens)
            h = h + y.transpose(1, 2).reshape(h.shape)
        h = two(h, told)
        for level in reversed(range(last + 1)):
            one, two, attention = list(self.decoder.children())[level].children()
            h = one(torch.cat([h, skips.pop()], dim=1), told)
            h = attention(two(torch.cat([h, skips.pop()], dim=1), told))
            h = self.up[level](h if level == 0 else F.interpolate(h, scale_factor=2.0, mode="nearest"))
        one, leave = self.leave
        return leave(one(torch.cat([h, first], dim=1), told))[..., : self.shape[1], : self.shape[2]]

    def _parts(self) -> Iterator[tuple[nn.Module, int]]:
        """Each part with the positions that its convolutions run at."""
        first = math.prod(self.padded())
        yield from ((part, first) for part in (self.enter, self.leave))
        for level in range(len(self.encoder)):
            n = first // 4**level
            yield from ((part, n) for part in (self.encoder[level], self.decoder[level]))
            lowest = level + 1 == len(self.encoder)
            yield self.down[level], n if lowest else n // 4
            yield self.up[level], n if level == 0 else 4 * n
            if lowest:
                yield self.middle, n

    def flops(self) -> int:
        """As `Network.flops`, for one token of the conditions."""
        total = product_flops(self.embedding)
        for part, n in self._parts():
            once = sum(product_flops(m.modulation) for m in part.modules() if isinstance(m, Block))
            total += n * (product_flops(part) - once) + once
            for m in part.modules():
                if isinstance(m, MemoryAttention):
                    inside, pairs = m.mix.in_channels, n + m.memory.shape[2]
                    total += 2 * inside**2 // m.heads * (n + pairs) if m.linear else attention_flops(1, inside) * n * pairs
        if self.cross is not None:
            n = math.prod(self.padded()) // 4 ** (len(self.encoder) - 1)
            once = product_flops(self.cross.key_value)
            total += n * (product_flops(self.cross) - once) + once
        return total

    def tokens(self) -> int:
        full = [n for part, n in self._parts() for m in part.modules() if isinstance(m, MemoryAttention) and not m.linear]
        return max(full, default=0)

    @classmethod
    def cheaper(cls, shape: Sequence[int], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Levels more, as wide as the last, and full attention in the last alone."""
        multipliers = list(options.get("multipliers", (1, 2, 2)))
        for more in range(max(1, max(shape[1:]).bit_length() - 1)):
            deeper = multipliers + multipliers[-1:] * more
            yield options | {"multipliers": deeper, "attention": [len(deeper) - 1]}
