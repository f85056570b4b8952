"""A continuous-time model by index: what DDPM's code calls a model."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.denoiser import Denoiser
from ..shapes import expand_as
from .chain import DiscreteChain, Index


class ChainView:
    """The reverse chain of a `Denoiser`, by index: p(x_{i-1} | x_i) = N(mean, variance), with no weights of its own.

    model: any Denoiser.
    chain: the chain, whose marginals must be those of the model's SDE at its times (see `elbo`).

    In all methods states x_i are (B, *) in normalised units, i is an index or (B,) of them, and conditions are keyword tensors; an
    index outside the chain raises ValueError. `sample(model, shape, "ancestral", grid=chain.times.flip(0))` walks down the same chain
    with all of `sample`'s options, where the chain begins at the SDE's t_min, as that of `chain_of` does.
    """

    def __init__(self, model: Denoiser, chain: DiscreteChain) -> None:
        self.model, self.chain = model, chain

    def denoise(self, x_i: Tensor, i: Index, **cond: Tensor) -> Tensor:
        """E[x_0 | x_i]; shape of `x_i`."""
        return self.model.denoise(x_i, self._time(i, x_i), **cond)

    def noise(self, x_i: Tensor, i: Index, **cond: Tensor) -> Tensor:
        """E[eps | x_i], DDPM's epsilon_theta(x_i, i); shape of `x_i`."""
        return self.model.noise(x_i, self._time(i, x_i), **cond)

    def score(self, x_i: Tensor, i: Index, **cond: Tensor) -> Tensor:
        """grad log p_i(x_i) = -E[eps | x_i]/sigma_i; shape of `x_i`."""
        return self.model.score(x_i, self._time(i, x_i), **cond)

    def reverse(self, x_i: Tensor, i: Index, variance: str = "fixed_small", **cond: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of p(x_{i-1} | x_i): the posterior with E[x_0 | x_i] in the place of x_0, and `DiscreteChain.variance`.

        The mean has the shape of `x_i`, the variance broadcasts over it. Raises ValueError for "learned" with a model that predicts no
        variance. Ho et al. 2020, arXiv:2006.11239, equation 11.
        """
        found = self.model.predict(x_i, self._time(i, x_i), **cond)
        mean, _ = self.chain.posterior(found.denoised, x_i, i)
        of_noise = self.chain.variance(i, variance, found.variance_fraction).to(x_i)
        return mean, of_noise if variance == "learned" else expand_as(of_noise, x_i)

    def step(self, x_i: Tensor, i: Index, z: Tensor, variance: str = "fixed_small", **cond: Tensor) -> Tensor:
        """mean + sqrt(variance) z, a draw of x_{i-1} for standard normal z; at i = 0 the mean alone, which is E[x_0 | x_0's blur]."""
        mean, of_noise = self.reverse(x_i, i, variance, **cond)
        inside = expand_as((torch.as_tensor(i) > 0).to(x_i), x_i)
        return mean + inside * torch.sqrt(of_noise) * z

    def _time(self, i: Index, x: Tensor) -> Tensor | float:
        t = self.chain.time(i)
        return float(t) if t.ndim == 0 else t.to(x.device)
