"""The symmetric contrastive loss of two embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_SCALE = 100.0
"""1/temperature is clamped to this (Radford et al. 2021), beyond which a training is unstable."""


def scale_of(log_scale: Tensor) -> Tensor:
    """1/temperature = exp(log_scale), at most `MOST_SCALE`."""
    return log_scale.clamp(max=math.log(MOST_SCALE)).exp()


def similarities(a: Tensor, b: Tensor, log_scale: Tensor) -> Tensor:
    """scale a_i . b_j of embeddings of unit length (N, D) and (M, D), (N, M), with the scale of `scale_of`."""
    return scale_of(log_scale) * a @ b.T


def info_nce(a: Tensor, b: Tensor, log_scale: Tensor, same: Tensor | None = None) -> Tensor:
    """The symmetric contrastive loss of N pairs, a number:

        -1/2 mean_i [ log softmax_j(s_ij)_i + log softmax_j(s_ji)_i ],   s_ij = exp(log_scale) a_i . b_j

    Its least value over all critics is reached by log p(a, b)/(p(a) p(b)) plus any function of one of the two, and log N minus it bounds
    their mutual information from below.

    a, b: embeddings of unit length, (N, D) each.
    log_scale: log(1/temperature), learned; see `similarities`.
    same: (N,) integers: pairs of one number are not told apart, so that of two pictures with one caption neither is a negative of the
        other's. None: all differ.

    van den Oord et al. 2018, arXiv:1807.03748; Radford et al. 2021, arXiv:2103.00020.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"a and b must be embeddings of one shape (N, D), got {tuple(a.shape)} and {tuple(b.shape)}")
    s = similarities(a, b, log_scale)
    if same is not None:
        if same.shape != a.shape[:1]:
            raise ValueError(f"same must have shape ({len(a)},), one number for each pair, got {tuple(same.shape)}")
        twins = (same[:, None] == same[None, :]) & ~torch.eye(len(a), dtype=torch.bool, device=a.device)
        s = s.masked_fill(twins, -torch.inf)
    target = torch.arange(len(a), device=a.device)
    return 0.5 * (F.cross_entropy(s, target) + F.cross_entropy(s.T, target))


def information_bound(loss: Tensor | float, pairs: int) -> float:
    """What a loss of `info_nce` over so many pairs says of the mutual information of the two, in nats: at least log(pairs) - loss."""
    return math.log(pairs) - float(loss)
