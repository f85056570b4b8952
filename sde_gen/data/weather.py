"""Fields like a weather model's, made here: five variables of scales 1e5 to 1e-8 on a grid around the globe, with land where none is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.dataset import Dataset

LATITUDES, LONGITUDES = 16, 32
VARIABLES = {
    "pressure (Pa)": (1.0e5, 900.0, -0.5),
    "temperature (K)": (285.0, 8.0, 2.0),
    "humidity (kg/kg)": (8.0e-3, 2.5e-3, 1.5),
    "vorticity (1/s)": (0.0, 2.0e-5, 0.0),
    "rain (m/s)": (4.0e-8, 1.0e-8, 1.0),
}
"""Of each variable the mean, the standard deviation, and how many of the latter its mean rises from the poles to the equator."""
CORRELATIONS = (
    (1.0, -0.5, -0.4, -0.6, -0.5),
    (-0.5, 1.0, 0.8, 0.1, 0.2),
    (-0.4, 0.8, 1.0, 0.2, 0.5),
    (-0.6, 0.1, 0.2, 1.0, 0.6),
    (-0.5, 0.2, 0.5, 0.6, 1.0),
)
"""Of the variables at one point."""
NUGGET, LATITUDE_LENGTH, LONGITUDE_LENGTH = 0.02, 3.0, 4.0
"""The share of each variance that has no neighbours, and the lengths of the rest, in points of the grid."""
_TRAIN, _TEST = 6_000, 1_000


def ocean() -> Tensor:
    """Which points are sea, (16, 32) Boolean: two continents, one of them across the grid's ends, and an island."""
    rows = (torch.arange(LATITUDES, dtype=torch.float64) + 0.5)[:, None]
    columns = (torch.arange(LONGITUDES, dtype=torch.float64) + 0.5)[None]
    land = torch.zeros(LATITUDES, LONGITUDES, dtype=torch.bool)
    for row, column, height, width in ((5.0, 0.5, 4.2, 4.0), (10.5, 13.0, 4.5, 4.5), (3.0, 21.5, 1.6, 1.6)):
        along = (columns - column + LONGITUDES / 2) % LONGITUDES - LONGITUDES / 2
        land |= ((rows - row) / height) ** 2 + (along / width) ** 2 < 1
    return ~land


def weather_law() -> tuple[Tensor, Tensor, Tensor]:
    """The law of the fields before land is cut out, float64: the mean (5, 16, 32), standard deviations (5,), and the correlations
    (2560, 2560) of the flattened field,

        (1 - NUGGET) R x exp(-(i - j)^2/(2 LATITUDE_LENGTH^2)) x exp((cos(2 pi (k - l)/32) - 1) 32^2/(2 pi LONGITUDE_LENGTH)^2) + NUGGET I

    with R = CORRELATIONS, i and j latitudes, k and l longitudes, and x the Kronecker product.
    """
    means, stds, rises = (torch.tensor(column, dtype=torch.float64) for column in zip(*VARIABLES.values(), strict=True))
    latitude = math.pi * ((torch.arange(LATITUDES, dtype=torch.float64) + 0.5) / LATITUDES - 0.5)
    mean = means[:, None] + (rises * stds)[:, None] * (latitude.cos() - latitude.cos().mean())
    factors = _factors()
    smooth = torch.kron(torch.kron(factors[0], factors[1]), factors[2])
    correlations = (1 - NUGGET) * smooth + NUGGET * torch.eye(len(smooth), dtype=torch.float64)
    return mean[:, :, None].expand(-1, -1, LONGITUDES).contiguous(), stds, correlations


def _factors() -> tuple[Tensor, Tensor, Tensor]:
    """Correlations of the variables, along latitudes and along longitudes."""
    i, k = torch.arange(LATITUDES, dtype=torch.float64), torch.arange(LONGITUDES, dtype=torch.float64)
    north = torch.exp(-((i[:, None] - i) ** 2) / (2 * LATITUDE_LENGTH**2))
    angle = 2 * math.pi / LONGITUDES
    east = torch.exp((torch.cos(angle * (k[:, None] - k)) - 1) / (angle * LONGITUDE_LENGTH) ** 2)
    return torch.tensor(CORRELATIONS, dtype=torch.float64), north, east


def weather(root: Path | None = None, seed: int = 0) -> Dataset:
    """Gaussian fields (5, 16, 32) of the law that `weather_law` gives, NaN on land (`ocean`) in files: 6,000 of them, 1,000 held out.

    The longitudes, the last axis, are a circle. What stands at points of land is the variable's mean. `root` is not read.
    """
    rng = np.random.default_rng(seed)
    mean, stds, _ = weather_law()
    roots = [_root(factor) for factor in _factors()]
    total, sea = _TRAIN + _TEST, ocean()
    smooth, rough = (torch.from_numpy(rng.standard_normal((total, *mean.shape), dtype=np.float32)) for _ in range(2))
    variables, north, east = (one.float() for one in roots)
    fields = torch.einsum("vw,nwil->nvil", variables, north @ (smooth @ east.T))
    fields.mul_(math.sqrt(1 - NUGGET)).add_(rough, alpha=math.sqrt(NUGGET))
    x = torch.addcmul(mean.float(), fields, stds.float()[:, None, None])
    fill = torch.stack([x[:, k][:, sea].double().mean() for k in range(len(VARIABLES))])
    x = torch.where(sea, x, fill.float()[:, None, None])
    valid = sea.expand(mean.shape).contiguous()
    return Dataset("weather", x[:_TRAIN], x[_TRAIN:], valid=valid, missing=math.nan)


def _root(correlations: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(correlations)
    return vectors * values.clamp_min(0.0).sqrt()
