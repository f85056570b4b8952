"""Columns of samples beside those of held-out rows, or of the law itself: zeros, gaps, ranges, quantiles, margins and correlations, with
what chance alone does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sde_gen.data.columns.codec import Column

LEVELS = (0.05, 0.5, 0.95)
"""Quantiles that are shown, in a column's own units."""
MOST_PAIRS = 5
CHANCE = 1.36
"""Kolmogorov's statistic that the same law exceeds in 5 % of cases, over the root of n m/(n + m)."""


def compare(samples: Sequence[Column], held: Sequence[Column]) -> dict[str, Any]:
    """What tells samples of a table from held-out rows, ready for JSON.

    "columns": of each, "name"; "missing" and "zeros", the shares of samples and of held-out rows where there are any; "range", smallest
        and largest value of both, and "quantiles", those of `LEVELS` of both (of numbers); "words", the most frequent held-out one with its
        shares of both (of words); "distance", the largest difference of the distribution functions (of words: of a share),
        and "chance", what it exceeds in 5 % of cases where the laws are the same.
    "correlations": "largest" difference of ranks' correlations of two columns, which ("pair"), and "chance", one that a correlation
        of 0 exceeds in 0.3 % of cases (3 standard errors); "rows", the pairs of columns that differ most: two names, and the correlation
        of samples and of held-out rows.
    """
    n, m = len(samples[0].values), len(held[0].values)
    of_samples, of_held = _ranks(samples, held), _ranks(held, held)
    with np.errstate(invalid="ignore", divide="ignore"):  # of a column that does not vary
        of_both = [np.nan_to_num(np.corrcoef(part)) if len(samples) > 1 else np.zeros((1, 1)) for part in (of_samples, of_held)]
    apart = np.triu(np.abs(of_both[0] - of_both[1]), 1)
    order = np.argsort(-apart, axis=None, kind="stable")[: min(MOST_PAIRS, len(samples) * (len(samples) - 1) // 2)]
    pairs = [[int(k) for k in np.unravel_index(place, apart.shape)] for place in order] or [[0, 0]]
    (first, second), names = pairs[0], [column.name for column in samples]
    return {
        "columns": [_row(ours, theirs) for ours, theirs in zip(samples, held, strict=True)],
        "correlations": {
            "largest": float(apart.max()),
            "pair": [names[first], names[second]],
            "chance": 3 * math.sqrt(1 / n + 1 / m),
            "rows": [[names[i], names[j], *(float(part[i, j]) for part in of_both)] for i, j in pairs if i != j],
        },
    }


def _row(ours: Column, theirs: Column) -> dict[str, Any]:
    row: dict[str, Any] = {"name": ours.name}
    if ours.missing.any() or theirs.missing.any():
        row["missing"] = [float(ours.missing.mean()), float(theirs.missing.mean())]
    a, b = ours.values[~ours.missing], theirs.values[~theirs.missing]
    if not len(a) or not len(b):
        return row
    if a.dtype.kind == "U":
        words, counts = np.unique(b, return_counts=True)
        row["words"] = [str(words[counts.argmax()]), *(float((x == words[counts.argmax()]).mean()) for x in (a, b))]
        row["distance"] = max(abs(float((a == word).mean()) - float((b == word).mean())) for word in np.unique(np.concatenate((a, b))))
    else:
        if (b == 0).any() or (a == 0).any():
            row["zeros"] = [float((a == 0).mean()), float((b == 0).mean())]
        row["range"] = [[float(a.min()), float(a.max())], [float(b.min()), float(b.max())]]
        row["quantiles"] = [np.quantile(x, LEVELS, method="inverted_cdf").astype(float).tolist() for x in (a, b)]
        places = np.sort(np.concatenate((a, b)))
        below = [np.searchsorted(np.sort(x), places, side="right") / len(x) for x in (a, b)]
        row["distance"] = float(np.abs(below[0] - below[1]).max())
    return row | {"chance": CHANCE * math.sqrt(1 / len(a) + 1 / len(b))}


def _ranks(columns: Sequence[Column], like: Sequence[Column]) -> np.ndarray:
    """Each column as numbers whose correlations are those of ranks: of words by their frequency in `like`; gaps stand in the middle."""
    rows = []
    for column, other in zip(columns, like, strict=True):
        values = column.values
        if values.dtype.kind == "U":
            words, counts = np.unique(other.values, return_counts=True)
            order = {word: k for k, word in enumerate(words[np.argsort(-counts, kind="stable")].tolist())}
            values = np.array([order.get(word, len(order)) for word in values.tolist()], dtype=np.float64)
        known = ~column.missing
        _, inverse, counts = np.unique(values[known], return_inverse=True, return_counts=True)
        ends = counts.cumsum()
        rank = np.full(len(values), 0.5)
        rank[known] = ((ends - 0.5 * counts) / max(1, int(known.sum())))[inverse]
        rows.append(rank)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.array(rows)
