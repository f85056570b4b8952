"""A Gaussian Markov chain of N steps: its marginals, steps and posteriors, and its way to an SDE and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..sdes import SDE
from ..sdes.base import as_time
from ..sdes.ddpm import ChainSDE, Points, check_steps, make_betas, points_of_betas, position_among, posterior_factors
from ..shapes import expand_as

VARIANCES = ("fixed_large", "fixed_small", "learned")
Index = int | Tensor


def make_chain(name: str, steps: int, **settings: Any) -> DiscreteChain:
    """The variance-preserving chain of `steps` steps with the betas registered as `name`, for example `make_chain("linear", 1000)`.

    Raises ValueError for an unknown name or setting, fewer than one step, or a beta outside (0, 1).
    """
    return DiscreteChain.from_betas(make_betas(name, steps, **settings))


class DiscreteChain:
    """x_i = alpha_i x_0 + sigma_i eps at i = 0 .. N - 1: a Markov chain that starts at the data x_0, which is index -1.

        one step   q(x_i | x_{i-1}) = N(a_i x_{i-1}, b_i^2 I),  a_i = alpha_i/alpha_{i-1},  b_i^2 = sigma_i^2 - a_i^2 sigma_{i-1}^2
        posterior  q(x_{i-1} | x_i, x_0) = N((1 - r_i) alpha_{i-1} x_0 + (r_i/a_i) x_i, (1 - r_i) sigma_{i-1}^2 I),
                   r_i = SNR_i/SNR_{i-1} = exp(2 lambda_i - 2 lambda_{i-1})

    with alpha_{-1} = 1, sigma_{-1} = 0, so that r_0 = 0 and the posterior at i = 0 is the data itself. With alpha_i = sqrt(abar_i)
    and sigma_i = sqrt(1 - abar_i) this is DDPM (Ho et al. 2020, arXiv:2006.11239, equations 2 to 7), with alpha_i = 1 NCSN's chain
    (Song et al. 2021, arXiv:2011.13456, appendix F).

    alpha, sigma: (N,) positive, half log-SNR strictly falling; normalised units. times: (N,) strictly rising in [0, 1], the
    continuous time of each index; None: (i + 1)/N. prior_std: of N(0, prior_std^2 I) at the noisy end; None: sigma_{N-1}.
    All is float64 on the CPU; indices i are an int or an integer tensor of any shape, and what depends on i has that shape.
    Raises ValueError for sequences that are not such a chain, and for an index outside it.
    """

    def __init__(
        self, alpha: Tensor | Sequence[float], sigma: Tensor | Sequence[float], times: Tensor | None = None, prior_std: float | None = None
    ) -> None:
        self.alpha, self.sigma = (torch.as_tensor(v, dtype=torch.float64).detach().cpu().clone() for v in (alpha, sigma))
        if self.alpha.ndim != 1 or self.alpha.shape != self.sigma.shape or len(self.alpha) < 1:
            raise ValueError(f"alpha and sigma must both be (N,), got {tuple(self.alpha.shape)} and {tuple(self.sigma.shape)}")
        for name, values in (("alpha", self.alpha), ("sigma", self.sigma)):
            if not bool((torch.isfinite(values) & (values > 0)).all()):
                raise ValueError(f"{name} must be positive and finite, got a least value of {float(values.min())!r}")
        count = len(self.alpha)
        if times is None:
            times = torch.arange(1, count + 1, dtype=torch.float64) / count
        self.times = torch.as_tensor(times, dtype=torch.float64).detach().cpu().clone()
        if self.times.shape != (count,) or not bool((self.times.diff() > 0).all()) or not 0 <= self.times[0] <= self.times[-1] <= 1:
            raise ValueError(f"times must be {count} strictly rising numbers in [0, 1], got shape {tuple(self.times.shape)}: {self.times}")
        self.lambda_ = torch.log(self.alpha) - torch.log(self.sigma)
        rising = torch.nonzero(self.lambda_.diff() >= 0)
        if len(rising):
            raise ValueError(f"the signal-to-noise ratio must fall with the index, it does not from index {int(rising[0])} to the next")
        self.prior_std = float(self.sigma[-1]) if prior_std is None else float(prior_std)
        # Index i stands at i + 1 in these, so that the data have their place.
        self._alpha = torch.cat((torch.ones(1, dtype=torch.float64), self.alpha))
        self._sigma = torch.cat((torch.zeros(1, dtype=torch.float64), self.sigma))
        self._factors = posterior_factors(self.alpha, self.sigma)
        self._share = torch.cat((torch.ones(1, dtype=torch.float64), -torch.expm1(2 * self.lambda_.diff())))  # 1 - r_i, at i

    @classmethod
    def from_betas(cls, betas: Tensor | Sequence[float]) -> DiscreteChain:
        """The variance-preserving chain with these variances of one step's noise, (N,) in (0, 1): abar_i = prod (1 - beta)."""
        return cls.from_points(points_of_betas(betas))

    @classmethod
    def from_points(cls, points: Points) -> DiscreteChain:
        """The chain of these points."""
        return cls(points.alpha, points.sigma, points.times, points.prior_std)

    @classmethod
    def from_sde(cls, sde: SDE, steps: int, grid: str | Tensor = "time", t_min: float | None = None) -> DiscreteChain:
        """The chain of an SDE at `steps` of its times, with its marginals and prior.

        grid: "time", (i + 1)/N, the ends being moved to the SDE's where they lie beyond them and the rest evenly spread between;
        "half_log_snr", even in lambda from t_min to t_max; or the times themselves (N,). t_min: another first time than the
        SDE's, for either grid. ValueError for anything else.
        """
        first = sde.t_min if t_min is None else float(t_min)
        if not sde.t_min <= first < sde.t_max:
            raise ValueError(f"t_min must be in [{sde.t_min:.6g}, {sde.t_max:.6g}), got {t_min!r}")
        u = torch.arange(check_steps("steps", steps), dtype=torch.float64)
        if isinstance(grid, Tensor):
            times = grid.double()
            if times.shape != (steps,):
                raise ValueError(f"times must be ({steps},), got shape {tuple(times.shape)}")
        elif grid == "time":
            start, end = max(1 / steps, first), sde.t_max
            plain = start == 1 / steps and end == 1.0
            times = (u + 1) / steps if plain else start + (end - start) * u / max(1, steps - 1)
            times[-1] = end
        elif grid == "half_log_snr":
            high, low = (float(sde.half_log_snr(t)) for t in (first, sde.t_max))
            times = sde.time_of(high + (low - high) * u / max(1, steps - 1))
            times[0], times[-1] = first, sde.t_max  # exact, whatever a round trip through lambda loses
        else:
            raise ValueError(f"unknown grid {grid!r}; choose from time, half_log_snr, or give the times themselves")
        return cls(*sde.marginal(times), times, sde.prior_std)

    def to_sde(self) -> ChainSDE:
        """The SDE that runs through the chain: on [t_0, t_{N-1}] its marginals at the chain's times are the chain's."""
        return ChainSDE(Points(self.times, self.alpha, self.sigma, self.prior_std))

    def strided(self, indices: int | Sequence[int] | Tensor) -> DiscreteChain:
        """The chain of some of these points: a rising sequence of indices, or a number of them, even in the index with both ends
        (one alone: the last). Marginals and times stay, steps and posteriors are those of the longer strides.
        Song et al. 2021, arXiv:2010.02502, section 4.2; Nichol and Dhariwal 2021, arXiv:2102.09672, section 4."""
        if isinstance(indices, int):
            if not 1 <= check_steps("the number of indices", indices) <= len(self):
                raise ValueError(f"the number of indices must be in 1 .. {len(self)}, got {indices}")
            chosen = torch.linspace(0, len(self) - 1, indices, dtype=torch.float64).round().long()
            chosen[-1] = len(self) - 1
        else:
            chosen = torch.as_tensor(indices, dtype=torch.int64)
            if chosen.ndim != 1 or not bool((chosen.diff() > 0).all()):
                raise ValueError(f"indices must be a strictly rising sequence, got {indices!r}")
            self._check(chosen, 0)
        return DiscreteChain(self.alpha[chosen], self.sigma[chosen], self.times[chosen], self.prior_std)

    def __len__(self) -> int:
        return len(self.alpha)

    def __repr__(self) -> str:
        ends = f"half log-SNR {float(self.lambda_[0]):.3g} to {float(self.lambda_[-1]):.3g}"
        return f"DiscreteChain({len(self)} steps, t {float(self.times[0]):.3g} to {float(self.times[-1]):.3g}, {ends})"

    def time(self, i: Index) -> Tensor:
        """The time of index i in 0 .. N - 1."""
        return self.times[self._check(i, 0)]

    def index(self, t: Tensor | float) -> Tensor:
        """The index of a time of the chain, int64 of the shape of `t`; `index(time(i)) == i`.

        A time is known up to float32's rounding; ValueError for one that is not of the chain (see `position`).
        """
        t = as_time(t)
        exact = t.double().cpu()
        right = torch.searchsorted(self.times, exact.contiguous()).clamp(max=len(self) - 1)
        left = (right - 1).clamp(min=0)
        nearest = torch.where((exact - self.times[left]).abs() < (self.times[right] - exact).abs(), left, right)
        off = (self.times[nearest] - exact).abs()
        if bool((off > 1e-6 * exact.abs() + 1e-12).any()):
            raise ValueError(f"t must be times of the chain, got {float(exact.flatten()[off.argmax()])!r}")
        return nearest.to(t.device)

    def position(self, t: Tensor | float) -> Tensor:
        """The index as a continuous function of time, linear between the chain's points and held at its ends; shape of `t`.

        It is what a network trained on indices is told at times between them (the clock "index").
        """
        return position_among(self.times, t)

    def marginal(self, i: Index) -> tuple[Tensor, Tensor]:
        """alpha_i and sigma_i of q(x_i | x_0) = N(alpha_i x_0, sigma_i^2 I); (1, 0) at i = -1."""
        at = self._check(i, -1) + 1
        return self._alpha[at], self._sigma[at]

    def one_step(self, i: Index) -> tuple[Tensor, Tensor]:
        """a_i and b_i of q(x_i | x_{i-1}) = N(a_i x_{i-1}, b_i^2 I): sqrt(1 - beta_i) and sqrt(beta_i) in DDPM."""
        at = self._check(i, 0)
        return self._alpha[at + 1] / self._alpha[at], self._sigma[at + 1] * torch.sqrt(self._share[at])

    def posterior_coefficients(self, i: Index) -> tuple[Tensor, Tensor, Tensor]:
        """The factors of x_0 and of x_i in the mean of q(x_{i-1} | x_i, x_0), and its variance."""
        at = self._check(i, 0)
        of_data, of_state = self._factors
        return of_data[at], of_state[at], self._share[at] * self._sigma[at] ** 2

    def posterior(self, x_0: Tensor, x_i: Tensor, i: Index) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{i-1} | x_i, x_0): x_0 and x_i of shape (B, *), i an index or (B,) of them; the mean has the
        shape of x_i, the variance broadcasts over it."""
        of_data, of_state, variance = (expand_as(value.to(x_i), x_i) for value in self.posterior_coefficients(i))
        return of_data * x_0 + of_state * x_i, variance

    def variance(self, i: Index, kind: str, fraction: Tensor | None = None) -> Tensor:
        """The variance of p(x_{i-1} | x_i) that a sampler or a bound uses.

        "fixed_large": b_i^2; "fixed_small": the posterior's, 0 at i = 0; "learned": exp(v log large + (1 - v) log small) with the
        network's v = `fraction`, (B, *) for i an index or (B,), in whose shape and dtype it comes; the small one of i = 0 is there
        taken to be that of i = 1, as its logarithm would not exist. Ho et al. 2020, arXiv:2006.11239, section 3.2; Nichol and
        Dhariwal 2021, arXiv:2102.09672, equation 15. ValueError for another name, or for "learned" without a fraction.
        """
        if kind not in VARIANCES:
            raise ValueError(f"unknown variance {kind!r}; choose from {', '.join(VARIANCES)}")
        at = self._check(i, 0)
        large = self.sigma[at] ** 2 * self._share[at]
        if kind == "fixed_large":
            return large
        if kind == "fixed_small":
            return self.posterior_coefficients(i)[2]
        if fraction is None:
            raise ValueError("variance 'learned' needs the network's fraction: a model with variance='learned_range'")
        small = self.posterior_coefficients(at.clamp(min=min(1, len(self) - 1)))[2]
        small = torch.where(small > 0, small, large)  # a chain of one step has no other
        high, low = (expand_as(torch.log(value).to(fraction), fraction) for value in (large, small))
        return torch.exp(fraction * high + (1 - fraction) * low)

    def _check(self, i: Index, least: int) -> Tensor:
        at = torch.as_tensor(i)
        if at.is_floating_point() or at.is_complex() or at.dtype == torch.bool:
            raise TypeError(f"an index must be an integer, got {i!r}")
        at = at.long().cpu()
        if at.numel() and (int(at.min()) < least or int(at.max()) >= len(self)):
            raise ValueError(f"indices must be in {least} .. {len(self) - 1}, got {int(at.min())} .. {int(at.max())}")
        return at


def chain_of(sde: SDE, steps: int | None = None) -> DiscreteChain:
    """The chain of an SDE for training and sampling: its own where it is one, else `steps` (None: 1000) of its times, even in t, from
    t_min itself on, so that the denoising at t_min that ends `sample` is the chain's step at index 0.

    ValueError where the SDE's own chain has another number of steps.
    """
    points: Points | None = getattr(sde, "points", None)
    if points is None:
        count = 1000 if steps is None else steps
        return DiscreteChain.from_sde(sde, count, torch.linspace(sde.t_min, sde.t_max, count, dtype=torch.float64))
    own = DiscreteChain.from_points(points)
    if steps is not None and steps != len(own):
        raise ValueError(f"this SDE is a chain of {len(own)} steps, got {steps}: choose sde.settings.steps instead")
    return own
