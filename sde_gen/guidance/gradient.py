"""Guidance by a gradient: a classifier on noisy data, and any energy of the denoised data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, Prediction, Wrapper


class _Pushed(Wrapper):
    """The score of `model` plus strength times the gradient of a log-weight of each sample."""

    same_law = False

    def __init__(self, model: Denoiser, function: Callable[..., Tensor], strength: float) -> None:
        if not callable(function):
            raise TypeError(f"a function is needed, got {type(function).__name__}")
        if not math.isfinite(strength):
            raise ValueError(f"strength must be finite, got {strength!r}")
        super().__init__(model)
        self.function, self.strength = function, float(strength)

    def _checked(self, value: Any, x: Tensor) -> Tensor:
        if not isinstance(value, Tensor) or tuple(value.shape) != (len(x),):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the function must give one number for each of the {len(x)} samples, got {shape}")
        if not value.requires_grad:
            raise TypeError("the function's value has no gradient with respect to the state (detached, or computed under no_grad?)")
        return value

    def _shifted(self, prediction: Prediction, x: Tensor, t: Tensor | float, gradient: Tensor) -> Prediction:
        # score + w gradient, and alpha D = x + sigma^2 score
        alpha, sigma = self._marginal(x, t)
        return Prediction(prediction.denoised + self.strength * sigma**2 / alpha * gradient, prediction.variance_fraction)


class Classifier(_Pushed):
    """grad log p_t(x | y) = grad log p_t(x) + strength grad_x log p_t(y | x): strength 1 is Bayes.

    log_prob: called as log_prob(x, t, **cond), gives log p_t(y | x) for each state, (B, *) to (B,); t is a number or (B,), x in normalised
        units. `sde_gen.train_classifier` makes one. A classifier of clean data is none: it has not seen noise. Its `check(cond)`, where
        it has one, is called before a run.

    given: names of conditions that the model is given too. The classifier gets all conditions, the model no others than these.

    Dhariwal and Nichol 2021, arXiv:2105.05233; Song et al. 2021, arXiv:2011.13456, section 5.
    """

    def __init__(self, model: Denoiser, log_prob: Callable[..., Tensor], strength: float = 1.0, given: Sequence[str] = ()) -> None:
        super().__init__(model, log_prob, strength)
        self.given = (given,) if isinstance(given, str) else tuple(given)

    def conditions(self, cond: Mapping[str, Any] | None, count: int, device: torch.device) -> dict[str, Tensor]:
        found = Denoiser.conditions(self, cond, count, device)
        check = getattr(self.function, "check", None)
        if callable(check):
            check(found)
        missing = [name for name in self.given if name not in found]
        if missing:
            raise ValueError(f"condition {', '.join(map(repr, missing))} is the model's, and was not given (cond={{...}})")
        return found | self.model.conditions({name: found[name] for name in self.given}, count, device)

    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
        outside = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            state = x if outside else x.detach().requires_grad_()
            value = self._checked(self.function(state, t, **cond), x)
            gradient = torch.autograd.grad(value.sum(), state, create_graph=outside)[0]
        found = self.model.predict(x, t, **{name: cond[name] for name in self.given})
        return self._shifted(found, x, t, gradient)


class Energy(_Pushed):
    """grad log p_t(x) - strength grad_x loss(E[x_0 | x]): any differentiable energy of the denoised data.

    loss: called as loss(denoised) with E[x_0 | x_t] (B, *) in normalised units, gives one number for each sample, (B,).

    The gradient goes back through the network, so that a call costs a forward and a backward pass. It is a bias, not Bayes: the energy of
    the mean is not the mean of the energy. Bansal et al. 2023, arXiv:2302.07121; Chung et al. 2023, arXiv:2209.14687.
    """

    def __init__(self, model: Denoiser, loss: Callable[[Tensor], Tensor], strength: float = 1.0) -> None:
        super().__init__(model, loss, strength)

    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
        outside = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            state = x if outside else x.detach().requires_grad_()
            found = self.model.predict(state, t, **cond)
            value = self._checked(self.function(found.denoised), x)
            gradient = torch.autograd.grad(-value.sum(), state, create_graph=outside, retain_graph=True)[0]
        fraction = found.variance_fraction
        if not outside:
            found = Prediction(found.denoised.detach(), None if fraction is None else fraction.detach())
        return self._shifted(found, x, t, gradient)
