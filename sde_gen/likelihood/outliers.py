"""How likely single items are, and how unlike held-out data that makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.denoiser import Denoiser
from .bits_per_dim import bits_per_dim
from .flow import log_likelihood_together


@dataclass(frozen=True)
class ItemScores:
    """What `item_scores` returns, one entry for each item, float64.

    value: (N,) log-density in nats of continuous data, bits per dimension of integer data; NaN where the integration did not converge.
    std_error: (N,) of the trace's estimate and, with several draws, of the dequantisation, in the same unit; NaN where one probe or
        draw does not tell it.
    solver_error: (N,) what the integrator's steps may have changed, in the same unit.
    unit: "nats" or "bits/dim".
    """

    value: Tensor
    std_error: Tensor
    solver_error: Tensor
    unit: str

    @property
    def likeness(self) -> Tensor:
        """(N,) what is larger the more likely an item is: the value, or minus the bits."""
        return self.value if self.unit == "nats" else -self.value


def item_scores(
    model: Denoiser,
    x: Tensor,
    levels: int | None = None,
    cond: Mapping[str, Tensor] | None = None,
    dequantization: str = "truncated_normal",
    draws: int = 1,
    index_offset: int = 0,
    **options: Any,
) -> ItemScores:
    """The log-likelihood of each item x (N, *) in the data's units, with what is known of its errors.

    levels: of data that are whole numbers 0 .. levels - 1: bits per dimension (`bits_per_dim`), with `dequantization` and `draws`.
        None: the log-density in nats (`log_likelihood`).
    index_offset: item i's random numbers are a function of (seed, index_offset + i).
    options: of `log_likelihood`. Under torchrun all processes call this and each gets all results.
    """
    if levels is None:
        found = log_likelihood_together(model, x, cond=cond, index_offset=index_offset, **options)
        parts = (found.log_prob, found.std_error, found.solver_error)
        value, error, solver = (torch.where(found.converged, part.detach(), torch.nan).double().cpu() for part in parts)
        return ItemScores(value, error, solver, "nats")
    bits = bits_per_dim(model, x, levels, dequantization, draws, together=True, cond=cond, index_offset=index_offset, **options)
    return ItemScores(bits.each, bits.each_error, bits.each_solver, "bits/dim")


def p_values(likeness: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """Conformal p-values (N,) of items among held-out data, one-sided and two-sided; NaN for an item without a value.

        p_low = (1 + #{held out <= item})/(n + 1),   p_two_sided = min(1, 2 min(p_low, (1 + #{held out >= item})/(n + 1)))

    Of items that are exchangeable with the held-out ones P(p <= u) <= u for every u, whatever the model: no assumption is made of it.
    A small p_low says that an item is less likely than the data are; a small p_two_sided also finds those that are far too likely, as
    flat images can be (Nalisnick et al. 2019, arXiv:1810.09136).

    likeness: (N,), larger for what is more likely. held_out: (n,) the same of held-out data; NaN is left out.
    Raises ValueError where no held-out item has a value. Vovk et al. 2005; Bates et al. 2023, arXiv:2104.08279.
    """
    known = held_out[~torch.isnan(held_out)].double().sort().values.contiguous()
    if not len(known):
        raise ValueError("p-values need held-out items with a value, got none")
    items = likeness.double().contiguous()
    below = torch.searchsorted(known, items, right=True).double()
    above = len(known) - torch.searchsorted(known, items, right=False).double()
    low, high = ((1 + count) / (len(known) + 1) for count in (below, above))
    two_sided = (2 * torch.minimum(low, high)).clamp_max(1.0)
    unknown = torch.isnan(items)
    return torch.where(unknown, torch.nan, low), torch.where(unknown, torch.nan, two_sided)
