"""CFG-Zero*."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, PlannedTime
from .combine import Guided, flow_of, inner


class ZeroStar(Guided):
    """Classifier-free guidance of velocities whose null branch is scaled to lie nearest to the conditional one.

        v = s v_null + strength (v_cond - s v_null),   s = <v_cond, v_null>/|v_null|^2 for each sample

    zero_steps: so many steps at the start have v = 0, which needs solvers whose steps are planned; ValueError in others.
    Fan et al. 2025, arXiv:2503.18886.
    """

    def __init__(
        self,
        model: Denoiser,
        strength: float,
        drop: Sequence[str] | None = None,
        interval: tuple[float, float] | None = None,
        against: Denoiser | None = None,
        zero_steps: int = 0,
    ) -> None:
        if isinstance(zero_steps, bool) or not isinstance(zero_steps, int) or zero_steps < 0:
            raise ValueError(f"zero_steps must be a whole number of at least 0, got {zero_steps!r}")
        super().__init__(model, strength, drop, interval, against)
        self.zero_steps, self.by_steps = zero_steps, zero_steps > 0

    def prepare(self, times: Sequence[PlannedTime]) -> None:
        super().prepare(times)
        for place, t in enumerate(sorted(times, reverse=True)):
            t.plans[self] = place < self.zero_steps

    def push(self, x: Tensor, t: Tensor | float, cond: Tensor, null: Tensor) -> Tensor:
        a, b = flow_of(self.model, x, t)
        if self.zero_steps:
            needs = "zero_steps of rule 'cfg_zero' counts the solver's steps: it takes fixed-step solvers, or zero_steps=0"
            if self.planned_for(t, needs):
                return -a * x / b
        v_cond, v_null = a * x + b * cond, a * x + b * null
        scale = inner(v_cond, v_null) / inner(v_null, v_null).clamp_min(torch.finfo(x.dtype).tiny)
        return (torch.lerp(scale * v_null, v_cond, self.strength) - a * x) / b
