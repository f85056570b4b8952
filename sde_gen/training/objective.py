"""What is minimised: denoising score matching, or one of the discrete view's objectives, by the settings' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..conditions import TellsValid
from ..data import Source
from ..discrete import IndexSampler, chain_loss, chain_of
from ..models.denoiser import only_valid
from ..models.moments import Moments
from ..models.score import ScoreModel
from .losses import TIME_SAMPLERS, dsm_loss
from .settings import TrainSettings
from .targets import PosteriorMeans
from .validation import Validation


class Draw(NamedTuple):
    """The random part of a batch.

    level: times (B,), or indices of a chain.
    weight: the weight of each sample's loss, (B,).
    noise: eps, (B, *).
    dropped: the samples that are not told a condition, (B,) Boolean, by its name.
    reference: the numbers of the training items that targets are means over (see `PosteriorMeans`), the same for all samples, or None.
    """

    level: Tensor
    weight: Tensor
    noise: Tensor
    dropped: Mapping[str, Tensor] = MappingProxyType({})
    reference: Tensor | None = None

    def part(self, rows: slice) -> Draw:
        dropped = {name: value[rows] for name, value in self.dropped.items()}
        return Draw(self.level[rows], self.weight[rows], self.noise[rows], dropped, self.reference)


class Objective(nn.Module):
    """The losses of a batch that `settings` ask for: `dsm_loss`, or `chain_loss` on the chain of the model's SDE.

    What is random is drawn for a whole batch before its parts are computed, so that the parts do not change it. The losses that an
    importance sampler of indices has seen are its state.

    settings: name the objective.
    model: the model that is trained; the losses may be asked of it in another place (see `Placement`).
    levels: the number of values of data that are whole numbers 0 .. levels - 1, or None.
    Raises ValueError for an objective that does not suit the model.
    """

    def __init__(self, settings: TrainSettings, model: ScoreModel, levels: int | None = None) -> None:
        super().__init__()
        self.settings, self.levels = settings, levels
        self.means: PosteriorMeans | None = None  # what the denoised data are compared with in the place of the items
        learned = model.variance is not None
        if learned and settings.objective in ("dsm", "simple"):
            raise ValueError(f"objective {settings.objective!r} does not train the learned variance of this model; choose vlb or hybrid")
        if not learned and settings.objective == "hybrid":
            raise ValueError("objective 'hybrid' trains the variance: it needs a model with variance 'learned_range'")
        if settings.objective != "dsm" and (model.mask is not None or any(isinstance(one, TellsValid) for one in model.encoders.values())):
            raise ValueError(f"objective {settings.objective!r} is for data without masks, and these have one; choose dsm")
        masks = [name for name, one in model.encoders.items() if isinstance(one, TellsValid)]
        if settings.reference and masks:
            raise ValueError(
                f"reference {settings.reference} is for data whose items all have the same valid entries, and {masks[0]!r} differs"
            )
        self.chain = None
        if settings.objective != "dsm":
            self.chain = chain_of(model.sde, settings.chain_steps)
            self.indices = IndexSampler(len(self.chain), settings.indices)

    def encode(self, model: ScoreModel, x: Tensor) -> Tensor:
        """Items (N, *) as they are stored as those that `forward` takes: data in their own units in normalised ones, float32."""
        assert model.normalizer is not None
        # data that need float64 need it in their own units alone
        return only_valid(model.normalizer.encode(x).float(), model.valid({}))

    def see(self, items: Tensor | Source, cond: Mapping[str, Tensor | Source]) -> None:
        """Called once, with the training items, encoded or to be read batch by batch, and their conditions by name."""
        if self.settings.reference:
            self.means = PosteriorMeans(items, cond, self.settings.reference)

    def validation(self, model: ScoreModel, held: Tensor, cond: dict[str, Tensor]) -> Validation:
        """What measures a model on held-out items `held` (N, *), encoded, under their conditions."""
        moments = model.moments if model.moments is not None else Moments.fit(held)
        return Validation.prepare(model, held, moments, cond, self.settings.seed)

    def draw(self, model: ScoreModel, shape: Sequence[int], generator: torch.Generator, drop: Mapping[str, float] | None = None) -> Draw:
        """Draw what is random of a batch of `shape` (B, *); `drop`: with which probability each condition is left out, by name."""
        if self.chain is None:
            level, weight = TIME_SAMPLERS[self.settings.times](model.sde, shape[0], generator, model.data_std or 1.0)
        else:
            level, weight = self.indices.draw(shape[0], generator)
        noise = torch.randn(tuple(shape), generator=generator, device=generator.device)
        place = generator.device
        left_out = {name: torch.rand(shape[0], generator=generator, device=place) < share for name, share in (drop or {}).items()}
        return Draw(level, weight, noise, left_out, None if self.means is None else self.means.draw(generator))

    def forward(self, model: ScoreModel, x_0: Tensor, draw: Draw, **cond: Any) -> Tensor:
        """The losses (B,) before their weights, of x_0 (B, *) in normalised units."""
        if self.chain is None:
            target = None
            if self.means is not None and draw.reference is not None:
                told = {
                    name: value if name not in draw.dropped else value.masked_fill(draw.dropped[name], -1) for name, value in cond.items()
                }
                target = self.means(model, x_0, draw.level, draw.noise, draw.reference, told)
            return dsm_loss(
                model, x_0, self.settings.weighting, draw.level, noise=draw.noise, loss=self.settings.loss, target=target, **cond
            )
        return chain_loss(model, x_0, self.chain, self.settings.objective, draw.level, self.levels, noise=draw.noise, **cond)

    @property
    def learns(self) -> bool:
        """Whether `observe` has anything to do."""
        return self.chain is not None and self.indices.kind != "uniform"

    def observe(self, draw: Draw, losses: Tensor) -> None:
        """Show the losses of a whole batch to an importance sampler of indices."""
        if self.learns:
            self.indices.update(draw.level, losses)
