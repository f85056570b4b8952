"""A classifier that was never trained: classes by the likelihoods of a conditional model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..conditions import Label
from ..models.denoiser import Denoiser, encoded
from .flow import log_likelihood
from .strata import noised, widths

METHODS = ("bound", "flow")
STRATA = 16
"""Equal intervals of the half log-SNR in each of which every draw of "bound" has one level."""


@dataclass(frozen=True)
class Classes:
    """What `classify` returns.

    log_prob: log p(c | x) in nats, (N, classes), float64.
    std_error: of each log p(x | c) up to what all classes share, (N, classes): of its draws, and for "flow" of its solver too.
    label: the likeliest class, (N,).
    """

    log_prob: Tensor
    std_error: Tensor

    @property
    def label(self) -> Tensor:
        return self.log_prob.argmax(1)


@torch.no_grad()
def classify(
    model: Denoiser,
    x: Tensor,
    classes: int,
    prior: Sequence[float] | Tensor | None = None,
    method: str = "bound",
    draws: int = 16,
    name: str = "label",
    seed: int = 0,
    batch_size: int = 64,
    cond: Mapping[str, Any] | None = None,
    **options: Any,
) -> Classes:
    """p(c | x) = p(c) p(x | c)/p(x) of a model that is conditional on a class, for x (N, *) in the data's units.

    classes: the number of classes, 0 .. classes - 1. prior: their shares p(c); None: equal.
    method: "bound" takes log p(x | c), up to what all classes share, from denoising errors with the same noise for every class:
        -integral over lambda of E|eps - eps_c|^2 (Li et al. 2023, arXiv:2303.16203; Kong et al. 2023, arXiv:2302.03792). "flow" takes it
        from `log_likelihood`, with its `options` and one seed for every class.
    draws: of noise in each of `STRATA` intervals of lambda, half the log-SNR, for "bound".
    name: the condition that is the class.
    batch_size: states that the network sees together, for "bound".
    cond: the other conditions of x, (N, *) each, which every class is given; the class itself in it is not looked at.

    Raises ValueError for fewer than two classes, more than the model's, a prior of another length or without a positive share, or an
    unknown method.
    """
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise ValueError(f"classes must be a whole number of at least 2, got {classes!r}")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    shares = torch.ones(classes, dtype=torch.float64) if prior is None else torch.as_tensor(prior, dtype=torch.float64)
    if tuple(shares.shape) != (classes,) or not bool((shares >= 0).all()) or not 0 < float(shares.sum()) < math.inf:
        raise ValueError(f"prior must be {classes} shares, none negative and not all 0, got {shares.tolist()}")
    encoder = model.encoders.get(name)
    if encoder is not None and not (isinstance(encoder, Label) and encoder.classes >= classes):
        kind = f"of {encoder.classes} classes" if isinstance(encoder, Label) else f"of kind {encoder.kind!r}"
        raise ValueError(f"condition {name!r} of this model is {kind}; classify was asked for {classes} classes of it")
    others = {key: value for key, value in (cond or {}).items() if key != name}
    if method == "flow":
        given = [others | {name: torch.full((len(x),), k)} for k in range(classes)]
        found = [log_likelihood(model, x, cond=one, seed=seed, **options) for one in given]
        logits = torch.stack([one.log_prob.double() for one in found], 1)
        error = torch.stack([torch.hypot(one.std_error.double(), one.solver_error.double()) for one in found], 1)
    elif options:
        raise ValueError(f"options {', '.join(options)} are of method 'flow'")
    else:
        logits, error = _bound(model, x, classes, draws, name, seed, batch_size, others)
    log_shares = (shares / shares.sum()).log().to(logits.device)
    return Classes((logits + log_shares).log_softmax(1), error)


def _bound(
    model: Denoiser, x: Tensor, classes: int, draws: int, name: str, seed: int, batch_size: int, cond: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """-integral over lambda of E|eps - eps_c|^2 and its standard error, (N, classes) each."""
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 2:
        raise ValueError(f"draws must be a whole number of at least 2, got {draws!r}")
    z = encoded(model, x)
    others = model.conditions(cond, len(x), z.device)
    _, width = widths(model.sde, STRATA)
    terms = torch.zeros(draws, len(x), classes, dtype=torch.float64, device=z.device)
    rows_at_a_time = max(1, batch_size // classes)
    for level in noised(model.sde, z, STRATA, draws, seed):
        for first in range(0, len(x), rows_at_a_time):
            rows = slice(first, first + rows_at_a_time)
            part = level.rows(rows)
            count = len(part.x)
            given = {key: _each_class(value[rows], classes) for key, value in others.items()}
            given[name] = torch.arange(classes, device=z.device).repeat_interleave(count)
            denoised = model.denoise(_each_class(part.x, classes), part.t.repeat(classes), **given).reshape(classes, *part.x.shape)
            terms[level.draw, rows] -= width * (part.noise.double() - part.eps(denoised)).square().flatten(2).sum(2).T
    # What all classes share says nothing of the error of their differences.
    own = terms - terms.mean(2, keepdim=True)
    return terms.mean(0), own.std(0) / math.sqrt(draws)


def _each_class(value: Tensor, classes: int) -> Tensor:
    """Rows (B, *) so many times over."""
    return value.repeat(classes, *[1] * (value.ndim - 1))
