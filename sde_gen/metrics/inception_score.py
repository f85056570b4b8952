"""Inception Score: how sure a classifier is of each image, against how evenly its classes come up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_gen.metrics.estimate import Estimate, check_count, matrix


@dataclass(frozen=True)
class Score:
    """Inception Scores of the same images.

    value: of all images at once, with its standard error over fresh draws of them.
    unbiased: the same with the bias of so few images taken out, to first order.
    published: the mean over `splits` random parts, as papers print it, with the standard deviation over the parts, which they print too.
    """

    value: Estimate
    unbiased: Estimate
    published: Estimate
    splits: int


def inception_score(logits: Tensor, splits: int = 10, seed: int = 0) -> Score:
    """Inception Score exp(I), with I the mutual information of image and class under the classifier, from its logits.

        I = mean_i sum_c p_ic log(p_ic/q_c),   q_c = mean_i p_ic

    (Salimans et al. 2016, arXiv:1606.03498.) The standard error is that of the delta method: image i moves I by (psi_i - I)/N with
    psi_i = sum_c p_ic log(p_ic/q_c). Of few images q fits too well and I is too small, to first order by
    sum_c var_i(p_ic)/(2 N q_c), which `unbiased` adds; the mean over parts of N/splits images is biased by that many times more,
    so that published scores, of 10 parts of 5,000, stand beside others of as many images alone.

    Args:
        logits: (N, classes), N >= 4.
        splits: number of random parts of `published`, at least 1; no more than N/2.
        seed: of the parts.

    Raises:
        ValueError: fewer than four images, values that are not finite, or too many parts.
    """
    check_count("splits", splits, 1)
    x = matrix("logits", logits, least=4)
    if 2 * splits > len(x):
        raise ValueError(f"splits {splits}; {len(x)} images give at most {len(x) // 2} parts")
    log_p = x.log_softmax(1)
    p = log_p.exp()
    each = _information(p, log_p)
    value, error = float(each.mean()), float(each.std()) / math.sqrt(len(x))
    q = p.mean(0)
    seen = q > 0
    bias = float((p.var(0)[seen] / q[seen]).sum()) / (2 * len(x))
    score, unbiased = math.exp(value), math.exp(value + bias)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = torch.stack([_information(p[rows], log_p[rows]).mean().exp() for rows in order.tensor_split(splits)])
    spread = float(parts.std(correction=0)) if splits > 1 else math.nan
    reason = "" if splits > 1 else "one part has no spread"
    return Score(
        Estimate(score, score * error), Estimate(unbiased, unbiased * error), Estimate(float(parts.mean()), spread, reason), splits
    )


def _information(p: Tensor, log_p: Tensor) -> Tensor:
    """psi_i, (N,)."""
    log_q = p.mean(0).log()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(1)
