"""The evidence lower bound: bits/dim of the chain and of its continuous limit, term by term."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.denoiser import Denoiser
from .chain import VARIANCES, DiscreteChain, Index
from .elbo_estimate import BoundInputs, Elbo, ImageBatch, TermSums, check_model
from .elbo_terms import fixed_variance_kl, prior_kl, step_kl, step_log_ratio

DECODERS = ("noise", "step")


@torch.no_grad()
def elbo(
    model: Denoiser,
    images: Tensor,
    chain: DiscreteChain,
    levels: int | None = None,
    variance: str = "fixed_small",
    terms: str | int = "all",
    draws: int = 1,
    decoder: str = "noise",
    scale: float = 1.0,
    shift: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    index_offset: int = 0,
    cond: dict[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    rao_blackwell: bool = True,
    together: bool = False,
) -> Elbo:
    """The chain's bound on -log2 P(image), in bits/dim:

        L = E[-log P(v | x at i = 0)] + sum_{i=1}^{N-1} E KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_i)) + KL(q(x_{N-1} | x_0) || prior)
              L_0, `decoder`              L_i, in closed form given x_i (see `step_kl`)                   L_T, in closed form

    p(x_{i-1} | x_i) is the posterior with the model's E[x_0 | x_i] at the chain's time t_i in the place of x_0. The index counts as
    in the chain: DDPM's L_0 .. L_{T-1} stand at 0 .. N - 1 in `terms`, its L_T in `prior`.

    model: any Denoiser whose prior is Gaussian.
    images: (B, *) integers 0 .. levels - 1, with the bins of `discretized_log_prob`; or floats in the data's units, of which the
        decoder is a density, in nats/dim.
    chain: the chain, whose marginals must be those of the model's SDE at its times: take `DiscreteChain.from_sde(model.sde, N)`, or a
        model of `chain.to_sde()`.
    levels: the number of values of integer images. None stands for the 256 of uint8, and for floats.
    variance: "fixed_small", "fixed_large" or "learned" (see `DiscreteChain.variance`).
    terms: "all" evaluates every term. A number K lets each image draw K indices, one in each K-th of the way from first to last in
        half log-SNR, with one random offset for all (systematic sampling), weighted so that the sum is unbiased. What a fixed
        variance alone contributes is added exactly.
    draws: so many independent repetitions are made for each image.
    decoder: chooses the variance of the Gaussian around E[x_0 | x at i = 0]. "noise" is (sigma_0/alpha_0)^2, the same for every chain
        that starts at this time. "step" is that of Ho et al.'s code, the posterior's of the next index, and with "learned" the
        network's own.
    scale, shift: integer v stands for the bin of width `scale` around shift + scale v in the data's units.
    seed, index_offset: the draws of image i are a function of (seed, index_offset + i).
    batch_size: so many images are in memory at once; None takes all.
    cond: keyword tensors for the model, whose first dimension is B.
    dtype: the dtype of the network's input; None takes that of the model's parameters.
    rao_blackwell: False replaces each KL by the log-ratio at one drawn x_{i-1} (`step_log_ratio`), at the same x_i. The mean is the
        same with more noise: it is there to measure how much.
    together: True where all processes of a torchrun call this and share the images out; each gets the same bound.

    Raises ValueError or TypeError for bad arguments.
    Ho et al. 2020, arXiv:2006.11239, equations 5 and 13; Nichol and Dhariwal 2021, arXiv:2102.09672; the sampling of terms follows
    Kingma et al. 2021, arXiv:2107.00630, appendix I.
    """
    check_model(model)
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}; choose from {', '.join(VARIANCES)}")
    if decoder not in DECODERS:
        raise ValueError(f"unknown decoder {decoder!r}; choose from {', '.join(DECODERS)}")
    for ours, theirs in zip((chain.alpha, chain.sigma), model.sde.marginal(chain.times), strict=True):
        if not torch.allclose(ours, theirs.double().cpu(), rtol=1e-6, atol=0.0):
            raise ValueError(
                "the chain's marginals must be those of the model's SDE at its times: take DiscreteChain.from_sde(model.sde, N), "
                "or a model of chain.to_sde()"
            )
    steps = len(chain)
    if terms == "all":
        picks = None
    elif isinstance(terms, bool) or not isinstance(terms, int) or terms < 1:
        raise ValueError(f"terms must be 'all' or a whole number of at least 1, got {terms!r}")
    else:
        picks = None if steps == 1 else terms
    inputs = BoundInputs(model, images, levels, draws, scale, shift, seed, batch_size, index_offset, cond, dtype, together)
    # Where the steps end on the way from first to last index in half log-SNR: a draw falls on one in proportion to its length.
    edges = (chain.lambda_[0] - chain.lambda_) / (chain.lambda_[0] - chain.lambda_[-1])
    known = fixed_variance_kl(chain, variance) * inputs.dim
    sums = TermSums(inputs, steps)
    planned = model.planned(chain.times.tolist() if picks is None else chain.times[:1].tolist())
    for batch in inputs.batches(steps):
        end = prior_kl(model.prior, batch.x_0 * chain.alpha[-1].to(batch.x_0), float(chain.sigma[-1]))
        for draw in range(draws):
            denoised, fraction = batch.predict(batch.noised(*chain.marginal(0)), planned[float(chain.times[0])])
            if decoder == "noise":
                std = chain.sigma[0] / chain.alpha[0]
            else:
                step = chain.variance(0, "learned", _fraction(fraction) if variance == "learned" else torch.zeros((), dtype=torch.float64))
                std = torch.sqrt(step)
            of_decoder = inputs.decode(batch, denoised, std.to(denoised))
            batch.put(0, of_decoder)
            diffusion = torch.zeros_like(of_decoder)
            if picks is None:
                for i in range(1, steps):
                    kl = _one_term(batch, chain, i, planned[float(chain.times[i])], variance, rao_blackwell)
                    batch.put(i, kl)
                    diffusion += kl
            else:
                diffusion += float(known.sum())
                for place in batch.systematic(draw, picks):
                    at = torch.searchsorted(edges[1:], place, right=True).clamp(max=steps - 2) + 1
                    kl = _one_term(batch, chain, at, chain.time(at).to(inputs.device), variance, rao_blackwell)
                    batch.put(at, kl)
                    odds = picks * (edges[at] - edges[at - 1])
                    diffusion += (kl - known[at].to(kl)) / odds.to(kl)
            sums.put(batch, draw, of_decoder, diffusion, end)
        sums.close(batch)
    return sums.collect(chain.times, chain.lambda_, model.cost * draws * (1 + (steps - 1 if picks is None else picks)))


@torch.no_grad()
def elbo_continuous(
    model: Denoiser,
    images: Tensor,
    levels: int | None = None,
    t_min: float | None = None,
    samples: int = 64,
    draws: int = 1,
    scale: float = 1.0,
    shift: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    index_offset: int = 0,
    cond: dict[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    together: bool = False,
) -> Elbo:
    """The limit of `elbo` for chains of ever shorter steps from t_min to the SDE's t_max, in bits/dim:

        L = L_0 + 1/2 E int -dSNR/dt |x_0 - E[x_0 | x_t]|^2 dt + L_T = L_0 + E int exp(2 lambda) |x_0 - E[x_0 | x_t]|^2 dlambda + L_T

    L_0 and L_T are those of `elbo` (decoder="noise") at t_min and t_max.

    model: any Denoiser whose prior is Gaussian.
    t_min: the time at which L_0 is taken; None takes the SDE's own t_min.
    samples: the integral is estimated from so many times for each image, even in lambda with one random offset for all: without bias.

    The other arguments, and what is raised, are those of `elbo`.
    Kingma et al. 2021, arXiv:2107.00630, equations 14 and 15; Song et al. 2021, arXiv:2101.09258.
    """
    check_model(model)
    sde = model.sde
    first = sde.t_min if t_min is None else float(t_min)
    if not sde.t_min <= first < sde.t_max:
        raise ValueError(f"t_min must be in [t_min, t_max) = [{sde.t_min:.6g}, {sde.t_max:.6g}), got {t_min!r}")
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples must be a whole number of at least 1, got {samples!r}")
    inputs = BoundInputs(model, images, levels, draws, scale, shift, seed, batch_size, index_offset, cond, dtype, together)
    ends = torch.tensor([first, sde.t_max], dtype=torch.float64)
    alpha, sigma = sde.marginal(ends)
    high, low = sde.half_log_snr(ends).tolist()
    sums = TermSums(inputs, samples + 1)
    for batch in inputs.batches(samples + 1):
        end = prior_kl(model.prior, batch.x_0 * alpha[1].to(batch.x_0), float(sigma[1]))
        for draw in range(draws):
            denoised, _ = batch.predict(batch.noised(alpha[0], sigma[0]), first)
            of_decoder = inputs.decode(batch, denoised, (sigma[0] / alpha[0]).to(denoised))
            batch.put(0, of_decoder)
            diffusion = torch.zeros_like(of_decoder)
            for k, place in enumerate(batch.systematic(draw, samples)):
                t = sde.time_of(high + (low - high) * place).clamp(first, sde.t_max).to(inputs.device)
                denoised, _ = batch.predict(batch.noised(*sde.marginal(t)), t)
                error = (batch.x_0 - denoised).square().flatten(1).sum(1)
                share = torch.exp(2 * sde.half_log_snr(t)) * error * ((high - low) / samples)
                batch.put(k + 1, share)
                diffusion += share
            sums.put(batch, draw, of_decoder, diffusion, end)
        sums.close(batch)
    edges = high + (low - high) * torch.arange(samples + 1, dtype=torch.float64) / samples
    middles = sde.time_of((edges[1:] + edges[:-1]) / 2)
    return sums.collect(torch.cat((ends[:1], middles)), edges, model.cost * draws * (samples + 1))


def _one_term(batch: ImageBatch, chain: DiscreteChain, i: Index, t: Tensor | float, variance: str, rao_blackwell: bool) -> Tensor:
    denoised, fraction = batch.predict(batch.noised(*chain.marginal(i)), t)
    fraction = _fraction(fraction) if variance == "learned" else None
    if rao_blackwell:
        return step_kl(chain, batch.x_0, denoised, i, variance, fraction)
    return step_log_ratio(chain, batch.x_0, denoised, batch.step_noise.draw(), i, variance, fraction)


def _fraction(fraction: Tensor | None) -> Tensor:
    if fraction is None:
        raise ValueError("variance 'learned' needs a model with variance='learned_range', this one predicts no variance")
    return fraction
