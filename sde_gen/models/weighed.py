"""Models that say how the weights of states grow on their way to the law that they stand for."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from .denoiser import Prediction, Wrapper


@dataclass(frozen=True, slots=True)
class Weighing:
    """What a model knows of the weights of states x (B, *) at one time. What is None adds nothing.

    prediction: what moves the states.
    rate: d log w/d lambda with the half log-SNR lambda, (B,) float64.
    twist: log w grows by its difference from one time to the next, from 0 at the start, (B,) float64.
    shift: how far the prediction is from that of the law which the weights start from, of x's shape. A step x <- a x + b D + c z with the
        shifted D is a draw of another Gaussian than with the plain one, and log w grows by their log-ratio there:

            -(b/c) z.shift - (b/c)^2 |shift|^2/2
    """

    prediction: Prediction
    rate: Tensor | None = None
    twist: Tensor | None = None
    shift: Tensor | None = None


class Weighed(Wrapper):
    """A model whose states under a solver of the reverse SDE follow, by their weights, a law that it stands for; `sample(particles=...)`."""

    same_law = False

    @abstractmethod
    def weigh(self, x: Tensor, t: float, **cond: Tensor) -> Weighing:
        """What `predict` gives at x (B, *), and what is known of the weights."""

    def weigh_last(self, x: Tensor, t: float, **cond: Tensor) -> Weighing:
        """`weigh` where the run ends."""
        return self.weigh(x, t, **cond)
