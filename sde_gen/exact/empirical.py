"""What is best for a finite data set: its optimal denoiser, the exact reverse step, and how Gaussian that step is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ..data import Normalizer
from ..models.denoiser import Denoiser
from ..models.moments import Moments
from ..models.score import ScoreModel
from ..sdes import SDE
from ..shapes import expand_as

CHUNK = 1 << 22
"""So many distances between states and data are in memory at once."""
EVALUATIONS, PRODUCTS = 1 << 22, 1 << 34
"""`best_level_loss` looks at about so many pairs of a state and a data point at each level, and multiplies about so many numbers of them at
all levels together (some seconds of a core), unless it is given a number of states."""
LEAST_STATES, MOST_STATES = 32, 256


class EmpiricalDenoiser(nn.Module):
    """E[x_0 | x_t = x] where x_0 is one of the data, each as likely as the others.

        sum_j w_j(x) z_j,   w_j proportional to exp(-|x - alpha z_j|^2 / (2 sigma^2))

    It is a network for ScoreModel(..., prediction="data", clock="time"). It goes through the data in pieces, so that memory stays
    bounded, and works the weights out in float64.

    data: (N, *) in normalised units.
    sde: gives alpha and sigma.
    """

    data: Tensor
    squares: Tensor

    def __init__(self, data: Tensor, sde: SDE) -> None:
        super().__init__()
        self.register_buffer("data", data.flatten(1))
        self.register_buffer("squares", self.data.double().square().sum(1))
        self.sde = sde

    def logits(self, x: Tensor, t: Tensor, rows: slice = slice(None)) -> Tensor:
        """log w_j up to a term that does not depend on j: x (B, *) and t (B,) give (B, n) for the n data in `rows`."""
        alpha, sigma = (value[:, None] for value in self.sde.marginal(t.double()))
        products = x.flatten(1).double() @ self.data[rows].double().T
        return (alpha * products - 0.5 * alpha**2 * self.squares[rows]) / sigma**2

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        size = max(1, CHUNK // len(x))
        most = x.new_full((len(x),), -math.inf, dtype=torch.float64)
        total, mean = torch.zeros_like(most), x.new_zeros(len(x), self.data.shape[1], dtype=torch.float64)
        for first in range(0, len(self.data), size):
            rows = slice(first, first + size)
            logits = self.logits(x, t, rows)
            larger = torch.maximum(most, logits.amax(1))
            kept, weights = torch.exp(most - larger), torch.exp(logits - larger[:, None])
            mean = mean * kept[:, None] + weights @ self.data[rows].double()
            total, most = total * kept + weights.sum(1), larger
        return (mean / total[:, None]).to(x.dtype).reshape(x.shape)


def empirical_score(data: Tensor, sde: SDE, normalizer: Normalizer | None = None, prior: str = "matched") -> ScoreModel:
    """The exact score model of a finite data set: what a network would learn that fits perfectly. Its samples are the data points.

    data: (N, *) in its own units, floating.
    sde: the process.
    normalizer: the map to normalised units, as a trained model has one; None fits it to the data.
    prior: "matched" or "sde", see `ScoreModel`.

    Raises ValueError for fewer than one point or values that are not finite.
    Miyasawa 1961; Karras et al. 2022, arXiv:2206.00364, appendix B.3.
    """
    if not isinstance(data, Tensor) or not data.is_floating_point() or data.ndim < 2 or not len(data):
        raise ValueError("data must be a floating-point tensor (N, *data shape) of at least one point")
    if not bool(torch.isfinite(data).all()):
        raise ValueError("data must be finite")
    normalizer = Normalizer.fit(data) if normalizer is None else normalizer
    z = normalizer.encode(data)
    moments = Moments.fit(z)
    std = float(z.double().std())
    return ScoreModel(EmpiricalDenoiser(z, sde), sde, prediction="data", normalizer=normalizer, moments=moments, data_std=std, prior=prior)


@dataclass(frozen=True)
class ReverseKernel:
    """p(x_s | x_t) of a finite data set, s < t: a mixture of Gaussians with one component for each of N data points.

        sum_j weights_j N(pull x_t + reach centres_j, variance I)

    x_t: (B, D). weights: (B, N), which sum to one. centres: (N, D), the data. pull, reach, variance: numbers.
    """

    x_t: Tensor
    weights: Tensor
    centres: Tensor
    pull: float
    reach: float
    variance: float

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (B, D) and covariance (B, D, D) of the mixture."""
        means = self.weights @ self.centres
        second = torch.einsum("bn,ni,nj->bij", self.weights, self.centres, self.centres)
        spread = self.reach**2 * (second - means[:, :, None] * means[:, None, :])
        eye = torch.eye(means.shape[1], dtype=means.dtype, device=means.device)
        return self.pull * self.x_t + self.reach * means, spread + self.variance * eye

    def log_prob(self, x_s: Tensor) -> Tensor:
        """log p(x_s | x_t) in nats: x_s (B, K, D) gives (B, K)."""
        offset = (x_s - self.pull * self.x_t[:, None]) / self.reach
        scale = self.variance / self.reach**2
        squares = offset.square().sum(2)[..., None] - 2 * offset @ self.centres.T + self.centres.square().sum(1)
        log_normal = -0.5 * squares / scale - 0.5 * x_s.shape[2] * math.log(2 * math.pi * self.variance)
        return torch.logsumexp(log_normal + torch.log(self.weights)[:, None], dim=2)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(B, count, D) draws."""
        # Drawn where the generator is: the same on every device.
        device = generator.device
        chosen = torch.multinomial(self.weights.to(device), count, replacement=True, generator=generator).to(self.x_t.device)
        noise = torch.randn(*chosen.shape, self.x_t.shape[1], dtype=self.x_t.dtype, generator=generator, device=device).to(self.x_t)
        return self.pull * self.x_t[:, None] + self.reach * self.centres[chosen] + math.sqrt(self.variance) * noise


def reverse_kernel(model: Denoiser, x_t: Tensor, t: float, s: float) -> ReverseKernel:
    """The exact reverse step of a model made by `empirical_score`, from time t to s < t, in float64:

        p(x_s | x_t) = sum_j w_j(x_t) N(r v x_t + (alpha_s - alpha_t r v) z_j, sigma_s^2 (1 - r^2 v)),   v = sigma_s^2/sigma_t^2

    with r = alpha_t/alpha_s. DDPM's ancestral step replaces it by one Gaussian, which is right for small steps alone.

    x_t: the states at t, (B, *), in normalised units.

    Raises TypeError for another model, ValueError for times outside [t_min, t_max] or in the wrong order.
    Sohl-Dickstein et al. 2015, arXiv:1503.03585; Feller 1949.
    """
    network = getattr(model, "network", None)
    if not isinstance(network, EmpiricalDenoiser):
        raise TypeError("reverse_kernel needs a model made by empirical_score")
    sde = model.sde
    if not sde.t_min <= s < t <= sde.t_max:
        raise ValueError(f"s and t must be in [t_min, t_max] = [{sde.t_min:.6g}, {sde.t_max:.6g}] with s < t, got s = {s!r}, t = {t!r}")
    times = torch.tensor([s, t], dtype=torch.float64)
    (alpha_s, alpha_t), (sigma_s, sigma_t) = (value.tolist() for value in sde.marginal(times))
    x = x_t.double().flatten(1)
    weights = torch.softmax(network.logits(x, times[1].expand(len(x)).to(x.device)), dim=1)
    ratio = alpha_t / alpha_s
    shrink = (sigma_s / sigma_t) ** 2
    variance = sigma_s**2 * (1 - ratio**2 * shrink)
    return ReverseKernel(x, weights, network.data.double(), ratio * shrink, alpha_s - alpha_t * ratio * shrink, variance)


def gaussian_gap(kernel: ReverseKernel, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The error of taking the reverse step to be Gaussian, and its standard error, by Monte Carlo over `draws` of x_s.

        KL(p(x_s | x_t) || N(E[x_s | x_t], Cov[x_s | x_t]))   in nats for a dimension, as a mean over the states x_t

    kernel: what `reverse_kernel` gives.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, covariance = kernel.moments()
    x = kernel.sample(draws, generator)
    gaussian = torch.distributions.MultivariateNormal(mean[:, None], covariance[:, None], validate_args=False)
    each = (kernel.log_prob(x) - gaussian.log_prob(x)) / x.shape[2]
    return float(each.mean()), float(each.mean(0).std() / math.sqrt(draws))


@torch.no_grad()
def best_loss(model: Denoiser, data: Tensor, times: Tensor, draws: int = 256, seed: int = 0) -> Tensor:
    """The least denoising loss that any network can have on a finite data set, at each of K times, (K,).

        mean_d E(E[eps | x_t] - eps)^2      the loss of a noise prediction, where a network that answers 0 has 1

    A training loss below it on fresh noise is not possible; one close to it at small noise shows that the data are memorised.

    model: the data's `empirical_score`.
    data: (N, *) in its own units.
    times: (K,).
    draws: the number of draws of data and noise in the Monte Carlo estimate, which `seed` seeds.
    """
    assert model.normalizer is not None
    generator = torch.Generator().manual_seed(seed)
    z = model.normalizer.encode(data)[torch.randint(len(data), (draws,), generator=generator).to(data.device)]
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z)
    losses = []
    for t in times.tolist():
        alpha, sigma = (float(value) for value in model.sde.marginal(torch.tensor(t, dtype=torch.float64)))
        losses.append(
            (model.noise(alpha * z + sigma * noise, z.new_full((draws,), t, dtype=torch.float64)) - noise).double().square().mean()
        )
    return torch.stack(losses)


@torch.no_grad()
def affordable_states(data: Tensor, levels: int) -> int:
    """The number of draws that `best_level_loss` takes of data (N, *) at each of so many levels, by the cost of N items and of their size.
    Data of more numbers need fewer: each draw's error is a mean over them."""
    numbers = max(1, levels * data.numel())
    return max(LEAST_STATES, min(MOST_STATES, EVALUATIONS // len(data), PRODUCTS // numbers))


def best_level_loss(
    model: ScoreModel, data: Tensor, levels: Sequence[float], labels: Tensor | None = None, samples: int | None = None, seed: int = 0
) -> list[float]:
    """The least that any network can have of what `training.Validation.measure` gives on its training data, at each level.

        E|E[x_0 | x_t] - x_0|^2 / E|skip(t) x_t - x_0|^2,   x_t = alpha x_0 + sigma eps,   x_0 one of the data

    It is the squared error of the data set's own E[x_0 | x_t] over that of a zero network, near 0 where the noise still tells which of
    the data lies under it. A network whose error on its training data comes down to it there has memorised them. The error on held-out
    data is never below it in expectation, as the least error is concave in the distribution.

    model: gives the SDE, the normaliser and the zero network's skip.
    data: (N, *) in its own units.
    levels: half log-SNRs.
    labels: (N,) of a class-conditional network, which then knows the class; or None.
    samples: the number of draws of data and noise in the Monte Carlo estimate, which `seed` seeds; None takes 256, fewer for large
        data (`affordable_states`), at least 32.

    All levels are done in one pass over the data, in O(levels samples N D): seconds for 60,000 images.
    """
    if samples is None:
        samples = affordable_states(data, len(levels))
    normalizer, sde = model.normalizer, model.sde
    device = next((p.device for p in model.parameters()), data.device)
    z = data.to(device) if normalizer is None else normalizer.encode(data.to(device))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(data), (samples,), generator=generator)
    noise = torch.randn(len(levels), samples, *data.shape[1:], generator=generator).to(z)
    times = sde.time_of(torch.tensor(list(levels), dtype=torch.float64)).clamp(sde.t_min, sde.t_max)
    x_0 = z[chosen.to(device)]
    alpha, sigma = (expand_as(value.to(z), noise) for value in sde.marginal(times))
    x = alpha * x_0 + sigma * noise
    error = torch.zeros(len(levels), dtype=torch.float64)
    classes = torch.zeros(len(data), dtype=torch.int64) if labels is None else labels.cpu()
    for label in classes[chosen].unique():
        mine = torch.nonzero(classes[chosen] == label)[:, 0]
        denoiser = EmpiricalDenoiser(z if labels is None else z[(classes == label).to(device)], sde)
        states = rearrange(x[:, mine.to(device)], "level item ... -> (level item) ...")
        denoised = denoiser(states, repeat(times.to(device), "level -> (level item)", item=len(mine)))
        off = rearrange(denoised, "(level item) ... -> level item (...)", item=len(mine)) - x_0[mine.to(device)].flatten(1)
        error += off.double().square().sum((1, 2)).cpu()
    skip = expand_as(model.scales(times.to(device)).skip.to(z), x)
    zero = (skip * x - x_0).double().square().flatten(1).sum(1).cpu()
    return (error / zero).tolist()
