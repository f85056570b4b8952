"""The variance-preserving SDE with cosine schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .base import LAMBDA_MAX, SDE, as_time, check_positive


class CosineVPSDE(SDE):
    """A variance-preserving SDE on a circle: the angle runs evenly from almost data to almost noise.

        alpha = cos(a + b t),  sigma = sin(a + b t),  lambda = -log tan(a + b t),  g = sqrt(2 b tan(a + b t))

    a and a + b follow from `lambda_max` and `lambda_min`, the half log-SNR at t = 0 and t = 1, so that nothing is singular.
    ValueError where lambda_min >= lambda_max. Nichol and Dhariwal 2021, arXiv:2102.09672; Kingma et al. 2021,
    arXiv:2107.00630.
    """

    auto = ("lambda_min", "lambda_max")

    @classmethod
    def log_alpha_at(cls, half_log_snr: float) -> float:
        return -0.5 * math.log1p(math.exp(-2 * half_log_snr))

    @classmethod
    def settings_of_ends(cls, first: float, last: float, given: Mapping[str, Any]) -> dict[str, float]:
        return {"lambda_min": last, "lambda_max": first}

    def __init__(self, lambda_min: float = -5.0, lambda_max: float = LAMBDA_MAX) -> None:
        if isinstance(lambda_min, bool) or not isinstance(lambda_min, int | float):
            raise TypeError(f"lambda_min must be a number, got {lambda_min!r}")
        self.lambda_max = check_positive("lambda_max", lambda_max)
        self.lambda_min = float(lambda_min)
        if not (math.isfinite(lambda_min) and lambda_min < lambda_max):
            raise ValueError(f"lambda_min must be finite and below lambda_max = {lambda_max!r}, got {lambda_min!r}")
        self.settings = {"lambda_min": self.lambda_min, "lambda_max": self.lambda_max}
        self.t_min, self.t_max = 0.0, 1.0
        self._a = math.atan(math.exp(-self.lambda_max))
        self._b = math.atan(math.exp(-self.lambda_min)) - self._a

    def _angle(self, t: Tensor | float) -> Tensor:
        return self._a + self._b * as_time(t)

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        angle = self._angle(t)
        return torch.cos(angle), torch.sin(angle)

    def half_log_snr(self, t: Tensor | float) -> Tensor:
        return -torch.log(torch.tan(self._angle(t)))

    def time_of(self, lambda_: Tensor | float) -> Tensor:
        return (torch.atan(torch.exp(-as_time(lambda_))) - self._a) / self._b

    def slopes(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        angle = self._angle(t)
        return -self._b * torch.tan(angle), -2.0 * self._b / torch.sin(2.0 * angle)

    @property
    def prior_std(self) -> float:
        return 1.0
