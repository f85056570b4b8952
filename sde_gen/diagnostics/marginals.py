"""Samples against data entry by entry: signs, ranges, zeros and quantiles, which a table's reader sees first."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..metrics import Estimate
from .finding import SIGNIFICANCE, Finding

TOLERANCE = 0.1
"""Values that differ by less, in standard deviations of their column, count as equal: samples are never exact."""
QUANTILES = 9
"""So many inner quantiles of the data are compared, spread evenly."""
IMPOSSIBLE, MISPLACED = 0.05, 0.1
"""Shares of the samples that count: of values that data never have, and of values that lie on the wrong side of a quantile."""
MOST_VALUES = 1 << 20
"""Quantiles are those of at most about so many values of each column."""
NAMED = 3
"""So many columns are named."""


def check_marginals(samples: Tensor, data: Tensor) -> list[Finding]:
    """Find columns of a table, or channels of anything else, whose values in the samples are clearly not those of the data.

    Each comparison is of two shares of values, p_samples - p_data. It counts beyond `IMPOSSIBLE` (the sign, the range) or `MISPLACED`
    (zeros, quantiles) by z standard errors, z^2 = SIGNIFICANCE^2 + 2 log(comparisons), where the error is that of equal distributions,
    over items. What lies within `TOLERANCE` of a border counts in the samples' favour.

    samples: (N, *shape); data: (M, *shape), both in the data's own units.
    """
    a, b = _columns(samples), _columns(data)
    a, b = (x.to(torch.promote_types(a.dtype, b.dtype)) for x in (a, b))
    mine = b[: max(32, MOST_VALUES // b.shape[2])]
    pooled = mine.transpose(0, 1).flatten(1)
    low, high = b.amin((0, 2)), b.amax((0, 2))
    reach = TOLERANCE * b.transpose(0, 1).flatten(1).std(1)
    levels = torch.arange(1, QUANTILES + 1, dtype=a.dtype) / (QUANTILES + 1)
    points = torch.stack([torch.quantile(row, levels) for row in pooled])  # (columns, quantiles)

    def below(x: Tensor, border: Tensor) -> Tensor:
        return (x < border[:, None]).double().mean(2)

    def above(x: Tensor, border: Tensor) -> Tensor:
        return (x > border[:, None]).double().mean(2)

    zero, never = torch.zeros_like(low), torch.zeros(len(b), b.shape[1], dtype=torch.float64)
    negative, positive = below(a, -reach) * (low >= 0), above(a, reach) * (high <= 0)
    rows = [
        ("below 0", negative, never, IMPOSSIBLE),
        ("above 0", positive, never, IMPOSSIBLE),
        ("outside the data's range", below(a, low - reach) - negative + above(a, high + reach) - positive, never, IMPOSSIBLE),
        ("not 0", (a.abs() > reach[:, None]).double().mean(2), (b != zero[:, None]).double().mean(2), MISPLACED),
    ]
    for k, level in enumerate(levels.tolist()):
        border = points[:, k]
        rows.append((f"below the data's {level:.0%} quantile", below(a, border - reach), below(b, border), MISPLACED))
        rows.append((f"above the data's {level:.0%} quantile", above(a, border + reach), above(b, border), MISPLACED))
    size = math.sqrt(SIGNIFICANCE**2 + 2 * math.log(len(rows) * a.shape[1]))
    noise = 1 / len(a) + 1 / len(b)
    worst: dict[int, tuple[float, str, Estimate, float]] = {}
    for text, ours, theirs, least in rows:
        gap = ours.mean(0) - theirs.mean(0)
        error = torch.sqrt(torch.cat((ours, theirs)).var(0) * noise) + noise
        sure = (gap - size * error) / least
        for j in torch.nonzero((gap > least) & (sure > 0))[:, 0].tolist():
            if j not in worst or float(sure[j]) > worst[j][0]:  # of equal ones the first says most
                worst[j] = float(sure[j]), text, Estimate(float(ours[:, j].mean()), float(error[j])), float(theirs[:, j].mean())
    if not worst:
        return []
    what = "column" if data.ndim == 2 else "channel"
    order = sorted(worst, key=lambda j: -worst[j][0])
    shown = []
    for j in order[:NAMED]:
        _, text, ours_there, theirs_there = worst[j]
        share = f"{ours_there.value:.1%} +- {ours_there.std_error:.1%}"
        shown.append(f"{what} {j + 1}: {share} of the samples' values are {text}, {theirs_there:.1%} of the data's")
    evidence = f"in {len(worst)} of {a.shape[1]} {what}s; {'; '.join(shown)}"
    advice = "train longer or a larger network; columns of few values or with many equal ones need the most training"
    _, _, share_there, of_data = worst[order[0]]
    numbers = {"columns": len(worst), "samples": share_there.value, "samples_error": share_there.std_error, "data": of_data}
    return [Finding("values unlike the data's", "warning", evidence, advice, numbers)]


def _columns(x: Tensor) -> Tensor:
    """(N, columns, values of each item in a column) on the CPU, of a table (N, D) or of channels (N, C, *)."""
    flat = x.detach().cpu()
    return flat.double()[:, :, None] if flat.ndim == 2 else (flat if flat.dtype == torch.float64 else flat.float()).flatten(2)
