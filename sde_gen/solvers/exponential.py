"""Integrals and tables that exponential and linear multistep methods share.

Everything is a differentiable function of the times, so that `sde_gen.fit_grid` can move them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from ..sdes import SDE
from .base import Update, numbers

_NODES, _WEIGHTS = (torch.from_numpy(values) for values in leggauss(32))

Kernel = Callable[[Tensor, Tensor], Tensor]


def _same(u: Tensor) -> Tensor:
    return u


def lagrange_integrals(
    nodes: Tensor, start: Tensor, end: Tensor, kernel: Kernel, variable: Callable[[Tensor], Tensor] = _same, midpoint: bool = False
) -> Tensor:
    """The integrals over [start, end] of kernel(u, end) l_j(v(u)) for the Lagrange polynomials l_j on `nodes`.

    nodes: (K, m), values of the variable v; start, end: (K,), values of u; gives (K, m). Gauss and Legendre's rule with 32
    points: exact to rounding for the smooth kernels of diffusion solvers. midpoint: l_j is held at its value in the middle.
    """
    half = (0.5 * (end - start))[:, None]
    middle = 0.5 * (start + end)[:, None]
    u = middle + half * _NODES
    same = torch.eye(nodes.shape[1], dtype=torch.bool)[:, :, None]
    place = variable(middle if midpoint else u)
    above = (place[:, None, None, :] - nodes[:, None, :, None]).masked_fill(same, 1.0)
    below = (nodes[:, :, None] - nodes[:, None, :]).masked_fill(same[:, :, 0], 1.0)
    basis = (above / below[..., None]).prod(2)
    return half * ((basis * kernel(u, end[:, None])[:, None, :]) @ _WEIGHTS)


def history_weights(
    nodes: Tensor,
    newest: range,
    start: Tensor,
    end: Tensor,
    points: int,
    kernel: Kernel,
    variable: Callable[[Tensor], Tensor] = _same,
    midpoint: bool = False,
) -> Tensor:
    """Weights on the last `points` known values, the newest first, for each step: (K, points), 0 where fewer are known.

    nodes: (M,), where values are or will be known, in the order in which they come; newest: the index of the newest for each
    of the K steps from start to end (both (K,)). midpoint: see `lagrange_integrals`.
    """
    groups = []
    for first in range(len(newest)):
        count = min(points, newest[first] + 1)
        if first and count == min(points, newest[first - 1] + 1):
            continue
        last = len(newest) if count == points else first + 1
        window = torch.arange(newest[first], newest[first] + last - first)[:, None] - torch.arange(count)
        weights = lagrange_integrals(nodes[window], start[first:last], end[first:last], kernel, variable, midpoint)
        groups.append(torch.nn.functional.pad(weights, (0, points - count)))
    return torch.cat(groups)


def data_multistep(
    sde: SDE,
    times: Tensor,
    points: int,
    eta: float = 0.0,
    corrector: bool = False,
    variable: Callable[[Tensor], Tensor] = _same,
    before: Tensor | None = None,
    midpoint: bool = False,
) -> list[Update]:
    """The table of the exponential multistep method in data prediction, of the reverse SDE with this eta.

        x_s = sigma_s/sigma_t exp(-eta^2 h) x_t + alpha_s (1 + eta^2) int exp((1 + eta^2)(u - lambda_s)) P(u) du + noise

    over u from lambda_t to lambda_s = lambda_t + h, exactly. P interpolates the last `points` predictions as a polynomial in
    variable(lambda). With `corrector` every state is first corrected by the polynomial that has its own prediction too.
    before: the variable at predictions that come before the first call, the oldest first.
    midpoint: P is held over each step at its value in the middle, P(lambda_t + h/2), which comes out of the integral.
    Lu et al. 2022, arXiv:2211.01095, proposition 4.1 and equation 13; Gonzalez et al. 2023, arXiv:2305.14267; Zhao et al.
    2023, arXiv:2302.04867, for the corrector.
    """
    rate = 1 + eta**2
    alpha, sigma = sde.marginal(times)
    lambdas = sde.half_log_snr(times)
    nodes = variable(lambdas[:-1])
    known = 0 if before is None else len(before)
    nodes = nodes if before is None else torch.cat((before, nodes))
    steps = len(times) - 1

    def kernel(u: Tensor, end: Tensor) -> Tensor:
        return rate * torch.exp(rate * (u - end))

    start, end = lambdas[:-1], lambdas[1:]
    ratio = sigma[1:] / sigma[:-1] * torch.exp(-(eta**2) * (end - start))
    predicted = alpha[1:, None] * history_weights(nodes, range(known, known + steps), start, end, points, kernel, variable, midpoint)
    weights = predicted
    if corrector:
        weights = torch.nn.functional.pad(predicted, (0, 1))
        if steps > 1:
            corrected = alpha[1:-1, None] * history_weights(
                nodes, range(known + 1, known + steps), start[:-1], end[:-1], points + 1, kernel, variable
            )
            change = corrected - torch.nn.functional.pad(predicted[:-1], (1, 0))
            weights = weights + torch.nn.functional.pad(ratio[1:, None] * change, (0, 0, 1, 0))
    noise = sigma[1:] * torch.sqrt(-torch.expm1(-2 * eta**2 * (end - start))) if eta else torch.zeros_like(start)
    return update_table(times, ratio, weights, noise)


def noise_multistep(
    sde: SDE, times: Tensor, nodes: Tensor, points: int, kernel: Kernel, units: Tensor, midpoint: bool = False
) -> list[Update]:
    """The table of x_s = alpha_s/alpha_t x_t + units int kernel(u) P(u) du, P through the last `points` predictions of the
    noise as a polynomial in u; nodes: u at `times`; units: (K,), one for each step; midpoint: see `data_multistep`."""
    alpha, sigma = sde.marginal(times)
    weights = history_weights(nodes[:-1], range(len(times) - 1), nodes[:-1], nodes[1:], points, kernel, midpoint=midpoint)
    return update_table(times, alpha[1:] / alpha[:-1], units[:, None] * weights, view=(1 / sigma[:-1], -alpha[:-1] / sigma[:-1]))


def update_table(
    times: Tensor, a: Tensor, weights: Tensor, noise: Tensor | None = None, view: tuple[Tensor, Tensor] | None = None
) -> list[Update]:
    """One update a step: a (K,), weights (K, m), noise (K,), view two of (K,)."""
    columns = [numbers(column) for column in (times[:-1], times[1:], a, torch.zeros_like(a) if noise is None else noise)]
    views = [None] * len(a) if view is None else zip(*(numbers(column) for column in view), strict=True)
    b = [tuple(numbers(row)) for row in weights]
    return [Update(t=t, a=a, b=b, c=c, s=s, view=view) for (t, s, a, c), b, view in zip(zip(*columns, strict=True), b, views, strict=True)]
