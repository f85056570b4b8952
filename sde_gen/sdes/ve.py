"""The variance-exploding SDE."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .base import SDE, as_time, check_positive


class VESDE(SDE):
    """The variance-exploding SDE dx = g(t) dw with geometric sigma, the continuous limit of NCSN.

        alpha = 1,  sigma(t) = sigma_min (sigma_max/sigma_min)^t,  g = sigma sqrt(2 log(sigma_max/sigma_min))

    `sigma_min`, `sigma_max` in units of the (normalised) data; t = 0 is data blurred by sigma_min. ValueError where one is
    not positive and finite or sigma_min >= sigma_max. Song et al. 2021, arXiv:2011.13456, equations 9 and 30.
    """

    auto = ("sigma_min", "sigma_max")

    @classmethod
    def settings_of_ends(cls, first: float, last: float, given: Mapping[str, Any]) -> dict[str, float]:
        return {"sigma_min": math.exp(-first), "sigma_max": math.exp(-last)}

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        self.sigma_min = check_positive("sigma_min", sigma_min)
        self.sigma_max = check_positive("sigma_max", sigma_max)
        if sigma_min >= sigma_max:
            raise ValueError(f"sigma_min must be below sigma_max, got {sigma_min!r} >= {sigma_max!r}")
        self.settings = {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        self.t_min, self.t_max = 0.0, 1.0
        self.log_ratio = math.log(self.sigma_max / self.sigma_min)

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = as_time(t)
        return torch.ones_like(t), self.sigma_min * torch.exp(self.log_ratio * t)

    def half_log_snr(self, t: Tensor | float) -> Tensor:
        return -math.log(self.sigma_min) - self.log_ratio * as_time(t)

    def time_of(self, lambda_: Tensor | float) -> Tensor:
        return (-math.log(self.sigma_min) - as_time(lambda_)) / self.log_ratio

    def slopes(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        t = as_time(t)
        return torch.zeros_like(t), torch.full_like(t, -self.log_ratio)
