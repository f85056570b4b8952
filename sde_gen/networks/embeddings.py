"""What a network is told, as its ports take it: the noise level and the conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..conditions import Condition, Map, make_condition


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of the noise level, `[cos(w_i c), sin(w_i c)]`, after Vaswani et al. 2017 (arXiv:1706.03762).

    The noise level `c` is half the log signal-to-noise ratio, lambda = log(alpha / sigma), which runs from about -7 to 9.
    The angular frequencies w_i are geometric between `w_min` and `w_max`: the slowest turns by less than half a circle over
    that range, so that no two levels look alike, and the fastest tells apart levels a tenth of a nat away from each other.
    Faster ones (DDPM's reach a thousand per unit after its scaling) would let the network treat neighbouring levels as unrelated.

    Args:
        features: number of outputs, even.
        w_min, w_max: angular frequencies in radians for each unit of `c`.
    """

    frequencies: Tensor

    def __init__(self, features: int, w_min: float = 0.15, w_max: float = 5.0) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(f"features must be an even number of at least 2, got {features!r}")
        if not 0 < w_min < w_max < math.inf:
            raise ValueError(f"frequencies must satisfy 0 < w_min < w_max, got w_min={w_min!r}, w_max={w_max!r}")
        # on the CPU: a network of sizes alone, on the meta device, costs nothing then
        exponents = torch.linspace(math.log(w_min), math.log(w_max), features // 2, dtype=torch.float64, device="cpu")
        frequencies = exponents.exp().to(torch.get_default_device(), torch.get_default_dtype())
        # not in the state_dict: a constant of the class, rebuilt with it
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SinusoidalEmbedding:
        # In a dtype narrower than float32 neighbouring levels would look alike: the numbers stay, whatever the network's weights become.
        def wide(value: Tensor) -> Tensor:
            other = fn(value)
            return value.to(other.device) if other.dtype.itemsize < 4 else other

        return super()._apply(wide, recurse)

    def forward(self, c: Tensor) -> Tensor:
        """c: (B,) -> (B, features), in float32 or wider."""
        angles = c[:, None].to(self.frequencies.dtype) * self.frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Ports(NamedTuple):
    """What enters a network beside the state.

    vector: the noise level and the conditions of port "vector", (B, width), for the modulation of every block.
    tokens: those of port "tokens", (B, L, width), and which of them are there, (B, L); None where there are no such conditions.
    maps: those of port "map", (B, C, *spatial), beside the state's channels; None where there are none.
    """

    vector: Tensor
    tokens: tuple[Tensor, Tensor] | None = None
    maps: Tensor | None = None

    def beside(self, x: Tensor) -> Tensor:
        """The state with the maps as more channels."""
        return x if self.maps is None else torch.cat([x, self.maps.to(x.dtype)], dim=1)


class ConditionEmbedding(nn.Module):
    """Noise level and conditions as `Ports`; the vector is `SiLU(W_2 SiLU(W_1 sinusoids(c)) + sum of the conditions' vectors)`.

    Args:
        width: of the vector and of tokens.
        conditions: specs by name.
        spatial: the data's grid; () for vectors.
        features: number of sines and cosines.
    """

    def __init__(self, width: int, conditions: Mapping[str, Mapping[str, Any]], spatial: Sequence[int], features: int = 64) -> None:
        super().__init__()
        self.width = width
        self.level = nn.Sequential(SinusoidalEmbedding(features), nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.encoders = nn.ModuleList(make_condition(name, spec, width, spatial) for name, spec in conditions.items())

    @property
    def has_tokens(self) -> bool:
        """Whether there is anything to attend to."""
        return any(encoder.port == "tokens" for encoder in self.encoders)

    @property
    def map_channels(self) -> int:
        """Channels of the maps."""
        return sum(encoder.out_channels for encoder in self.encoders if isinstance(encoder, Map))

    def of_level(self, c: Tensor) -> Tensor:
        """What the noise level alone says, to which the conditions' vectors are added."""
        sinusoids, first, *rest = self.level
        vector: Tensor = first(sinusoids(c).to(first.weight.dtype))
        for layer in rest:
            vector = layer(vector)
        return vector

    def whole(self, vector: Tensor) -> Tensor:
        """What the blocks are told, of the sum of all vectors."""
        return nn.functional.silu(vector)

    def forward(self, c: Tensor, cond: Mapping[str, Tensor]) -> Ports:
        encoders = {encoder.name: encoder for encoder in self.encoders.children() if isinstance(encoder, Condition)}
        strange = sorted(set(cond) - set(encoders))
        if strange:
            raise ValueError(f"this network takes {_listed(list(encoders))}, got {', '.join(map(repr, strange))}")
        vector = self.of_level(c)
        tokens: list[tuple[Tensor, Tensor]] = []
        maps: list[Tensor] = []
        for name, encoder in encoders.items():
            value = cond[name] if name in cond else encoder.missing(len(c), c.device)
            if len(value) != len(c):
                raise ValueError(f"condition {name!r} must have first dimension {len(c)}, one entry for each sample, got {len(value)}")
            found = encoder(value)
            if encoder.fade is not None:
                found = found * torch.sigmoid(2 * (encoder.fade - c))[:, None].to(found.dtype)
            if encoder.port == "vector":
                vector = vector + found
            elif encoder.port == "tokens":
                several, there, *whole = found  # of a text the whole is a vector too
                tokens.append((several, there))
                for one in whole:
                    vector = vector + one
            else:
                maps.append(found)
        return Ports(
            self.whole(vector),
            (torch.cat([t for t, _ in tokens], dim=1), torch.cat([there for _, there in tokens], dim=1)) if tokens else None,
            torch.cat(maps, dim=1) if maps else None,
        )


def _listed(names: Sequence[str]) -> str:
    return "no conditions" if not names else f"condition{'s' * (len(names) > 1)} {', '.join(map(repr, names))}"
