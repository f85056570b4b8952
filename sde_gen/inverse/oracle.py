"""The exact conditional score of a mixture of Gaussians."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..exact.mixtures import MixtureData
from ..models.denoiser import Denoiser, Prediction
from .conditioned import Conditioned, Observed
from .measurement import Measurement


class Oracle(Conditioned):
    """E[x_0 | x_t, y] in closed form, where the model's data are a mixture of Gaussians: the judge of all other methods.

    Exact. Linear operators, Gaussian noise or what is taken for it; std 0 is a limit. No gaps in y that the operator does not have.
    data: the mixture, in normalised units.
    """

    linear = True

    def __init__(self, model: Denoiser, measurement: Measurement, data: MixtureData) -> None:
        super().__init__(model, measurement)
        if not isinstance(data, MixtureData):
            raise TypeError(f"oracle needs data=, a MixtureData, got {type(data).__name__}")
        self.data, self.cost = data, 0
        self._matrix: dict[tuple[Any, ...], Tensor] = {}

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        key = (tuple(x.shape[1:]), x.device)
        if key not in self._matrix:
            matrix = self.measurement.operator.matrix(x.shape[1:], torch.float64, x.device)
            self._matrix[key] = matrix * observed.scale.double().flatten()
        kept = observed.seen[0].flatten()
        rest = observed.residual(torch.zeros_like(x[:1]).double()).flatten(1)[:, kept]
        variance = observed.variance_of_seen[0].double().flatten()[kept]
        return Prediction(self.data.denoise_given(x, self.sde, t, self._matrix[key][kept], rest, variance))
