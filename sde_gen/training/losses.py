"""Denoising score matching: the loss, what it makes of residuals, its weightings and its time samplers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, mean_valid, only_valid
from ..registry import lookup
from ..sdes import SDE
from ..sdes.base import as_time
from ..shapes import expand_as

Weighting = Callable[[SDE, Tensor, float], Tensor]
TimeSampler = Callable[[SDE, int, "torch.Generator | None", float], tuple[Tensor, Tensor]]


def _simple(sde: SDE, t: Tensor, data_std: float) -> Tensor:
    return torch.exp(2 * sde.half_log_snr(t))


def _likelihood(sde: SDE, t: Tensor, data_std: float) -> Tensor:
    return -sde.slopes(t)[1] * torch.exp(2 * sde.half_log_snr(t))


def _edm(sde: SDE, t: Tensor, data_std: float) -> Tensor:
    return torch.exp(2 * sde.half_log_snr(t)) + data_std**-2


def _min_snr(sde: SDE, t: Tensor, data_std: float) -> Tensor:
    return torch.exp(2 * sde.half_log_snr(t)).clamp_max(5.0)


DEFAULT_WEIGHTING, DEFAULT_TIMES = "edm", "lognormal"
"""What `train` minimises unless told otherwise, and `dsm_loss` with it."""

WEIGHTINGS: dict[str, Weighting] = {
    "simple": _simple,
    "likelihood": _likelihood,
    "edm": _edm,
    "min_snr": _min_snr,
}
"""Weights on |E[x_0|x_t] - x_0|^2, each a function of (sde, t, data_std), with SNR = alpha^2/sigma^2:

simple: SNR, which makes it the noise's squared error (Ho et al. 2020, arXiv:2006.11239).
likelihood: -lambda' SNR, which makes it g^2/2 times the score's squared error (Song et al. 2021, arXiv:2101.09258).
edm: SNR + 1/data_std^2, which makes it the squared error of the output of a network with prediction "edm" (Karras et al. 2022,
    arXiv:2206.00364). This is the weighting of that name: any prediction can be trained with it, and the prediction, the clock and the
    solver "edm" are choices of their own.
min_snr: min(SNR, 5) (Hang et al. 2023, arXiv:2303.09556).
"""


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": torch.square,
    "l1": torch.abs,
    "huber": lambda r: torch.where(r.abs() <= 1, r.square(), 2 * r.abs() - 1),
}
"""What becomes of each entry's residual r = sqrt(w) (D - x_0), and what D is where its mean is least:

l2: r^2. D is the mean E[x_0 | x_t], from which the score follows.
l1: |r|. D is the median of each entry given x_t, which is no score: for data of two values it is one of them where the mean lies between.
    Samples, likelihoods and bounds treat it as if it were the mean, and have its bias.
huber: r^2 where |r| <= 1, else 2 |r| - 1 (Huber 1964). D lies between the two: it is the mean where residuals stay below 1.
"""


def strata(n: int, generator: torch.Generator | None) -> Tensor:
    # One draw in each of n equal cells: the batch covers all noise levels evenly whatever its size.
    device = generator.device if generator is not None else None
    offset = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
    return (torch.arange(n, dtype=torch.float64, device=device) + offset) / n


def _uniform(sde: SDE, n: int, generator: torch.Generator | None, data_std: float) -> tuple[Tensor, Tensor]:
    device = generator.device if generator is not None else None
    u = torch.rand(n, generator=generator, dtype=torch.float64, device=device)
    return sde.t_min + (sde.t_max - sde.t_min) * u, torch.ones_like(u)


def _stratified(sde: SDE, n: int, generator: torch.Generator | None, data_std: float) -> tuple[Tensor, Tensor]:
    u = strata(n, generator)
    return sde.t_min + (sde.t_max - sde.t_min) * u, torch.ones_like(u)


def _importance(sde: SDE, n: int, generator: torch.Generator | None, data_std: float) -> tuple[Tensor, Tensor]:
    high, low = (float(sde.half_log_snr(t)) for t in (sde.t_min, sde.t_max))
    u = strata(n, generator)
    t = sde.time_of(high + (low - high) * u).clamp(sde.t_min, sde.t_max)
    return t, (high - low) / ((sde.t_max - sde.t_min) * -sde.slopes(t)[1])


LOG_NORMAL_MEAN, LOG_NORMAL_STD = -0.5, 1.2
"""The mean and standard deviation of log(sigma/(alpha data_std)) in the log-normal sampler: EDM's -1.2 for data of std 0.5."""


def _lognormal(sde: SDE, n: int, generator: torch.Generator | None, data_std: float) -> tuple[Tensor, Tensor]:
    centre = -(LOG_NORMAL_MEAN + torch.log(torch.tensor(data_std, dtype=torch.float64)))
    high, low = (float(sde.half_log_snr(t)) for t in (sde.t_min, sde.t_max))
    lambda_ = centre + LOG_NORMAL_STD * torch.special.ndtri(strata(n, generator))
    return sde.time_of(lambda_.clamp(low, high)).clamp(sde.t_min, sde.t_max), torch.ones_like(lambda_)


BROAD_SHARE = 0.1


def _broad(sde: SDE, n: int, generator: torch.Generator | None, data_std: float) -> tuple[Tensor, Tensor]:
    even = round(BROAD_SHARE * n)
    high, low = (float(sde.half_log_snr(t)) for t in (sde.t_min, sde.t_max))
    t = sde.time_of(high + (low - high) * strata(even, generator)).clamp(sde.t_min, sde.t_max)
    inner, correction = _lognormal(sde, n - even, generator, data_std)
    return torch.cat((t, inner)), torch.cat((torch.ones_like(t), correction))


TIME_SAMPLERS: dict[str, TimeSampler] = {
    "uniform": _uniform,
    "stratified": _stratified,
    "importance": _importance,
    "lognormal": _lognormal,
    "broad": _broad,
}
"""Draws of t, (n,) in float64, each with its correction to the loss, (n,), as functions of (sde, n, generator, data_std):

uniform: t is uniform on [t_min, t_max].
stratified: the same with one draw in each of n equal cells.
importance: t has a density proportional to g^2/sigma^2 = -2 lambda'. The correction makes it estimate the same objective as uniform,
    with less variance under the likelihood weighting (Song et al. 2021, arXiv:2101.09258, section 5).
lognormal: log(sigma/alpha) is normal (Karras et al. 2022, arXiv:2206.00364). It is an objective of its own and not corrected.
broad: a tenth of the draws is uniform in the half log-SNR over the SDE's whole range, the others are "lognormal". The ends, which the
    log-normal law all but leaves out, are then learned too. It is not corrected either.
"""


def dsm_loss(
    model: Denoiser,
    x_0: Tensor,
    weighting: str | Weighting = DEFAULT_WEIGHTING,
    times: str | TimeSampler | Tensor = DEFAULT_TIMES,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
    loss: str = "l2",
    target: Tensor | None = None,
    **cond: Tensor,
) -> Tensor:
    """Denoising score matching at one random time for each sample: (B, *) gives (B,).

        loss_i = w(t_i) mean_d (E_theta[x_0 | x_t] - x_0)^2 correction(t_i),   x_t = alpha x_0 + sigma eps,   d over valid entries

    With the defaults its mean over the batch is what `train` minimises by default.

    model: any Denoiser; one without `data_std` counts as having data of standard deviation 1.
    x_0: (B, *) in normalised units.
    weighting: w, a name in WEIGHTINGS or a function of (sde, t, data_std).
    times: a name in TIME_SAMPLERS, a function of (sde, n, generator, data_std), or the times themselves, (B,), with no correction. It
        is chosen independently of `weighting`.
    seed, generator: the draws come from `generator`, or from one seeded by `seed`, or else from the global one.
    noise: eps itself, (B, *); None draws it.
    loss: a name in LOSSES, what becomes of each entry's sqrt(w) (E_theta - x_0) in the place of its square.
    target: what stands in the place of x_0 in the residual, (B, *), see `PosteriorMeans`; None: x_0.
    cond: conditions for the model.

    Raises ValueError for unknown names, times of another shape, or both a seed and a generator.
    Vincent 2011; Song et al. 2021, arXiv:2011.13456, equation 7.
    """
    if seed is not None:
        if generator is not None:
            raise ValueError("dsm_loss takes seed or generator, not both")
        generator = torch.Generator(x_0.device).manual_seed(seed)
    data_std = model.data_std or 1.0
    weight_of = lookup(WEIGHTINGS, "weighting", weighting) if isinstance(weighting, str) else weighting
    if isinstance(times, Tensor):
        t = as_time(times)
        correction = torch.ones_like(t)
    else:
        sampler = lookup(TIME_SAMPLERS, "time sampler", times) if isinstance(times, str) else times
        t, correction = (value.to(x_0.device) for value in sampler(model.sde, x_0.shape[0], generator, data_std))
    if noise is None:
        noise = torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype, device=x_0.device)
    valid = model.valid(cond)
    x_0 = only_valid(x_0, valid)
    alpha, sigma = (expand_as(value.to(x_0), x_0) for value in model.sde.marginal(t))
    denoised = model.denoise(alpha * x_0 + sigma * noise, t, **cond)
    residual = denoised - (x_0 if target is None else only_valid(target, valid))
    weight = weight_of(model.sde, t, data_std)
    if loss == "l2":
        return (weight * correction).to(x_0) * mean_valid(residual.square(), valid)
    residual = expand_as(weight.sqrt().to(x_0), x_0) * residual
    return correction.to(x_0) * mean_valid(lookup(LOSSES, "loss", loss)(residual), valid)
