"""Gaussian data and mixtures of Gaussians, for which every quantity along an SDE is known in closed form.

`MixtureData` is a mixture of Gaussians, `GaussianData` one Gaussian, of which the flow and all linear samplers are known too.
Everything is worked out in float64 from alpha(t) and sigma(t) alone. States x are (B, *data shape), and results come back in the dtype
of x. Times are a number, a scalar tensor or (B,). `to` moves a distribution to the device of the states.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..models.moments import Moments
from ..models.score import ScoreModel
from ..sdes import SDE
from ..solvers import Update

Time = Tensor | float


class MixtureData:
    """A mixture of Gaussians, sum_k w_k N(m_k, C_k).

    weights: (K,), positive, in any unit.
    means: (K, *data shape).
    covariances: (K, D, D) over the flattened sample.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        self.shape = tuple(means.shape[1:])
        self.log_weights = torch.log(weights.double() / weights.double().sum())
        self.means = means.double().flatten(1)
        self.covariances = covariances.double()
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(self.covariances)

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    def to(self, device: torch.device | str) -> Self:
        """The same distribution on another device."""
        twin = copy.copy(self)
        vars(twin).update({name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)})
        return twin

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """(count, *data shape) float64 draws of the data, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.log_weights.exp().cpu(), count, replacement=True, generator=generator).to(self.means.device)
        z = torch.randn(count, self.dim, dtype=torch.float64, generator=generator).to(self.means) * self.eigenvalues[k].sqrt()
        return (self.means[k] + torch.einsum("bij,bj->bi", self.eigenvectors[k], z)).reshape(count, *self.shape)

    def moments(self, sde: SDE | None = None, t: float = 0.0) -> tuple[Tensor, Tensor]:
        """The mean (D,) and the covariance (D, D) of x_t, or of the data where `sde` is None."""
        weights = self.log_weights.exp()
        mean = weights @ self.means
        centred = self.means - mean
        covariance = torch.einsum("k,kij->ij", weights, self.covariances + centred[:, :, None] * centred[:, None, :])
        if sde is None:
            return mean, covariance
        alpha, sigma = marginal(sde, t)
        return alpha * mean, alpha**2 * covariance + sigma**2 * torch.eye(self.dim).to(mean)

    def log_prob(self, x: Tensor, sde: SDE | None = None, t: Time = 0.0) -> Tensor:
        """log p_t(x) in nats, or the data's own log-density where `sde` is None: (B, *) gives (B,)."""
        alpha, sigma = (1.0, 0.0) if sde is None else marginal(sde, t)
        return torch.logsumexp(self._joint(x, alpha, sigma)[0], dim=1).to(x.dtype)

    def score_at(self, x: Tensor, sde: SDE, t: Time) -> Tensor:
        """grad_x log p_t(x); shape of x."""
        joint, z, variance = self._joint(x, *marginal(sde, t))
        pull = torch.einsum("kij,bkj->bki", self.eigenvectors, -z / variance)
        return torch.einsum("bk,bki->bi", joint.softmax(1), pull).reshape(x.shape).to(x.dtype)

    def denoise_at(self, x: Tensor, sde: SDE, t: Time) -> Tensor:
        """E[x_0 | x_t = x], from the modes' posteriors and not from the score; shape of x."""
        alpha, sigma = marginal(sde, t)
        joint, z, variance = self._joint(x, alpha, sigma)
        gain = column(alpha, 2) * self.eigenvalues / variance
        mode_means = self.means + torch.einsum("kij,bkj->bki", self.eigenvectors, gain * z)
        return torch.einsum("bk,bki->bi", joint.softmax(1), mode_means).reshape(x.shape).to(x.dtype)

    def denoise_given(self, x: Tensor, sde: SDE, t: Time, matrix: Tensor, y: Tensor, variance: Tensor) -> Tensor:
        """E[x_0 | x_t = x, y] for y = matrix x_0 + noise: matrix (M, D), y (B, M) or (1, M), variance (M,) of the noise; shape of x."""
        alpha, sigma = marginal(sde, t)
        joint, z, spread = self._joint(x, alpha, sigma)
        modes = self.means + torch.einsum("kij,bkj->bki", self.eigenvectors, column(alpha, 2) * self.eigenvalues / spread * z)
        # Each mode's covariance of x_0 given x_t, along its axes, then given y too.
        left = self.eigenvalues * column(sigma, 2) ** 2 / spread
        across = torch.einsum("md,kde->kme", matrix, self.eigenvectors)
        cross = left[..., None, :] * across
        rest = y[:, None] - modes @ matrix.T
        gain, log_normal = _update(cross @ across.mT + torch.diag(variance), rest)
        modes = modes + torch.einsum("kij,bkmj,bkm->bki", self.eigenvectors, cross.expand(len(x), -1, -1, -1), gain)
        return torch.einsum("bk,bki->bi", (joint + log_normal).softmax(1), modes).reshape(x.shape).to(x.dtype)

    def log_evidence(self, matrix: Tensor, y: Tensor, variance: Tensor) -> Tensor:
        """log p(y) in nats of y = matrix x_0 + noise, (B,): matrix (M, D), y (B, M), variance (M,)."""
        return torch.logsumexp(self._given(matrix, y, variance)[0], 1)

    def posterior_sample(self, count: int, matrix: Tensor, y: Tensor, variance: Tensor, seed: int = 0) -> Tensor:
        """(B, count, *data shape) draws of p(x_0 | y), float64; see `log_evidence` for y = matrix x_0 + noise."""
        generator = torch.Generator().manual_seed(seed)
        joint, cross, system = self._given(matrix, y, variance)
        k = torch.multinomial(joint.softmax(1), count, replacement=True, generator=generator)
        z = torch.randn(*k.shape, self.dim, dtype=torch.float64, generator=generator) * self.eigenvalues[k].sqrt()
        x = self.means[k] + torch.einsum("bnij,bnj->bni", self.eigenvectors[k], z)
        noise = torch.randn(*k.shape, len(matrix), dtype=torch.float64, generator=generator) * variance.sqrt()
        # A draw of the prior, moved by what its own simulated measurement differs from y.
        rest = y[:, None] - x @ matrix.T - noise
        return (x + torch.einsum("bnmd,bnm->bnd", cross[k], torch.linalg.solve(system[k], rest))).reshape(*k.shape, *self.shape)

    def _given(self, matrix: Tensor, y: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k N(y; .) (B, K), matrix C_k (K, M, D) and matrix C_k matrix^T + noise (K, M, M)."""
        cross = matrix @ self.covariances
        system = cross @ matrix.T + torch.diag(variance)
        rest = y[:, None] - self.means @ matrix.T
        return self.log_weights + _update(system, rest)[1], cross, system

    def score(self, sde: SDE) -> Callable[..., Tensor]:
        """The exact score as a network for ScoreModel(..., prediction="score", clock="time")."""
        return lambda x, c, **cond: self.score_at(x, sde, c)

    def model(self, sde: SDE, prior: str = "matched") -> ScoreModel:
        """The exact score model, a Denoiser to judge methods by; its prior is by default the Gaussian of the data's own moments."""
        mean, covariance = self.moments()
        return ScoreModel(
            self.score(sde), sde, prediction="score", prior=prior, moments=Moments(mean.reshape(self.shape), covariance=covariance)
        )

    def _joint(self, x: Tensor, alpha: Time, sigma: Time) -> tuple[Tensor, Tensor, Tensor]:
        # log w_k N(x; alpha m_k, V_k) (B, K), x centred in each mode's eigenbasis (B, K, D), its variances there.
        centred = x.double().flatten(1)[:, None] - column(alpha, 2) * self.means
        z = torch.einsum("kji,bkj->bki", self.eigenvectors, centred)
        variance = column(alpha, 2) ** 2 * self.eigenvalues + column(sigma, 2) ** 2
        log_normal = -0.5 * (z**2 / variance + torch.log(variance)).sum(2) - 0.5 * self.dim * math.log(2 * math.pi)
        return self.log_weights + log_normal, z, variance


def _update(system: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """system^-1 rest and log N(rest; 0, system), for system (K, M, M) or (B, K, M, M) and rest (B, K, M)."""
    factor = torch.linalg.cholesky(system)
    gain = torch.cholesky_solve(rest[..., None], factor.expand(*rest.shape[:2], -1, -1))[..., 0]
    log_det = 2 * torch.log(factor.diagonal(dim1=-2, dim2=-1)).sum(-1)
    return gain, -0.5 * ((rest * gain).sum(-1) + log_det + rest.shape[-1] * math.log(2 * math.pi))


class RingData(MixtureData):
    """Equal round modes on a circle, by default eight Gaussians.

    Its denoiser works in the dtype of x, with one matrix product each way, so that large batches are fast.
    """

    def __init__(self, modes: int = 8, radius: float = 1.4, std: float = 0.1) -> None:
        angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
        means = radius * torch.stack((torch.cos(angle), torch.sin(angle)), dim=1)
        super().__init__(torch.ones(modes), means, std**2 * torch.eye(2, dtype=torch.float64).expand(modes, 2, 2))
        self.std = std

    def denoise_at(self, x: Tensor, sde: SDE, t: Time) -> Tensor:
        alpha, sigma = (column(value, 1).to(x.dtype) for value in marginal(sde, t))
        variance, means = alpha**2 * self.std**2 + sigma**2, self.means.to(x.dtype)
        mean = ((alpha / variance * x) @ means.T).softmax(1) @ means  # the modes lie at one radius, so |m_k|^2 drops out
        return mean + alpha * self.std**2 / variance * (x - alpha * mean)

    def score_at(self, x: Tensor, sde: SDE, t: Time) -> Tensor:
        alpha, sigma = (column(value, 1).to(x.dtype) for value in marginal(sde, t))
        return (alpha * self.denoise_at(x, sde, t) - x) / sigma**2


class GaussianData(MixtureData):
    """One Gaussian, N(mean, covariance): `mean` has the data's shape, `covariance` is (D, D) over the flattened sample."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__(torch.ones(1), mean[None], covariance[None])
        self.mean, self.covariance = self.means[0], self.covariances[0]
        self.e, self.v = self.eigenvalues[0], self.eigenvectors[0]

    @classmethod
    def correlated(cls) -> GaussianData:
        """A Gaussian in two dimensions with correlation 0.8 and a mean off the origin."""
        return cls(torch.tensor([0.7, -0.4]), torch.tensor([[1.0, 0.48], [0.48, 0.36]]))

    def affine(self, sde: SDE, t: Time) -> tuple[Tensor, Tensor]:
        """K (*, D, D) and k (*, D) of the denoiser E[x_0 | x_t = x] = K x + k, for t of shape (*)."""
        alpha, sigma = (value[..., None].to(self.e) for value in marginal(sde, t))
        gain = self.v @ torch.diag_embed(alpha * self.e / (alpha**2 * self.e + sigma**2)) @ self.v.T
        return gain, self.mean - alpha * (gain @ self.mean)

    def posterior_variance(self, sde: SDE, t: Tensor) -> Tensor:
        """The mean over dimensions of Var[x_0 | x_t], which is the least denoising error; shape of `t`."""
        alpha, sigma = (value[..., None].to(self.e) for value in marginal(sde, t))
        return (self.e * sigma**2 / (alpha**2 * self.e + sigma**2)).mean(-1)

    def flow_map(self, x: Tensor, sde: SDE, t: float, s: float) -> Tensor:
        """Where the probability flow takes x from time t to time s: each eigen-coordinate keeps its quantile."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = marginal(sde, t), marginal(sde, s)
        stretch = torch.sqrt((alpha_s**2 * self.e + sigma_s**2) / (alpha_t**2 * self.e + sigma_t**2))
        z = (x.double().flatten(1) - alpha_t * self.mean) @ self.v
        return (alpha_s * self.mean + (z * stretch) @ self.v.T).reshape(x.shape).to(x.dtype)

    def run_moments(self, updates: Sequence[Update], sde: SDE, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """The exact mean (D,) and covariance (D, D) after x <- a x + sum_j b_j D_j + c z along `updates`, with no Monte Carlo.

        mean, covariance: those of x before the first update. The denoiser is affine, so that (x, D_0, D_1, ...) stays jointly Gaussian:
        its moments are carried, on the CPU.
        """
        d, depth = self.dim, max(len(update.b) for update in updates)
        eye, size = np.eye(d), d * (depth + 1)
        m, c = np.zeros(size), np.zeros((size, size))  # of x and the predictions remembered
        m[:d], c[:d, :d] = mean.cpu().numpy(), covariance.cpu().numpy()
        times = torch.tensor([math.nan if update.t is None else update.t for update in updates], dtype=torch.float64)
        gains, offsets = (value.cpu().numpy() for value in self.affine(sde, times))
        for update, gain, offset in zip(updates, gains, offsets, strict=True):
            # Insert the new prediction behind x, act on (x, D_0, D_1, ...), then forget it or the oldest.
            fresh = update.t is not None
            p, q = getattr(update, "view", None) or (0.0, 1.0)
            push = np.eye(size)
            if fresh:
                push = np.insert(push, [d] * d, np.hstack((p * eye + q * gain, np.zeros((d, size - d)))), axis=0)
            step = np.eye(len(push))
            for place, weight in enumerate((update.a, *update.b)):
                step[:d, place * d : (place + 1) * d] = weight * eye
            shift = np.zeros(len(push))
            if fresh:
                shift[d : 2 * d] = q * offset
            act = step @ push
            m, c = act @ m + step @ shift, act @ c @ act.T
            c[:d, :d] += update.c**2 * eye
            if fresh:
                forgotten = slice(size, None) if getattr(update, "keep", True) else slice(d, 2 * d)
                m, c = np.delete(m, forgotten), np.delete(np.delete(c, forgotten, 0), forgotten, 1)
        return torch.from_numpy(m[:d].copy()), torch.from_numpy(c[:d, :d].copy())


def marginal(sde: SDE, t: Time) -> tuple[Tensor, Tensor]:
    """alpha and sigma in float64, shape of `t`."""
    return sde.marginal(torch.as_tensor(t, dtype=torch.float64))


def column(value: Time, ones: int) -> Tensor:
    """`value` as a float64 scalar, or (B,) with `ones` unit dimensions behind it."""
    value = torch.as_tensor(value, dtype=torch.float64)
    return value if value.ndim == 0 else value.reshape(-1, *[1] * ones)


def slope(steps: Sequence[float], errors: Sequence[float]) -> float:
    """The fitted order of convergence: minus the slope of log error over log steps."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (steps, errors))
    return -float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
