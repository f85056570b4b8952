"""Rows of a table of kinds with gaps: as features of which some are not known, and filled from draws of these, in the file's own form."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.cell_text import separator_of
from sde_gen.data.columns import frames
from sde_gen.data.columns.codec import Codec, Column, cells_of
from sde_gen.data.columns.gaps import Gaps
from sde_gen.data.columns.kinds import Angle
from sde_gen.data.columns.known import impossible, read_cells, read_known

SEED = 3


@dataclass(frozen=True, eq=False)
class GappyRows:
    """What a file of rows with gaps holds.

    path: of the file; name: its last part. rows: its columns, of which a missing value is one that is not known.
    y: features (N, D), float64, NaN where they are not known. labels: of each row the run's label as the file says it, None for one
    without; or None where the file has none.
    """

    path: Path
    codec: Codec
    rows: list[Column]
    y: Tensor
    labels: tuple[str | None, ...] | None = None

    @property
    def name(self) -> str:
        return self.path.name


def read_gappy(path: Path, codec: Codec, missing: float | str | None = None, label: str | None = None) -> GappyRows:
    """Rows of a text table or parquet file whose gaps are to be filled; `missing`: what marks one beside the usual words; `label`: the
    name of the column of labels.

    Raises ValueError, one line, for what `read_known` refuses and for values that the table cannot hold.
    """
    rows = read_known(path, codec, missing)
    _, _, seen = impossible(codec, [replace(column, values=_placed(codec, k, column)) for k, column in enumerate(rows)])
    if seen:
        shown = ", ".join(f"{column} {value!r}" for column, value in list(seen.items())[:4])
        raise ValueError(f"{path.name}: holds what the run's table cannot: {shown}")
    empty = np.all([column.missing for column in rows], axis=0)
    if empty.any():
        raise ValueError(f"{path.name}: item {int(empty.argmax())} has nothing but gaps; at least one value of each is needed")
    labels = None
    if label is not None:
        header, lines = read_cells(path)
        labels = tuple(cells[header.index(label)] or None for _, cells in lines) if label in header else None
    return GappyRows(path, codec, rows, torch.from_numpy(features_of(codec, rows)), labels)


def features_of(codec: Codec, rows: Sequence[Column], seed: int = SEED) -> np.ndarray:
    """Features (N, D) of rows, NaN where a value is missing, and thereby not known.

    A known word, count or zero is a draw from its cell, which says all of it and nothing else, so that given these features the others
    have the law that they have given the values. Of a column whose gaps are values that can be sampled it is known that the value is there.
    """
    whole = [Column(c.name, _placed(codec, k, c), np.zeros(len(c.values), dtype=bool)) for k, c in enumerate(rows)]
    features = codec.encode(whole, seed)
    for column, kind, place in zip(rows, codec.kinds, codec.places, strict=True):
        features[column.missing, place.start + isinstance(kind, Gaps) : place.stop] = np.nan
    return features


def fill(codec: Codec, rows: Sequence[Column], x: np.ndarray, weights: np.ndarray) -> tuple[list[Column], list[np.ndarray], np.ndarray]:
    """Rows with their gaps filled from draws of their features.

    rows: (N,) columns. x: (N, K, D), K draws of the features of each row. weights: (N, K) of each draw, which sum to 1.

    Of draws that have a gap where one is to be filled (a missing word is a word like others) the rest is taken, if any is left.

    Returns:
        The columns, with the weighted median of what was not known, or, of words and angles, the most probable value.
        How uncertain each is, (N,) of each column: the standard deviation of numbers (of angles along the circle), of words the probability
            of other ones; 0 for what was known.
        The weights (N, K) of the draws that were taken.
    """
    count, draws, width = x.shape
    drawn = codec.decode(x.reshape(count * draws, width))
    unknown = np.stack([column.missing for column in rows], 1)
    fails = np.zeros((count, draws), dtype=bool)
    for k, column in enumerate(drawn):
        fails |= column.missing.reshape(count, draws) & unknown[:, k, None]
    taken = np.where(fails, 0.0, weights)
    none = taken.sum(1) == 0
    taken[none] = weights[none]
    taken /= taken.sum(1, keepdims=True)
    found, spread = [], []
    for k, (column, kind) in enumerate(zip(rows, codec.kinds, strict=True)):
        inner = kind.inner if isinstance(kind, Gaps) else kind
        values, missing = drawn[k].values.reshape(count, draws), drawn[k].missing.reshape(count, draws)
        filled, uncertain = values[:, 0].copy(), np.zeros(count)
        if not isinstance(inner, Angle) and values.dtype.kind != "U" and column.values.dtype.kind == "f":
            filled[~column.missing] = column.values[~column.missing].astype(filled.dtype)
        for row in np.flatnonzero(column.missing):
            filled[row], uncertain[row] = _best(values[row], taken[row], inner)
        known = ~column.missing
        filled = np.where(known, column.values if filled.dtype.kind == "U" else np.nan_to_num(column.values), filled).astype(filled.dtype)
        gone = column.missing & none & np.array([missing[row].all() for row in range(count)])
        found.append(Column(column.name, filled, gone, codec.dtypes[k], codec.gaps[k]))
        spread.append(uncertain)
    return found, spread, taken


def _placed(codec: Codec, k: int, column: Column) -> np.ndarray:
    """A column's values with one that its kind can hold in the place of missing ones."""
    kind = codec.kinds[k]
    inner = kind.inner if isinstance(kind, Gaps) else kind
    some = inner.decode(np.full((1, inner.width), 0.5))
    if column.values.dtype.kind != "f":
        return np.where(column.missing, str(some[0]), column.values)
    return np.where(column.missing, float(some[0]), column.values)


def _best(values: np.ndarray, weights: np.ndarray, kind: Any) -> tuple[Any, float]:
    """The value that stands for draws (K,) with these weights, and how uncertain it is."""
    if kind.name == "category":
        different, place = np.unique(values, return_inverse=True)
        share = np.bincount(place, weights)
        return different[share.argmax()], float(1 - share.max())
    if isinstance(kind, Angle):
        turn = np.exp(2j * np.pi * (values - kind.low) / kind.period)
        mean = (weights * turn).sum()
        nearest = np.abs(np.angle(turn / mean if abs(mean) > 0 else turn))
        return values[nearest.argmin()], float(np.sqrt(max(0.0, -2 * np.log(max(abs(mean), 1e-300)))) * kind.period / (2 * np.pi))
    order = np.argsort(values, kind="stable")
    median = values[order[np.searchsorted(weights[order].cumsum(), 0.5).clip(max=len(order) - 1)]]
    mean = (weights * values).sum()
    return median, float(np.sqrt((weights * (values - mean) ** 2).sum()))


def write_filled(given: GappyRows, place: Path, columns: Sequence[Column], only_unknown: bool = True) -> Path:
    """The file of `given` again, beside `place` with the file's ending, with these columns' values in its gaps (with `only_unknown`), or in
    all cells of the run's columns; what else is in the file stays as it stands. Gives the path."""
    place.parent.mkdir(parents=True, exist_ok=True)
    file = place.with_name(place.name + given.path.suffix)
    changed = [column.missing if only_unknown else np.ones(len(column.values), dtype=bool) for column in given.rows]
    if given.path.suffix.lower() in frames.ENDINGS:
        frame = frames.read_parquet(given.path)
        pandas = frames.needed(given.name, "pandas", "pyarrow")
        for column, there in zip(columns, changed, strict=True):
            own = frame[column.name]
            new = frames.series(pandas, column).astype(object)
            merged = own.astype(object).where(~there, new.to_numpy())
            frame[column.name] = merged.astype(own.dtype) if only_unknown and own.dtype.kind in "fO" else merged.infer_objects()
        frame.to_parquet(file, engine="pyarrow", index=False)
        return file
    header, below = read_cells(given.path)
    named = set(given.codec.names) <= set(header)
    lines = [cells for _, cells in below] if named else [header, *(cells for _, cells in below)]
    texts = [cells_of(column) for column in columns]
    with file.open("w", encoding="utf-8", newline="") as text:
        writer = csv.writer(text, delimiter=separator_of(given.path), lineterminator="\n")
        if named:
            writer.writerow(header)
        places = [header.index(column.name) if named else k for k, column in enumerate(columns)]
        for row, cells in enumerate(lines):
            line = list(cells)
            for k, at in enumerate(places):
                if changed[k][row]:
                    line[at] = texts[k][row]
            writer.writerow(line)
    return file
