"""The parts of the published U-Nets: features of the noise level, filters, residual blocks and attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import unet
from .base import CrossAttention, GroupNorm, zeroed
from .embeddings import Ports


class LevelFeatures(nn.Module):
    """Sines and cosines of the clock a c + b, (B,) -> (B, features), in float32 or wider.

    "positional": frequencies from 1 down to 1/10000 radians for each unit of the clock (Vaswani et al. 2017, arXiv:1706.03762), the last
    of them 1/10000 itself with `closed`, else the next one. "fourier": frequencies 2 pi W with W ~ N(0, fourier_scale^2), drawn once and
    kept with the weights (Tancik et al. 2020, arXiv:2006.10739).
    """

    frequencies: Tensor

    def __init__(
        self,
        features: int,
        kind: str,
        scale: float,
        shift: float,
        fourier_scale: float = 16.0,
        closed: bool = True,
        sine_first: bool = True,
    ) -> None:
        super().__init__()
        self.scale, self.shift, self.sine_first = scale, shift, sine_first
        self.turns = 2 * math.pi if kind == "fourier" else 1.0
        half = features // 2
        if kind == "fourier":
            self.register_buffer("frequencies", torch.randn(half) * fourier_scale)
        else:
            steps = torch.arange(half, dtype=torch.float32, device="cpu")
            frequencies = torch.exp(steps * -(math.log(10000.0) / max(1, half - closed)))
            self.register_buffer("frequencies", frequencies.to(torch.get_default_device()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LevelFeatures:
        # In a dtype narrower than float32 neighbouring levels would look alike: the numbers stay, whatever the network's weights become.
        def wide(value: Tensor) -> Tensor:
            other = fn(value)
            return value.to(other.device) if other.dtype.itemsize < 4 else other

        return super()._apply(wide, recurse)

    def forward(self, c: Tensor) -> Tensor:
        clock = self.scale * c.to(self.frequencies.dtype) + self.shift
        angles = clock[:, None] * (self.frequencies * self.turns)
        waves = (angles.sin(), angles.cos()) if self.sine_first else (angles.cos(), angles.sin())
        return torch.cat(waves, dim=1)


@dataclass(frozen=True)
class Style:
    """What the published U-Nets do differently in their blocks.

    condition: width of the vector that tells a block of noise level and label.
    adaptive: whether it scales and shifts the second norm, or is added before it.
    rescale: whether a block's result is divided by sqrt(2), so that its variance stays.
    eps, group: of the group norms: what is added to the variance, and the least channels of a group (at most 32 groups).
    kernel: the filter along each axis with which a map is halved and doubled.
    resampling: "block", inside of a residual block, or "conv", by a convolution of stride 2 and one behind the nearest neighbour.
    corner: whether that convolution of stride 2 is padded behind alone, as DDPM's is, or on both sides.
    project: whether a block that halves or doubles has a convolution in its shortcut.
    dropout: probability inside of the blocks.
    groups: of every group norm; None: as many as `group` allows.
    """

    condition: int
    adaptive: bool
    rescale: bool
    eps: float
    group: int
    kernel: tuple[int, ...]
    resampling: str
    corner: bool
    project: bool
    dropout: float
    groups: int | None = None

    def norm(self, channels: int) -> GroupNorm:
        groups = self.groups or max(g for g in range(1, 1 + max(1, min(32, channels // self.group))) if channels % g == 0)
        return GroupNorm(groups, channels, eps=self.eps)


class Resample(nn.Module):
    """A map halved ("down") or doubled ("up") along both axes, each channel filtered by the outer product of the kernel with itself."""

    filter: Tensor

    def __init__(self, direction: str, kernel: Sequence[int]) -> None:
        super().__init__()
        self.up = direction == "up"
        row = torch.tensor(kernel, dtype=torch.float64, device="cpu") / sum(kernel)
        filter_ = (torch.outer(row, row) * (4 if self.up else 1)).to(torch.get_default_dtype())
        self.plain = len(kernel) == 2 and kernel[0] == kernel[1]
        self.padding = (len(kernel) - 1) // 2
        self.register_buffer("filter", filter_.to(torch.get_default_device()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.plain:
            return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.avg_pool2d(x, 2)
        weight = self.filter.to(x.dtype).expand(x.shape[1], 1, *self.filter.shape)
        convolve = F.conv_transpose2d if self.up else F.conv2d
        return convolve(x, weight, stride=2, padding=self.padding, groups=x.shape[1])


class FilteredConv(nn.Module):
    """A 3x3 convolution of stride 2 behind the filter of `Resample`, in one go: what NCSN++ makes its input pyramid with."""

    def __init__(self, channels: int, out_channels: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.resample = Resample("down", kernel)
        self.conv = nn.Conv2d(channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.resample.filter.to(x.dtype).expand(x.shape[1], 1, *self.resample.filter.shape)
        return self.conv(F.conv2d(x, weight, padding=self.resample.padding + 1, groups=x.shape[1]))


class ResampledConv(nn.Module):
    """A map halved by a 3x3 convolution of stride 2, or doubled by the nearest neighbour and convolved."""

    def __init__(self, channels: int, direction: str, corner: bool) -> None:
        super().__init__()
        self.up, self.corner = direction == "up", corner
        padding = 0 if corner and not self.up else 1
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if self.up else 2, padding=padding)

    def forward(self, x: Tensor, ports: Ports) -> Tensor:
        if self.up:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.corner else x)


class ResidualBlock(nn.Module):
    """Two convolutions, each behind norm and SiLU, added to a shortcut; with `direction` both are halved or doubled on the way."""

    def __init__(self, channels: int, out_channels: int, style: Style, direction: str | None) -> None:
        super().__init__()
        self.adaptive, self.dropout = style.adaptive, style.dropout
        self.factor = math.sqrt(0.5) if style.rescale else 1.0
        self.norm1 = style.norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(style.condition, out_channels * (2 if style.adaptive else 1))
        self.norm2 = style.norm(out_channels)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        project = channels != out_channels or (direction is not None and style.project)
        self.shortcut = nn.Conv2d(channels, out_channels, 1) if project else nn.Identity()
        self.resample = nn.Identity() if direction is None else Resample(direction, style.kernel)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y = self.conv1(self.resample(F.silu(self.norm1(x))))
        told = self.modulation(condition)[:, :, None, None]
        if self.adaptive:
            scale, shift = told.chunk(2, dim=1)
            y = F.silu(torch.addcmul(shift, self.norm2(y), 1 + scale))
        else:
            y = F.silu(self.norm2(y + told))
        y = self.shortcut(self.resample(x)) + self.conv2(F.dropout(y, self.dropout, self.training))
        return y * self.factor


class Attention(unet.Attention):
    """The U-Net's self-attention, in the style's norm and scale. The rows of `qkv` are queries, keys and values, and in each the heads."""

    def __init__(self, channels: int, heads: int, style: Style) -> None:
        super().__init__(channels, heads)
        self.factor = math.sqrt(0.5) if style.rescale else 1.0
        self.norm = style.norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


class Stage(nn.Module):
    """A residual block and, where `heads` is a number, attention to itself and to the conditions' tokens of width `cross`."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        style: Style,
        heads: int | None = None,
        direction: str | None = None,
        cross: int | None = None,
    ) -> None:
        super().__init__()
        self.block = ResidualBlock(channels, out_channels, style, direction)
        self.attention = nn.Identity() if heads is None else Attention(out_channels, heads, style)
        self.cross = None if heads is None or cross is None else CrossAttention(out_channels, cross, heads)

    def forward(self, x: Tensor, ports: Ports) -> Tensor:
        h = self.attention(self.block(x, ports.vector))
        if self.cross is None or ports.tokens is None:
            return h
        y = self.cross(h.flatten(2).transpose(1, 2), *ports.tokens)
        return h + y.transpose(1, 2).reshape(h.shape)
