"""Sequences and sets, as tokens."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from torch import Tensor, nn

from .base import Scaled


class Sequence(Scaled):
    """Up to `length` places of `features` numbers each, a token for each place, which the network attends to.

    Values are (B, L, features) with L <= length. A place with a NaN is not there and is not attended to, which is how sequences of
    unlike length share a batch. One learned token more is always there: it is all that is left of a sequence that is not given.

    mean, std: `features` numbers each, for z = (value - mean)/std; None: 0 and 1.
    ordered: whether the places are told apart; False takes a sequence for a set.
    """

    port, kind = "tokens", "sequence"

    def __init__(
        self,
        name: str,
        width: int,
        spatial: tuple[int, ...],
        features: int,
        length: int,
        mean: Many[float] | None = None,
        std: Many[float] | None = None,
        ordered: bool = True,
    ) -> None:
        super().__init__(name, {"features": features, "length": length, "ordered": ordered}, features, mean, std)
        self.features, self.length = features, length
        self.layers = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.place = nn.Parameter(torch.randn(length, width) * width**-0.5) if ordered else None
        self.always = nn.Parameter(torch.randn(1, width) * width**-0.5)

    def fit(self, value: Tensor) -> Tensor:
        value = self._numbers(value, (None, self.features), "a sequence")
        if value.shape[1] > self.length:
            raise ValueError(f"condition {self.name!r} has at most {self.length} places, got {value.shape[1]}")
        return value

    def missing(self, count: int, device: torch.device) -> Tensor:
        return torch.empty((count, 0, self.features), device=device)

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens (B, 1 + L, width), and which of them are there (B, 1 + L)."""
        value = self.fit(value)
        there = ~torch.isnan(value).any(2)
        z = self.standard(torch.where(there[:, :, None], value, 0.0)).to(self.always.dtype)
        tokens = self.layers(z)
        if self.place is not None:
            tokens = tokens + self.place[: value.shape[1]].to(tokens.dtype)
        first = self.always.to(tokens.dtype).expand(len(value), 1, -1)
        return torch.cat([first, tokens], dim=1), torch.cat([there.new_ones(len(value), 1), there], dim=1)
