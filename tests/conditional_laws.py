"""Networks whose branches with and without a condition are known laws, exact or spoilt on purpose, and data of these laws."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

import sde_gen
from sde_gen.conditions import Condition, Label, Map, Numbers
from sde_gen.exact.mixtures import MixtureData

VP = sde_gen.make_sde("vp")
SHARES = torch.tensor([0.6, 0.4], dtype=torch.float64)
MEANS = torch.tensor([[-0.6, 0.0], [0.9, 0.4]], dtype=torch.float64)
COVARIANCES = torch.stack((0.3 * torch.eye(2, dtype=torch.float64), 0.2 * torch.eye(2, dtype=torch.float64)))
BOTH = MixtureData(SHARES, MEANS, COVARIANCES)
MODES = [MixtureData(torch.ones(1), MEANS[k : k + 1], COVARIANCES[k : k + 1]) for k in range(2)]
UNITS = sde_gen.Normalizer(torch.tensor([3.0, -40.0]), torch.tensor([5.0, 0.2]))


class Labelled(nn.Module):
    """The exact denoiser of a mode by its label, 2 for none.

    used: the share of the way from the null branch to the label's; null_scale spoils the null branch.
    """

    encoders: ClassVar[dict[str, Condition]] = {"label": Label("label", 1, (), 2, ["low", "high"])}

    def __init__(self, used: float = 1.0, null_scale: float = 1.0) -> None:
        super().__init__()
        self.used, self.null_scale = used, null_scale

    def null(self, name: str, value: Tensor) -> Tensor:
        return torch.full_like(value, 2)

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        null = self.null_scale * BOTH.denoise_at(x, VP, c)
        if label is None:
            return null
        of_modes = torch.stack([*(torch.lerp(null, mode.denoise_at(x, VP, c), self.used) for mode in MODES), null])
        return of_modes[label, torch.arange(len(x))]


def labelled(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Items and labels, sorted by them."""
    label = (torch.arange(count) >= 0.6 * count).long()
    return torch.where((label == 0)[:, None], MODES[0].sample(count, seed), MODES[1].sample(count, seed + 1)), label


class Linear(nn.Module):
    """x given y is N(A y, S^2 I) with y of N(0, I): the exact denoiser, told y (NaN: not) as numbers or as a map of one entry a pixel.

    used: the share of the way from the null branch to the condition's; null_scale spoils the null branch.
    """

    S = 0.4

    def __init__(self, matrix: Tensor, encoder: Condition, used: float = 1.0, null_scale: float = 1.0) -> None:
        super().__init__()
        self.encoders = {encoder.name: encoder}
        self.matrix, self.used, self.null_scale = matrix.double(), used, null_scale

    def forward(self, x: Tensor, c: Tensor, **cond: Tensor) -> Tensor:
        alpha, sigma = (value.double()[:, None] for value in VP.marginal(c))
        state = x.double().flatten(1)
        values, vectors = torch.linalg.eigh(self.matrix @ self.matrix.T + self.S**2 * torch.eye(len(self.matrix)))
        null = self.null_scale * (state @ vectors * (alpha * values / (alpha**2 * values + sigma**2))) @ vectors.T
        given = next(iter(cond.values()), None)
        if given is None:
            return null.reshape(x.shape).to(x)
        y = given.double().flatten(1)
        mean = y.nan_to_num() @ self.matrix.T
        told = mean + alpha * self.S**2 / (alpha**2 * self.S**2 + sigma**2) * (state - alpha * mean)
        found = torch.where(y.isnan().any(1, keepdim=True), null, torch.lerp(null, told, self.used))
        return found.reshape(x.shape).to(x)

    def draw(self, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Items (N, D) and their y (N, K)."""
        generator = torch.Generator().manual_seed(seed)
        y = torch.randn(count, self.matrix.shape[1], generator=generator)
        noise = torch.randn(count, len(self.matrix), generator=generator)
        return (y.double() @ self.matrix.T).float() + self.S * noise, y

    @property
    def nats(self) -> float:
        """I(x; y) = log det(I + A A^T/S^2)/2."""
        return float(torch.linalg.slogdet(torch.eye(len(self.matrix)) + self.matrix @ self.matrix.T / self.S**2)[1]) / 2


TABLE = torch.tensor([[0.8, 0.1], [-0.3, 0.5], [0.2, 0.9]])
NUMBERS = Numbers("y", 1, (), 2)
FIELD = Map("field", 1, (4, 4))
"""A map of the data's own grid, and beside it the matrix that blurs it."""
PLACES = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
BLUR = torch.exp(-(torch.cdist(PLACES, PLACES) ** 2))


def model(network: nn.Module, **options: object) -> sde_gen.ScoreModel:
    return sde_gen.ScoreModel(network, VP, "data", **options)  # type: ignore[arg-type]
