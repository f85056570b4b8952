"""The covariance that Gaussian data of a model's moments have given a state: the same for all states of one noise level."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models.denoiser import Prediction
from ..models.moments import Moments
from .conditioned import Observed
from .moment_matched import SMALLEST, MomentMatched


def averaged(found: Prediction, observed: Observed, moments: Moments, alpha: float, sigma: float) -> MomentMatched:
    """`MomentMatched` of a linear operator with V = C - alpha^2 C (alpha^2 C + sigma^2)^-1 C, C the covariance in the model's moments.

    It takes no derivative of the network. No data of covariance C have a larger one on average. Columns and mu are shared by all states,
    (1, k, *), unless their gaps or noise differ.
    """
    z = found.denoised
    key = ("average", alpha, sigma)
    if key not in observed.plans:
        left = moments.along * sigma**2 / (alpha**2 * moments.along + sigma**2)
        observed.plans[key] = _decomposed(observed, moments, left)
    columns, mu, vectors, log_scale = observed.plans[key]
    places, weights, pattern = observed.plans["patterns"]
    shared = len(mu) == 1
    noise = 0.0 if observed.absent else 1.0
    white = observed.residual(z).flatten(1)[:, places] * weights[pattern].to(z.dtype)
    if shared:
        rest = white @ vectors[0]
    else:
        columns, mu, rest = columns[pattern], mu[pattern], (white[:, None] @ vectors[pattern])[:, 0]
    aim = mu.sqrt() / (noise + mu) * rest
    flat = columns.flatten(2)
    shift = aim @ flat[0] if shared else (aim[:, None] @ flat)[:, 0]
    return MomentMatched(found, shift.reshape(z.shape), columns, mu, rest, noise, log_scale[pattern])


def _decomposed(observed: Observed, moments: Moments, variances: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Columns (P, k, *data shape), mu (P, k), vectors (P, M, k) and log_scale (P,) of each pattern of gaps and noise."""
    if "patterns" not in observed.plans:
        observed.plans["patterns"] = _patterns(observed)
    places, weights, _ = observed.plans["patterns"]
    scale = observed.scale
    eye = torch.eye(observed.seen[0].numel(), dtype=torch.float64, device=scale.device)[places]
    rows = scale.double() * observed.measurement.operator.adjoint(eye.reshape(-1, *observed.seen.shape[1:]), observed.shape)
    spread = moments.product(variances, rows)  # V H^T
    matrix = weights[:, :, None] * (spread.flatten(1) @ rows.flatten(1).T) * weights[:, None, :]
    if observed.absent:
        matrix = matrix + torch.diag_embed((weights == 0).double())
    mu, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    mu = mu.clamp_min(0).maximum(SMALLEST * mu[:, -1:]).clamp_min(1e-30)
    columns = (vectors * weights[..., None]).mT @ spread.flatten(1) / mu.sqrt()[..., None]
    of_units = torch.where(weights > 0, torch.log(weights.clamp_min(1e-30)) - 0.5 * math.log(2 * math.pi), 0).sum(1)
    dtype = scale.dtype
    return columns.reshape(*mu.shape, *observed.shape).to(dtype), mu.to(dtype), vectors.to(dtype), of_units


def _patterns(observed: Observed) -> tuple[Tensor, Tensor, Tensor]:
    """The measured entries (M,), and 1/std of each, 0 in gaps, of every pattern (P, M) that states have, and which one each has (B,)."""
    seen = observed.seen.flatten(1)
    places = seen.any(0).nonzero().flatten()
    std = torch.where(observed.variance > 0, observed.variance, 1).double().sqrt()
    weights, pattern = torch.unique((observed.seen / std).flatten(1)[:, places], dim=0, return_inverse=True)
    return places, weights, pattern
