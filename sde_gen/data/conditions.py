"""Conditions of files: what is known of each item beside its values, as numbers with gaps or as classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.axes import Layout
from sde_gen.data.labels import MOST_CLASSES, missing_labels
from sde_gen.data.precision import needs_float64
from sde_gen.data.source import Source, array_source

Values = Source | np.ndarray
"""Of a condition: a `Source` of numbers, (N, *), or whole numbers or words (N,), masked where one is not known, which are classes."""


def asked(name: str, conditions: Sequence[str]) -> list[tuple[str | None, str]]:
    """Of each of "COLUMN" and "NEW NAME=COLUMN" the new name, or None, and the column. `name`: of the file, for messages."""
    if isinstance(conditions, str):
        raise ValueError(f"{name}: conditions are several names, ({conditions!r},), got one")
    found = []
    for text in conditions:
        new, equals, column = text.partition("=") if "=" in text else ("", "", text)
        if not column or (equals and not new):
            raise ValueError(f"{name}: condition {text!r}; COLUMN or NAME=COLUMN is needed")
        found.append((new if equals else None, column))
    return found


def check_names(name: str, names: Sequence[str]) -> None:
    """ValueError for a name that two conditions would have, and for that of the labels."""
    for known in names:
        if names.count(known) > 1:
            raise ValueError(f"{name}: two conditions called {known!r}; NAME=COLUMN (--condition NAME=COLUMN) gives one another name")
        if known == "label":
            raise ValueError(
                f"{name}: 'label' is what the labels are called (--labels, of a table with --label-column); NAME=label (--condition "
                "NAME=label) gives a condition of this column another name"
            )


def of_cells(name: str, known: np.ndarray, cells: Sequence[str], numbers: Sequence[float | None]) -> tuple[Values, str | None]:
    """A condition of a table's column, and the first word in it where it is a category though most of its cells are numbers.

    known: (N,) Boolean, which cells say something. cells: as they stand. numbers: what each is as a number, or None.
    """
    words = [cell for cell, there, number in zip(cells, known, numbers, strict=True) if there and number is None]
    if not words:
        values = [number if there and number is not None else math.nan for there, number in zip(known, numbers, strict=True)]
        return array_source(np.array(values, dtype=np.float64), name), None
    mixed = 2 * len(words) < int(known.sum())
    return np.ma.array(np.array(cells, dtype=str), mask=~known), words[0] if mixed else None


def of_array(name: str, array: np.ndarray, layout: Layout, source: Source | None) -> Values:
    """A condition (N, *) of an .npz file: (N,) of whole numbers, Booleans or words are classes, everything else numbers.

    layout: of the data. source: `array` read as the data are, where it has as many axes as they, else None.
    """
    if array.ndim == 1 and array.dtype.kind in "buiU":
        return np.array(array)
    if source is not None and array.ndim > 2:
        return source
    grid = layout.item[1:]
    if len(grid) > 1 and array.shape[1:] == grid:  # a map without an axis for its one channel
        return Source(name, (1, *grid), lambda rows: array[rows][:, None], np.arange(len(array)))
    return array_source(array, name)


def with_mark(cond: Mapping[str, Values], mark: float) -> dict[str, Values]:
    """The conditions with the number `mark` for what is not known."""
    return {
        name: dataclasses.replace(value, gap=mark)
        if isinstance(value, Source)
        else np.ma.array(np.ma.getdata(value), mask=np.ma.getmaskarray(value) | missing_labels(np.ma.getdata(value), mark))
        for name, value in cond.items()
    }


def check_rows(file: str, part: str, cond: Mapping[str, Values], count: int) -> None:
    """ValueError unless each condition has one entry for each of `count` items."""
    for name, value in cond.items():
        if len(value) != count:
            shape = tuple(value.shape)
            raise ValueError(f"data {file!r}: condition {name!r} has shape {shape} for {count:,} {part} items; ({count}, ...) is needed")


def check_grid(file: str, name: str, value: Values, item: tuple[int, ...]) -> None:
    """ValueError for a map on a finer grid than the data's, of which it would lose a part unseen."""
    if isinstance(value, Source) and len(value.item) == len(item) > 1 and any(n > m for n, m in zip(value.item[1:], item[1:], strict=True)):
        grid, of_data = ("x".join(map(str, sizes)) for sizes in (value.item[1:], item[1:]))
        raise ValueError(
            f"data {file!r}: condition {name!r} is a map of {grid}, finer than the data's {of_data}; the same or a coarser grid is needed"
        )


def numbered(
    file: str, name: str, train: np.ndarray, test: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, tuple[int | str, ...]]:
    """A category as int64 (N,): its classes 0, 1, ... in the sorted order of their words or numbers, and their number where it is not
    known; the same of held-out items; and the words.

    Raises ValueError for too many classes, none, or a held-out one that training lacks.
    """
    words = np.unique(np.ma.compressed(train))
    if not len(words):
        raise ValueError(f"data {file!r}: condition {name!r} is known of no training item")
    if len(words) > MOST_CLASSES:
        what = "whole numbers are classes, save them as floats where they are numbers" if words.dtype.kind != "U" else "words are classes"
        raise ValueError(f"data {file!r}: condition {name!r} has {len(words):,} classes; at most {MOST_CLASSES:,} are allowed ({what})")

    def index(values: np.ndarray, part: str) -> np.ndarray:
        plain, known = np.ma.getdata(values), ~np.ma.getmaskarray(values)
        place = np.searchsorted(words, plain).clip(max=len(words) - 1)
        strange = plain[known & (words[place] != plain)]
        if len(strange):
            raise ValueError(f"data {file!r}: condition {name!r} of a {part} item is {strange[0]}, which no training item has")
        return np.where(known, place, len(words)).astype(np.int64)

    found = [word if isinstance(word, str) else int(word) for word in words.tolist()]
    return index(train, "training"), None if test is None else index(test, "held-out"), tuple(found)


def tensor(value: Values) -> Tensor:
    """All entries: classes as int64, Booleans over space as they are, numbers as float32, or float64 where the file has more digits that
    count (a map's rarely do)."""
    if not isinstance(value, Source):
        return torch.from_numpy(value)
    if np.asanyarray(value.read(value.rows[:1])).dtype.kind == "b" and len(value.item) > 1:
        return value.tensor().bool()
    if not value.wide:
        return value.tensor()
    found = dataclasses.replace(value, dtype=torch.float64).tensor()
    if len(value.item) < 2:
        return found
    filled = torch.where(found.isnan(), found.flatten(2).nanmean((0, 2)).reshape(-1, *[1] * (found.ndim - 2)), found)
    return found if needs_float64(filled) else found.float()


def remarks(name: str, value: Tensor, rank: int, names: Sequence[int | str] | None) -> list[str]:
    """What is said of a condition (N, *) of `rank` axes of space: how it is read, how much of it is not known, and that it says nothing.

    Raises ValueError where nothing of it is known.
    """
    if names is not None:
        shown = ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
        what, unknown = f"{len(names)} classes ({shown})", value == len(names)
    else:
        item, unknown = tuple(value.shape[1:]), value.isnan().flatten(1).any(1) if value.ndim > 1 else value.isnan()
        over_space = value.ndim == 2 + rank and rank > 0
        if over_space:
            kind = "a mask" if value.dtype == torch.bool else "a map"
            what = f"{kind} of {item[0]} channel{'s' * (item[0] != 1)} on {'x'.join(map(str, item[1:]))}"
        elif len(item) == 2:
            what = f"a sequence of {item[0]} places, {item[1]} number{'s' * (item[1] != 1)} each"
        else:
            what = "a number" if not item else f"{math.prod(item)} numbers"
    whole = bool(unknown.all()) if names is not None or value.ndim == 1 else bool(value.isnan().all())
    if whole:
        raise ValueError(f"condition {name!r} is known of no training item")
    count = int(unknown.sum())
    gaps = f"; not known of {count:,} of {len(value):,} training items" if count else ""
    lines = [f"condition {name!r}: {what}{gaps}"]
    first = value[int((~unknown).int().argmax())]
    known = value[~unknown]
    if len(known) and bool((known == first).all()):
        lines.append(f"condition {name!r} is the same for all training items of which it is known: a network learns nothing from it")
    return lines
