"""Class labels: what is allowed, and how the labels of files are numbered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_CLASSES = 10_000


def check_labels(labels: Tensor | np.ndarray | Sequence[int], count: int, classes: int | None = None, what: str = "labels") -> Tensor:
    """Class labels as an int64 tensor (count,), on the device that they were on.

    Args:
        labels: one whole number for each item, of any integer type: a tensor, a numpy array or a list.
        count: how many items there are.
        classes: labels are in 0 .. classes - 1; None: from 0 on, without an upper end.
        what: what the messages call them.

    Raises:
        TypeError: labels that are no integers (floating-point numbers, words, a mask that hides some).
        ValueError: not one label for each item, negative labels or labels of `classes` and more.
    """
    if np.ma.is_masked(labels):
        masked = int(np.ma.getmaskarray(np.ma.asarray(labels)).sum())
        raise TypeError(f"{what} have {masked} masked entries; one whole number for each item is needed")
    if isinstance(labels, Tensor):
        found = labels.detach()
        whole = not (found.is_floating_point() or found.is_complex())
    else:
        try:
            array = np.asarray(labels)
        except ValueError as error:  # lists of different lengths
            raise ValueError(f"{what} are lists of different lengths; one whole number for each item is needed") from error
        whole = array.dtype.kind in "bui"
        found = torch.from_numpy(array.astype(np.int64)) if whole else torch.empty(0)
    if not whole:
        kind = labels.dtype if isinstance(labels, Tensor) else array.dtype
        raise TypeError(f"{what} are of type {kind}; whole numbers of an integer type are needed")
    if found.ndim != 1 or len(found) != count:
        raise ValueError(f"{what} have shape {tuple(found.shape)} for {count:,} items; ({count},) is needed, one label for each item")
    found = found.long()
    if count and (int(found.min()) < 0 or (classes is not None and int(found.max()) >= classes)):
        allowed = "0 and more" if classes is None else f"0..{classes - 1}"
        raise ValueError(f"{what} span {int(found.min())}..{int(found.max())}; {allowed} is allowed")
    return found


def class_indices(
    name: str, train: np.ndarray | None, test: np.ndarray | None, notes: list[str], lacks_labels: bool = False
) -> tuple[np.ndarray | None, np.ndarray | None, int | None]:
    """Labels of files (whole numbers or words) as 0 .. classes - 1 in the sorted order of their values, and how many classes there
    are. What has to be said of them is added to `notes`. `lacks_labels`: there is a held-out part, and it has none.

    Raises:
        ValueError: labels that are neither whole numbers nor words, too many classes, or held-out labels that training lacks.
    """
    if train is None:
        if test is not None:
            notes.append("the held-out part's labels are not used: the training part has none")
        return None, None, None
    for labels in (train, test):
        if labels is None:
            continue
        if labels.ndim != 1 or labels.dtype.kind not in "biufU":
            raise ValueError(
                f"data {name!r}: labels are {labels.dtype} of shape {labels.shape}; one whole number or word an item is needed"
            )
        if labels.dtype.kind == "f" and not bool((labels == np.round(labels)).all()):
            odd: Any = labels[labels != np.round(labels)][0]
            raise ValueError(f"data {name!r}: label {odd:g}; labels must be whole numbers or words")
    if lacks_labels:
        notes.append("the held-out part has no labels: a network that is trained on labels is measured on training items alone")
    names, indices = np.unique(train, return_inverse=True)
    if len(names) > MOST_CLASSES:
        raise ValueError(f"data {name!r}: {len(names):,} different labels; at most {MOST_CLASSES:,} classes are allowed")
    held = None
    if test is not None:
        held = np.searchsorted(names, test).clip(max=len(names) - 1)
        unknown = test[names[held] != test]
        if len(unknown):
            raise ValueError(f"data {name!r}: held-out label {unknown[0]} is not among the training labels")
    shown = ", ".join(str(label) for label in names[:10].tolist())
    if names.dtype.kind == "U" or names.tolist() != list(range(len(names))):
        notes.append(f"{len(names)} classes, numbered from 0: {shown}{', ...' if len(names) > 10 else ''}")
    return indices.astype(np.int64), None if held is None else held.astype(np.int64), len(names)


def missing_labels(labels: np.ndarray, missing: float) -> np.ndarray:
    """(N,) Boolean: which labels of files (whole numbers or words) are this number, or a word that writes it; NaN: not a number."""

    def marks(label: Any) -> bool:
        try:
            value = float(label)
        except (TypeError, ValueError):
            return False
        return value == missing or (math.isnan(value) and math.isnan(missing))

    if labels.ndim != 1:  # `class_indices` says so
        return np.zeros(len(labels), bool)
    different, index = np.unique(labels, return_inverse=True)
    return np.array([marks(label) for label in different.tolist()], bool)[index]


def remarks_of_classes(labels: np.ndarray | None, classes: int | None, names: Sequence[int | str] | None = None) -> list[str]:
    """A line where some of the classes have no training item, or all items are of one class.

    Args:
        labels: class of each training item, (N,) in 0 .. classes - 1, or None.
        classes: how many classes there are, or None.
        names: the files' own labels; None: the numbers.
    """
    if labels is None or classes is None:
        return []
    counts = np.bincount(labels, minlength=classes)
    absent = np.flatnonzero(counts == 0).tolist()
    shown = ", ".join(str(k if names is None else names[k]) for k in absent[:10]) + ", ..." * (len(absent) > 10)
    lines = []
    if absent:
        lines.append(f"{len(absent)} of {classes} classes have no training item, so that a network learns nothing of them: {shown}")
    if classes - len(absent) == 1:
        lines.append("all training items are of one class: there are no features of a classifier to compare samples with")
    return lines


def rows_in_turn(total: int, count: int, seed: int, labels: Tensor | None = None, alike: bool = False) -> Tensor:
    """int64 (count,): numbers below `total`, drawn with replacement.

    labels: (total,) the classes of what is drawn. The rows then stand in turn, one of each class that is left, so that the first few
        show every class; samples that are measured must not be cut at their head.
    alike: every class has as many rows, for pictures; else each has its share.
    """
    generator = torch.Generator().manual_seed(seed)
    if labels is None:
        return torch.randint(total, (count,), generator=generator)
    labels = labels.cpu()
    if alike:
        mixed = torch.randperm(total, generator=generator)
        mixed = mixed[labels[mixed].argsort(stable=True)]
        sizes = labels.bincount()
        firsts, sizes = (sizes.cumsum(0) - sizes)[sizes > 0], sizes[sizes > 0]
        turn, kind = torch.arange(count) // len(sizes), torch.arange(count) % len(sizes)
        return mixed[firsts[kind] + turn % sizes[kind]]
    rows = torch.randint(total, (count,), generator=generator)
    order = labels[rows].argsort(stable=True)
    rows, drawn = rows[order], labels[rows[order]]
    sizes = drawn.bincount()
    turn = torch.arange(count) - (sizes.cumsum(0) - sizes)[drawn]
    return rows[turn.argsort(stable=True)]
