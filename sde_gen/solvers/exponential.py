"""Integrals that exponential and linear multistep methods share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.polynomial.legendre import leggauss
from numpy.typing import NDArray

Array = NDArray[np.float64]

_NODES, _WEIGHTS = leggauss(32)


def lagrange_integrals(nodes: Array, start: float, end: float, kernel: Callable[[Array], Array]) -> Array:
    """The integral over [start, end] of kernel(u) l_j(u) for each Lagrange polynomial l_j on `nodes`, (m,) gives (m,).

    Gauss and Legendre's rule with 32 points: exact to rounding for the smooth kernels of diffusion solvers.
    """
    u = 0.5 * (start + end) + 0.5 * (end - start) * _NODES
    basis = np.ones((len(nodes), len(u)))
    for j, node in enumerate(nodes):
        for other in np.delete(nodes, j):
            basis[j] *= (u - other) / (node - other)
    return 0.5 * (end - start) * (basis * kernel(u)) @ _WEIGHTS


def data_weights(lambdas: Array, start: float, end: float, eta: float = 0.0) -> Array:
    """Weights on E[x_0|x] known at half log-SNR `lambdas`, in units of alpha at `end`, of the exact solution

        x_s = sigma_s/sigma_t exp(-eta^2 h) x_t + alpha_s (1 + eta^2) int exp((1 + eta^2)(u - lambda_s)) E[x_0|x_u] du + noise

    from `start` = lambda_t to `end` = lambda_s = lambda_t + h (Lu et al. 2022, arXiv:2211.01095, proposition 4.1 and
    equation 13; Gonzalez et al. 2023, arXiv:2305.14267).
    """
    rate = 1 + eta**2
    return lagrange_integrals(lambdas, start, end, lambda u: rate * np.exp(rate * (u - end)))


def noise_weights(lambdas: Array, start: float, end: float) -> Array:
    """Weights on the noise known at `lambdas`, in units of sigma at `end`: x_s = alpha_s/alpha_t x_t - sigma_s int exp(lambda_s - u)
    noise du (Lu et al. 2022, arXiv:2206.00927, equation 3.4)."""
    return -lagrange_integrals(lambdas, start, end, lambda u: np.exp(end - u))
