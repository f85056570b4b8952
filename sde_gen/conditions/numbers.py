"""Numbers and vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .base import Scaled


class Numbers(Scaled):
    """`size` real numbers, standardised, through a perceptron: W_2 SiLU(W_1 [z, known]).

    Values are (B, size), or (B,) where there is one. NaN says that a number is not known: a learned number stands in its place and
    `known` is 0, so that each entry can be missing on its own.

    mean, std: `size` numbers each, with z = (value - mean)/std worked in float64; None: 0 and 1.
    """

    port, kind = "vector", "numbers"

    def __init__(
        self,
        name: str,
        width: int,
        spatial: tuple[int, ...],
        size: int = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(name, {"size": size}, size, mean, std)
        self.size = size
        self.unknown = nn.Parameter(torch.zeros(size))
        self.layers = nn.Sequential(nn.Linear(2 * size, width), nn.SiLU(), nn.Linear(width, width))

    def fit(self, value: Tensor) -> Tensor:
        value = value[:, None] if value.ndim == 1 and self.size == 1 else value
        return self._numbers(value, (self.size,), "numbers")

    def missing(self, count: int, device: torch.device) -> Tensor:
        return torch.full((count, self.size), torch.nan, device=device)

    def forward(self, value: Tensor) -> Tensor:
        value = self.fit(value)
        known = ~torch.isnan(value)
        z = self.standard(value).to(self.unknown.dtype)
        entries = torch.where(known, z, self.unknown)
        return self.layers(torch.cat([entries, known.to(entries.dtype)], dim=1))
