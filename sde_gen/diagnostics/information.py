"""How much a condition tells a model: mutual information in nats, from denoising errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import Dataset
from ..guidance.combine import predict_each
from ..likelihood.strata import Noised, noised, widths
from ..models.denoiser import Denoiser, encoded
from .finding import SIGNIFICANCE, Finding

LEVELS = 12
NOTHING = 0.01
"""Nats of a condition that says next to nothing."""
DISAGREEMENT = 0.2
"""The two forms disagree where they differ by this share of the larger one, beyond their errors."""
RAISE_DROP = "train longer, or raise training.drop, the share of a batch that is not told the condition"


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
    items: how many it is the mean of.
    """

    value: float
    std_error: float
    orthogonal: float
    orthogonal_error: float
    disagreement_error: float
    levels: list[float]
    by_level: list[float]
    orthogonal_by_level: list[float]
    items: int = 0

    def __str__(self) -> str:
        first, second = (f"{v:.3f} +- {e:.3f}" for v, e in ((self.value, self.std_error), (self.orthogonal, self.orthogonal_error)))
        return f"{first} nats by the difference of errors, {second} by the distance of the branches"


@torch.no_grad()
def information(
    model: Denoiser,
    x: Tensor | Dataset,
    name: str,
    cond: Mapping[str, Any] | None = None,
    draws: int = 4,
    seed: int = 0,
    batch_size: int = 256,
) -> Information:
    """I(x; c) in nats of data and a condition, as far as `model` knows it, from items x (N, *) in the data's units with their conditions.

        I = integral over lambda of E|eps - eps_null|^2 - E|eps - eps_c|^2 = integral of E|eps_c - eps_null|^2

    lambda is half the log-SNR, from t_max to t_min: what the data say at the noise of t_min. eps_null is the model without the condition
    `name`. With the errors d_null and d_c of the two branches, functions of the state, the first form is I + E|d_null|^2 - E|d_c|^2 and
    the second I + E|d_null|^2 + E|d_c|^2 + 2 E[d_c (eps_c - eps_null - d_null)], of exact eps. So the forms disagree where the conditional
    branch is wrong: one that uses a part of the condition makes the second smaller than the first, and one that ignores it makes both 0.
    A wrong null branch makes both too large alike; of classes it shows where they tell more than their entropy (see `findings`).

    x: the items; of a data set those held out with their conditions, or the training items where there are none.
    name: the condition whose information is asked for; the others are given to both branches. Items of which it is not known are left
        out, where it is known of two at least.
    cond: all conditions of the items, (N, *) each; None for a data set, which has them.
    draws: noise levels and noises of each item in each of `LEVELS` equal intervals of lambda.

    Raises ValueError for a condition that is not in `cond`, fewer than two items, or draws below 1.
    Guo, Shamai and Verdu 2005, arXiv:cs/0412108; Kong et al. 2023, arXiv:2302.03792.
    """
    if isinstance(x, Dataset):
        names = list(model.encoders) or [name]
        held_out, of_held_out = x.held_out(names)
        x, cond = (x.train, x.conditions(names)) if held_out is None else (held_out, of_held_out)
    cond = cond or {}
    if name not in cond:
        raise ValueError(f"condition {name!r} is not among those given ({', '.join(map(repr, cond)) or 'none'})")
    if len(x) < 2:
        raise ValueError(f"information needs at least two items, got {len(x)}")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws must be a whole number of at least 1, got {draws!r}")
    z = encoded(model, x)
    given = model.conditions(cond, len(x), z.device)
    known = _known(model, name, given[name])
    if 2 <= int(known.sum()) < len(x):
        z, given = z[known], {key: value[known] for key, value in given.items()}
    levels, width = widths(model.sde, LEVELS)
    terms = torch.zeros(2, LEVELS, len(z), dtype=torch.float64, device=z.device)
    for level in noised(model.sde, z, LEVELS, draws, seed):
        for first in range(0, len(z), batch_size):
            rows = slice(first, first + batch_size)
            terms[:, level.stratum, rows] += _errors(model, level.rows(rows), name, {k: v[rows] for k, v in given.items()})
    terms /= draws
    totals = width * terms.sum(1)

    def error(values: Tensor) -> float:
        return float(values.std() / math.sqrt(len(values)))

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
        len(z),
    )


def _known(model: Denoiser, name: str, value: Tensor) -> Tensor:
    """Of which items the condition (N, *) is known, (N,) Boolean: all, where the model has no null."""
    null = model.null(name, value)
    if null is None:
        return torch.ones(len(value), dtype=torch.bool, device=value.device)
    same = (value == null) | ((value != value) & (null != null))
    return ~same.reshape(len(value), -1).all(1)


def _errors(model: Denoiser, level: Noised, name: str, cond: dict[str, Tensor]) -> Tensor:
    """|eps - eps_null|^2 - |eps - eps_c|^2 and |eps_c - eps_null|^2 of each item, (2, B)."""
    found = predict_each(model, level.x, level.t, [cond, {key: value for key, value in cond.items() if key != name}])
    eps, (eps_c, eps_null) = level.noise.double(), (level.eps(one.denoised) for one in found)
    pair = ((eps - eps_null).square() - (eps - eps_c).square(), (eps_c - eps_null).square())
    return torch.stack([term.flatten(1).sum(1) for term in pair])


def findings(name: str, found: Information, most: float | None = None) -> list[Finding]:
    """What the information of the condition `name` says of the network; most: the nats that the condition can tell, or None.

    A condition that tells next to nothing is named, and so are forms that disagree, and more than the condition can tell.
    """
    numbers = {"information": found.value, "error": found.std_error, "by_branches": found.orthogonal}
    told = f"condition {name!r} tells {found}"
    if found.orthogonal < NOTHING and found.value < NOTHING + SIGNIFICANCE * found.std_error:
        advice = "either it says nothing of the data, or the network does not use it: check that it is right, and train longer"
        return [Finding("condition tells nothing", "warning", told, advice, numbers)]
    lines = []
    if most is not None and found.value - SIGNIFICANCE * found.std_error > most:
        text = f"{told}, and cannot tell more than {most:.3f} nats: the network that is not told it is wrong"
        lines.append(Finding("null branch trained too little", "warning", text, RAISE_DROP, numbers | {"most": most}))
    gap = found.orthogonal - found.value
    if abs(gap) > max(SIGNIFICANCE * found.disagreement_error, DISAGREEMENT * max(found.value, found.orthogonal), NOTHING):
        why = "it is used in part" if gap < 0 else "one of the two branches is wrong"
        text = f"{told}, which is one number where both branches are right: {why}"
        lines.append(Finding("branches disagree", "warning", text, RAISE_DROP, numbers))
    return lines
