"""The U-Nets of the published score models: NCSN++, DDPM++ and DDPM, and the backbone that they share with `adm`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import unet
from .base import (
    CrossAttention,
    GroupNorm,
    Network,
    attention_flops,
    check_count,
    check_counts,
    check_probability,
    product_flops,
    zeroed,
)
from .embeddings import ConditionEmbedding, Ports

EMBEDDINGS, ENCODERS, DECODERS, RESAMPLINGS = (
    ("positional", "fourier"),
    ("standard", "residual", "skip"),
    ("standard", "skip"),
    ("block", "conv"),
)


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of `allowed`, or a ValueError that names it."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return str(value)


def check_number(name: str, value: Any) -> float:
    """A finite number, or a ValueError that names it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def check_flag(name: str, value: Any) -> bool:
    """True or False, or a ValueError that names it."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value


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

    def norm(self, channels: int) -> GroupNorm:
        groups = max(g for g in range(1, 1 + max(1, min(32, channels // self.group))) if channels % g == 0)
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


class ResampledUNet(Network):
    """The backbone of the published U-Nets: levels of residual blocks, each half the size of the one before it.

    A subclass sets `embedding`, which turns noise level and conditions into what the blocks are told. Sizes that 2^(levels - 1) does not
    divide are padded with zeros behind, and cropped again.
    """

    spatial_ranks = (2,)
    embedding: ConditionEmbedding

    def build(
        self,
        style: Style,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        heads: Callable[[int], int],
        encoder: str = "standard",
        decoder: str = "standard",
        attention_everywhere: bool = True,
    ) -> None:
        """Make the layers. `heads`: the number of heads for so many channels; `attention_everywhere`: whether on the way up each block of
        a level has attention, or the last alone."""
        levels = [width * multiplier for multiplier in multipliers]
        if not levels:
            raise ValueError("multipliers must name at least one level, got none")
        if any(level >= len(levels) for level in attention):
            raise ValueError(f"attention must name levels in 0..{len(levels) - 1}, got {list(attention)}")
        of_level = [heads(channels) if k in attention else None for k, channels in enumerate(levels)]
        of_middle = heads(levels[-1])
        for channels, number in [*zip(levels, of_level, strict=True), (levels[-1], of_middle)]:
            if number is not None and (number < 1 or channels % number):
                raise ValueError(f"heads must divide the {channels} channels of a level with attention, got {number}")
        self.side_in, self.side_out = encoder, decoder
        self.factor = math.sqrt(0.5) if style.rescale else 1.0

        def resampled(channels: int, direction: str) -> nn.Module:
            if style.resampling == "conv":
                return ResampledConv(channels, direction, style.corner)
            return Stage(channels, channels, style, None, direction)

        def stage(channels: int, out: int, number: int | None) -> Stage:
            return Stage(channels, out, style, number, cross=self.embedding.width if self.embedding.has_tokens else None)

        self.enter = nn.Conv2d(self.shape[0] + self.embedding.map_channels, width, 3, padding=1)
        self.down, self.encoder, self.side = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.shrink, self.stretch = Resample("down", style.kernel), Resample("up", style.kernel)
        skips, h, aux = [width], width, self.shape[0]
        for level, channels in enumerate(levels):
            if level > 0:
                self.down.append(resampled(h, "down"))
                if encoder == "residual":
                    self.side.append(FilteredConv(aux, h, style.kernel))
                    aux = h
                elif encoder == "skip":
                    self.side.append(nn.Conv2d(aux, h, 1))
                skips.append(h)
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(stage(h, channels, of_level[level]))
                h = channels
                skips.append(h)
            self.encoder.append(stages)
        self.middle = nn.ModuleList([stage(h, h, of_middle), stage(h, h, None)])
        up, decoding, leaving = [], [], []
        for level, channels in reversed(list(enumerate(levels))):
            if level + 1 < len(levels):
                up.append(resampled(h, "up"))
            stages = nn.ModuleList()
            for k in range(blocks + 1):
                attends = attention_everywhere or k == blocks
                stages.append(stage(h + skips.pop(), channels, of_level[level] if attends else None))
                h = channels
            decoding.append(stages)
            if level == 0 or decoder == "skip":
                leaving.append(nn.ModuleList([style.norm(h), zeroed(nn.Conv2d(h, self.out_channels, 3, padding=1))]))
        # by level, the finest first, as on the way down
        self.up, self.decoder, self.leave = (nn.ModuleList(part[::-1]) for part in (up, decoding, leaving))

    def padded(self) -> tuple[int, int]:
        """Height and width of the first level."""
        unit = 2 ** (len(self.encoder) - 1)
        height, width = self.shape[1:]
        return -(-height // unit) * unit, -(-width // unit) * unit

    def forward(self, x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
        self.check_input(x, c)
        ports = self.embedding(c, cond)
        aux, h = self._pad(x), self.enter(self._pad(ports.beside(x)))
        skips = [h]
        for level, stages in enumerate(self.encoder.children()):
            if level > 0:
                h = self.down[level - 1](h, ports)
                if self.side_in == "residual":
                    aux = h = (h + self.side[level - 1](aux)) * self.factor
                elif self.side_in == "skip":
                    aux = self.shrink(aux)
                    h = h + self.side[level - 1](aux)
                skips.append(h)
            for stage in stages.children():
                h = stage(h, ports)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, ports)
        result: Tensor | None = None
        for level in reversed(range(len(self.decoder))):
            if level + 1 < len(self.decoder):
                h = self.up[level](h, ports)
            for stage in list(self.decoder.children())[level].children():
                h = stage(torch.cat([h, skips.pop()], dim=1), ports)
            if level < len(self.leave):
                norm, conv = list(self.leave.children())[level].children()
                y = conv(F.silu(norm(h)))
                result = y if result is None else self.stretch(result) + y
        assert result is not None
        return result[..., : self.shape[1], : self.shape[2]]

    def _pad(self, x: Tensor) -> Tensor:
        height, width = self.padded()
        behind = (0, width - self.shape[2], 0, height - self.shape[1])
        return F.pad(x, behind) if any(behind) else x

    def _parts(self) -> Iterator[tuple[nn.Module, int]]:
        """Each part with the positions that its convolutions run at."""
        first = math.prod(self.padded())
        yield self.enter, first
        for level, stages in enumerate(self.encoder):
            n = first // 4**level
            groups = [stages, self.decoder[level]]
            if level > 0:
                groups += [self.down[level - 1], *([self.side[level - 1]] if len(self.side) else [])]
            if level + 1 < len(self.encoder):
                groups.append(self.up[level])
            else:
                groups.append(self.middle)
            if level < len(self.leave):
                groups.append(self.leave[level])
            yield from ((group, n) for group in groups)

    def flops(self) -> int:
        """As `Network.flops`, for one token of the conditions, without the filters that maps are resampled with, a hundredth of it."""
        total = product_flops(self.embedding)
        for part, n in self._parts():
            once = sum(product_flops(m.modulation) for m in part.modules() if isinstance(m, ResidualBlock))
            once += sum(product_flops(m.key_value) for m in part.modules() if isinstance(m, CrossAttention))
            total += n * (product_flops(part) - once) + once
            total += sum(attention_flops(n, m.qkv.in_features) for m in part.modules() if isinstance(m, Attention))
        return total

    def tokens(self) -> int:
        return max((n for part, n in self._parts() if any(isinstance(m, Attention) for m in part.modules())), default=0)

    @classmethod
    def cheaper(cls, shape: Sequence[int], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Levels more, as wide as the last, and attention in the last alone."""
        multipliers = list(options.get("multipliers", (1, 2, 2)))
        for more in range(max(1, max(shape[1:]).bit_length() - 1)):
            deeper = multipliers + multipliers[-1:] * more
            yield options | {"multipliers": deeper, "attention": [len(deeper) - 1] if options.get("attention", True) else []}


class SongEmbedding(ConditionEmbedding):
    """SiLU(W_2 SiLU(W_1 (features(c) + the conditions' vectors))): the conditions are as wide as the features."""

    level: LevelFeatures  # type: ignore[assignment]
    linear1: nn.Linear
    linear2: nn.Linear

    def __init__(self, level: LevelFeatures, features: int, width: int, conditions: Mapping[str, Any], spatial: Sequence[int]) -> None:
        super().__init__(features, conditions, spatial)
        self.level = level
        self.linear1, self.linear2 = nn.Linear(features, width), nn.Linear(width, width)

    def of_level(self, c: Tensor) -> Tensor:
        features: Tensor = self.level(c)
        return features.to(self.linear1.weight.dtype)

    def whole(self, vector: Tensor) -> Tensor:
        return F.silu(self.linear2(F.silu(self.linear1(vector))))


class SongUNet(ResampledUNet):
    """NCSN++ and DDPM++ (Song et al. 2021, arXiv:2011.13456), the SongUNet of Karras et al. 2022 (arXiv:2206.00364), and DDPM (Ho et al.
    2020, arXiv:2006.11239): the same function for the same weights as score_sde's and EDM's own classes, for pictures of any size.

        DDPM++  embedding="positional", kernel=(1, 1), encoder="standard"
        NCSN++  embedding="fourier", kernel=(1, 3, 3, 1), encoder="residual", noise_multiplier=2; of 256 pixels "skip" in both ways
        DDPM    resampling="conv", rescale=False, group=1

    See `Network` for the call. Weights of score_sde and EDM are loaded by `sde_gen.load_external`.

    Args:
        shape: (C, H, W).
        conditions: what it may be told (see `Network`).
        out_channels: channels of the result; as many as the input if None.
        width: channels of the first level, even.
        multipliers: channels of each level over `width`; as many levels as entries.
        blocks: residual blocks in each level on the way down (one more on the way up).
        attention: levels with attention, 0 being the first; the middle always has it.
        heads: number of attention heads, a divisor of the channels of those levels.
        embedding: "positional" or "fourier", see `LevelFeatures`.
        noise_multiplier: number of these sines and cosines over `width`.
        fourier_scale: standard deviation of the frequencies of "fourier", in turns for each unit of the clock.
        clock_scale, clock_shift: the network's clock is clock_scale c + clock_shift, c being what the model's own clock says. As they stand
            they are for half a log-SNR, whose 16 nats become the thousand units that "positional" is made for.
        encoder: "standard"; "residual" and "skip" add the input, made smaller, to each level.
        decoder: "standard"; "skip" adds up a picture from each level.
        kernel: the filter along each axis with which maps are halved and doubled, of even length.
        resampling: "block" or "conv", see `Style`.
        rescale: whether sums are divided by sqrt(2).
        group: least channels of a group of the group norms.
        dropout: probability in [0, 1), inside the residual blocks.
    """

    embedding: SongEmbedding

    def __init__(
        self,
        shape: Sequence[int],
        conditions: int | Mapping[str, Mapping[str, Any]] | None = None,
        out_channels: int | None = None,
        *,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (1,),
        heads: int = 1,
        embedding: str = "positional",
        noise_multiplier: int = 1,
        fourier_scale: float = 16.0,
        clock_scale: float = 60.0,
        clock_shift: float = 600.0,
        encoder: str = "standard",
        decoder: str = "standard",
        kernel: Sequence[int] = (1, 1),
        resampling: str = "block",
        rescale: bool = True,
        group: int = 4,
        dropout: float = 0.0,
    ) -> None:
        options = {
            "width": check_width(width),
            "multipliers": check_counts("multipliers", multipliers),
            "blocks": check_count("blocks", blocks),
            "attention": check_counts("attention", attention, 0),
            "heads": check_count("heads", heads),
            "embedding": check_choice("embedding", embedding, EMBEDDINGS),
            "noise_multiplier": check_count("noise_multiplier", noise_multiplier),
            "fourier_scale": check_number("fourier_scale", fourier_scale),
            "clock_scale": check_number("clock_scale", clock_scale),
            "clock_shift": check_number("clock_shift", clock_shift),
            "encoder": check_choice("encoder", encoder, ENCODERS),
            "decoder": check_choice("decoder", decoder, DECODERS),
            "kernel": check_kernel(kernel),
            "resampling": check_choice("resampling", resampling, RESAMPLINGS),
            "rescale": check_flag("rescale", rescale),
            "group": check_count("group", group),
            "dropout": check_probability("dropout", dropout),
        }
        super().__init__(shape, conditions, out_channels, options)
        features = width * noise_multiplier
        level = LevelFeatures(features, embedding, clock_scale, clock_shift, fourier_scale)
        self.embedding = SongEmbedding(level, features, 4 * width, self.conditions, self.shape[1:])
        block = resampling == "block"
        style = Style(4 * width, False, rescale, 1e-6, group, tuple(kernel), resampling, True, block, dropout)
        self.build(style, width, multipliers, blocks, attention, lambda channels: heads, encoder, decoder, False)


def check_width(value: Any) -> int:
    """An even number of at least 4, or a ValueError that names it."""
    if check_count("width", value, 4) % 2:
        raise ValueError(f"width must be an even number of at least 4, got {value!r}")
    return int(value)


def check_kernel(values: Any) -> list[int]:
    """A filter of even length, or a TypeError or ValueError that names it."""
    kernel = check_counts("kernel", values)
    if not kernel or len(kernel) % 2:
        raise ValueError(f"kernel must have an even number of entries, got {kernel}")
    return kernel
