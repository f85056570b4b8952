"""The reverse-time family: one SDE for each eta, all with the marginals of the forward process."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sdes import SDE
from ..sdes.base import as_time
from ..shapes import expand_as
from .denoiser import Denoiser


def coefficients(sde: SDE, t: Tensor | float, eta: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, c) of the reverse SDE dx = (a x + b E[x_0|x]) dt + c dw, each of the shape of `t`.

    It is dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw with g^2 score/2 = -lambda' (alpha E[x_0|x] - x).
    """
    t = as_time(t)
    alpha, sigma = sde.marginal(t)
    f, slope = sde.slopes(t)
    pull = (1 + eta**2) * slope
    return f - pull, pull * alpha, eta * sigma * torch.sqrt(-2 * slope)


class ReverseSDE:
    """dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw, run from t_max to t_min.

    eta = 1 is the reverse SDE (Anderson 1982; Song et al. 2021, arXiv:2011.13456, equation 6), eta = 0 the probability
    flow (equation 13), and every eta has the forward marginals.
    """

    def __init__(self, model: Denoiser, eta: float = 1.0, **cond: Tensor) -> None:
        if not eta >= 0:
            raise ValueError(f"eta must not be negative, got {eta!r}")
        self.model, self.eta, self.cond = model, float(eta), cond

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The drift at x (B, *), t a scalar or (B,); shape of `x`."""
        a, b, _ = (expand_as(value.to(x), x) for value in coefficients(self.model.sde, t, self.eta))
        return a * x + b * self.model.denoise(x, t, **self.cond)

    def diffusion(self, t: Tensor | float) -> Tensor:
        """eta g(t); shape of `t`."""
        return coefficients(self.model.sde, t, self.eta)[2]
