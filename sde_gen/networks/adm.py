"""The U-Net of guided diffusion (ADM) and, with other options, that of improved diffusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import ConditionEmbedding
from .resampled import ResampledUNet, checked
from .resampled_blocks import LevelFeatures, Style


class ADMEmbedding(ConditionEmbedding):
    """SiLU(W_2 SiLU(W_1 features(c)) + the conditions' vectors)."""

    level: LevelFeatures  # type: ignore[assignment]
    linear1: nn.Linear
    linear2: nn.Linear

    def __init__(self, level: LevelFeatures, features: int, width: int, conditions: Mapping[str, Any], spatial: Sequence[int]) -> None:
        super().__init__(width, conditions, spatial)
        self.level = level
        self.linear1, self.linear2 = nn.Linear(features, width), nn.Linear(width, width)

    def of_level(self, c: Tensor) -> Tensor:
        return self.linear2(F.silu(self.linear1(self.level(c).to(self.linear1.weight.dtype))))


class ADMUNet(ResampledUNet):
    """The U-Net of Dhariwal and Nichol 2021 (arXiv:2105.05233), and with scale_shift and resampling as they were that of Nichol and
    Dhariwal 2021 (arXiv:2102.09672): the same function for the same weights as guided-diffusion's, improved-diffusion's and EDM's own
    classes, for pictures of any size. See `Network` for the call; weights are loaded by `sde_gen.load_external`.

    Args:
        shape: (C, H, W).
        conditions: what it may be told (see `Network`).
        out_channels: channels of the result; as many as the input if None (twice as many where the variance is learned).
        width: channels of the first level, even.
        multipliers: channels of each level over `width`; as many levels as entries.
        blocks: residual blocks in each level on the way down (one more on the way up).
        attention: levels with attention, 0 being the first; the middle always has it.
        heads: number of attention heads, where head_channels is None.
        head_channels: channels of each head, a divisor of the channels of those levels, or None.
        noise_multiplier: number of sines and cosines of the noise level over `width`.
        scale_shift: whether the condition scales and shifts the second norm of a block, or is added before it.
        resampling: "block" or "conv", see `Style`.
        group: least channels of a group of the group norms (at most 32 groups).
        clock_scale, clock_shift: the network's clock is clock_scale c + clock_shift, see `SongUNet`.
        null: whether conditions may be left out; a network that was trained with all of them takes no call without.
        dropout: probability in [0, 1), inside the residual blocks.
    """

    embedding: ADMEmbedding

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
        head_channels: int | None = None,
        noise_multiplier: int = 1,
        scale_shift: bool = True,
        resampling: str = "block",
        group: int = 4,
        clock_scale: float = 60.0,
        clock_shift: float = 600.0,
        null: bool = True,
        dropout: float = 0.0,
    ) -> None:
        options = checked(locals())
        super().__init__(shape, conditions, out_channels, options)
        features = width * noise_multiplier
        level = LevelFeatures(features, "positional", clock_scale, clock_shift, closed=False, sine_first=False)
        self.embedding = ADMEmbedding(level, features, 4 * features, self.conditions, self.shape[1:])
        style = Style(4 * features, scale_shift, False, 1e-5, group, (1, 1), resampling, False, False, dropout)
        self.build(
            style, width, multipliers, blocks, attention, lambda channels: heads if head_channels is None else channels // head_channels
        )
