"""Classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.combination import ScoreCombination
from ..models.denoiser import Prediction
from ..models.weighed import Weighing
from .combine import Guided


class ClassifierFree(Guided, ScoreCombination):
    """D = D_null + strength (D_cond - D_null).

    Its score is that of p(x) (p(x | c)/p(x))^strength at t_min alone, and neither its flow nor its SDE ends in that law;
    `sample(..., particles=K)` reaches it, without an interval.
    Ho and Salimans 2022, arXiv:2207.12598 (whose w is strength - 1). With `against` it is autoguidance: Karras et al. 2024,
    arXiv:2406.02507, whose weaker model is a smaller or a younger one.
    """

    def push(self, x: Tensor, t: Tensor | float, cond: Tensor, null: Tensor) -> Tensor:
        return torch.lerp(null, cond, self.strength)

    def weigh(self, x: Tensor, t: float, **cond: Tensor) -> Weighing:
        if self.interval is not None and not self.plain:
            # Where guidance begins and ends the law jumps, by a ratio of densities that the scores do not give.
            raise ValueError(f"particles stand for no law of guidance in an interval: leave it out, got interval={self.interval!r}")
        return super().weigh(x, t, **cond)

    def predict_terms(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> list[tuple[float, Prediction]]:
        first, null = self.branches(x, t, cond)
        if first is None or null is None:
            return [(1.0, branch) for branch in (first, null) if branch is not None]
        return [(self.strength, first), (1 - self.strength, null)]
