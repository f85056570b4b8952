"""A model's prediction with its derivative."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, Prediction


@contextmanager
def differentiated(
    model: Denoiser, x: Tensor, t: Tensor | float, cond: dict[str, Tensor]
) -> Iterator[tuple[Prediction, Callable[[Tensor], Tensor]]]:
    """What `model` predicts at x (B, *), and v -> (dD/dx)^T v; differentiable where a gradient is asked for from outside, else detached."""
    outside = torch.is_grad_enabled() and x.requires_grad
    with torch.enable_grad():
        state = x if outside else x.detach().requires_grad_()
        made = model.predict(state, t, **cond)
    if not made.denoised.requires_grad:
        raise TypeError("the model's prediction has no gradient with respect to the state (detached, or computed under no_grad?)")

    def back(v: Tensor) -> Tensor:
        return torch.autograd.grad(made.denoised, state, v, retain_graph=True, create_graph=outside)[0]

    fraction = made.variance_fraction
    with torch.set_grad_enabled(outside):
        yield (made if outside else Prediction(made.denoised.detach(), None if fraction is None else fraction.detach())), back
