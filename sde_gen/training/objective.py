"""What is minimised: denoising score matching, or one of the discrete view's objectives, by the settings' names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..discrete import OBJECTIVES as OF_CHAIN
from ..discrete import IndexSampler, chain_loss, chain_of
from ..losses import dsm_loss
from ..score import ScoreModel

if TYPE_CHECKING:
    from .loop import TrainSettings

OBJECTIVES = ("dsm", *OF_CHAIN)


class Objective(nn.Module):
    """The losses (B,) of a batch x_0 (B, *) in normalised units, as `settings` ask: `dsm_loss`, or `chain_loss` on the chain of the
    model's SDE. What an importance sampler of indices has seen is its state.

    levels: of data that are whole numbers 0 .. levels - 1, or None. ValueError for an objective that does not suit the model.
    """

    def __init__(self, settings: TrainSettings, model: ScoreModel, levels: int | None = None) -> None:
        super().__init__()
        self.settings, self.levels = settings, levels
        learned = model.variance is not None
        if learned and settings.objective in ("dsm", "simple"):
            raise ValueError(f"objective {settings.objective!r} does not train the learned variance of this model; choose vlb or hybrid")
        if not learned and settings.objective == "hybrid":
            raise ValueError("objective 'hybrid' trains the variance: it needs a model with variance 'learned_range'")
        self.chain = None
        if settings.objective != "dsm":
            self.chain = chain_of(model.sde, settings.chain_steps)
            self.indices = IndexSampler(len(self.chain), settings.indices)

    def forward(self, model: ScoreModel, x_0: Tensor, generator: torch.Generator, **cond: Any) -> Tensor:
        settings = self.settings
        if self.chain is None:
            return dsm_loss(model, x_0, settings.weighting, settings.times, generator=generator, **cond)
        return chain_loss(model, x_0, self.chain, settings.objective, self.indices, self.levels, generator=generator, **cond)
