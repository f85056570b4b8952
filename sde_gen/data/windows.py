"""Windows of a long series, none of which lies on both sides of a split or of a group's border."""

from __future__ import annotations

import dataclasses

import numpy as np

from sde_gen.data import conditions
from sde_gen.data.source import Source
from sde_gen.data.splits import HELD_OUT_SHARE, Part, groups_drawn


def check_window(name: str, window: int | None, stride: int | None) -> None:
    """ValueError for lengths that no window has, and a stride without one."""
    if stride is not None and window is None:
        raise ValueError(f"data {name!r}: stride={stride!r} is of windows: give their length too (--window N)")
    for key, value in (("window", window), ("stride", stride)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < (2 if key == "window" else 1)):
            raise ValueError(f"data {name!r}: {key} {value!r}; a whole number of at least {2 if key == 'window' else 1} is needed")


def windows_of_series(
    name: str, series: Part, length: int, stride: int | None, split: str | None, notes: list[str]
) -> tuple[Part, Part | None]:
    """Windows (N, C, length) of a series whose rows (T, C) are in the order of time: the training part and the held-out one.

    They are `stride` rows apart (None: `length`, so that none shares a value with another). The series is divided first and cut into
    windows then: no window has rows of both parts. Without groups the end of the series, a tenth of it, is held out; with groups, whose
    rows are series of their own, whole groups are, or with split "tail" the end of each. A condition of numbers becomes one that goes
    along the window, a map (N, K, length).

    Raises ValueError for rows that are no vectors, too short a series, another split, and labels or classes of the rows, which a
    window does not have.
    """
    if len(series.source.item) != 1:
        raise ValueError(
            f"data {name!r}: items of shape {series.source.item}; windows are of a series (T,) or (T, C), or of a table's rows"
        )
    if split not in (None, "tail"):
        raise ValueError(f"data {name!r}: split {split!r} with windows; 'tail', the end of the series, or groups (--group) are allowed")
    if series.labels is not None:
        raise ValueError(f"data {name!r}: the rows of a series have labels, and a window of them has none; leave the labels out")
    word = next((key for key, value in series.cond.items() if not isinstance(value, Source)), None)
    if word is not None:
        raise ValueError(f"data {name!r}: condition {word!r} is of classes, which a window of rows has not one of; numbers are allowed")
    stride = length if stride is None else stride
    total = len(series.source)
    runs = [np.arange(total)] if series.groups is None else [np.flatnonzero(series.groups == k) for k in range(series.groups.max() + 1)]
    train: list[np.ndarray] = []
    test: list[np.ndarray] = []
    if series.groups is not None and split is None:
        held = set(groups_drawn(name, series.groups, int(total * HELD_OUT_SHARE)).tolist())
        for number, rows in enumerate(runs):
            (test if number in held else train).append(rows)
        where = f"{len(held):,} of {len(runs):,} groups, drawn at random, are held out"
    else:
        for rows in runs:
            tail = max(length, round(len(rows) * HELD_OUT_SHARE))
            tail = tail if len(rows) >= tail + length else 0
            train.append(rows[: len(rows) - tail])
            test.append(rows[len(rows) - tail :])
        where = f"the last {HELD_OUT_SHARE:.0%} of {'the series' if series.groups is None else 'each group'} is held out"
    starts, held_out = (_starts(parts, length, stride) for parts in (train, test))
    if not len(starts):
        longest = max((len(rows) for rows in train), default=0)
        raise ValueError(f"data {name!r}: a series of {longest:,} rows has no window of {length}; a shorter window is needed")
    notes.append(
        f"{len(starts):,} training and {len(held_out):,} held-out windows of {length} rows, {stride} apart, of {total:,} rows: "
        + (f"{where}, and no window has rows of both parts" if len(held_out) else "nothing is held out, the series is too short for it")
    )
    return _windows(series, starts, length), _windows(series, held_out, length) if len(held_out) else None


def _starts(runs: list[np.ndarray], length: int, stride: int) -> np.ndarray:
    """The rows of each window, (N, length)."""
    offsets = np.arange(length)
    found = [rows[np.arange(0, len(rows) - length + 1, stride)[:, None] + offsets] for rows in runs if len(rows) >= length]
    return np.concatenate(found) if found else np.empty((0, length), dtype=int)


def _windows(series: Part, rows: np.ndarray, length: int) -> Part:
    cond: dict[str, conditions.Values] = {key: _cut(value, rows, length) for key, value in series.cond.items() if isinstance(value, Source)}
    return Part(_cut(series.source, rows, length), None, cond)


def _cut(source: Source, rows: np.ndarray, length: int) -> Source:
    """A source of rows (K,), or of one number each, as windows (K, length)."""
    width = source.item[0] if source.item else 1

    def read(index: np.ndarray) -> np.ndarray:
        wanted = rows[index]
        values = np.asanyarray(source.read(source.rows[wanted.ravel()]))
        return np.moveaxis(values.reshape(*wanted.shape, width), 2, 1)

    return dataclasses.replace(source, item=(width, length), read=read, rows=np.arange(len(rows)))
