"""What is odd about a data set: windows that overlap, marks of missing cells, single cells far from all others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sde_gen.data.source import Source

PAIRS = 16
"""So many pairs of neighbours are looked at for overlaps."""
FILLS = (-999.0, -9999.0, -99999.0, 9999.0, 99999.0, -32768.0, 9.969209968386869e36, 1e20, 1e30, -1e30, 1e34)
"""Values that instruments and file formats put in place of missing ones; 9.97e36 is netCDF's."""
FAR_FILL, FAR_CELL = 10.0, 50.0
"""A value that stands in several cells, and one in a single cell, is worth a remark so many times further away than the others spread."""
_SAMPLE, _MOST_SHOWN, _MOST_LOOKED_AT = 1000, 3, 1000


def overlap(source: Source) -> tuple[int, int] | None:
    """(stride, length) where neighbours in the file are windows of one series: an item is the one before, moved by `stride` of the
    `length` entries of one of its axes, or the one after, in a file that runs backwards. None where they are not.

    `PAIRS` pairs of neighbours, evenly spaced, are compared for equality; three in four must show the same stride.
    """
    if len(source) < 4:
        return None
    count = min(PAIRS, len(source) - 1)
    at = np.arange(count) * (len(source) - 1) // count
    first, second = (source.subset(rows).tensor().numpy() for rows in (at, at + 1))
    forward = _moved(first, second)
    return _moved(second, first) if forward is None else forward


def _moved(first: np.ndarray, second: np.ndarray) -> tuple[int, int] | None:
    """(stride, length) where three in four items of `second` (B, *) are those of `first` moved, as in `overlap`."""
    count = len(first)
    differ = (first != second).reshape(count, -1).any(1)
    for axis in range(1 if first.ndim == 2 else 2, first.ndim):
        length = first.shape[axis]
        a, b = (np.moveaxis(x, axis, -1).reshape(count, -1, length) for x in (first, second))
        votes = (a == b[:, :, :1]).all(1).sum(0)  # where the next item's first entry stands in the present one
        for stride in np.flatnonzero(votes >= 0.75 * count)[:16].tolist():
            shared = a[:, :, stride:]
            if stride == 0 or shared.shape[-1] < 2:
                continue
            same = (shared == b[:, :, : length - stride]).all((1, 2)) & (shared != shared[:, :, :1]).any((1, 2)) & differ
            if same.sum() >= 0.75 * count:
                return stride, length
    return None


def remarks(train: Tensor, columns: Sequence[str] | None = None) -> list[str]:
    """A line for each channel or column, at most three, whose smallest or largest value lies far away from all others and so decides
    the scale: a mark of missing cells where it stands in several cells, else one odd cell.

    Args:
        train: (N, D) or (N, C, *spatial).
        columns: names of the columns; None: they are numbered.
    """
    if len(train) < 8:
        return []
    x = train.flatten(2) if train.ndim > 2 else train.unsqueeze(2)
    sample = x[:: max(1, len(x) // _SAMPLE)].transpose(0, 1).flatten(1)
    quantiles = np.quantile(sample[:, :: max(1, sample.shape[1] // 100_000)].double().numpy(), [0.1, 0.5, 0.9], axis=1)
    spread = quantiles[2] - quantiles[0]
    found: list[str] = []
    looked_at = 0
    for extreme in (x.amin((0, 2)).double().numpy(), x.amax((0, 2)).double().numpy()):
        known = np.isin(extreme.astype(np.float32), np.array(FILLS, np.float32))
        for channel in np.flatnonzero(known | (np.abs(extreme - quantiles[1]) > FAR_FILL * spread)).tolist():
            looked_at += 1
            if looked_at <= _MOST_LOOKED_AT:
                name = f"column {columns[channel]!r}" if columns else f"{'channel' if train.ndim > 2 else 'column'} {channel}"
                line = _remark(x[:, channel].flatten().numpy(), float(extreme[channel]), bool(known[channel]), name)
                found += [] if line is None else [line]
    more = [f"{len(found) - _MOST_SHOWN} more columns hold such values"] if len(found) > _MOST_SHOWN else []
    return found[:_MOST_SHOWN] + more


def _remark(values: np.ndarray, extreme: float, known: bool, name: str) -> str | None:
    others = values[values != extreme]
    if not len(others):
        return None
    low, high = np.quantile(others[:: max(1, len(others) // 100_000)].astype(np.float64), [0.01, 0.99]).tolist()
    count, distance = len(values) - len(others), max(extreme - high, low - extreme)
    times = (0.5 if known else FAR_FILL) if count > 1 else (FAR_FILL if known else FAR_CELL)
    if distance <= times * (high - low) or (high == low and not known):
        return None
    where = f"{name}: {extreme:.7g} stands in {count:,} of {len(values):,} cells, far from the others ({low:.4g} to {high:.4g})"
    if count > 1 or known:
        return f"{where}; if it marks missing cells, missing={extreme:.7g} (--missing {extreme:.7g}) leaves these items out"
    return f"{where}, and decides the scale: correct it if it is an error"
