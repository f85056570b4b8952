"""A bound on -log p(x_0) of symbols, in nats and bits per dimension, with the error of what is drawn for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..randomness import check_seed
from .model import TokenDenoiser
from .process import TokenProcess


@dataclass(frozen=True)
class TokenBound:
    """What `token_bound` found.

    nats: an upper bound on -log p(x_0) of each item, (N,), float64.
    draw_error: the standard error of each by the corruptions that were drawn, (N,); NaN where one was drawn, or all numbers of masks were
        summed over with one draw of each, of which no spread is known.
    value, std_error: the mean in bits per entry, and its standard error over items, which holds the draws' own; of one item that of its
        draws.
    nfe: network calls an item.
    """

    nats: Tensor
    draw_error: Tensor
    value: float
    std_error: float
    nfe: int


def token_bound(
    model: TokenDenoiser,
    x: Tensor,
    draws: int | None = 16,
    steps: int | None = None,
    cond: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> TokenBound:
    """An upper bound on -log p(x) of items x (N, *shape), whole numbers 0 .. K - 1: the negative evidence bound (NELBO).

    Of masked diffusion, over how many of the L entries are masked (Sahoo et al. 2024, arXiv:2406.07524; Ou et al. 2024,
    arXiv:2406.03736), which is the integral over t exactly, whatever alpha(t) is:

        sum_{k=1}^{L} 1/k E_{k masked} sum_{masked l} -log p(x^l | x_t)

    Of other processes the integral over s = -log alpha of the score entropy (Campbell et al. 2022, arXiv:2205.14987; Lou et al. 2024,
    arXiv:2310.16834), with u_b = p_t(b)/p_t(x_t) the model's and r_b = q(b | x_0)/q(x_t | x_0):

        sum_l sum_{b != x_t} R[b, x_t] (u_b - r_b log u_b + r_b log r_b - r_b)

    draws: corruptions of each item, one in each of so many equal parts of the noise levels. None: of masks each k once.
    steps: of T steps from nothing kept to all, kept = i/T: the bound of the chain that `sample_tokens` runs with "ancestral".
    cond: conditions by name, (N, *) each.

    Raises ValueError for items of another shape or symbols out of range, TypeError for x that holds no whole numbers.
    """
    check_symbols(model, x)
    seed = check_seed(seed)
    levels = model.entries if draws is None else draws
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 1 or (draws is None and not model.process.reveals):
        raise ValueError(f"draws must be a whole number of at least 1 (None is for masks alone), got {draws!r}")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps must be a whole number of at least 1, or None, got {steps!r}")
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    x, given = x.long(), model.conditions(cond, len(x), place)  # narrower integers would be taken for masks where they are indices
    found, errors = [], []
    for first in range(0, len(x), batch_size):
        part = x[first : first + batch_size].to(place)
        beside = {name: value[first : first + batch_size] for name, value in given.items()}
        generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + first) % (1 << 62))
        values = []
        for level in range(levels):
            u = (level + torch.rand(len(part), generator=generator, dtype=torch.float64)) / levels
            noise = torch.rand(part.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                values.append(_one(model, part, u.to(place), noise.to(place), steps, beside).double().cpu())
        each = torch.stack(values)
        found.append(each.mean(0))
        errors.append(each.std(0) / math.sqrt(levels) if levels > 1 and draws is not None else torch.full((len(part),), torch.nan).double())
    nats = torch.cat(found)
    scale = model.entries * math.log(2)
    spread = float(nats.std()) / math.sqrt(len(nats)) if len(nats) > 1 else float(errors[0][0])
    return TokenBound(nats, torch.cat(errors), float(nats.mean()) / scale, spread / scale, levels * model.cost)


def _one(model: TokenDenoiser, x: Tensor, u: Tensor, noise: Tensor, steps: int | None, cond: Mapping[str, Tensor]) -> Tensor:
    if steps is not None:
        return chain_term(model, x, u, noise, steps, cond)
    return (mask_term if model.process.reveals else rate_term)(model, x, u, noise, cond)


def mask_term(model: TokenDenoiser, x: Tensor, u: Tensor, noise: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """An unbiased estimate (B,) of the bound of masked diffusion, in nats: k = 1 + floor(u L) entries are masked, those of the least
    `noise`."""
    entries = model.entries
    count = (u * entries).long().clamp(max=entries - 1) + 1
    masked = noise.flatten(1).argsort(1).argsort(1) < count[:, None]
    return missed(model, x, masked, cond) * (entries / count)


def missed(model: TokenDenoiser, x: Tensor, masked: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """sum_l -log p(x^l | x_t) over the masked entries (B, L), in nats: (B,)."""
    flat = x.flatten(1)
    state = torch.where(masked, model.process.symbols, flat).reshape(x.shape)
    found = model.log_probabilities(state, 1 - masked.double().mean(1), **cond)
    return torch.where(masked, -found.gather(2, flat[..., None])[..., 0], 0.0).sum(1)


def rate_term(model: TokenDenoiser, x: Tensor, u: Tensor, noise: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """An unbiased estimate (B,) of the score-entropy bound, in nats: alpha = 1 - u^2, for ds = dalpha/alpha.

    Near the data a change is rare and counts for much: with alpha = 1 - u the estimate would have no variance that is finite.
    """
    kept = (1 - u**2).clamp(1e-12, 1 - 1e-12)
    return score_entropy(model, x, model.process.corrupt(x, kept, noise), kept, cond) * 2 * u / kept


def score_entropy(model: TokenDenoiser, x: Tensor, state: Tensor, kept: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """The integrand over s = -log alpha of the bound at one corrupted state: (B,), see `token_bound`."""
    process: TokenProcess = model.process
    at = state.flatten(1)
    ratio = process.ratios(model.log_probabilities(state, kept, **cond).double().exp(), at, kept)
    true = process.transition(kept)[torch.arange(len(x), device=x.device)[:, None], x.flatten(1)]  # q(b | x_0), (B, L, S)
    true = true / true.gather(2, at[..., None])
    terms = ratio - true * ratio.clamp_min(1e-300).log() + torch.special.xlogy(true, true) - true
    into = process.rates.to(x.device).T[at].scatter(2, at[..., None], 0.0)  # R[b, x_t] of all other states
    return (into * terms).sum((1, 2))


def chain_term(model: TokenDenoiser, x: Tensor, u: Tensor, noise: Tensor, steps: int, cond: Mapping[str, Tensor]) -> Tensor:
    """An unbiased estimate (B,) of the bound of the chain of `steps` steps: T times the divergence at one of them."""
    step = (u * steps).long().clamp(max=steps - 1)
    kept, more = step.double() / steps, (step + 1).double() / steps
    return steps * step_divergence(model, x, model.process.corrupt(x, kept, noise), kept, more, cond)


def step_divergence(model: TokenDenoiser, x: Tensor, state: Tensor, kept: Tensor, more: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """KL(q(x_s | x_t, x_0) | p(x_s | x_t)) of a step from `kept` to `more`, in nats: (B,)."""
    process: TokenProcess = model.process
    found = model.log_probabilities(state, kept, **cond).double().exp()
    known = torch.nn.functional.one_hot(x.flatten(1), process.symbols).double()
    law, true = (process.reverse(given, state.flatten(1), kept, more) for given in (found, known))
    return (torch.special.xlogy(true, true) - torch.special.xlogy(true, law)).sum((1, 2))


def check_symbols(model: TokenDenoiser, x: Any) -> None:
    """TypeError or ValueError, one line, where x is no batch of the model's items."""
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(f"symbols must be whole numbers in an integer tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}")
    if tuple(x.shape[1:]) != model.shape or len(x) == 0:
        raise ValueError(f"items must have shape (N, {', '.join(map(str, model.shape))}) with N of at least 1, got {tuple(x.shape)}")
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= model.process.symbols:
        raise ValueError(f"symbols must be 0 .. {model.process.symbols - 1}, got {low} .. {high}")
