"""How much a condition tells a model: mutual information in nats, from denoising errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..guidance.combine import predict_each
from ..models.denoiser import Denoiser, encoded
from ..randomness import check_seed

LEVELS = 12


@dataclass(frozen=True)
class Information:
    """What `information` returns, in nats; `print` shows it in one line.

    value: by the difference of the two branches' errors.
    std_error: of it, over the items.
    orthogonal: by the distance between the two branches, which is the same number where both branches are right.
    orthogonal_error: of it, over the items.
    disagreement_error: the standard error of orthogonal - value, whose terms are of the same draws.
    levels: half log-SNRs, (LEVELS,), the middles of equal intervals.
    by_level, orthogonal_by_level: nats for each unit of half log-SNR there.
    """

    value: float
    std_error: float
    orthogonal: float
    orthogonal_error: float
    disagreement_error: float
    levels: list[float]
    by_level: list[float]
    orthogonal_by_level: list[float]

    def __str__(self) -> str:
        first, second = (f"{v:.3f} +- {e:.3f}" for v, e in ((self.value, self.std_error), (self.orthogonal, self.orthogonal_error)))
        return f"{first} nats by the difference of errors, {second} by the distance of the branches"


@torch.no_grad()
def information(
    model: Denoiser,
    x: Tensor,
    name: str,
    cond: Mapping[str, Any],
    draws: int = 4,
    seed: int = 0,
    batch_size: int = 256,
) -> Information:
    """I(x; c) in nats of data and a condition, as far as `model` knows it, from items x (N, *) in the data's units with their conditions.

        I = integral over lambda of E|eps - eps_null|^2 - E|eps - eps_c|^2 = integral of E|eps_c - eps_null|^2

    lambda is half the log-SNR, from t_max to t_min: what the data say at the noise of t_min. eps_null is the model without the condition
    `name`. The two forms agree where both branches are the exact ones: a null branch that was trained too little makes the first too large,
    and a condition that is ignored makes both 0.

    name: the condition whose information is asked for; the others are given to both branches.
    cond: all conditions of the items, (N, *) each.
    draws: noise levels and noises of each item in each of `LEVELS` equal intervals of lambda.

    Raises ValueError for a condition that is not in `cond`, fewer than two items, or draws below 1.
    Guo, Shamai and Verdu 2005, arXiv:cs/0412108; Kong et al. 2023, arXiv:2302.03792.
    """
    if name not in cond:
        raise ValueError(f"condition {name!r} is not among those given ({', '.join(map(repr, cond)) or 'none'})")
    if len(x) < 2:
        raise ValueError(f"information needs at least two items, got {len(x)}")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws must be a whole number of at least 1, got {draws!r}")
    z = encoded(model, x)
    device = z.device
    given = model.conditions(cond, len(x), device)
    sde = model.sde
    low, high = (float(sde.half_log_snr(t)) for t in (sde.t_max, sde.t_min))
    width = (high - low) / LEVELS
    generator = torch.Generator(device).manual_seed(check_seed(seed))
    terms = torch.zeros(2, LEVELS, len(x), dtype=torch.float64, device=device)
    for level in range(LEVELS):
        for _ in range(draws):
            place = torch.rand(len(x), generator=generator, dtype=torch.float64, device=device)
            t = sde.time_of(low + width * (level + place)).clamp(sde.t_min, sde.t_max)
            noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=device)
            for first in range(0, len(x), batch_size):
                rows = slice(first, first + batch_size)
                terms[:, level, rows] += _errors(model, z[rows], t[rows], noise[rows], name, {k: v[rows] for k, v in given.items()})
    terms /= draws
    totals = width * terms.sum(1)

    def error(values: Tensor) -> float:
        return float(values.std() / math.sqrt(len(values)))

    levels = [low + width * (level + 0.5) for level in range(LEVELS)]
    by_level: Sequence[list[float]] = terms.mean(2).tolist()
    return Information(
        float(totals[0].mean()),
        error(totals[0]),
        float(totals[1].mean()),
        error(totals[1]),
        error(totals[1] - totals[0]),
        levels,
        by_level[0],
        by_level[1],
    )


def _errors(model: Denoiser, z: Tensor, t: Tensor, noise: Tensor, name: str, cond: dict[str, Tensor]) -> Tensor:
    """|eps - eps_null|^2 - |eps - eps_c|^2 and |eps_c - eps_null|^2 of each item, (2, B)."""
    alpha, sigma = (value.to(z).reshape(-1, *[1] * (z.ndim - 1)) for value in model.sde.marginal(t))
    x_t = alpha * z + sigma * noise
    given, null = predict_each(model, x_t, t, [cond, {key: value for key, value in cond.items() if key != name}])
    eps_c, eps_null = (((x_t - alpha * found.denoised) / sigma).double() for found in (given, null))
    eps = noise.double()
    pair = ((eps - eps_null).square() - (eps - eps_c).square(), (eps_c - eps_null).square())
    return torch.stack([term.flatten(1).sum(1) for term in pair])
