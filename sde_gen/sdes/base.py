"""The affine Gaussian path x_t = alpha(t) x_0 + sigma(t) eps, and everything that follows from alpha and sigma."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..shapes import expand_as

LAMBDA_MAX = 6.0
"""Default half log-SNR at t_min: sigma = 0.0025 for data of unit variance, below what 8-bit or 17-level data can show."""
LAMBDA_MIN = -10.0
"""Half log-SNR at which a path that would run to pure noise (alpha = 0) is stopped."""


def check_positive(name: str, value: float) -> float:
    """`value` as a float, or one line that says why it cannot be a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return float(value)


class SDE(ABC):
    """An affine forward process; a subclass gives `marginal` alone, the rest is derived from it.

    With x_0 the data and eps ~ N(0, I),

        x_t = alpha(t) x_0 + sigma(t) eps,            t from 0 (data) to 1 (noise)
        dx  = f(t) x dt + g(t) dw,                    f = alpha'/alpha,  g^2 = (sigma^2)' - 2 f sigma^2 = -2 sigma^2 lambda'
        lambda(t) = log(alpha/sigma)                  half the log signal-to-noise ratio, strictly falling

    (Song et al. 2021, arXiv:2011.13456, section 3; Kingma et al. 2021, arXiv:2107.00630, for lambda.)
    Times may be Python numbers or tensors of any shape; the same shape and dtype come back (float64 for Python numbers).
    Everything runs on [t_min, t_max], where alpha, sigma and lambda are finite.

    lambda_max, lambda_min: [t_min, t_max] is the part of [0, 1] on which lambda lies between these.
    settings: the constructor's arguments; `make_sde(name, **sde.settings)` rebuilds the process.
    """

    lambda_max: float = LAMBDA_MAX
    lambda_min: float = LAMBDA_MIN
    settings: Mapping[str, Any] = MappingProxyType({})

    @abstractmethod
    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha(t) and sigma(t), both of the shape of `t`."""

    def f(self, t: Tensor | float) -> Tensor:
        """The drift's coefficient f(t) = alpha'/alpha, in 1/time; shape of `t`."""
        return self.slopes(t)[0]

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """f(t) x: `x` of shape (B, *), `t` a scalar or (B,); shape of `x`."""
        return expand_as(self.f(t).to(x), x) * x

    def diffusion(self, t: Tensor | float) -> Tensor:
        """g(t) = sigma sqrt(-2 lambda'), in units of x per square root of time; shape of `t`."""
        t = as_time(t)
        return self.marginal(t)[1] * torch.sqrt(-2.0 * self.slopes(t)[1])

    def half_log_snr(self, t: Tensor | float) -> Tensor:
        """lambda(t) = log(alpha(t) / sigma(t)), shape of `t`."""
        alpha, sigma = self.marginal(as_time(t))
        return torch.log(alpha) - torch.log(sigma)

    def slopes(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """(log alpha)'(t) and lambda'(t), by forward differentiation of `marginal`; shape of `t`."""
        t = as_time(t)

        def logarithms(time: Tensor) -> tuple[Tensor, Tensor]:
            return torch.log(self.marginal(time)[0]), self.half_log_snr(time)

        _, (log_alpha, lambda_) = _derivative(logarithms, t)
        return log_alpha, lambda_

    def time_of(self, lambda_: Tensor | float) -> Tensor:
        """The time at which the half log-SNR is `lambda_`: the inverse of `half_log_snr`, shape of `lambda_`.

        Bisection on [0, 1] here (exact to the last bits of the dtype, no host synchronisation); a closed form may override it.
        """
        target = as_time(lambda_)
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(64):
            middle = 0.5 * (low + high)
            early = self.half_log_snr(middle) > target
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return 0.5 * (low + high)

    @cached_property
    def t_min(self) -> float:
        """The end at the data: the time at which lambda is `lambda_max`, or 0 where it never gets so high."""
        return float(self.time_of(self.lambda_max).clamp(0.0, 1.0))

    @cached_property
    def t_max(self) -> float:
        """The end at the noise: the time at which lambda is `lambda_min`, or 1 where it never gets so low."""
        return float(self.time_of(self.lambda_min).clamp(0.0, 1.0))

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior, N(0, prior_std^2 I), that stands for p(x) at t_max."""
        return float(self.marginal(as_time(self.t_max))[1])

    def prior_sample(self, shape: Sequence[int], generator: torch.Generator | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Draws of the prior, of shape `shape`, on the generator's device."""
        device = generator.device if generator is not None else None
        return self.prior_std * torch.randn(tuple(shape), generator=generator, device=device, dtype=dtype)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """log N(x; 0, prior_std^2 I) in nats: (B, *) gives (B,)."""
        z = x.flatten(1) / self.prior_std
        return -0.5 * (z * z).sum(1) - z.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(self.prior_std))

    auto: tuple[str, ...] = ()
    """The names of the settings that `settings_of_ends` chooses."""

    @classmethod
    def log_alpha_at(cls, half_log_snr: float) -> float | None:
        """log alpha where the half log-SNR has this value, whatever the settings; None for a process that does not shrink the data."""
        return None

    @classmethod
    def settings_of_ends(cls, first: float, last: float, given: Mapping[str, Any]) -> dict[str, float]:
        """The settings `auto` for which the half log-SNR is `first` at t_min and `last` at t_max, beside those that are `given`."""
        return {}

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self.settings.items())
        return f"{type(self).__name__}({inside})"


def as_time(t: Tensor | float) -> Tensor:
    """`t` as a floating tensor; Python numbers become float64 so that nothing is lost before the first cast."""
    if isinstance(t, Tensor):
        return t if t.is_floating_point() else t.to(torch.float64)
    return torch.tensor(t, dtype=torch.float64)


def _derivative(function: Callable[[Tensor], tuple[Tensor, Tensor]], t: Tensor) -> Any:
    # The functions are elementwise in t, so that one product with ones gives every derivative.
    return torch.func.jvp(function, (t,), (torch.ones_like(t),))
