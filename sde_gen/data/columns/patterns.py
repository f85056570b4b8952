"""Patterns of a table's gaps where these are a condition: those of its rows with their shares, kept with a run and given to its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sde_gen.data.columns.codec import Codec, Column

MOST = 1000
"""Of rows with more different patterns those of so many drawn ones are kept."""
KEY = "patterns"
"""Of a codec's configuration beside a run: {pattern: rows}, a pattern being 1 for a value that is there and 0 for a gap, in the order of
the columns whose gaps are a condition."""
_SEED = 0


def patterns_of(codec: Codec, valid: Tensor | None) -> dict[str, dict[str, int]]:
    """The patterns of rows whose features are there as `valid` (N, D) says, {KEY: {pattern: rows}}; {} where no gap is a condition."""
    if valid is None or not any(codec.masked):
        return {}
    rows = valid.cpu().numpy().astype(bool)[:, [place.start for place, masked in zip(codec.places, codec.masked, strict=True) if masked]]
    different, counts = np.unique(rows, axis=0, return_counts=True)
    if len(different) > MOST:
        drawn = np.random.default_rng(_SEED).permutation(len(rows))[:MOST]
        different, counts = np.unique(rows[drawn], axis=0, return_counts=True)
    return {KEY: {"".join("01"[int(there)] for there in row): int(count) for row, count in zip(different, counts, strict=True)}}


def valid_of_patterns(codec: Codec, config: Mapping[str, Any], chosen: np.ndarray) -> np.ndarray:
    """Which features of rows are there, Boolean (n, D), by the numbers (n,) of their patterns in the codec's configuration."""
    rows = np.array([[mark == "1" for mark in pattern] for pattern in config[KEY]])
    return of_columns(codec, [rows[chosen, k] for k in range(rows.shape[1])])


def of_columns(codec: Codec, known: Sequence[np.ndarray]) -> np.ndarray:
    """Which features of rows are there, Boolean (n, D), by which values (n,) are `known` in each column whose gaps are a condition."""
    found = np.ones((len(known[0]), codec.width), dtype=bool)
    for place, there in zip((place for place, masked in zip(codec.places, codec.masked, strict=True) if masked), known, strict=True):
        found[:, place] = there[:, None]
    return found


def of_rows(codec: Codec, columns: Sequence[Column]) -> np.ndarray:
    """Which features are there, Boolean (N, D), as the gaps of a table's columns have it.

    Raises ValueError for a gap in a column that had none in the table that the codec was learned from.
    """
    for column, masked in zip(columns, codec.masked, strict=True):
        if column.missing.any() and not masked:
            told = ", ".join(name for name, one in zip(codec.names, codec.masked, strict=True) if one)
            raise ValueError(f"column {column.name!r} has gaps; those of {told} alone are a condition")
    return of_columns(codec, [~column.missing for column, masked in zip(columns, codec.masked, strict=True) if masked])
