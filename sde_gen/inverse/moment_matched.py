"""The Gaussian with the moments of p(x_0 | x_t) that the network's Jacobian knows, conditioned on a measurement."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, Prediction, like
from ..models.moments import Moments
from ..sdes.base import as_time
from ..shapes import expand_as
from .conditioned import Observed
from .linearised import linearised
from .solve import krylov

DIRECT = 48
"""Up to so many measured entries all directions of the measurement are looked along, by one vector-Jacobian product each."""
SMALLEST = 1e-7
"""Variances along the measurement are held above this share of the largest: a network's Jacobian is not quite symmetric and positive."""
FAR = (4.0, 8.0)
"""Levels sigma/alpha, in standard deviations of the data along their largest axis, between which the network's Jacobian gives way to the
data's own moments. A network's error counts sigma^2/alpha times in V, and what data are beyond Gaussian is lost in so much noise.
Particles, whose weights make up for a step in V, differentiate no network above the first of them."""
LEAST = 0.1
"""V is held above this share of the least variance that Gaussian data with the model's moments would have."""
Product = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class MomentMatched:
    """The Gaussian N(D, V) of the data at one state, V = (sigma^2/alpha) dD/dx, as far as a measurement looks at it.

    In units of the noise the measurement is y = u + noise of variance 1 along k directions, in which u has variances mu and the residual
    y - A(D) the coordinates `rest`; G holds the data's own directions that go with u: x_0 = D + G^T (u/sqrt(mu)) + what y says nothing of.

    prediction: of the model alone, detached unless a gradient is asked for from outside.
    shift: E[x_0 | x_t, y] - D = V H^T (Sigma_y + H V H^T)^-1 (y - A(D)), of the state's shape.
    columns: G, (B, k, *data shape), scaled so that V = G^T G on their span. mu, rest: (B, k).
    noise: the measurement's variance in these units: 1, or 0 where there is no noise and mu is in the measurement's own.
    log_scale: (B,) float64, log N(y; A(D), Sigma_y + H V H^T) less that of the coordinates.
    lead: what `shift` holds that is not of the columns, of the state's shape; None: nothing.
    """

    prediction: Prediction
    shift: Tensor
    columns: Tensor
    mu: Tensor
    rest: Tensor
    noise: float
    log_scale: Tensor
    lead: Tensor | None = None

    @property
    def log_evidence(self) -> Tensor:
        """log N(y; A(D), Sigma_y + H V H^T) in nats, (B,) float64."""
        total = (self.noise + self.mu).double()
        return self.log_scale - 0.5 * (self.rest.double().square() / total + torch.log(total)).sum(1)


def moment_matched(
    model: Denoiser,
    x: Tensor,
    t: Tensor | float,
    observed: Observed,
    cond: dict[str, Tensor],
    gain: Tensor,
    directions: int,
    evidence: bool = False,
) -> MomentMatched:
    """See `MomentMatched`; gain: sigma^2/alpha at t, ready to multiply x (B, *). Where A is not linear, H is its derivative at D.

    Up to `DIRECT` measured entries along all of their directions, else along as many of the Krylov space of the residual as `directions`
    says, which is what conjugate gradients of so many iterations look along.
    """
    outside = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        state = x if outside else x.detach().requires_grad_()
        found = model.predict(state, t, **cond)
        denoised = found.denoised
        if not denoised.requires_grad:
            raise TypeError("the model's prediction has no gradient with respect to the state (detached, or computed under no_grad?)")
        forward, adjoint = (observed.forward, observed.adjoint) if observed.linear else linearised(observed, denoised)
    units = units_of(observed).sqrt()
    noise, seen = 0.0 if observed.absent else 1.0, observed.seen.flatten(1)

    known = OfMoments.at(model, x, t)
    sizes: list[Tensor] = []

    def along(u: Tensor) -> tuple[Tensor, Tensor]:
        """V H^T u, and H V H^T u in units of the noise, for flat u in these units."""
        v = adjoint(u.reshape(units.shape) / units)
        column = gain * torch.autograd.grad(denoised, state, v, retain_graph=True, create_graph=outside)[0]
        if known is not None:
            column = known.mixed(v, column)
            sizes.append(v.square().flatten(1).sum(1))
        return column, (forward(column) / units).flatten(1)

    with torch.set_grad_enabled(outside):
        white = (observed.residual(denoised if outside else denoised.detach()) / units).flatten(1)
        log_scale = -(torch.where(observed.seen, torch.log(units), 0).flatten(1).double() + 0.5 * math.log(2 * math.pi) * seen).sum(1)
        if observed.entries <= DIRECT:
            places = seen.any(0).nonzero().flatten()
            basis = torch.eye(white.shape[1], dtype=white.dtype, device=white.device)[places].expand(len(x), -1, -1)
            pairs = [along(u) for u in basis.unbind(1)]
        else:
            basis, pairs = krylov(along, white, directions)
            if evidence:
                log_scale = log_scale - 0.5 * _rest_of_log_det(along, basis, pairs, seen, noise)
        columns = torch.stack([column for column, _ in pairs], 1)
        matrix = torch.stack([image for _, image in pairs], 1) @ basis.mT
        matrix = 0.5 * (matrix + matrix.mT)
        if noise == 0:  # directions that are no measurement of this sample: neither seen nor felt
            matrix = matrix + torch.diag_embed(1 - (basis.square() * seen[:, None]).sum(2))
        rest = (basis @ white[..., None])[..., 0]
        if outside:  # eigenvectors have no derivative where eigenvalues are equal
            system = matrix + noise * torch.eye(matrix.shape[1], dtype=x.dtype, device=x.device)
            shift = torch.einsum("bk,bk...->b...", torch.linalg.solve(system, rest), columns)
            return MomentMatched(found, shift, columns, rest, rest, noise, log_scale)
        mu, vectors = torch.linalg.eigh(matrix)
        least = SMALLEST * mu.amax(1, keepdim=True)
        if known is not None:
            size = torch.stack(sizes[: matrix.shape[1]], 1)
            real = size > 0  # others are no measurement of this sample, or lie beyond its Krylov space
            smallest = torch.where(real, size, torch.inf).amin(1).nan_to_num(posinf=0.0)
            least = torch.maximum(least, (known.least * smallest)[:, None] * (vectors.square() * real[..., None]).sum(1))
        mu = torch.maximum(mu, least).clamp_min(torch.finfo(x.dtype).tiny)
        columns = torch.einsum("bjk,bj...->bk...", vectors, columns) / mu.sqrt().reshape(*mu.shape, *[1] * (x.ndim - 1))
        rest = (rest[:, None] @ vectors)[:, 0]
        shift = torch.einsum("bk,bk...->b...", mu.sqrt() / (noise + mu) * rest, columns)
    fraction = found.variance_fraction
    found = Prediction(denoised.detach(), None if fraction is None else fraction.detach())
    return MomentMatched(found, shift, columns, mu, rest, noise, log_scale)


def units_of(observed: Observed) -> Tensor:
    """The variance that each entry of a measurement is seen in units of, as y: that of its noise, or its own where there is none."""
    return torch.where(observed.variance > 0, observed.variance, _own_units(observed))


def _own_units(observed: Observed) -> Tensor:
    """The variance of each entry of a measurement without noise of N(0, I), about, as y: columns of a table have units of their own."""
    if not observed.absent or not observed.linear:
        return torch.ones_like(observed.variance)
    found = observed.forward(observed.scale.new_ones(observed.shape).expand(len(observed.seen), *observed.shape)).square()
    mean = found.flatten(1).sum(1) / observed.seen.flatten(1).sum(1)
    return torch.where(observed.seen, torch.maximum(found, 0.01 * expand_as(mean, found)), 1)


@dataclass(frozen=True)
class OfMoments:
    """V of Gaussian data with the model's moments, at one level.

    share: how much of V is theirs, ready to multiply x. least: V is held above it along every direction, () or (B,).
    """

    moments: Moments
    alpha: Tensor
    sigma: Tensor
    share: Tensor
    least: Tensor

    @classmethod
    def at(cls, model: Denoiser, x: Tensor, t: Tensor | float) -> OfMoments | None:
        """None where the model knows no moments."""
        if model.moments is None:
            return None
        alpha, sigma = (value.to(x.device) for value in model.sde.marginal(as_time(t).to(torch.float64)))
        least, largest = (value.to(x.device) for value in model.moments.extremes())
        level = torch.log(sigma / alpha / largest.sqrt())
        share = ((level - math.log(FAR[0])) / math.log(FAR[1] / FAR[0])).clamp(0, 1)
        floor = LEAST * sigma**2 * least / (alpha**2 * least + sigma**2)
        return cls(model.moments, alpha, sigma, like(share, x), floor.to(x.dtype))

    def mixed(self, v: Tensor, column: Tensor) -> Tensor:
        """V v, of the network's own V v."""
        return torch.lerp(column, self.moments.posterior_covariance(v, self.alpha, self.sigma), self.share)


def _rest_of_log_det(along: Product, basis: Tensor, pairs: list[tuple[Tensor, Tensor]], seen: Tensor, noise: float) -> Tensor:
    """log det of I + H V H^T off the directions of `basis`, (B,) float64: as if their variances were all the mean one, of which a probe
    that is always the same tells the sum. A twist may be any function of the state."""
    place = torch.arange(seen.shape[1], device=seen.device)
    signs = (1 - 2 * (place * 40503 % 65537 % 2)).to(basis.dtype) * seen
    total = (signs * along(signs)[1]).sum(1)
    known = sum(((image * u).sum(1) for u, (_, image) in zip(basis.unbind(1), pairs, strict=True)), start=torch.zeros_like(total))
    count = (seen.sum(1) - basis.square().sum((1, 2)).round()).clamp_min(0)
    mean = ((total - known) / count.clamp_min(1)).clamp_min(0)
    return count * torch.log((noise + mean).clamp_min(1e-12).double())
