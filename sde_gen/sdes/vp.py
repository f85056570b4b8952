"""The variance-preserving SDE with linear beta."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import LAMBDA_MAX, SDE, as_time, check_positive


class LinearBeta(SDE):
    """What VP and sub-VP share: beta(t) = beta_min + t (beta_max - beta_min) and alpha = exp(-1/2 int_0^t beta).

    log alpha(t) = -t^2 (beta_max - beta_min)/4 - t beta_min/2.
    """

    auto: tuple[str, ...] = ("beta_max", "lambda_max")

    @classmethod
    def settings_of_ends(cls, first: float, last: float, given: Mapping[str, Any]) -> dict[str, float]:
        start = given.get("beta_min", 0.1)
        if not isinstance(start, int | float) or start <= 0:
            raise ValueError(f"beta_min must be positive and finite, got {start!r}")
        log_alpha = cls.log_alpha_at(last)
        assert log_alpha is not None
        return {"lambda_max": first, "beta_max": max(start, -4 * log_alpha - start)}

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, lambda_max: float = LAMBDA_MAX) -> None:
        self.beta_min = check_positive("beta_min", beta_min)
        self.beta_max = check_positive("beta_max", beta_max)
        if beta_min > beta_max:
            raise ValueError(f"beta_min must not exceed beta_max, got {beta_min!r} > {beta_max!r}")
        self.lambda_max = check_positive("lambda_max", lambda_max)
        self.settings = {"beta_min": self.beta_min, "beta_max": self.beta_max, "lambda_max": self.lambda_max}
        self.t_max = 1.0

    def beta(self, t: Tensor | float) -> Tensor:
        """beta(t), in 1/time; shape of `t`."""
        return self.beta_min + as_time(t) * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Tensor | float) -> Tensor:
        """log alpha(t); shape of `t`."""
        t = as_time(t)
        return -t * (0.25 * t * (self.beta_max - self.beta_min) + 0.5 * self.beta_min)

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # The root of t^2 (beta_max - beta_min)/4 + t beta_min/2 + log alpha = 0, in the form that neither cancels near
        # t = 0 nor divides by zero for a constant beta.
        slope = self.beta_max - self.beta_min
        return -4.0 * log_alpha / (self.beta_min + torch.sqrt(self.beta_min**2 - 4.0 * slope * log_alpha))

    def f(self, t: Tensor | float) -> Tensor:
        return -0.5 * self.beta(t)

    @property
    def prior_std(self) -> float:
        # Data of unit variance has variance alpha^2 + sigma^2 at t_max, which is 1 for VP and nearly so for sub-VP.
        return 1.0


class VPSDE(LinearBeta):
    """The variance-preserving SDE dx = -1/2 beta(t) x dt + sqrt(beta(t)) dw, the continuous limit of DDPM.

        beta(t) = beta_min + t (beta_max - beta_min),  alpha = exp(-1/2 int_0^t beta),  sigma = sqrt(1 - alpha^2)

    `beta_min`, `beta_max` in 1/time; `lambda_max` is the half log-SNR at t_min. ValueError where one is not positive and
    finite or beta_min > beta_max. Song et al. 2021, arXiv:2011.13456, equation 11; Ho et al. 2020, arXiv:2006.11239.
    """

    auto = ("beta_min", "beta_max", "lambda_max")

    @classmethod
    def log_alpha_at(cls, half_log_snr: float) -> float:
        return -0.5 * math.log1p(math.exp(-2 * half_log_snr))

    @classmethod
    def settings_of_ends(cls, first: float, last: float, given: Mapping[str, Any]) -> dict[str, float]:
        if "beta_min" in given:
            return super().settings_of_ends(first, last, given)
        # The first of a thousand steps adds the noise of t_min, as in DDPM; three digits, for beta_max follows from it.
        start = float(f"{min(1.0, max(0.01, 1000 * math.exp(-2 * first))):.3g}")
        return {**super().settings_of_ends(first, last, {"beta_min": start}), "beta_min": start}

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        log_alpha = self.log_alpha(t)
        return torch.exp(log_alpha), torch.sqrt(-torch.expm1(2.0 * log_alpha))

    def half_log_snr(self, t: Tensor | float) -> Tensor:
        log_alpha = self.log_alpha(t)
        return log_alpha - 0.5 * torch.log(-torch.expm1(2.0 * log_alpha))

    def time_of(self, lambda_: Tensor | float) -> Tensor:
        # 1/alpha^2 = 1 + exp(-2 lambda); softplus with a high threshold stays exact at both ends.
        return self._time_of_log_alpha(-0.5 * F.softplus(-2.0 * as_time(lambda_), threshold=50.0))

    def diffusion(self, t: Tensor | float) -> Tensor:
        return torch.sqrt(self.beta(t))

    def slopes(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        f = self.f(t)
        return f, f / -torch.expm1(2.0 * self.log_alpha(t))
