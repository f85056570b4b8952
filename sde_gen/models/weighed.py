"""Models that say how the weights of states grow on their way to the law that they stand for."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .denoiser import Prediction, Wrapper


class Proposal(Protocol):
    """A step of each of B states other than that of the law which the weights start from."""

    def taken(self, order: Tensor) -> Proposal:
        """That of the states that come from these rows, (B,)."""

    def move(self, b: float, c: float, z: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to a step of states x (B, *) with the noise c z, in which predictions have the weight b, and the log-ratio of the
        law's own step to the one taken, (B,)."""


@dataclass(frozen=True, slots=True)
class Weighing:
    """What a model knows of the weights of states x (B, *) at one time. What is None adds nothing.

    prediction: what moves the states.
    rate: d log w/d lambda with the half log-SNR lambda, (B,) float64.
    twist: log w grows by its difference from one time to the next, from 0 at the start, (B,) float64.
    proposal: where a step of a x + b D + c z goes instead, and what log w gains for it.
    """

    prediction: Prediction
    rate: Tensor | None = None
    twist: Tensor | None = None
    proposal: Proposal | None = None


class Weighed(Wrapper):
    """A model whose states under a solver of the reverse SDE follow, by weight, a law that it stands for; `sample(particles=...)`."""

    same_law = False
    resample_below: float | None = None
    """Share of effective particles below which a group is resampled; None: the solver's own choice."""
    resample_from: float = -math.inf
    """Half log-SNR below which no group is: where states say next to nothing of the data, neither do their weights."""

    @abstractmethod
    def weigh(self, x: Tensor, t: float, **cond: Tensor) -> Weighing:
        """What `predict` gives at x (B, *), and what is known of the weights."""

    def weigh_last(self, x: Tensor, t: float, **cond: Tensor) -> Weighing:
        """`weigh` where the run ends."""
        return self.weigh(x, t, **cond)
