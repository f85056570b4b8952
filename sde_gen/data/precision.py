"""Where float32 is enough for data in their own units, and where they have to stay float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

EXACT = 1 << 24
"""Whole numbers up to here are exact in float32."""
MOST_OFFSET = float(1 << 13)
"""A channel whose mean lies more than this many standard deviations from zero needs float64: float32's spacing there, 2^-23 of the
mean, is more than a thousandth of a standard deviation."""
_CHUNK = 1 << 22  # values turned to float64 at a time, so that the statistics need no float64 copy of the data


@dataclass(frozen=True)
class Statistics:
    """Of each channel of (N, C, *spatial) or each feature of (N, D), float64 (C,) on the CPU: smallest and largest value, mean and
    (population) standard deviation."""

    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor


def statistics(data: Tensor, valid: Tensor | None = None) -> Statistics:
    """The statistics of data (N, D) or (N, C, *spatial), in float64 and a piece at a time. NaN and Inf go into the mean.

    valid: of the entries that are data, Boolean, broadcast to (N, *) with N or 1 first; None: all. ValueError for a channel without one.
    """
    if valid is not None:
        return _of_valid(data, valid)
    low = torch.full((data.shape[1],), math.inf, dtype=torch.float64)
    high, total, square = -low, torch.zeros_like(low), torch.zeros_like(low)
    for part in _parts(data):
        low = torch.minimum(low, part.amin((0, 2)))
        high = torch.maximum(high, part.amax((0, 2)))
        total += part.sum((0, 2))
    count = data.numel() / data.shape[1]
    mean = total / count
    for part in _parts(data):
        square += (part - mean[:, None]).square().sum((0, 2))
    return Statistics(low, high, mean, (square / count).sqrt())


def _of_valid(data: Tensor, valid: Tensor) -> Statistics:
    low = torch.full((data.shape[1],), math.inf, dtype=torch.float64)
    high, total, square, count = -low, torch.zeros_like(low), torch.zeros_like(low), torch.zeros_like(low)
    whole = valid.expand(data.shape)
    for part, there in zip(_parts(data), _parts(whole), strict=True):
        known = there.bool()
        low = torch.minimum(low, torch.where(known, part, math.inf).amin((0, 2)))
        high = torch.maximum(high, torch.where(known, part, -math.inf).amax((0, 2)))
        total += torch.where(known, part, 0.0).sum((0, 2))
        count += there.sum((0, 2))
    if bool((count == 0).any()):
        raise ValueError(f"channel {int((count == 0).int().argmax())} has no valid entry in any item; a mask must leave some of each")
    mean = total / count
    for part, there in zip(_parts(data), _parts(whole), strict=True):
        square += torch.where(there.bool(), part - mean[:, None], 0.0).square().sum((0, 2))
    return Statistics(low, high, mean, (square / count).sqrt())


def filled(data: Tensor, valid: Tensor) -> Tensor:
    """Data (N, C, *spatial) with values of the same channel, evenly spaced among its valid ones in their order of size, where entries are
    not valid: quantiles over all entries are those of the valid ones."""
    data, there = data.clone(), valid.expand(data.shape)
    for channel in range(data.shape[1]):
        known = there[:, channel]
        values = data[:, channel][known].sort().values
        missing = int((~known).sum())
        if missing and len(values):
            data[:, channel][~known] = values[(torch.arange(missing) * len(values) // missing).to(values.device)]
    return data


def needs_float64(data: Tensor, found: Statistics | None = None) -> bool:
    """Whether float64 data (N, D) or (N, C, *spatial) would be hurt by a rounding to float32.

    They would where a channel varies little about a large mean (see `MOST_OFFSET`), and where all values of a channel are whole
    numbers and some are beyond `EXACT`, so that their neighbours would be lost. Data of any other type never need it.
    """
    if data.dtype != torch.float64 or data.numel() == 0:
        return False
    found = statistics(data) if found is None else found
    if bool(((found.mean.abs() > MOST_OFFSET * found.std) & (found.high > found.low)).any()):
        return True
    large = torch.nonzero(torch.maximum(found.low.abs(), found.high.abs()) > EXACT).flatten().to(data.device)
    return any(bool((part == part.round()).all()) for part in (data[:, channel] for channel in large))


def as_items(data: Tensor | np.ndarray | Any, name: str = "data") -> Tensor:
    """Data of a caller's, a tensor or anything that numpy takes for an array, as a floating-point tensor of the same shape.

    float32, but float64 where float64 or integer data need it (`needs_float64`). A tensor stays on its device.

    Args:
        data: real numbers: Boolean, integer or floating point.
        name: what messages call them.

    Raises:
        TypeError: complex numbers, whose imaginary part would be lost, or values that are no numbers.
        ValueError: masked cells, which hold no values.
    """
    x = _numbers(data, name)
    return x if x.ndim > 1 and needs_float64(x) else x.float()


def as_floats(data: Tensor | np.ndarray, name: str = "data") -> Tensor:
    """Data of a caller's, a tensor or an array, as a floating-point tensor of all digits that it came with.

    A floating-point tensor is handed back untouched, so that gradients go through it; other values become float32, or float64 where
    their type has more digits (float64 and integers of 32 bits and more). It raises what `as_items` raises, and TypeError for what is
    neither a tensor nor an array.
    """
    if not isinstance(data, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a tensor or an array, got {type(data).__name__}")
    return data if isinstance(data, Tensor) and data.is_floating_point() else _numbers(data, name)


def _numbers(data: Tensor | np.ndarray | Any, name: str) -> Tensor:
    """Real numbers as float32, or as the float64 that their type needs; a tensor's floating-point type stays."""
    if np.ma.is_masked(data):
        masked = np.ma.getmaskarray(np.ma.asarray(data))
        raise ValueError(f"{name}: {int(masked.sum()):,} of {masked.size:,} cells are masked; leave out or fill the items that hold them")
    if isinstance(data, Tensor):
        x = data.detach()
        if x.is_complex():
            raise _complex(name, str(x.dtype))
    else:
        array = np.asarray(data)
        if array.dtype.kind == "c":
            raise _complex(name, str(array.dtype))
        if array.dtype.kind not in "buif":
            raise TypeError(f"{name}: values of type {array.dtype}; numbers (Boolean, integer or floating) are needed")
        x = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64 if wide(array.dtype) else np.float32)).reshape(array.shape)
    if x.dtype in (torch.int32, torch.int64, torch.uint32, torch.uint64):
        return x.double()
    return x if x.is_floating_point() else x.float()


def wide(dtype: np.dtype) -> bool:
    """Whether a type holds values that float32 rounds: float64 and beyond, and integers of 32 bits and more."""
    return dtype.kind in "uif" and dtype.itemsize >= (8 if dtype.kind == "f" else 4)


def _complex(name: str, dtype: str) -> TypeError:
    return TypeError(f"{name}: {dtype} values; real numbers are needed, for example real and imaginary part as two channels")


def _parts(data: Tensor) -> Iterator[Tensor]:
    """The data as float64 (n, C, spatial) on the CPU, a piece at a time."""
    step = max(1, _CHUNK // max(1, math.prod(data.shape[1:])))
    for start in range(0, len(data), step):
        yield data[start : start + step].detach().cpu().double().flatten(1).unflatten(1, (data.shape[1], -1))
