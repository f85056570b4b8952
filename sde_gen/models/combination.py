"""Linear combinations of scores, and how far their samples are from the product that they stand for."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from .denoiser import Prediction
from .weighed import Weighed, Weighing


class ScoreCombination(Weighed):
    """The score sum_i a_i grad log p_i of models along one SDE; a subclass gives the terms.

        alpha D - x = sum_i a_i (alpha D_i - x),    D = sum_i a_i D_i + (1 - sum_i a_i) x/alpha

    Its samples do not follow prod_i p_i^(a_i), to which they can be weighted (`weigh`).
    """

    same_law = False

    @abstractmethod
    def predict_terms(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> list[tuple[float, Prediction]]:
        """Each term's weight a_i and what its model predicts at x (B, *)."""

    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
        return self.combine(x, t, self.predict_terms(x, t, **cond))

    def combine(self, x: Tensor, t: Tensor | float, terms: list[tuple[float, Prediction]]) -> Prediction:
        """The combination of `terms` at x; the learned variance is the first one's."""
        weight, first = terms[0]
        denoised = first.denoised if weight == 1 else weight * first.denoised
        for weight, other in terms[1:]:
            denoised = torch.add(denoised, other.denoised, alpha=weight)
        rest = 1 - sum(weight for weight, _ in terms)
        if abs(rest) > 1e-12:
            alpha, _ = self._marginal(x, t)
            denoised = denoised + rest * x / alpha
        return Prediction(denoised, first.variance_fraction)

    def weigh(self, x: Tensor, t: float, **cond: Tensor) -> Weighing:
        """The combination at x (B, *), and the rate at which log-weights towards prod_i p_i^(a_i) grow with the half log-SNR.

            d log w/d lambda = |eps|^2 - sum_i a_i |eps_i|^2,   eps_i = (x - alpha D_i)/sigma

        It needs neither a divergence nor a further call, and holds for the SDE and for the flow.
        Skreta et al. 2025, arXiv:2503.02819, whose g^2/2 (|s|^2 - sum_i a_i |s_i|^2) of time this is.
        """
        terms = self.predict_terms(x, t, **cond)
        found = self.combine(x, t, terms)
        alpha, sigma = self._marginal(x, t)

        def squared(denoised: Tensor) -> Tensor:
            return ((x - alpha * denoised) / sigma).double().square().flatten(1).sum(1)

        return Weighing(found, rate=squared(found.denoised) - sum(weight * squared(one.denoised) for weight, one in terms))
