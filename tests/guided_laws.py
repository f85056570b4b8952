"""Models whose conditional and null branches are known laws, for the tests of guidance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import sde_gen
from sde_gen.exact.mixtures import GaussianData, MixtureData

VE = sde_gen.make_sde("ve", sigma_min=0.01, sigma_max=80.0)
VP = sde_gen.make_sde("vp")
EYE = torch.eye(2, dtype=torch.float64)
ONE = torch.ones(1, 1, dtype=torch.float64)


class Branches(nn.Module):
    """Two laws: kind 1 and kind 0, which is also what a kind that is not given means. It counts its calls."""

    def __init__(self, sde: sde_gen.SDE, given: MixtureData, null: MixtureData, nulls: bool = True) -> None:
        super().__init__()
        self.sde, self.given, self.null_law, self.calls = sde, given, null, []
        if nulls:
            self.null = lambda name, value: torch.zeros_like(value)

    def forward(self, x: Tensor, c: Tensor, kind: Tensor | None = None) -> Tensor:
        self.calls.append(len(x))
        null = self.null_law.denoise_at(x, self.sde, c)
        if kind is None:
            return null
        return torch.where(kind.reshape(-1, *[1] * (x.ndim - 1)) == 1, self.given.denoise_at(x, self.sde, c), null)


def branches(sde: sde_gen.SDE, given: MixtureData, null: MixtureData, **options: Any) -> sde_gen.ScoreModel:
    return sde_gen.ScoreModel(Branches(sde, given, null, **options), sde, "data")


def gaussians(sde: sde_gen.SDE = VE, **options: Any) -> sde_gen.ScoreModel:
    """N(0, 1) with kind 1, N(0, 2) without."""
    return branches(sde, GaussianData(torch.zeros(1), ONE), GaussianData(torch.zeros(1), 2 * ONE), **options)


def mixtures(sde: sde_gen.SDE = VP) -> sde_gen.ScoreModel:
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.2], [0.3, -1.0]], dtype=torch.float64)
    covariances = torch.stack((0.1 * EYE, 0.2 * EYE, 0.05 * EYE))
    both = MixtureData(torch.tensor([0.5, 0.3, 0.2]), means, covariances)
    return branches(sde, MixtureData(torch.ones(1), means[:1], covariances[:1]), both)


def kind(count: int) -> dict[str, Tensor]:
    return {"kind": torch.ones(count, dtype=torch.int64)}


def draws(count: int = 6, seed: int = 0, width: int = 2) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
