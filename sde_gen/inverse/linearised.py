"""The derivative of an operator that is not linear."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .conditioned import Observed


def linearised(observed: Observed, denoised: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """v -> H v and u -> H^T u for H = d A(decode(z))/dz at z = `denoised`."""
    at = denoised.detach().requires_grad_()
    with torch.enable_grad():
        clean = observed.clean(at)
        probe = torch.zeros_like(clean, requires_grad=True)
        back = torch.autograd.grad(clean, at, probe, create_graph=True)[0]

    def adjoint(u: Tensor) -> Tensor:
        return torch.autograd.grad(clean, at, u.to(clean.dtype), retain_graph=True)[0].to(u.dtype)

    def forward(v: Tensor) -> Tensor:
        return torch.autograd.grad(back, probe, v.to(back.dtype), retain_graph=True)[0].to(v.dtype)

    return forward, adjoint
