"""What the denoised data are compared with: the item itself, or the mean of the posterior over several items."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..data import Source
from ..models.score import ScoreModel
from ..shapes import expand_as


class PosteriorMeans:
    """E[x_0 | x_t] over a reference of the training items, which stands in the place of x_0 in the squared error.

        target = sum_j w_j z_j,   w_j proportional to exp(-|x_t - alpha z_j|^2 / (2 sigma^2)),   j over the reference

    The reference is all items, or the item that x_t was made of and `count` - 1 others, drawn anew for each batch. Both have the
    minimiser that the item itself has: given the set of the reference's items, x_t was made of each with the probability w_j, so that
    the target is the mean of x_0 given x_t and the set, and its mean over sets is E[x_0 | x_t] (the tower rule). What is left is
    less variance of the gradients, none where the reference is all items. The loss is lower than that of items and not comparable with it.

    Of a network that is told classes, j goes over the items that have the classes that the network is told of this one.

    items: the training items (N, *) in normalised units, 0 where no item has data, so that noise has no say there.
    cond: their conditions by name, whole numbers (N,).
    count: how many items the reference has; N or more are all.

    Raises ValueError for data that are read batch by batch, and for conditions that are no classes: those would leave each item alone.
    Xu et al. 2023, arXiv:2302.00670.
    """

    def __init__(self, items: Tensor | Source, cond: Mapping[str, Tensor | Source], count: int) -> None:
        if isinstance(items, Source):
            raise ValueError(f"reference {count} is for data in memory, and these are read batch by batch: leave reference out")
        for name, value in cond.items():
            if isinstance(value, Source) or value.ndim != 1 or value.dtype != torch.int64:
                kind = "is read batch by batch" if isinstance(value, Source) else f"is {value.dtype} of shape {tuple(value.shape)}"
                raise ValueError(f"reference {count} is for networks that are told classes, and {name!r} {kind}: leave reference out")
        self.items, self.count = items, count
        self.cond: dict[str, Tensor] = {name: value for name, value in cond.items() if isinstance(value, Tensor)}

    def draw(self, generator: torch.Generator) -> Tensor:
        """The numbers of a batch's reference: all items, or `count` - 1 drawn with replacement."""
        if self.count >= len(self.items):
            return torch.arange(len(self.items), device=generator.device)
        return torch.randint(len(self.items), (self.count - 1,), generator=generator, device=generator.device)

    @torch.no_grad()
    def __call__(self, model: ScoreModel, x_0: Tensor, t: Tensor, noise: Tensor, rows: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        """The targets (B, *) of the states alpha x_0 + sigma noise.

        rows: what `draw` gave.
        told: of each condition what this batch's items have, (B,); -1 where the network is not told it.
        """
        alpha, sigma = (expand_as(value, x_0.double()) for value in model.sde.marginal(t.double()))
        alpha, sigma, x_t = (value.flatten(1) for value in (alpha, sigma, alpha * x_0 + sigma * noise))
        z = self.items[rows].flatten(1).double()
        own = x_0.flatten(1).double()
        # float64: near the data the logarithms of the weights are millions, and their differences decide
        logits = (alpha * (x_t @ z.T) - 0.5 * alpha**2 * z.square().sum(1)) / sigma**2
        for name, value in told.items():
            same = (value[:, None] == self.cond[name][rows]) | (value[:, None] < 0)
            logits = logits.masked_fill(~same, -torch.inf)
        if self.count >= len(self.items):
            return (torch.softmax(logits, 1) @ z).to(x_0.dtype).reshape(x_0.shape)
        of_own = (alpha * (x_t * own).sum(1, keepdim=True) - 0.5 * alpha**2 * own.square().sum(1, keepdim=True)) / sigma**2
        weights = torch.softmax(torch.cat((of_own, logits), 1), 1)
        return (weights[:, :1] * own + weights[:, 1:] @ z).to(x_0.dtype).reshape(x_0.shape)
