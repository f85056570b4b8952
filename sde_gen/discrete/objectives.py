"""Training losses of the discrete view: L_simple, the variational bound, and the hybrid that learns the variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..models.denoiser import Denoiser
from ..shapes import expand_as
from .chain import DiscreteChain
from .elbo_terms import decoder_nll, step_kl

OBJECTIVES = ("simple", "vlb", "hybrid")
INDEX_SAMPLERS = ("uniform", "importance")
HYBRID_WEIGHT = 1e-3
HISTORY = 10


class IndexSampler(nn.Module):
    """Draws indices i, each with the weight 1/(N p_i) that keeps the mean over indices unbiased.

    steps: N, the length of the chain.
    kind: "uniform" has p_i = 1/N, with one draw in each of as many equal cells as the batch has samples.
        "importance" has p_i proportional to sqrt(E L_i^2) over the last `HISTORY` losses seen at i, mixed with a thousandth of the
        uniform distribution; it is uniform until every index has been seen as often.

    The losses that were seen are its state, in float64 buffers. Raises ValueError for another kind.
    Nichol and Dhariwal 2021, arXiv:2102.09672, section 3.3.
    """

    losses: Tensor
    seen: Tensor

    def __init__(self, steps: int, kind: str = "uniform") -> None:
        super().__init__()
        if kind not in INDEX_SAMPLERS:
            raise ValueError(f"unknown index sampler {kind!r}; choose from {', '.join(INDEX_SAMPLERS)}")
        self.steps, self.kind = steps, kind
        self.register_buffer("losses", torch.zeros(steps, HISTORY, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(steps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """p_i, (N,) float64."""
        even = torch.full((self.steps,), 1 / self.steps, dtype=torch.float64)
        if self.kind == "uniform" or bool((self.seen < HISTORY).any()):
            return even
        size = self.losses.square().mean(1).sqrt()
        total = size.sum()
        return 0.999 * size / total + 0.001 * even if bool(torch.isfinite(total) & (total > 0)) else even

    def draw(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Indices (count,) and weights (count,), on the CPU."""
        device = generator.device if generator is not None else None
        offset = torch.rand(count, generator=generator, dtype=torch.float64, device=device).cpu()
        place = (torch.arange(count, dtype=torch.float64) + offset) / count
        p = self.probabilities()
        i = torch.searchsorted(p.cumsum(0), place, right=True).clamp(max=self.steps - 1)
        return i, 1 / (self.steps * p[i])

    def update(self, i: Tensor, losses: Tensor) -> None:
        """Remember the losses (B,) met at indices i (B,), without those that are not finite."""
        if self.kind == "uniform":
            return
        for index, loss in zip(i.tolist(), losses.detach().double().tolist(), strict=True):
            if math.isfinite(loss):
                self.losses[index, int(self.seen[index]) % HISTORY] = loss
                self.seen[index] += 1


def chain_loss(
    model: Denoiser,
    x_0: Tensor,
    chain: DiscreteChain,
    objective: str = "simple",
    indices: IndexSampler | Tensor | None = None,
    levels: int | None = None,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    **cond: Tensor,
) -> Tensor:
    """The loss of the discrete view at one index for each sample, x_i = alpha_i x_0 + sigma_i eps: (B, *) gives (B,).

        "simple"  mean_d (eps - eps_theta(x_i, i))^2                           Ho et al. 2020, arXiv:2006.11239, equation 14
        "vlb"     N L_i/D in nats, so that its mean over i is the bound's decoder and steps, for each dimension: L_i as in
                  `elbo`, with the variance that the model learns, or fixed-small where it learns none
        "hybrid"  simple + 0.001 vlb, where the mean in vlb is held still, so that it trains the variance alone
                  (Nichol and Dhariwal 2021, arXiv:2102.09672, section 3.1); needs a model with variance="learned_range"

    x_0: (B, *) in normalised units.
    indices: a sampler, which also learns from the losses met; or the indices themselves, (B,); None draws them uniformly.
    levels: see `decoder_nll`.
    seed, generator: the draws come from `generator`, or from one seeded by `seed`, or else from the global one.
    noise: eps itself, (B, *); None draws it.
    cond: conditions for the model.

    Raises ValueError for bad arguments.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"unknown objective {objective!r}; choose from {', '.join(OBJECTIVES)}")
    if seed is not None:
        if generator is not None:
            raise ValueError("chain_loss takes seed or generator, not both")
        generator = torch.Generator(x_0.device).manual_seed(seed)
    sampler = IndexSampler(len(chain)) if indices is None else indices
    if isinstance(sampler, Tensor):
        i, weight = sampler.cpu(), torch.ones(len(sampler), dtype=torch.float64)
    else:
        i, weight = sampler.draw(len(x_0), generator)
    if noise is None:
        noise = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=x_0.device)
    alpha, sigma = (expand_as(value.to(x_0), x_0) for value in chain.marginal(i))
    found = model.predict(alpha * x_0 + sigma * noise, chain.time(i).to(x_0.device), **cond)
    denoised, fraction = found.denoised, found.variance_fraction
    losses = x_0.new_zeros(len(x_0))
    if objective != "vlb":
        losses = ((alpha / sigma) * (denoised - x_0)).square().flatten(1).mean(1)
    if objective != "simple":
        if objective == "hybrid" and fraction is None:
            raise ValueError("objective 'hybrid' trains the variance: it needs a model with variance='learned_range'")
        of_mean = denoised.detach() if objective == "hybrid" else denoised
        bound = len(chain) / x_0[0].numel() * _bound_term(model, chain, x_0, of_mean, i, fraction, levels)
        losses = bound if objective == "vlb" else losses + HYBRID_WEIGHT * bound
    if isinstance(sampler, IndexSampler):
        sampler.update(i, losses)
    return losses * weight.to(losses)


def _bound_term(
    model: Denoiser, chain: DiscreteChain, x_0: Tensor, denoised: Tensor, i: Tensor, fraction: Tensor | None, levels: int | None
) -> Tensor:
    """L_i in nats, (B,): the KL for i > 0, the decoder for i = 0."""
    kind = "fixed_small" if fraction is None else "learned"
    first = torch.nonzero(i == 0)[:, 0]  # known on the host: no wait for the device
    later = torch.nonzero(i > 0)[:, 0]
    terms = x_0.new_zeros(len(x_0))
    if len(later):
        rows = later.to(x_0.device)
        of_rows = None if fraction is None else fraction[rows]
        terms = terms.index_put((rows,), step_kl(chain, x_0[rows], denoised[rows], i[later], kind, of_rows))
    if len(first):
        rows = first.to(x_0.device)
        std = (chain.sigma[0] / chain.alpha[0]).to(x_0)
        if fraction is not None:
            std = torch.sqrt(chain.variance(0, "learned", fraction[rows]))
        units = model.normalizer
        values = x_0[rows] if units is None else units.decode(x_0[rows])
        values = values if levels is None else values.round()
        terms = terms.index_put((rows,), decoder_nll(units, values, denoised[rows], std, levels))
    return terms
