"""What a training makes, and how one ends that cannot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..models.score import ScoreModel
from .checkpoint import State

if TYPE_CHECKING:
    from .trainer import Trainer


class TrainingError(RuntimeError):
    """Training cannot go on: the loss or its gradients were not finite too often in a row, or memory does not suffice."""


class AbandonedStep(Exception):
    """A step was given up between two parts of its batch: the trainer is as it was before that step."""


@dataclass
class TrainResult:
    """What a training has made.

    model: the model with the averaged weights, in evaluation mode.
    raw: the model with the last weights.
    trainer: what made it, with all that changes from step to step.
    history: the entries that `plot_loss` takes.
    linear: the best linear denoiser's loss by level.
    steps: the number of steps behind, with those that were left out.
    seconds: the time that they took, evaluations included.
    skipped: the number of steps left out because the loss or its gradients were not finite.
    """

    model: ScoreModel
    raw: ScoreModel
    trainer: Trainer = field(repr=False)
    history: list[dict[str, Any]] = field(default_factory=list)
    linear: dict[str, list[float]] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    skipped: int = 0

    def state(self) -> State:
        """All that `fit(resume=...)` needs besides the weights that `save` writes."""
        return self.trainer.state()
