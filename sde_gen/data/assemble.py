"""From rows read out of files to a data set: labels as indices, the held-out part, what fits in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sde_gen.data.dataset import Dataset
from sde_gen.data.source import IN_MEMORY, MOST_SAMPLED, Source

HELD_OUT_SHARE, MOST_HELD_OUT = 0.1, 10_000
_SPLIT_SEED = 0
_MOST_CLASSES = 10_000


@dataclass(frozen=True, eq=False)
class Part:
    """Items of one split and the raw label of each: whole numbers or words, not yet 0 .. classes - 1."""

    source: Source
    labels: np.ndarray | None = None


def assemble(
    name: str,
    train: Part,
    test: Part | None = None,
    levels: int | None = None,
    value_range: tuple[float, float] | None = None,
    notes: Sequence[str] = (),
    limit: int | None = None,
    in_memory: int = IN_MEMORY,
) -> Dataset:
    """The data set of a user's own files.

    Without a held-out part of its own, a tenth of the items (at most 10,000) is held out, by one fixed permutation. Training
    items beyond `in_memory` bytes as float32 stay on disk (`Dataset.source`), and `Dataset.train` is an evenly spaced part.

    Args:
        name: of the file, for messages.
        train, test: the items as they were found.
        levels, value_range, notes: as in `Dataset`.
        limit: keep the first `limit` training items.
        in_memory: bytes.
    """
    notes = list(notes)
    labels = _class_indices(name, train.labels, None if test is None else test.labels, notes)
    source, train_labels = train.source, labels[0]
    held: Source | None = None
    if test is not None:
        if test.source.item != source.item:
            raise ValueError(f"data {name!r}: held-out items of shape {test.source.item} beside training items of shape {source.item}")
        held, test_labels = test.source, labels[1]
    else:
        test_labels = None
        count = min(int(len(source) * HELD_OUT_SHARE), MOST_HELD_OUT)
        if count:
            order = np.random.default_rng(_SPLIT_SEED).permutation(len(source))
            out, kept = np.sort(order[:count]), np.sort(order[count:])
            held = source.subset(out)
            if train_labels is not None:
                train_labels, test_labels = train_labels[kept], train_labels[out]
            source = source.subset(kept)
            notes.append(f"held out {count:,} of {len(order):,} items, the same ones in every run")
        else:
            notes.append(f"nothing held out of {len(source)} items")
    if limit is not None:
        source, train_labels = source.subset(slice(limit)), None if train_labels is None else train_labels[:limit]
    if held is not None and held.nbytes > in_memory:
        count = len(held)
        held, test_labels = _sample(held, test_labels, in_memory)
        notes.append(f"{len(held):,} of {count:,} held-out items are used, evenly spaced")
    shown, shown_labels, whole = source, train_labels, source.nbytes <= in_memory
    if not whole:
        shown, shown_labels = _sample(source, train_labels, in_memory)
        notes.append(
            f"{len(source):,} training items are {source.nbytes / 2**30:.1f} GiB and are read batch by batch; "
            f"normalisation, metrics and pictures use {len(shown):,} of them, evenly spaced"
        )
    return Dataset(
        name,
        shown.tensor(),
        None if held is None else held.tensor(),
        _tensor(shown_labels),
        _tensor(test_labels),
        labels[2],
        levels,
        value_range,
        source=None if whole else source,
        source_labels=None if whole else _tensor(train_labels),
        notes=tuple(notes),
    )


def _sample(source: Source, labels: np.ndarray | None, in_memory: int) -> tuple[Source, np.ndarray | None]:
    """As many evenly spaced items as fit in memory, and their labels."""
    index = source.evenly_spaced(max(2, min(MOST_SAMPLED, in_memory // (source.nbytes // len(source)))))
    return source.subset(index), None if labels is None else labels[index]


def _tensor(labels: np.ndarray | None) -> Tensor | None:
    return None if labels is None else torch.from_numpy(labels)


def _class_indices(
    name: str, train: np.ndarray | None, test: np.ndarray | None, notes: list[str]
) -> tuple[np.ndarray | None, np.ndarray | None, int | None]:
    """Labels as 0 .. classes - 1 in the sorted order of their values, and how many classes there are."""
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
            odd = labels[labels != np.round(labels)][0]
            raise ValueError(f"data {name!r}: label {odd:g}; labels must be whole numbers or words")
    names, indices = np.unique(train, return_inverse=True)
    if len(names) > _MOST_CLASSES:
        raise ValueError(f"data {name!r}: {len(names):,} different labels; at most {_MOST_CLASSES:,} classes are allowed")
    held = None
    if test is not None:
        held = np.searchsorted(names, test).clip(max=len(names) - 1)
        unknown = test[names[held] != test]
        if len(unknown):
            raise ValueError(f"data {name!r}: held-out label {unknown[0]} is not among the training labels")
    if names.dtype.kind == "U" or names.tolist() != list(range(len(names))):
        shown = ", ".join(str(label) for label in names[:10].tolist())
        notes.append(f"{len(names)} classes, numbered from 0: {shown}{', ...' if len(names) > 10 else ''}")
    return indices.astype(np.int64), None if held is None else held.astype(np.int64), len(names)
