"""Retrieval: how often the right one of many is the nearest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recall:
    """R@k, the share of queries whose right answer is among the k nearest candidates, with its standard error, over `queries` queries."""

    value: float
    std_error: float
    queries: int
    k: int

    def __str__(self) -> str:
        return f"{self.value:.3f} +- {self.std_error:.3f}"


def ranks(similarity: Tensor, right: Tensor) -> Tensor:
    """The place of each query's best right answer among all candidates, 1 for the nearest; of ties the mean place.

    similarity: (Q, M), larger is nearer. right: (Q, M) Boolean, at least one True in each row.
    """
    if right.shape != similarity.shape or right.dtype != torch.bool or not bool(right.any(1).all()):
        wanted = f"Boolean of shape {tuple(similarity.shape)} with a right answer in each row"
        raise ValueError(f"right must be {wanted}, got {right.dtype} of {tuple(right.shape)}")
    if bool(torch.isnan(similarity).any()):  # no comparison with NaN is true, which would be the first place
        rows = similarity.isnan().any(1).nonzero().flatten().tolist()
        raise ValueError(f"similarity is NaN for {len(rows)} queries: {', '.join(map(str, rows[:8]))}")
    best = similarity.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    wrong = similarity.masked_fill(right, -torch.inf)
    return 1 + (wrong > best).sum(1) + 0.5 * (wrong == best).sum(1)


def recall(similarity: Tensor, right: Tensor, k: int = 1, groups: Tensor | None = None) -> Recall:
    """R@k of queries (Q) over candidates (M).

    similarity, right: as in `ranks`.
    groups: (Q,) integers: queries of one group succeed or fail together (two drawings of one thing), and the error is that of the groups'
        means. None: each stands alone.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not k >= 1:
        raise ValueError(f"k must be a whole number of at least 1, got {k!r}")
    hits = (ranks(similarity, right) <= k).double()
    index = torch.arange(len(hits)) if groups is None else torch.unique(groups.cpu(), return_inverse=True)[1]
    count = int(index.max()) + 1
    excess = torch.zeros(count, dtype=torch.float64).index_add_(0, index, (hits - hits.mean()).cpu())
    error = math.sqrt(float(excess.square().sum()) * count / max(1, count - 1)) / len(hits)
    return Recall(float(hits.mean()), error, len(hits), k)
