"""The U-Net of the library diffusers, UNet2DModel, as a network of this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .adm import ADMEmbedding
from .resampled import ResampledUNet, checked
from .resampled_blocks import LevelFeatures, Style


class UNet2D(ResampledUNet):
    """The function of diffusers' UNet2DModel with positional features, which DDPM's U-Net (Ho et al. 2020, arXiv:2006.11239) became there:
    the same for the same weights, for pictures of any size. See `Network` for the call.

    `sde_gen.to_diffusers` writes it, trained, as a pipeline of that library, and `sde_gen.from_diffusers` reads those into it. For that it
    is trained with prediction "noise", "data" or "v" on pictures of -1 .. 1 (`normalizer="range"`) along a variance-preserving process:
    its input is the state itself, not scaled to unit variance as that of our other networks is.

    Args:
        shape: (C, H, W).
        conditions: what it may be told (see `Network`).
        out_channels: channels of the result; as many as the input if None (twice as many where the variance is learned).
        width: channels of the first level, even.
        multipliers: channels of each level over `width`; as many levels as entries.
        blocks: residual blocks in each level on the way down (one more on the way up).
        attention: levels with attention, 0 being the first.
        middle: whether the middle has attention.
        head_channels: channels of each attention head, a divisor of the channels of those levels; None: one head.
        groups: of each group norm, a divisor of the channels of every level.
        eps: what the group norms add to the variance.
        scale_shift: whether the condition scales and shifts the second norm of a block, or is added before it.
        resampling: "conv" or "block", see `Style`.
        corner: whether the convolution of stride 2 is padded behind alone, or on both sides.
        closed, sine_first: of the features of the noise level, see `LevelFeatures`.
        clock_scale, clock_shift: the network's clock is clock_scale c + clock_shift, c being what the model's own clock says. As they stand
            they turn half a log-SNR from 10 down to -6.65 into the indices 0 .. 999 of a chain.
        null: whether conditions may be left out; a network that was trained with all of them takes no call without.
        dropout: probability in [0, 1), inside the residual blocks.
    """

    embedding: ADMEmbedding
    scales_input = False

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
        middle: bool = True,
        head_channels: int | None = None,
        groups: int = 8,
        eps: float = 1e-5,
        scale_shift: bool = False,
        resampling: str = "conv",
        corner: bool = False,
        closed: bool = False,
        sine_first: bool = False,
        clock_scale: float = -60.0,
        clock_shift: float = 600.0,
        null: bool = True,
        dropout: float = 0.0,
    ) -> None:
        options = checked(locals())
        if any(width * multiplier % groups for multiplier in (1, *multipliers)):
            raise ValueError(
                f"groups must divide the channels of every level ({[width * multiplier for multiplier in multipliers]}), got {groups}"
            )
        super().__init__(shape, conditions, out_channels, options)
        level = LevelFeatures(width, "positional", clock_scale, clock_shift, closed=closed, sine_first=sine_first)
        self.embedding = ADMEmbedding(level, width, 4 * width, self.conditions, self.shape[1:])
        style = Style(4 * width, scale_shift, False, eps, 1, (1, 1), resampling, corner, False, dropout, groups)

        def heads(channels: int) -> int:
            return 1 if head_channels is None else channels // head_channels

        self.build(style, width, multipliers, blocks, attention, heads, middle=middle)
