"""Adaptive projected guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, PlannedTime
from .combine import Guided, inner


class AdaptiveProjected(Guided):
    """D = D_cond + (strength - 1) (orthogonal + eta parallel), the parts of d = D_cond - D_null across and along D_cond.

        d <- d + momentum d_before,   d <- d min(1, radius/|d|)

    eta: the share of the parallel part, which saturates colours; 1 with neither radius nor momentum is classifier-free guidance.
    radius: the longest d, in normalised units over the whole sample; None: any.
    momentum: of the d before, negative in the paper (-0.5); it needs the order of the steps, so it takes solvers whose steps are planned;
        ValueError in others.

    Norms and products are of each sample alone. Sadat et al. 2024, arXiv:2410.02416.
    """

    def __init__(
        self,
        model: Denoiser,
        strength: float,
        drop: Sequence[str] | None = None,
        interval: tuple[float, float] | None = None,
        against: Denoiser | None = None,
        eta: float = 0.0,
        radius: float | None = None,
        momentum: float = 0.0,
    ) -> None:
        for name, value in (("eta", eta), ("momentum", momentum)):
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value!r}")
        if radius is not None and not radius > 0:
            raise ValueError(f"radius must be positive, got {radius!r}")
        super().__init__(model, strength, drop, interval, against)
        self.eta, self.radius, self.momentum = eta, radius, momentum
        self.by_steps = momentum != 0

    def prepare(self, times: Sequence[PlannedTime]) -> None:
        super().prepare(times)
        memory: dict[str, Tensor] = {}  # of this run alone
        for t in times:
            t.plans[self] = memory

    def push(self, x: Tensor, t: Tensor | float, cond: Tensor, null: Tensor) -> Tensor:
        d = cond - null
        if self.momentum:
            needs = "momentum of rule 'apg' depends on the solver's steps: it takes fixed-step solvers, or momentum=0"
            memory = self.planned_for(t, needs)
            memory = {} if memory is None else memory  # the end is no step
            if "d" in memory and memory["d"].shape == d.shape:
                d = torch.add(d, memory["d"], alpha=self.momentum)
            memory["d"] = d
        if self.radius is not None:
            d = d * (self.radius / inner(d, d).sqrt().clamp_min(1e-12)).clamp_max(1.0)
        along = inner(d, cond) / inner(cond, cond).clamp_min(1e-12) * cond
        return cond + (self.strength - 1) * (d + (self.eta - 1) * along)
