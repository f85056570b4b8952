"""The SDE through the points of a Markov chain, and DDPM's chains as processes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..registry import build
from .base import SDE, as_time, check_positive

NEWTON = 12
"""Steps of the inversion of one piece: Newton needs about five, bisection, where it leaves the bracket, the rest."""


def _linear(steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    return torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)


def _quadratic(steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    return torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), steps, dtype=torch.float64) ** 2


def _constant(steps: int, beta: float = 0.02) -> Tensor:
    return torch.full((steps,), beta, dtype=torch.float64)


def _sigmoid(steps: int, beta_start: float = 1e-4, beta_end: float = 0.02, span: float = 6.0) -> Tensor:
    return beta_start + (beta_end - beta_start) * torch.sigmoid(torch.linspace(-span, span, steps, dtype=torch.float64))


def _cosine(steps: int, s: float = 0.008, beta_max: float = 0.999) -> Tensor:
    angle = 0.5 * math.pi * (torch.arange(steps + 1, dtype=torch.float64) / steps + s) / (1 + s)
    abar = torch.cos(angle) ** 2  # abar_i up to a factor, from i = -1 on
    return (1 - abar[1:] / abar[:-1]).clamp_max(beta_max)


BETAS: dict[str, Callable[..., Tensor]] = {
    "linear": _linear,
    "quadratic": _quadratic,
    "cosine": _cosine,
    "constant": _constant,
    "sigmoid": _sigmoid,
}
"""beta_i, the variance of one step's noise, as functions of the number of steps, (N,) float64:
linear: beta_start to beta_end, 1e-4 to 0.02, whatever N is (Ho et al. 2020, arXiv:2006.11239, section 4); quadratic: linear in
sqrt(beta); constant: beta; sigmoid: between the same ends along a sigmoid on [-span, span]; cosine: abar_i =
cos^2((u + s)/(1 + s) pi/2) at u = (i + 1)/N, beta at most beta_max (Nichol and Dhariwal 2021, arXiv:2102.09672, section 3.2)."""


FOR_THOUSAND, MOST_LEFT = ("linear", "quadratic", "sigmoid"), 0.05
"""Schedules whose default ends are meant for 1,000 steps, and the share of the data, alpha at the last step, from which on it is said."""


def make_betas(name: str, steps: int, **settings: Any) -> Tensor:
    """The betas registered as `name` for a chain of `steps` steps, (N,) float64.

    Raises ValueError for an unknown name or setting, or fewer than one step.
    """
    betas = build(BETAS, "betas", name, {"steps": check_steps("steps", steps), **settings})
    if name in FOR_THOUSAND and steps != 1000 and "beta_end" not in settings:
        left = float(torch.exp(0.5 * torch.log1p(-betas).sum()))
        if left > MOST_LEFT:
            warnings.warn(
                f"betas {name!r} are DDPM's for 1,000 steps: after {steps} a share of {left:.2g} of the data is left at the noisy end; "
                "scale beta_start and beta_end by 1000/steps, or take another schedule",
                stacklevel=3,
            )
    return betas


class Points(NamedTuple):
    """A path looked at on N points: times (N,) rising, alpha and sigma (N,) there, and the standard deviation of its prior."""

    times: Tensor
    alpha: Tensor
    sigma: Tensor
    prior_std: float


def points_of_betas(betas: Tensor | Sequence[float]) -> Points:
    """The variance-preserving points with these variances of one step's noise, (N,) in (0, 1): abar_i = prod (1 - beta), at the times
    (i + 1)/N. ValueError for anything else."""
    betas = torch.as_tensor(betas, dtype=torch.float64)
    if betas.ndim != 1 or len(betas) < 1 or not bool(((betas > 0) & (betas < 1)).all()):
        shown = f"{float(betas.min())!r} .. {float(betas.max())!r}" if betas.numel() else "none"
        raise ValueError(f"betas must be (N,) numbers in (0, 1), got shape {tuple(betas.shape)}: {shown}")
    log_alpha = 0.5 * torch.log1p(-betas).cumsum(0)
    times = torch.arange(1, len(betas) + 1, dtype=torch.float64) / len(betas)
    return Points(times, torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha)), 1.0)


def points_of(sde: SDE, what: str) -> ChainSDE:
    """`sde` where it runs through the points of a chain; ValueError, naming `what` needs them, where it does not."""
    if not hasattr(sde, "points"):
        raise ValueError(f"{what} needs an SDE that is a chain, as make_sde('ddpm') or chain.to_sde(), got {sde!r}")
    return sde  # type: ignore[return-value]


def posterior_factors(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of x_0 and of x_i in the mean of q(x_{i-1} | x_i, x_0), at every i: (N,) each.

    (1 - r_i) alpha_{i-1} and r_i/a_i, with r_i = SNR_i/SNR_{i-1}, a_i = alpha_i/alpha_{i-1}; at i = 0 the data itself, (1, 0).
    """
    one, none = alpha.new_ones(1), alpha.new_zeros(1)
    before, sigma_before = torch.cat((one, alpha[:-1])), torch.cat((none, sigma[:-1]))
    share = torch.cat((one, -torch.expm1(2 * (torch.log(alpha) - torch.log(sigma)).diff())))
    # r_i/a_i = a_i sigma_{i-1}^2/sigma_i^2: r_i from 1 - share would cancel where steps are long.
    return share * before, alpha / before * (sigma_before / sigma) ** 2


def position_among(times: Tensor, t: Tensor | float) -> Tensor:
    """The place of t among `times` (N,) as a continuous number, linear between them and held at their ends; shape of `t`.

    It is what a network trained on indices is told at times between them.
    """
    t = as_time(t)
    if len(times) == 1:
        return torch.zeros_like(t)
    times = times.to(t.device)
    left, u = _locate(times, t.double().clamp(times[0], times[-1]))
    return (left + u).to(t.dtype)


class ChainSDE(SDE):
    """The SDE through a chain's points: log alpha and lambda run between them as monotone cubics, with continuous slopes.

    Cubic Hermite pieces with the harmonic mean of the neighbouring secants as slopes (Fritsch and Carlson 1980; Fritsch and Butland
    1984), straight lines beyond the ends; lambda falls strictly, so that g^2 > 0. It runs on [t_0, t_{N-1}]; the points are `points`.
    ValueError for a chain of one step.
    """

    def __init__(self, points: Points) -> None:
        if len(points.times) < 2:
            raise ValueError("an SDE needs a chain of at least 2 steps, got 1")
        self.points = points
        lambda_ = torch.log(points.alpha) - torch.log(points.sigma)
        self.t_min, self.t_max = float(points.times[0]), float(points.times[-1])
        self.lambda_max, self.lambda_min = float(lambda_[0]), float(lambda_[-1])
        self._columns = torch.stack((torch.log(points.alpha), lambda_))
        self._slopes = torch.stack([_monotone_slopes(points.times, column) for column in self._columns])

    def position(self, t: Tensor | float) -> Tensor:
        """The place of t among the points as a continuous number, see `position_among`; shape of `t`."""
        return position_among(self.points.times, t)

    def posterior_mean(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of x_0 and of x_i in E[x_{i-1} | x_i, x_0], linear in the place of t among the points; each of the shape of `t`."""
        place = self.position(t.double())
        left = place.floor().long().clamp(max=len(self.points.times) - 2)
        u = place - left
        factors = (column.to(t.device) for column in posterior_factors(self.points.alpha, self.points.sigma))
        of_data, of_state = ((1 - u) * column[left] + u * column[left + 1] for column in factors)
        return of_data.to(t.dtype), of_state.to(t.dtype)

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = as_time(t)
        log_alpha, lambda_ = self._interpolate(t)
        return torch.exp(log_alpha).to(t.dtype), torch.exp(log_alpha - lambda_).to(t.dtype)

    def half_log_snr(self, t: Tensor | float) -> Tensor:
        t = as_time(t)
        return self._interpolate(t)[1].to(t.dtype)

    def time_of(self, lambda_: Tensor | float) -> Tensor:
        """The inverse of `half_log_snr`: the piece by search, and the place in it by Newton's method kept in its bracket."""
        target = as_time(lambda_)
        exact = target.double()
        times, values, d = (value.to(exact.device) for value in (self.points.times, self._columns[1], self._slopes[1]))
        inside = exact.clamp(values[-1], values[0])
        left = (torch.searchsorted(-values, -inside.detach().contiguous(), right=True) - 1).clamp(0, len(times) - 2)
        width, y, rise = times[left + 1] - times[left], values[left], values[left + 1] - values[left]
        first, second = width * d[left], width * d[left + 1]
        c2, c3 = 3 * rise - 2 * first - second, first + second - 2 * rise  # y + first u + c2 u^2 + c3 u^3
        u = (inside - y) / rise
        low, high = torch.zeros_like(u), torch.ones_like(u)
        for _ in range(NEWTON):
            excess = y + u * (first + u * (c2 + u * c3)) - inside
            low, high = torch.where(excess > 0, u, low), torch.where(excess > 0, high, u)
            step = u - excess / (first + u * (2 * c2 + 3 * c3 * u))
            u = torch.where((step >= low) & (step <= high), step, 0.5 * (low + high))
        beyond = torch.where(
            exact > values[0], (exact - values[0]) / d[0], torch.where(exact < values[-1], (exact - values[-1]) / d[-1], 0.0)
        )
        return (times[left] + width * u + beyond).to(target.dtype)

    @property
    def prior_std(self) -> float:
        return self.points.prior_std

    def _interpolate(self, t: Tensor) -> Tensor:
        times, columns, slopes = (value.to(t.device) for value in (self.points.times, self._columns, self._slopes))
        exact = t.double()
        inside = exact.clamp(times[0], times[-1])
        left, u = _locate(times, inside)
        width, y, d = times[left + 1] - times[left], columns[:, left], slopes[:, left]
        y_next, d_next = columns[:, left + 1], slopes[:, left + 1]
        # Both ends of a piece come out to the last bit: each basis function is exactly 0 or 1 there.
        value = (1 + 2 * u) * (1 - u) ** 2 * y + u**2 * (3 - 2 * u) * y_next
        value = value + width * (u * (1 - u) ** 2 * d + u**2 * (u - 1) * d_next)
        first, last = (slopes[:, end].reshape(2, *[1] * exact.ndim) for end in (0, -1))
        return value + torch.where(exact < times[0], first, last) * (exact - inside)

    def __repr__(self) -> str:
        return f"ChainSDE({len(self.points.times)} points, t {self.t_min:.3g} to {self.t_max:.3g})"


class DDPMSDE(ChainSDE):
    """The SDE through the chain of `steps` steps with the betas registered as `betas`: DDPM's own schedules (see `BETAS`).

    betas: a name, or the betas themselves, as many numbers in (0, 1) as there are steps.
    steps: their number; None: 1000 of a named schedule.
    beta_start, beta_end, beta, s, beta_max, span: settings of those betas that have them; None: their defaults.
    """

    def __init__(
        self,
        betas: str | Sequence[float] = "linear",
        steps: int | None = None,
        beta_start: float | None = None,
        beta_end: float | None = None,
        beta: float | None = None,
        s: float | None = None,
        beta_max: float | None = None,
        span: float | None = None,
    ) -> None:
        given = {"beta_start": beta_start, "beta_end": beta_end, "beta": beta, "s": s, "beta_max": beta_max, "span": span}
        given = {name: check_positive(name, value) for name, value in given.items() if value is not None}
        if isinstance(betas, str):
            steps = 1000 if steps is None else steps
            self.settings = {"betas": betas, "steps": steps, **given}
            super().__init__(points_of_betas(make_betas(betas, steps, **given)))
            return
        values = torch.as_tensor(betas, dtype=torch.float64)
        if given or steps not in (None, len(values)):
            raise ValueError(f"{len(values)} betas that are given take no other setting, got {', '.join(given) or f'steps={steps!r}'}")
        self.settings = {"betas": values.tolist()}
        super().__init__(points_of_betas(values))

    def __repr__(self) -> str:
        if isinstance(self.settings["betas"], str):
            return SDE.__repr__(self)
        betas = self.settings["betas"]
        return f"DDPMSDE(betas=[{betas[0]:.4g}, ..., {betas[-1]:.4g}], {len(betas)} steps)"


def _locate(times: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The piece in which t lies, and the share of it that is behind t; exactly 0 or 1 at the chain's times."""
    left = (torch.searchsorted(times, t.detach().contiguous(), right=True) - 1).clamp(0, len(times) - 2)
    return left, (t - times[left]) / (times[left + 1] - times[left])


def _monotone_slopes(times: Tensor, values: Tensor) -> Tensor:
    secants = values.diff() / times.diff()
    before, after = secants[:-1], secants[1:]
    same = before * after > 0
    harmonic = torch.where(same, 2 * before * after / torch.where(same, before + after, 1.0), 0.0)
    return torch.cat((secants[:1], harmonic, secants[-1:]))


def check_steps(name: str, value: int) -> int:
    """`value` where it is a whole number of at least 1, else ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value
