"""What is held out of files: drawn at random, alike in every class, by whole groups, or the end of a series."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from sde_gen.data import conditions
from sde_gen.data.anomalies import overlap
from sde_gen.data.source import Source

HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 10_000
SPLITS = ("random", "stratified", "tail")
GROUP = "--group"
"""What the condition is called by which loaders hand on the group of each item: no condition of a user's own has this name."""
MOST_OVER = 1.5
"""Groups are held out up to so many times the items that are wanted."""
SPLIT_SEED = 0


@dataclass(frozen=True, eq=False)
class Part:
    """Items of one split, the raw label of each, whole numbers or words that are not yet 0 .. classes - 1, their conditions by name,
    and the group that each belongs to, which no border of a split cuts."""

    source: Source
    labels: np.ndarray | None = None
    cond: Mapping[str, conditions.Values] = field(default_factory=dict)
    groups: np.ndarray | None = None

    def subset(self, index: np.ndarray | slice) -> Part:
        """The items `index` with their labels and conditions."""
        cond = {name: value.subset(index) if isinstance(value, Source) else value[index] for name, value in self.cond.items()}
        labels, groups = (None if value is None else value[index] for value in (self.labels, self.groups))
        return Part(self.source.subset(index), labels, cond, groups)

    @property
    def nbytes(self) -> int:
        """What the items, or the largest of their conditions, would take in memory as float32."""
        return max(self.source.nbytes, *(value.nbytes for value in self.cond.values() if isinstance(value, Source)), 0)


def with_groups(name: str, part: Part) -> Part:
    """The part with the condition `GROUP` as its groups, numbered 0, 1, ... in the order of their words or numbers; the same part where
    there is none. ValueError for an item of no group, and for groups that are no words or numbers."""
    if GROUP not in part.cond:
        return part
    value = part.cond[GROUP]
    found = np.asanyarray(value.read(value.rows)) if isinstance(value, Source) else value
    if found.ndim != 1 or len(found) != len(part.source):
        raise ValueError(
            f"data {name!r}: groups have shape {found.shape} for {len(part.source):,} items; one word or number each is needed"
        )
    hole = np.ma.getmaskarray(found) | (np.isnan(np.ma.getdata(found)) if found.dtype.kind == "f" else False)
    if hole.any():
        raise ValueError(f"data {name!r}: item {int(hole.argmax())} has no group; a word or number for each is needed")
    groups = np.unique(np.ma.getdata(found), return_inverse=True)[1]
    return replace(part, cond={key: value for key, value in part.cond.items() if key != GROUP}, groups=groups)


def check_split(name: str, split: str | None, grouped: bool, test: bool, series: bool) -> None:
    """ValueError for a way to hold items out that is unknown, or that the data do not have."""
    if split not in (None, *SPLITS):
        raise ValueError(f"data {name!r}: split {split!r}; {', '.join(SPLITS[:-1])} or {SPLITS[-1]} is allowed")
    if (split is not None or grouped) and test:
        asked = f"split={split!r}" if split is not None else "group"
        raise ValueError(f"data {name!r} has a held-out part of its own; {asked} is for data without one")
    if grouped and split not in (None, "tail" if series else None):
        raise ValueError(f"data {name!r}: groups are held out whole; split={split!r} beside them is not allowed")


def hold_out(name: str, items: Part, split: str | None, classes: int | None, notes: list[str]) -> tuple[Part, Part | None]:
    """The training and the held-out part, each in a random order that is the same in every run: a tenth of the items, at most 10,000.

    With groups whole groups are held out. `split` None is "random", one fixed permutation; "stratified" draws from each class in its
    share; "tail" takes the last items of the file.
    Raises ValueError for "stratified" without labels, and a single group.
    """
    total = len(items.source)
    count = min(int(total * HELD_OUT_SHARE), MOST_HELD_OUT)
    if split == "stratified" and items.labels is None:
        raise ValueError(f"data {name!r}: split 'stratified' draws from each class, and there are no labels")
    if not count:
        notes.append(f"nothing held out of {total} items")
        return shuffled(items), None
    if items.groups is not None:
        held = groups_drawn(name, items.groups, count)
        rows = np.isin(items.groups, held)
        notes.append(
            f"held out {len(held):,} of {int(items.groups.max()) + 1:,} groups, {int(rows.sum()):,} of {total:,} items, drawn at random"
        )
        return shuffled(items.subset(np.flatnonzero(~rows))), shuffled(items.subset(np.flatnonzero(rows)))
    windows = overlap(items.source)
    moved = "" if windows is None else f"each item is the one before it moved by {windows[0]} of {windows[1]}"
    if split != "tail":
        order = np.random.default_rng(SPLIT_SEED).permutation(total)
        alike = ""
        if split == "stratified" and items.labels is not None:
            order, alike = _by_class(order, items.labels, count), ", from each class in its share"
        notes.append(f"held out {count:,} of {total:,} items, drawn at random{alike}, the same ones in every run")
        if windows is not None:
            notes.append(
                f"windows overlap: {moved}, so the held-out items share values with the training items and say little about new data; "
                "split='tail' (--split tail) holds out the end of the file"
            )
        return items.subset(order[count:]), items.subset(order[:count])
    gap = 0 if windows is None else min(math.ceil(windows[1] / windows[0]) - 1, total - count - 2)
    notes.append(f"held out the last {count:,} of {total:,} items, in the order of the file")
    if gap > 0:
        notes.append(f"windows overlap: {moved}; the {gap:,} items before the held-out ones share values with them and are left out")
    last = items.subset(slice(total - count, None))
    if last.labels is not None and classes is not None and len(found := np.unique(last.labels)) < classes:
        notes.append(f"only {len(found)} of {classes} classes are among the held-out items; split='random' draws from all")
    return shuffled(items.subset(slice(total - count - max(0, gap)))), shuffled(last)


def groups_drawn(name: str, groups: np.ndarray, count: int) -> np.ndarray:
    """The groups that are held out so that about `count` items are: drawn at random, passing over those that would make it more than
    `MOST_OVER` times as many; the smallest one where all would. ValueError where there is one group alone."""
    sizes = np.bincount(groups)
    if len(sizes) < 2:
        raise ValueError(f"data {name!r}: all {len(groups):,} items are of one group; at least two are needed, of which one is held out")
    held, total = [], 0
    for group in np.random.default_rng(SPLIT_SEED).permutation(len(sizes)).tolist():
        if total < count and total + sizes[group] <= MOST_OVER * count:
            held.append(group)
            total += int(sizes[group])
    return np.array(held or [int(sizes.argmin())])


def _by_class(order: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The random order with a share of each class first, `count` items in all, in a random order too."""
    classes, index = np.unique(labels[order], return_inverse=True)
    quotas = np.bincount(index) * count / len(order)
    taken = np.floor(quotas).astype(int)
    taken[np.argsort(taken - quotas, kind="stable")[: count - taken.sum()]] += 1
    place = np.empty(len(order), dtype=int)
    for one in range(len(classes)):
        place[index == one] = np.arange(int((index == one).sum()))
    first = place < taken[index]
    return np.concatenate((order[first], order[~first]))


def shuffled(part: Part) -> Part:
    """The part in a random order that is the same in every run."""
    return part.subset(np.random.default_rng(SPLIT_SEED).permutation(len(part.source)))
