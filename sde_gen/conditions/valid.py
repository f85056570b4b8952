"""Which entries of an item are data: of fields and signals, and of the features of a table's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .base import Condition
from .maps import Mask


class TellsValid(Condition):
    """Which entries of an item are data: 1 or True there, 0 where they are not.

    A model zeroes the others in what it is shown and in what it predicts; loss, likelihood and statistics leave them out. It is never
    dropped, since it says what is asked and nothing of the answer: rows that are not given are all ones.
    """

    def null(self, value: Tensor) -> Tensor:
        return value

    def _whole(self, value: Tensor) -> Tensor:
        """`value` where it is known everywhere and leaves each item an entry; else ValueError."""
        if bool(torch.isnan(value).any()):
            raise ValueError(f"condition {self.name!r} must be known everywhere, 1 where an entry is data and 0 where not, got NaN")
        if not bool(value.flatten(1).any(1).all()):
            row = int((~value.bool()).flatten(1).all(1).int().argmax())
            raise ValueError(f"condition {self.name!r} leaves item {row} without a single valid entry; at least one is needed")
        return value


class Valid(TellsValid, Mask):
    """Of fields and signals (clouds, gaps of an instrument): (B, 1 or C, *spatial), one channel for all of the data's or as many as they
    have, beside the state at the network's input."""

    kind = "valid"

    def __init__(self, name: str, width: int, spatial: tuple[int, ...], channels: int = 1, grid: Sequence[int] | None = None) -> None:
        super().__init__(name, width, spatial, channels, grid)
        if self.grid != self.spatial:
            raise ValueError(
                f"condition {name!r} says of each entry whether it is data: grid {list(spatial)} is needed, got {list(self.grid)}"
            )

    def check(self, value: Tensor) -> Tensor:
        return self._whole(super().check(value))

    def missing(self, count: int, device: torch.device) -> Tensor:
        return torch.ones(count, self.channels, *self.grid, device=device)


class ValidFeatures(TellsValid):
    """Of vectors (the known values of a table's row): (B, size), through a perceptron W_2 SiLU(W_1 v) of the entries that vary.

    size: entries of an item. gaps: those that are missing of some training item, of which alone the network is told.
    """

    port, kind = "vector", "valid_features"

    def __init__(self, name: str, width: int, spatial: tuple[int, ...], size: int = 1, gaps: Sequence[int] = ()) -> None:
        if spatial:
            raise ValueError(
                f"condition {name!r} is of vectors, and the data are fields on a grid of {list(spatial)}: kind 'valid' is theirs"
            )
        if any(not 0 <= place < size for place in gaps):
            raise ValueError(f"condition {name!r}: gaps {list(gaps)} of {size} entries; numbers from 0 to {size - 1} are needed")
        super().__init__(name, {"size": size, "gaps": list(gaps)})
        self.size = size
        self.gaps = list(gaps)
        self.layers = nn.Sequential(nn.Linear(max(1, len(gaps)), width), nn.SiLU(), nn.Linear(width, width))

    def fit(self, value: Tensor) -> Tensor:
        return self._numbers(value, (self.size,), "ones and zeros")

    def check(self, value: Tensor) -> Tensor:
        value = self._whole(super().check(value))
        if not bool(((value == 0) | (value == 1)).all()):
            low, high = (float(end) for end in value.aminmax())
            raise ValueError(f"condition {self.name!r} is a mask of 0 and 1, got values {low:g} .. {high:g}")
        return value

    def missing(self, count: int, device: torch.device) -> Tensor:
        return torch.ones(count, self.size, device=device)

    def forward(self, value: Tensor) -> Tensor:
        told = self.fit(value)[:, self.gaps] if self.gaps else value.new_ones(len(value), 1)
        return self.layers(told.to(next(self.layers.parameters()).dtype))


def valid_entries(encoders: Mapping[str, Condition], cond: Mapping[str, Tensor]) -> Tensor | None:
    """Which entries, (B, 1 or C, *spatial) or (B, size), are data by the condition in `cond` that tells; None where there is none."""
    found = [value for name, value in cond.items() if isinstance(encoders.get(name), TellsValid)]
    return found[0] != 0 if found else None
