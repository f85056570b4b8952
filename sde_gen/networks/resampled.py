"""The backbone of the published U-Nets, which `song`, `adm` and `unet2d` are made of, and what their options may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import CrossAttention, Network, attention_flops, check_count, check_counts, check_probability, product_flops, zeroed
from .embeddings import ConditionEmbedding
from .resampled_blocks import Attention, FilteredConv, Resample, ResampledConv, ResidualBlock, Stage, Style


def _choice(*allowed: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        return str(value)

    return check


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _positive(name: str, value: Any) -> float:
    if _number(name, value) <= 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value


def _width(name: str, value: Any) -> int:
    if check_count(name, value, 4) % 2:
        raise ValueError(f"{name} must be an even number of at least 4, got {value!r}")
    return int(value)


def _kernel(name: str, values: Any) -> list[int]:
    kernel = check_counts(name, values)
    if not kernel or len(kernel) % 2:
        raise ValueError(f"{name} must have an even number of entries, got {kernel}")
    return kernel


OPTIONS: dict[str, Callable[[str, Any], Any]] = {
    "width": _width,
    "multipliers": check_counts,
    "blocks": check_count,
    "attention": lambda name, values: check_counts(name, values, 0),
    "heads": check_count,
    "head_channels": lambda name, value: None if value is None else check_count(name, value),
    "embedding": _choice("positional", "fourier"),
    "memory": check_count,
    "noise_multiplier": check_count,
    "fourier_scale": _number,
    "clock_scale": _number,
    "clock_shift": _number,
    "encoder": _choice("standard", "residual", "skip"),
    "decoder": _choice("standard", "skip"),
    "kernel": _kernel,
    "resampling": _choice("block", "conv"),
    "rescale": _flag,
    "scale_shift": _flag,
    "group": check_count,
    "groups": check_count,
    "eps": _positive,
    "corner": _flag,
    "middle": _flag,
    "closed": _flag,
    "sine_first": _flag,
    "null": _flag,
    "dropout": check_probability,
}
"""The options of these networks by name, each with its check of (name, value), which gives the value or raises one line."""


def checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of a constructor's arguments by name the options, checked."""
    return {name: OPTIONS[name](name, value) for name, value in arguments.items() if name in OPTIONS}


class ResampledUNet(Network):
    """The backbone of the published U-Nets: levels of residual blocks, each half the size of the one before it.

    A subclass sets `embedding`, which turns noise level and conditions into what the blocks are told. Sizes that 2^(levels - 1) does not
    divide are padded with zeros behind, and cropped again. One whose option `null` is False was trained with all of its conditions and
    takes no call without.
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
        middle: bool = True,
    ) -> None:
        """Make the layers. `heads`: the number of heads for so many channels; `attention_everywhere`: whether on the way up each block of
        a level has attention, or the last alone; `middle`: whether the middle has it."""
        levels = [width * multiplier for multiplier in multipliers]
        if not levels:
            raise ValueError("multipliers must name at least one level, got none")
        if any(level >= len(levels) for level in attention):
            raise ValueError(f"attention must name levels in 0..{len(levels) - 1}, got {list(attention)}")
        of_level = [heads(channels) if k in attention else None for k, channels in enumerate(levels)]
        of_middle = heads(levels[-1]) if middle else None
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

    def null(self, name: str, value: Tensor) -> Tensor | None:
        """Rows for the condition `name` not being given; None where the network was trained without."""
        return self.encoders[name].null(value) if self.options.get("null", True) and name in self.encoders else None

    def padded(self) -> tuple[int, int]:
        """Height and width of the first level."""
        unit = 2 ** (len(self.encoder) - 1)
        height, width = self.shape[1:]
        return -(-height // unit) * unit, -(-width // unit) * unit

    def forward(self, x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
        self.check_input(x, c)
        if not self.options.get("null", True) and len(cond) < len(self.conditions):
            missing = ", ".join(repr(name) for name in self.conditions if name not in cond)
            raise ValueError(f"this network was trained with {missing} given for every sample: give cond={{{missing}: ...}}")
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
