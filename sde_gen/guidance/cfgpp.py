"""CFG++."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.denoiser import PlannedTime
from .combine import Guided


class CFGPlusPlus(Guided):
    """A DDIM step that takes the data from the guided branch and the noise from the null branch.

        x_s = alpha_s (D_null + w (D_cond - D_null)) + sigma_s (x - alpha_t D_null)/sigma_t

    That is classifier-free guidance of strength w/(1 - e^-h) for a step of h in half log-SNR, and so it is written here: with `ddim` the
    two are equal to the last digits, and any other one-call solver takes the same denoised data. w = `strength`, mostly in (0, 1]: a scale
    of its own, on which 0 is the null branch and no number is the conditional model.

    It has no limit of small steps, and so takes solvers whose steps are planned; ValueError in others.
    Chung et al. 2024, arXiv:2406.08070.
    """

    plain_at_one = False
    by_steps = True

    def prepare(self, times: Sequence[PlannedTime]) -> None:
        super().prepare(times)
        lambda_ = {t: float(self.sde.half_log_snr(float(t))) for t in times}
        ahead = sorted(times, reverse=True)
        ends = [*(lambda_[t] for t in ahead[1:]), float(self.sde.half_log_snr(self.sde.t_min))]
        for t, end in zip(ahead, ends, strict=True):
            step = end - lambda_[t]
            t.plans[self] = self.strength / -math.expm1(-step) if step > 0 else self.strength  # at the end: the guided data themselves

    def push(self, x: Tensor, t: Tensor | float, cond: Tensor, null: Tensor) -> Tensor:
        weight = self.planned_for(t, "rule 'cfgpp' depends on the solver's steps: it takes fixed-step solvers such as ddim")
        return torch.lerp(null, cond, self.strength if weight is None else weight)
