"""Images, fields and masks on the data's grid or a coarser one, as input channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Scaled

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Map(Scaled):
    """`channels` fields over space, standardised, beside the state at the network's input.

    Values are (B, channels, *grid). A grid other than the data's is resampled to it, by (bi-, tri-)linear interpolation between the
    centres of cells. NaN says that a value is not known: a learned number of its channel stands in its place, and as many channels
    more say where values are known.

    grid: the values' own, or None for the data's.
    mean, std: `channels` numbers each, for z = (value - mean)/std; None: 0 and 1.
    """

    port, kind = "map", "map"

    def __init__(
        self,
        name: str,
        width: int,
        spatial: tuple[int, ...],
        channels: int = 1,
        grid: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if not spatial:
            raise ValueError(f"condition {name!r} is a map over space, and the data are vectors: give it as numbers")
        grid = list(spatial if grid is None else grid)
        if len(grid) != len(spatial):
            raise ValueError(f"condition {name!r} has a grid of {len(grid)} axes, {grid}, for data of {len(spatial)}")
        super().__init__(name, {"channels": channels, "grid": grid}, channels, mean, std, len(grid))
        self.channels, self.grid, self.spatial = channels, tuple(grid), tuple(spatial)
        self.unknown = nn.Parameter(torch.zeros(channels, *[1] * len(grid)))

    @property
    def out_channels(self) -> int:
        """Input channels that it takes."""
        return 2 * self.channels

    def fit(self, value: Tensor) -> Tensor:
        value = value.float() if value.dtype == torch.bool else value
        return self._numbers(value, (self.channels, *self.grid), "a map")

    def missing(self, count: int, device: torch.device) -> Tensor:
        return torch.full((count, self.channels, *self.grid), torch.nan, device=device)

    def forward(self, value: Tensor) -> Tensor:
        value = self.fit(value)
        known = ~torch.isnan(value)
        z = self.standard(value).to(self.unknown.dtype)
        both = torch.cat([torch.where(known, z, self.unknown), known.to(z.dtype)], dim=1)
        if self.grid == self.spatial:
            return both
        return F.interpolate(both, size=self.spatial, mode=_LINEAR[len(self.grid)], align_corners=False)


class Mask(Map):
    """A map of 0 and 1, or of Booleans, taken as it is; NaN where neither is known."""

    kind = "mask"

    def __init__(self, name: str, width: int, spatial: tuple[int, ...], channels: int = 1, grid: Sequence[int] | None = None) -> None:
        super().__init__(name, width, spatial, channels, grid)
        self.options = {"channels": channels, "grid": list(self.grid)}

    def check(self, value: Tensor) -> Tensor:
        value = super().check(value)
        if not bool(((value == 0) | (value == 1) | torch.isnan(value)).all()):
            low, high = (float(end) for end in value.nan_to_num().aminmax())
            raise ValueError(f"condition {self.name!r} is a mask of 0 and 1, got values {low:g} .. {high:g}")
        return value
