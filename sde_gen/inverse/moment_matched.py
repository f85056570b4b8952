"""The Gaussian with the moments of p(x_0 | x_t) that the network's Jacobian knows, conditioned on a measurement."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, Prediction
from ..shapes import expand_as
from .conditioned import Observed
from .solve import conjugate_gradients, dot, positive_factor

DIRECT = 48
"""Up to so many measured entries the system is formed, by one vector-Jacobian product each, and solved exactly."""


@dataclass(frozen=True)
class MomentMatched:
    """What the Gaussian N(D, V) says of a measurement, V = (sigma^2/alpha) dD/dx.

    prediction: of the model alone, detached unless a gradient is asked for from outside.
    shift: V H^T (Sigma_y + H V H^T)^-1 (y - A(D)), of the state's shape.
    log_evidence: log N(y; A(D), Sigma_y + H V H^T) in nats, (B,), where it was asked for.
    """

    prediction: Prediction
    shift: Tensor
    log_evidence: Tensor | None


def moment_matched(
    model: Denoiser,
    x: Tensor,
    t: Tensor | float,
    observed: Observed,
    cond: dict[str, Tensor],
    gain: Tensor,
    iterations: int,
    tolerance: float,
    evidence: bool = False,
) -> MomentMatched:
    """See `MomentMatched`; gain: sigma^2/alpha at t, ready to multiply x (B, *). Where A is not linear, H is its derivative at D.

    Up to `DIRECT` measured entries by a direct solve, else by conjugate gradients of at most so many iterations.
    """
    outside = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        state = x if outside else x.detach().requires_grad_()
        found = model.predict(state, t, **cond)
        if not found.denoised.requires_grad:
            raise TypeError("the model's prediction has no gradient with respect to the state (detached, or computed under no_grad?)")
        forward, adjoint = (
            (observed.forward, observed.adjoint) if observed.measurement.operator.linear else linearised(observed, found.denoised)
        )

        def spread(u: Tensor) -> Tensor:
            """V H^T u."""
            return gain * torch.autograd.grad(found.denoised, state, adjoint(u), retain_graph=True, create_graph=outside)[0]

        with torch.set_grad_enabled(outside):
            rest = observed.residual(found.denoised if outside else found.denoised.detach())
            places = observed.seen.flatten(1).any(0).nonzero().flatten()
            if len(places) <= DIRECT:
                said: tuple[Tensor, Tensor | None] = _direct(spread, forward, observed, rest, places)
            else:
                said = _by_iterations(spread, forward, observed, rest, iterations, tolerance, evidence)
    if not outside:
        fraction = found.variance_fraction
        found = Prediction(found.denoised.detach(), None if fraction is None else fraction.detach())
    return MomentMatched(found, *said)


def _direct(
    spread: Callable[[Tensor], Tensor], forward: Callable[[Tensor], Tensor], observed: Observed, rest: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    count = len(rest)
    unit = torch.eye(rest[0].numel(), dtype=rest.dtype, device=rest.device)[places]
    columns = [spread(row.expand(count, -1).reshape(rest.shape)) for row in unit]
    images = [forward(column).flatten(1)[:, places] for column in columns]
    matrix = torch.stack(images, 1)
    matrix = 0.5 * (matrix + matrix.mT)
    noise = observed.variance.expand(rest.shape).flatten(1)[:, places]
    # In units of the noise, where there is any, the eigenvalues are 1 and more.
    unit_of = torch.sqrt(torch.where(noise > 0, noise, 1))
    scaled = matrix / unit_of[:, :, None] / unit_of[:, None, :] + torch.diag_embed((noise > 0).to(rest.dtype))
    trace = scaled.detach().diagonal(dim1=1, dim2=2).abs().amax(1)
    least = torch.where((noise > 0).all(1), 1.0, 1e-6 * trace).clamp_min(torch.finfo(rest.dtype).tiny)
    factor = positive_factor(scaled, least)
    flat = rest.flatten(1)[:, places] / unit_of
    white = torch.linalg.solve_triangular(factor, flat[..., None], upper=False)
    weights = torch.linalg.solve_triangular(factor.mT, white, upper=True)[..., 0] / unit_of
    shift = torch.zeros_like(columns[0])
    for k, column in enumerate(columns):
        shift = shift + expand_as(weights[:, k], column) * column
    log_det = 2 * torch.log(factor.diagonal(dim1=1, dim2=2)).sum(1) + 2 * torch.log(unit_of).sum(1)
    entries = observed.seen.flatten(1).sum(1)
    return shift, -0.5 * (white[..., 0].square().sum(1) + log_det + entries * math.log(2 * math.pi))


def _by_iterations(
    spread: Callable[[Tensor], Tensor],
    forward: Callable[[Tensor], Tensor],
    observed: Observed,
    rest: Tensor,
    iterations: int,
    tolerance: float,
    evidence: bool,
) -> tuple[Tensor, Tensor | None]:
    noise = observed.variance.expand(rest.shape)
    unit_of = torch.sqrt(torch.where(noise > 0, noise, 1))
    diagonal = (noise > 0).to(rest.dtype)

    def product(u: Tensor) -> Tensor:
        return diagonal * u + forward(spread(u / unit_of)) / unit_of

    white = rest / unit_of
    weights = conjugate_gradients(product, white, iterations, tolerance)
    shift = spread(weights / unit_of)
    if not evidence:
        return shift, None
    # Of the determinant by Hadamard's inequality with the mean of the diagonal, which one probe that is the same everywhere estimates:
    # a function of the state, as a twist must be.
    probe = torch.where(
        observed.seen, 1.0 - 2.0 * (torch.arange(rest[0].numel(), device=rest.device) * 40503 % 65537 % 2).reshape(rest.shape[1:]), 0.0
    )
    entries = observed.seen.flatten(1).sum(1)
    mean = dot(probe.to(rest.dtype), product(probe.to(rest.dtype))) / entries
    log_det = entries * torch.log(mean.clamp_min(1.0 if bool((noise > 0).all()) else 1e-12)) + 2 * torch.log(unit_of).flatten(1).sum(1)
    return shift, -0.5 * (dot(white, weights) + log_det + entries * math.log(2 * math.pi))


def linearised(observed: Observed, denoised: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """v -> H v and u -> H^T u for H = d A(decode(z))/dz at z = `denoised`."""
    at = denoised.detach().requires_grad_()
    with torch.enable_grad():
        clean = observed.clean(at)
        probe = torch.zeros_like(clean, requires_grad=True)
        back = torch.autograd.grad(clean, at, probe, create_graph=True)[0]

    def adjoint(u: Tensor) -> Tensor:
        return torch.autograd.grad(clean, at, u.to(clean.dtype), retain_graph=True)[0].to(u.dtype)

    def forward(v: Tensor) -> Tensor:
        return torch.autograd.grad(back, probe, v.to(back.dtype), retain_graph=True)[0].to(v.dtype)

    return forward, adjoint
