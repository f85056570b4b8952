"""The terms of the evidence lower bound: decoder, steps and prior. Each is differentiable, so that it is a training loss too."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models.denoiser import UnitMap, is_affine
from ..models.prior import MatchedPrior, Prior, SDEPrior
from ..shapes import expand_as
from .chain import DiscreteChain, Index

_EDGE = 1e9
"""In standard deviations: beyond it a Gaussian has no mass in any dtype, and unlike infinity it leaves gradients finite."""


def discretized_log_prob(values: Tensor, mean: Tensor, std: Tensor | float, levels: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """log of a Gaussian's mass in each value's bin, nats, the shape of `values` (integers 0 .. levels - 1):

        log int_{x - scale/2}^{x + scale/2} N(u; mean, std^2) du,  x = shift + scale v,  the outer bins reaching to infinity

    The masses of all levels sum to one. The result is exact in the tails, and differentiable.

    mean, std: the Gaussian's, in the data's units; they broadcast over `values`.
    scale, shift: integer v stands for the bin of width `scale` around shift + scale v in the data's units.

    Ho et al. 2020, arXiv:2006.11239, equation 13.
    """
    centred = shift + scale * values.to(mean) - mean
    low = torch.where(values == 0, -_EDGE, (centred - 0.5 * scale) / std)
    high = torch.where(values == levels - 1, _EDGE, (centred + 0.5 * scale) / std)
    flip = low + high > 0  # by symmetry both may be mirrored: the smaller tail is the one that does not cancel
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    of_high = torch.special.log_ndtr(high)
    return of_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - of_high))


def decoder_nll(
    normalizer: UnitMap | None,
    values: Tensor,
    denoised: Tensor,
    std: Tensor,
    levels: int | None,
    scale: float = 1.0,
    shift: float = 0.0,
) -> Tensor:
    """-log P(values | x at the chain's first index) of a Gaussian around `denoised`, in nats, (B,). It is differentiable.

    normalizer: the map between the data's units and normalised ones, or None.
    values: (B, *) in the data's units.
    denoised: (B, *) in normalised units.
    std: the Gaussian's standard deviation in normalised units, a scalar or of the shape of `denoised`.
    levels: with a number the values are integers 0 .. levels - 1, and P is the Gaussian's mass in their bins (`discretized_log_prob`);
        with None P is its density in the data's units.

    Raises ValueError for levels where the normaliser is not affine.
    scale, shift: see `discretized_log_prob`.
    """
    std = std.expand_as(denoised)
    if normalizer is not None and not is_affine(normalizer):
        if levels is not None:
            raise ValueError("bins of whole numbers need an affine normaliser (standard, range, robust, identity): levels must be None")
        z = normalizer.encode(values)
        log_prob = -0.5 * ((z - denoised) / std) ** 2 - torch.log(std) - 0.5 * math.log(2 * math.pi)
        return -log_prob.flatten(1).sum(1) - normalizer.log_det(values)
    if normalizer is not None:
        zero = normalizer.decode(torch.zeros_like(denoised[:1]))
        std = std * (normalizer.decode(torch.ones_like(denoised[:1])) - zero)
        denoised = normalizer.decode(denoised)
    if levels is None:
        log_prob = -0.5 * ((values - denoised) / std) ** 2 - torch.log(std) - 0.5 * math.log(2 * math.pi)
    else:
        log_prob = discretized_log_prob(values, denoised, std, levels, scale, shift)
    return -log_prob.flatten(1).sum(1)


def step_kl(
    chain: DiscreteChain, x_0: Tensor, denoised: Tensor, i: Index, variance: str = "fixed_small", fraction: Tensor | None = None
) -> Tensor:
    """KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i)) in nats, (B,).

        sum_d 1/2 (log(w/v) + v/w - 1 + (m (x_0 - denoised))^2/w)

    v and w are the posterior's and the model's variance, m is the factor of x_0 in the posterior's mean. With "fixed_small" it is
    (SNR_{i-1} - SNR_i)/2 |x_0 - denoised|^2.

    x_0, denoised: the data and E[x_0 | x_i], (B, *), in normalised units.
    i: an index, or (B,) of them, in 1 .. N - 1.
    variance: see `DiscreteChain.variance`.
    fraction: the network's fraction of the variance in [0, 1] for "learned", (B, *).
    """
    of_data, of_posterior, of_model = _step(chain, x_0, i, variance, fraction)
    error = (of_data * (x_0 - denoised)) ** 2 / of_model
    return (_spread_kl(of_posterior, of_model) + 0.5 * error).flatten(1).sum(1)


def step_log_ratio(
    chain: DiscreteChain,
    x_0: Tensor,
    denoised: Tensor,
    noise: Tensor,
    i: Index,
    variance: str = "fixed_small",
    fraction: Tensor | None = None,
) -> Tensor:
    """log q(x_{i-1} | x_i, x_0) - log p(x_{i-1} | x_i) in nats at a drawn x_{i-1} = posterior mean + sqrt(v) noise, (B,).

        sum_d 1/2 (log(w/v) - noise^2 + (sqrt(v) noise + m (x_0 - denoised))^2/w),   v, w, m as in `step_kl`

    Its mean over the noise is `step_kl`, which by Rao and Blackwell never has more variance. x_i cancels.

    noise: standard normal, (B, *). The other arguments are those of `step_kl`.

    Ho et al. 2020, arXiv:2006.11239, section 2, equation 5.
    """
    of_data, of_posterior, of_model = _step(chain, x_0, i, variance, fraction)
    offset = (of_posterior.sqrt() * noise + of_data * (x_0 - denoised)) ** 2 / of_model
    return (0.5 * (torch.log(of_model) - torch.log(of_posterior) - noise**2 + offset)).flatten(1).sum(1)


def _step(chain: DiscreteChain, x_0: Tensor, i: Index, variance: str, fraction: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The factor of x_0 in the posterior's mean, the posterior's variance and the model's; each broadcasts over `x_0`."""
    of_data, _, of_posterior = (expand_as(value.to(x_0), x_0) for value in chain.posterior_coefficients(i))
    of_model = chain.variance(i, variance, fraction).to(x_0)
    if fraction is None or variance != "learned":
        of_model = expand_as(of_model, x_0)
    return of_data, of_posterior, of_model


def prior_kl(prior: Prior, mean: Tensor, std: float) -> Tensor:
    """KL(N(mean, std^2 I) || prior) of a Gaussian prior, in closed form, in nats: `mean` (B, *) gives (B,).

    Raises TypeError for a prior that is neither `SDEPrior` nor `MatchedPrior`.
    """
    flat = mean.double().flatten(1)
    if isinstance(prior, SDEPrior):
        variances = flat.new_full((flat.shape[1],), prior.sde.prior_std**2)
    elif isinstance(prior, MatchedPrior):
        centre, of_data, axes = (None if v is None else v.to(flat) for v in prior.moments.axes(mean.shape[1:]))
        assert centre is not None and of_data is not None
        flat = flat - prior.alpha * centre
        flat = flat if axes is None else flat @ axes
        variances = prior.alpha**2 * of_data + prior.sigma**2
    else:
        raise TypeError(f"the bound needs a Gaussian prior, SDEPrior or MatchedPrior, got {type(prior).__name__}")
    spread = _spread_kl(flat.new_full((), std**2), variances)
    return (spread + 0.5 * flat**2 / variances).sum(1)


def _spread_kl(of_q: Tensor, of_p: Tensor) -> Tensor:
    # 1/2 (v/w - 1 - log(v/w)) = KL(N(0, v) || N(0, w)), from the logarithm: nearly equal variances do not cancel to noise.
    log_ratio = torch.log(of_q) - torch.log(of_p)
    return 0.5 * (torch.expm1(log_ratio) - log_ratio)


def fixed_variance_kl(chain: DiscreteChain, variance: str) -> Tensor:
    """What a fixed variance alone contributes to each L_i, whatever the network says: (N,) nats for a dimension, 0 at i = 0."""
    known = torch.zeros(len(chain), dtype=torch.float64)
    if variance != "learned" and len(chain) > 1:
        i = torch.arange(1, len(chain))
        known[1:] = _spread_kl(chain.posterior_coefficients(i)[2], chain.variance(i, variance))
    return known
