"""A U-Net for 1-D, 2-D and 3-D data of any size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import (
    CrossAttention,
    Network,
    attend,
    attention_flops,
    check_count,
    check_counts,
    check_probability,
    group_norm,
    product_flops,
    zeroed,
)
from .convolutions import AXES, CONV, convolution, periodic_axes
from .embeddings import ConditionEmbedding, Ports
from .patches import fold, patch_grid, unfold


class ResidualBlock(nn.Module):
    """Two convolutions, each behind norm and SiLU; the condition scales and shifts the second norm (arXiv:2105.05233)."""

    def __init__(self, axes: int, channels: int, out_channels: int, condition: int, dropout: float, periodic: Sequence[int] = ()) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = convolution(axes, channels, out_channels, periodic=periodic)
        self.modulation = nn.Linear(condition, 2 * out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = dropout
        self.conv2 = zeroed(convolution(axes, out_channels, out_channels, periodic=periodic))
        self.skip = nn.Identity() if channels == out_channels else CONV[axes](channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        modulation = self.modulation(condition)
        scale, shift = modulation.reshape(*modulation.shape, *[1] * (x.dim() - 2)).chunk(2, dim=1)
        y = self.norm2(y)
        # PyTorch's fused form is the slower one in bfloat16 on a CPU: 5 to 7 % of a prediction
        fused = not (y.device.type == "cpu" and y.dtype == torch.bfloat16)
        y = F.silu(torch.addcmul(shift, y, 1 + scale) if fused else y * (1 + scale) + shift)
        return self.skip(x) + self.conv2(F.dropout(y, self.dropout, self.training))


class Attention(nn.Module):
    """Self-attention over all positions, added to its input."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.mix = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        y = self.mix(attend(q, k, v).transpose(1, 2).flatten(2))
        return x + y.transpose(1, 2).reshape(x.shape)


class Stage(nn.Module):
    """A residual block and, where asked for, attention to itself and to the conditions' tokens."""

    def __init__(
        self,
        axes: int,
        channels: int,
        out_channels: int,
        condition: int,
        dropout: float,
        heads: int,
        attends: bool,
        cross: bool,
        periodic: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(axes, channels, out_channels, condition, dropout, periodic)
        self.attention = Attention(out_channels, heads) if attends else nn.Identity()
        self.cross = CrossAttention(out_channels, condition, heads) if cross else None

    def forward(self, x: Tensor, ports: Ports) -> Tensor:
        h = self.attention(self.block(x, ports.vector))
        if self.cross is None or ports.tokens is None:
            return h
        y = self.cross(h.flatten(2).transpose(1, 2), *ports.tokens)
        return h + y.transpose(1, 2).reshape(h.shape)

    def flops(self, positions: int) -> int:
        """Operations for one sample of so many positions, and one token of the conditions."""
        once = product_flops(self.block.modulation) + (0 if self.cross is None else product_flops(self.cross.key_value))
        attention = attention_flops(positions, self.attention.qkv.in_features) if isinstance(self.attention, Attention) else 0
        return positions * (product_flops(self) - once) + once + attention


class UNet(Network):
    """U-Net of residual blocks with group norm, self-attention and the noise level in every block.

    After Ho et al. 2020 (arXiv:2006.11239) and Dhariwal and Nichol 2021 (arXiv:2105.05233). Each level halves every axis,
    rounding up, and the way back upsamples to the size of the skip it meets, so any size goes. See `Network` for the call.
    For the 8x8 digits, `width=32, multipliers=(1, 2), attention=(1,), dropout=0.05` is the setting that was tried out.

    With `patch` above 1 the first level already works on patches, their places as channels: no convolution runs at the data's
    own resolution, which is where a plain U-Net on a CPU spends most of its time. Sizes that `patch` does not divide are
    padded with zeros inside and cropped again.

    Args:
        shape: (C, *spatial) with one to three spatial dimensions.
        conditions: what it may be told (see `Network`).
        out_channels: channels of the result; as many as the input if None.
        patch: edge of the patches that the first level sees as points, the same along each axis; 1 for the data as they are.
        width: channels of the first level.
        multipliers: channels of each level over `width`; as many levels as entries.
        blocks: residual blocks in each level on the way down (one more on the way up).
        attention: levels with attention, 0 being the first; the middle has it if any level does.
        heads: number of attention heads, a divisor of the channels of those levels.
        dropout: probability in [0, 1), inside the residual blocks.
        periodic: axes whose ends meet, as those of longitudes do, by their letters: L of signals, H and W of images, D, H and W of
            volumes. Moving the data along such an axis by a multiple of what the deepest level sees as a point moves the result likewise.
            Its size must be a multiple of that.
        coordinates: True tells the network where it is, by input channels: for each axis a number from -1 to 1, for a periodic one
            sine and cosine of its angle. Without it only the ends of axes that are not periodic, and what patches hold, tell.
    """

    spatial_ranks = (1, 2, 3)
    places: Tensor | None

    def __init__(
        self,
        shape: Sequence[int],
        conditions: int | Mapping[str, Mapping[str, Any]] | None = None,
        out_channels: int | None = None,
        *,
        patch: int = 1,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (2,),
        heads: int = 4,
        dropout: float = 0.0,
        periodic: Sequence[str] = (),
        coordinates: bool = False,
    ) -> None:
        options: dict[str, Any] = {
            "patch": check_count("patch", patch),
            "width": check_count("width", width, 2),
            "multipliers": check_counts("multipliers", multipliers),
            "blocks": check_count("blocks", blocks),
            "attention": check_counts("attention", attention, 0),
            "heads": check_count("heads", heads),
            "dropout": check_probability("dropout", dropout),
        }
        if isinstance(periodic, str) or not isinstance(periodic, Sequence):
            raise TypeError(f"periodic must be a list of letters of axes, such as [W], got {periodic!r}")
        if not isinstance(coordinates, bool):
            raise TypeError(f"coordinates must be true or false, got {coordinates!r}")
        options |= ({"periodic": list(periodic)} if periodic else {}) | ({"coordinates": True} if coordinates else {})
        levels = [width * multiplier for multiplier in multipliers]
        if not levels:
            raise ValueError("multipliers must name at least one level, got none")
        if any(level >= len(levels) for level in attention):
            raise ValueError(f"attention must name levels in 0..{len(levels) - 1}, got {list(attention)}")
        with_attention = {*attention, len(levels) - 1} if attention else set()
        if any(levels[level] % heads for level in with_attention):
            raise ValueError(f"heads must divide the channels of the levels with attention ({levels}), got {heads}")
        super().__init__(shape, conditions, out_channels, options)

        self.patch = patch
        axes = len(self.shape) - 1
        volume = patch**axes
        circles = periodic_axes(axes, periodic)
        point = patch * 2 ** (len(levels) - 1)  # of the data, in the deepest level
        uneven = [AXES[axes][axis] for axis in circles if self.shape[1 + axis] % point]
        if uneven:
            sizes = "x".join(map(str, self.shape[1:]))
            raise ValueError(
                f"periodic axes must be multiples of {point} long with this patch and these levels; {uneven[0]} of {sizes} is not"
            )
        condition = 4 * width
        self.condition = ConditionEmbedding(condition, self.conditions, self.shape[1:])
        cross = self.condition.has_tokens
        if cross and levels[-1] % heads:
            raise ValueError(f"heads must divide the {levels[-1]} channels of the middle, which attends to tokens, got {heads}")

        def stage(channels: int, out: int, level: int | None) -> Stage:
            attends = bool(attention) if level is None else level in attention
            return Stage(axes, channels, out, condition, dropout, heads, attends, cross and (attends or level is None), circles)

        places = coordinate_channels(self.shape[1:], circles) if coordinates else None
        self.register_buffer("places", places, persistent=False)
        inputs = self.shape[0] + self.condition.map_channels + (0 if places is None else len(places))
        self.enter = convolution(axes, volume * inputs, width, periodic=circles)
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        skips = [width]
        for level, channels in enumerate(levels):
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(stage(skips[-1], channels, level))
                skips.append(channels)
            self.down.append(stages)
            if level + 1 < len(levels):
                self.shrink.append(convolution(axes, channels, channels, 2, circles))
                skips.append(channels)
        h = levels[-1]
        self.middle = nn.ModuleList([stage(h, h, None), stage(h, h, None)] if attention else [stage(h, h, None)])
        self.up = nn.ModuleList()
        self.grow = nn.ModuleList()
        for level, channels in reversed(list(enumerate(levels))):
            stages = nn.ModuleList()
            for _ in range(blocks + 1):
                stages.append(stage(h + skips.pop(), channels, level))
                h = channels
            self.up.append(stages)
            if level > 0:
                self.grow.append(convolution(axes, channels, channels, periodic=circles))
        self.norm = group_norm(h)
        self.leave = zeroed(convolution(axes, h, volume * self.out_channels, periodic=circles))

    def positions(self) -> list[int]:
        """The number of positions of each level."""
        grids = [patch_grid(self.shape[1:], self.patch)]
        for _ in self.shrink:
            grids.append([(n + 1) // 2 for n in grids[-1]])
        return [math.prod(grid) for grid in grids]

    def flops(self) -> int:
        levels = self.positions()
        total = product_flops(self.condition)
        total += product_flops(nn.ModuleList([self.enter, self.leave]), levels[0])
        total += sum(product_flops(layer, n) for layer, n in zip(self.shrink, levels[1:], strict=True))
        total += sum(product_flops(layer, n) for layer, n in zip(self.grow, levels[-2::-1], strict=True))
        stages = [*zip(self.down, levels, strict=True), (self.middle, levels[-1]), *zip(self.up, levels[::-1], strict=True)]
        return total + sum(stage.flops(n) for group, n in stages for stage in group.children() if isinstance(stage, Stage))

    def tokens(self) -> int:
        groups = [*zip(self.down, self.positions(), strict=True), (self.middle, self.positions()[-1])]
        return max((n for group, n in groups for stage in group.children() if isinstance(stage.attention, Attention)), default=0)

    @classmethod
    def cheaper(cls, shape: Sequence[int], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Up to three levels more, as wide as the last and attention in the last alone, then the same with larger and larger patches."""
        base: dict[str, Any] = {"patch": 1, "multipliers": (1, 2, 2), "attention": (2,)} | options
        multipliers, attends = list(base["multipliers"]), bool(base["attention"])
        for patch in itertools.takewhile(lambda p: p < 2 * max(shape[1:]), (base["patch"] * 2**k for k in itertools.count())):
            for more in range(4):
                deeper = multipliers + multipliers[-1:] * more
                changed = {"patch": patch, "multipliers": deeper, "attention": [len(deeper) - 1] if attends else []}
                yield options | changed

    def forward(self, x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
        self.check_input(x, c)
        ports = self.condition(c, cond)
        seen = ports.beside(x)
        if self.places is not None:
            seen = torch.cat((seen, self.places.to(seen.dtype).expand(len(seen), *self.places.shape)), 1)
        h = self.enter(fold(seen, self.patch))
        skips = [h]
        for level, stages in enumerate(self.down):
            for stage in stages.children():
                h = stage(h, ports)
                skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, ports)
        for level, stages in enumerate(self.up):
            for stage in stages.children():
                h = stage(torch.cat([h, skips.pop()], dim=1), ports)
            if level < len(self.grow):
                h = self.grow[level](F.interpolate(h, size=skips[-1].shape[2:], mode="nearest"))
        return unfold(self.leave(F.silu(self.norm(h))), self.patch, self.shape[1:])


def coordinate_channels(spatial: Sequence[int], periodic: Sequence[int]) -> Tensor:
    """Where each point of a grid lies, (channels, *spatial): -1 to 1 along each axis, sine and cosine of its angle along a periodic one."""
    channels = []
    for axis, size in enumerate(spatial):
        along = [1] * len(spatial)
        along[axis] = size
        angle = 2 * math.pi * torch.arange(size) / size
        values = (angle.sin(), angle.cos()) if axis in periodic else (torch.linspace(-1, 1, size),)
        channels += [value.reshape(along).expand(tuple(spatial)) for value in values]
    return torch.stack(channels)
