"""The U-Nets of the score SDEs: NCSN++, DDPM++ and DDPM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import ConditionEmbedding
from .resampled import ResampledUNet, checked
from .resampled_blocks import LevelFeatures, Style


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
        options = checked(locals())
        super().__init__(shape, conditions, out_channels, options)
        features = width * noise_multiplier
        level = LevelFeatures(features, embedding, clock_scale, clock_shift, fourier_scale)
        self.embedding = SongEmbedding(level, features, 4 * width, self.conditions, self.shape[1:])
        block = resampling == "block"
        style = Style(4 * width, False, rescale, 1e-6, group, tuple(kernel), resampling, True, block, dropout)
        self.build(style, width, multipliers, blocks, attention, lambda channels: heads, encoder, decoder, False)
