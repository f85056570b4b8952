"""Entries of fields that are no data: found in files, filled with what is never looked at, and put back in what is written."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from sde_gen.data.source import Source, holes_in
from sde_gen.data.splits import Part

MASK = "mask"
VALID = "valid"
"""What the condition is called that says which entries of an item are data."""
_PIECE = 1024


def mask_mark(missing: float | str | None) -> float | str | None:
    """What marks the entries that `missing`, "mask" or "mask=VALUE", asks to keep out: "nan", or the number or word VALUE; None for any
    other `missing`. ValueError for "mask=" alone."""
    if not isinstance(missing, str) or missing.partition("=")[0] != MASK:
        return None
    _, equals, mark = missing.partition("=")
    if equals and not mark:
        raise ValueError(f"missing {missing!r}; 'mask', for NaN and masked cells, or 'mask=VALUE' is needed")
    return mark or "nan"


def masked(
    name: str, train: Part, test: Part | None, mark: float, levels: int | None, notes: list[str]
) -> tuple[Part, Part | None, np.ndarray | None]:
    """The parts with their marked entries filled by the mean of their channel, and which entries are data in every item, (C, *spatial)
    Boolean, where the same ones are data in all items.

    Where they are not the same, each item has a condition "valid", (1 or C, *spatial) Boolean. Every item is read once.

    Raises ValueError for vectors, an item without an entry that is data, a channel without one, and a condition "valid" of the user's own.
    """
    if len(train.source.item) < 2:
        raise ValueError(f"data {name!r}: missing='mask' is for fields, signals and images, not for rows of {train.source.item[0]} columns")
    parts = [train] if test is None else [train, test]
    if any(VALID in part.cond for part in parts):
        raise ValueError(f"data {name!r}: a condition is called {VALID!r}, as the masks of the items are; give it another name")
    first: np.ndarray | None = None
    static = one_channel = True
    total = np.zeros(train.source.item[0])
    count = np.zeros_like(total)
    for part in parts:
        for start in range(0, len(part.source), _PIECE):
            values = np.asanyarray(part.source.read(part.source.rows[start : start + _PIECE]))
            there = ~holes_in(values, mark)
            empty = ~there.reshape(len(there), -1).any(1)
            if empty.any():
                raise ValueError(
                    f"data {name!r}: item {start + int(empty.argmax())} has no entry that is data; leave such items out of the file"
                )
            first = there[0] if first is None else first
            static = static and bool((there == first).all())
            one_channel = one_channel and bool((there == there[:, :1]).all())
            if part is train:
                axes = (0, *range(2, there.ndim))
                plain = np.where(there, np.ma.getdata(values), 0).astype(np.float64)
                total, count = total + plain.sum(axes), count + there.sum(axes)
    if not count.all():
        raise ValueError(f"data {name!r}: channel {int((count == 0).argmax())} has no entry that is data in any training item")
    assert first is not None
    if static and bool(first.all()):
        notes.append(f"no entry is masked ({mark:g})")
        return train, test, None
    share = 1 - count.sum() / (len(train.source) * math.prod(train.source.item))
    kind = "the same entries in all items" if static else f"other entries in each item, its condition {VALID!r}"
    notes.append(f"{share:.1%} of the entries are no data ({mark:g}): {kind}; they are left out of loss, statistics and likelihood")
    fill = total / count
    fill = (np.rint(fill) if levels is not None else fill).reshape(-1, *[1] * (len(train.source.item) - 1))
    found = [_filled(part, mark, fill, None if static else one_channel) for part in parts]
    return found[0], found[1] if test is not None else None, first if static else None


def _filled(part: Part, mark: float, fill: np.ndarray, one_channel: bool | None) -> Part:
    """The part with `fill` (C, 1, ..., 1) in its marked entries and, unless `one_channel` is None, the condition "valid"."""
    source = part.source

    def read(rows: np.ndarray) -> np.ndarray:
        values = np.asanyarray(source.read(rows))
        plain = np.ma.getdata(values)
        return np.where(holes_in(values, mark), fill.astype(plain.dtype), plain)

    def read_valid(rows: np.ndarray) -> np.ndarray:
        there = ~holes_in(np.asanyarray(source.read(rows)), mark)
        return there[:, :1] if one_channel else there

    cond = dict(part.cond)
    if one_channel is not None:
        item = (1 if one_channel else source.item[0], *source.item[1:])
        cond[VALID] = Source(source.name, item, read_valid, source.rows)
    return replace(part, source=replace(source, read=read), cond=cond)


def split_masked(data: np.ma.MaskedArray) -> tuple[np.ndarray, np.ndarray]:
    """A masked array's values and which of them are data."""
    return np.ma.getdata(data), ~np.ma.getmaskarray(data)
