"""A measurement as data of one covariance see it: its directions, and how much of the data each of them tells."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.moments import Moments
from .conditioned import Observed
from .moment_matched import SMALLEST
from .tangents import patterns_of, tangents


class Level(NamedTuple):
    """Columns (P, k, *data shape), mu (P, k), vectors (P, M, k) and log_scale (P,) of each pattern of gaps and noise, and H in the
    coordinates of `vectors`, (P, k, D), of an operator that is not linear."""

    columns: Tensor
    mu: Tensor
    vectors: Tensor
    log_scale: Tensor
    across: Tensor | None


def decomposed(observed: Observed, moments: Moments, variances: Tensor) -> Level:
    """The measurement looked at with the covariance that has these `variances` along the axes of `moments`, in float64."""
    patterns = patterns_of(observed)
    weights = patterns.weights
    if "H" not in observed.plans:
        observed.plans["H"] = _matrix(observed, patterns.places) if observed.linear else tangents(observed, patterns, moments)
    matrix_h: Tensor = observed.plans["H"]
    spread = moments.product(variances, matrix_h.reshape(-1, *observed.shape)).reshape(matrix_h.shape)  # V H^T
    matrix = weights[:, :, None] * (spread @ matrix_h.mT) * weights[:, None, :]
    if observed.absent:
        matrix = matrix + torch.diag_embed((weights == 0).double())
    mu, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    mu = mu.clamp_min(0).maximum(SMALLEST * mu[:, -1:]).clamp_min(1e-30)
    weighted = (vectors * weights[..., None]).mT
    columns = weighted @ spread / mu.sqrt()[..., None]
    of_units = torch.where(weights > 0, torch.log(weights.clamp_min(1e-30)) - 0.5 * math.log(2 * math.pi), 0).sum(1)
    dtype = observed.scale.dtype
    across = None if observed.linear else (weighted @ matrix_h).to(dtype)
    return Level(columns.reshape(*mu.shape, *observed.shape).to(dtype), mu.to(dtype), vectors.to(dtype), of_units, across)


def _matrix(observed: Observed, places: Tensor) -> Tensor:
    """H (1, M, D) of a linear operator, float64."""
    eye = torch.eye(observed.seen[0].numel(), dtype=torch.float64, device=observed.scale.device)[places]
    back = observed.measurement.operator.adjoint(eye.reshape(-1, *observed.seen.shape[1:]), observed.shape)
    return (observed.scale.double() * back).flatten(1)[None]
