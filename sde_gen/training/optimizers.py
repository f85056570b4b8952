"""The optimisers: AdamW for all weights, or Muon for the matrices among them and AdamW for the rest."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..registry import lookup
from .sharding import in_shares, whole

LEAST_SIDE = 16
"""A matrix has at least so many rows and columns: one with fewer leads in from the data or out to them, and is left to AdamW."""
MOMENTUM = 0.95
SIZE = 0.2
"""The root mean square of Muon's updates over the learning rate. AdamW's are about as large, so that one learning rate suits both (Liu
et al. 2025, arXiv:2502.16982)."""
STEPS, LEAST = 4, 4e-3
"""So many polynomials bring the singular values from LEAST to 1 near 1."""


class Muon(torch.optim.AdamW):
    """Steepest descent in the spectral norm for matrices, AdamW for all other weights.

        m <- 0.95 m + 0.05 G,   weights <- (1 - lr weight_decay) weights - lr 0.2 sqrt(max(rows, columns)) U V^T

    where U S V^T is the singular value decomposition of 0.05 G + 0.95 m, of which `orthogonalised` gives U V^T: every direction in
    which a layer can change is changed by as much. A convolution counts as the matrix (outputs, inputs times kernel).

    It keeps "step" and "momentum" of each matrix, where AdamW keeps two moments. Weights in shares are put together for it, a matrix at
    a time.
    Jordan et al. 2024 (kellerjordan.github.io/posts/muon); Bernstein and Newhouse 2024, arXiv:2409.20325.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update by the gradients; where `found_inf` is set and not 0, none at all."""
        found_inf = getattr(self, "found_inf", None)
        taken: list[tuple[nn.Parameter, Tensor]] = []
        for group in self.param_groups:
            matrices = [p for p in group["params"] if p.grad is not None and is_matrix(p)]
            by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for p in matrices:
                gradient = p.grad
                assert gradient is not None
                taken.append((p, gradient))
                p.grad = None  # AdamW goes past weights without a gradient
                state = self.state[p]
                if not state:
                    state |= {"step": torch.zeros((), device=p.device), "momentum": torch.zeros_like(p)}
                state["step"] += 1 if found_inf is None else 1 - found_inf
                momentum = state["momentum"]
                after = momentum.lerp(gradient, 1 - MOMENTUM)
                seen = whole(gradient.lerp(after, MOMENTUM)).flatten(1)
                momentum.copy_(after if found_inf is None else torch.where(found_inf > 0, momentum, after))
                by_shape.setdefault((seen.shape[0], seen.shape[1]), []).append((p, seen))
            for shape, members in by_shape.items():
                size = group["lr"] * SIZE * math.sqrt(max(shape))
                for (p, _), update in zip(members, orthogonalised(torch.stack([seen for _, seen in members])), strict=True):
                    kept = p * (1 - group["lr"] * group["weight_decay"]) - in_shares(size * update.reshape(p.shape), p)
                    p.copy_(kept if found_inf is None else torch.where(found_inf > 0, p, kept))
        loss = super().step(closure)
        for p, gradient in taken:
            p.grad = gradient
        return loss


def is_matrix(weights: Tensor) -> bool:
    """Whether Muon takes these weights: two axes or more, and `LEAST_SIDE` rows and columns or more."""
    return weights.ndim >= 2 and min(weights.shape[0], math.prod(weights.shape[1:])) >= LEAST_SIDE


def orthogonalised(matrices: Tensor) -> Tensor:
    """U V^T of matrices U S V^T, (B, n, m): each singular value above 1/250 of the fourth root of the sum of their fourth powers becomes
    0.87 to 1.13, and a smaller one less than that.

    Odd polynomials p_k act on the singular values alone: X <- p_k(X) = a X + b X X^T X + c (X X^T)^2 X. Each is (a + b G + c G^2) X with
    G = X X^T on the shorter side, and all these factors commute, so that X itself is multiplied once, at the end: products of square
    matrices are what a step costs.
    """
    least = torch.finfo(matrices.dtype).tiny
    scaled = matrices / matrices.abs().amax((1, 2), keepdim=True).clamp_min(least)  # squares of small numbers would be 0
    wide = scaled if scaled.shape[1] <= scaled.shape[2] else scaled.mT
    gram = wide @ wide.mT
    bound = torch.linalg.matrix_norm(gram, keepdim=True).clamp_min(least)  # the largest singular value's square is below it
    gram = gram / bound
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    total = factor = None
    for a, b, c in polynomials():
        gram = gram if factor is None else factor @ gram @ factor
        factor = a * eye + gram @ (b * eye + c * gram)
        total = factor if total is None else factor @ total
    assert total is not None
    found = (total / bound.sqrt()) @ wide
    return found if matrices.shape[1] <= matrices.shape[2] else found.mT


@functools.cache
def polynomials(steps: int = STEPS, least: float = LEAST) -> tuple[tuple[float, float, float], ...]:
    """Coefficients (a, b, c) of a x + b x^3 + c x^5, one after the other as near to 1 as can be on the interval to which those before it
    have brought [least, 1].

    The best one on [l, u] is wrong by e, 1 - p = e, -e, e, -e at l < q < r < u, where q and r are the zeros of p' (Chebyshev): the four
    equations are linear in a, b, c, e, and solving them and moving q and r in turns converges (Remez). The next interval is
    [1 - e, 1 + e]. Amsel et al. 2025, arXiv:2505.16932.
    """
    found, low, high = [], least, 1.0
    for _ in range(steps):
        q, r = low + (high - low) / 4, low + 3 * (high - low) / 4
        for _ in range(100):
            x = np.array([low, q, r, high])
            a, b, c, error = np.linalg.solve(np.stack([x, x**3, x**5, [1, -1, 1, -1]], 1), np.ones(4))
            roots = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a]).real))
            if max(abs(roots[0] - q), abs(roots[1] - r)) < 1e-14:
                break
            q, r = roots
        found.append((float(a), float(b), float(c)))
        low, high = 1 - error, 1 + error
        if error < 1e-9:
            break
    return tuple(found)


OPTIMIZERS: dict[str, type[torch.optim.AdamW]] = {"adamw": torch.optim.AdamW, "muon": Muon}


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """The optimiser of this name, in PyTorch's fused form. Raises ValueError for a name that is not in `OPTIMIZERS`."""
    return lookup(OPTIMIZERS, "optimizer", name)(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
