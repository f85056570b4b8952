"""From rows read out of files to a data set: labels as indices, the held-out part, what fits in memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sde_gen.data import conditions
from sde_gen.data.anomalies import remarks
from sde_gen.data.columns.codec import VALID, Codec
from sde_gen.data.dataset import Dataset
from sde_gen.data.labels import class_indices, missing_labels, remarks_of_classes
from sde_gen.data.masks import mask_mark, masked
from sde_gen.data.precision import needs_float64
from sde_gen.data.source import IN_MEMORY, MOST_SAMPLED, Source
from sde_gen.data.splits import SPLITS, Part, check_split, hold_out, shuffled, with_groups
from sde_gen.data.windows import check_window, windows_of_series

__all__ = ["SPLITS", "Part", "assemble", "missing_value"]


def assemble(
    name: str,
    train: Part,
    test: Part | None = None,
    levels: int | None = None,
    value_range: tuple[float, float] | None = None,
    notes: Sequence[str] = (),
    limit: int | None = None,
    in_memory: int = IN_MEMORY,
    split: str | None = None,
    missing: float | str | None = None,
    columns: Sequence[str] | None = None,
    label_column: tuple[str | None, int] | None = None,
    cond_columns: Mapping[str, tuple[str | None, int]] | None = None,
    window: int | None = None,
    stride: int | None = None,
    whole: bool = False,
    codec: Codec | None = None,
) -> Dataset:
    """The data set of a user's own files.

    Without a held-out part of its own, a tenth of the items (at most 10,000) is held out, as `split` says (`splits.hold_out`), or whole
    groups where the items have them. Both parts come in a random order that is the same in every run, whatever
    the file's order, so that the first items of a part are a fair draw. Values stay float64 where float32 would hurt them
    (`precision.needs_float64`). Training items beyond `in_memory` bytes as float32, of themselves or of a condition, stay on disk
    (`Dataset.source`, `Dataset.source_cond`), and `Dataset.train` is a part of them drawn at random. Conditions go with their items.

    Args:
        name: of the file, for messages.
        train, test: the items as they were found.
        levels, value_range, notes: as in `Dataset`.
        limit: keep this many training items, drawn at random; those of a smaller limit are among those of a larger one.
        in_memory: bytes.
        split: "random", "stratified" or "tail"; None: "random", or whole groups, or the parts that the files have.
        missing: the number that marks a missing cell, or "nan". Items with such a cell or label, or a masked cell, are left out and
            counted in the notes; of a condition such a value is not known. "mask", for NaN and masked cells, or "mask=VALUE": of fields,
            such entries are kept out of everything instead (`masks.masked`). None: a masked or NaN cell is an error, but for conditions.
        columns, label_column, cond_columns, codec: of a table, as in `Dataset`. Features of a codec stay
            float64, as their cells have sharp edges.
        window, stride: the items are the rows of a series, and the data set is of windows of so many (`windows.windows_of_series`).
        whole: nothing is held out, and the items stay in the file's order.

    Raises:
        ValueError: parts of different shapes, labels or conditions that do not fit, a split or missing value that is not allowed, or no
            item left.
    """
    check_window(name, window, stride)
    train = with_groups(name, train)
    check_split(name, split, train.groups is not None, test is not None, window is not None)
    notes = list(notes)
    if window is not None:
        if test is not None:
            raise ValueError(f"data {name!r} has a held-out part of its own; windows are of one series, whose end is held out")
        train, test = windows_of_series(name, train, window, stride, split, notes)
        columns, label_column, cond_columns = None, None, None  # a window is no row of the table
    of_mask = mask_mark(missing)
    mark = math.nan if missing is None else missing_value(missing if of_mask is None else of_mask)
    train = _with_conditions(name, train, mark, "" if test is None else "training ")
    test = None if test is None else _with_conditions(name, test, mark, "held-out ")
    valid = None
    if of_mask is not None:
        train, test, valid = masked(name, train, test, mark, levels, notes)
    elif missing is not None:
        train = _complete(name, train, mark, "training" if test is not None else "", notes)
        test = None if test is None else _complete(name, test, mark, "held-out", notes)
    train_labels, test_labels, classes = class_indices(
        name, train.labels, None if test is None else test.labels, notes, test is not None and test.labels is None
    )
    label_names = None if train.labels is None else tuple(_plain(label) for label in np.unique(train.labels).tolist())
    train = dataclasses.replace(train, labels=train_labels)
    test = None if test is None else dataclasses.replace(test, labels=test_labels)
    train, test, cond_names = _numbered(name, train, test, notes)
    if whole:
        pass
    elif test is None:
        train, test = (shuffled(train), None) if window is not None else hold_out(name, train, split, classes, notes)
    elif test.source.item != train.source.item:
        raise ValueError(f"data {name!r}: held-out items of shape {test.source.item} beside training items of shape {train.source.item}")
    else:
        train, test = shuffled(train), shuffled(test)
    if limit is not None and limit < len(train.source):
        notes.append(f"{limit:,} of {len(train.source):,} training items are used, drawn at random, the same ones in every run")
        train = train.subset(slice(limit))
    notes += remarks_of_classes(train.labels, classes, label_names)
    if test is not None and test.nbytes > in_memory:
        count = len(test.source)
        test = test.subset(slice(_fitting(test, in_memory)))
        notes.append(f"{len(test.source):,} of {count:,} held-out items are used, drawn at random")
    shown, fits = train, train.nbytes <= in_memory
    if not fits:
        shown = train.subset(slice(_fitting(train, in_memory)))
        notes.append(
            f"{len(train.source):,} training items are {train.nbytes / 2**30:.1f} GiB and are read batch by batch; "
            f"normalisation, pictures and metrics but nearest neighbours use {len(shown.source):,} of them, drawn at random"
        )
    values = _values(shown.source) if codec is None else dataclasses.replace(shown.source, dtype=torch.float64).tensor()
    if values.dtype == torch.float64 and codec is None:
        notes.append("kept in float64 until normalised: float32 would round these values too much")
    if levels is None and codec is None:
        notes += remarks(values, columns)
    as_read = dataclasses.replace(train.source, dtype=values.dtype)
    cond = {key: _condition(key, value, codec) for key, value in shown.cond.items()}
    for key, value in cond.items():
        if codec is not None and key == VALID:
            continue  # of which the columns' lines speak
        notes += conditions.remarks(key, value, len(values.shape) - 2, cond_names.get(key))
    return Dataset(
        name,
        values,
        None if test is None else dataclasses.replace(test.source, dtype=values.dtype).tensor(),
        _tensor(shown.labels),
        None if test is None else _tensor(test.labels),
        classes,
        levels,
        value_range,
        source=None if fits else as_read,
        source_labels=None if fits else _tensor(train.labels),
        notes=tuple(notes),
        columns=None if columns is None else tuple(columns),
        label_column=label_column,
        label_names=label_names,
        cond=cond,
        test_cond={} if test is None else {key: _condition(key, value, codec) for key, value in test.cond.items()},
        source_cond={} if fits else {key: _as_read(value, cond[key]) for key, value in train.cond.items()},
        valid=None if valid is None else torch.from_numpy(valid),
        missing=None if of_mask is None else mark,
        cond_names=cond_names,
        cond_columns=dict(cond_columns or {}),
        codec=codec,
    )


def _with_conditions(name: str, part: Part, mark: float, which: str) -> Part:
    """The part with its conditions checked, which know what stands for a value that is not known."""
    conditions.check_names(name, list(part.cond))
    conditions.check_rows(name, which.strip() or "data", part.cond, len(part.source))
    for key, value in part.cond.items():
        conditions.check_grid(name, key, value, part.source.item)
    return dataclasses.replace(part, cond=conditions.with_mark(part.cond, mark))


def _numbered(name: str, train: Part, test: Part | None, notes: list[str]) -> tuple[Part, Part | None, dict[str, tuple[int | str, ...]]]:
    """The parts with categories as classes 0, 1, ..., and the categories' words."""
    held = {} if test is None else {key: value for key, value in test.cond.items() if key in train.cond}
    of_train, of_test, names = dict(train.cond), dict(held), {}
    for key, value in train.cond.items():
        other = held.get(key)
        if test is not None and other is None:
            notes.append(f"the held-out part has no condition {key!r}: a network that is told it is measured on training items alone")
        if isinstance(value, Source) != isinstance(held.get(key, value), Source):
            raise ValueError(f"data {name!r}: condition {key!r} is of classes in one part and of numbers in the other; one kind is needed")
        if isinstance(value, Source):
            if isinstance(other, Source) and other.item != value.item:
                raise ValueError(
                    f"data {name!r}: condition {key!r} has entries of shape {other.item} held out and {value.item} in training"
                )
            continue
        of_train[key], numbered, names[key] = conditions.numbered(name, key, value, other)  # type: ignore[arg-type]
        if numbered is not None:
            of_test[key] = numbered
    return dataclasses.replace(train, cond=of_train), None if test is None else dataclasses.replace(test, cond=of_test), names


def _condition(name: str, value: conditions.Values, codec: Codec | None) -> Tensor:
    """All entries of a condition; of a table of kinds, which features are there is Boolean."""
    found = conditions.tensor(value)
    return found.bool() if codec is not None and name == VALID else found


def _as_read(value: conditions.Values, shown: Tensor) -> Tensor | Source:
    """A condition of all items, numbers still unread and in the type of those that are shown."""
    if not isinstance(value, Source):
        return conditions.tensor(value)
    return dataclasses.replace(value, dtype=shown.dtype if shown.is_floating_point() else torch.float32)


def _plain(label: float | str) -> int | str:
    return label if isinstance(label, str) else int(label)


def missing_value(missing: float | str) -> float:
    """The number that marks a missing cell; "nan" is one. ValueError for anything else."""
    try:
        if isinstance(missing, bool):
            raise ValueError
        return float(missing)
    except (TypeError, ValueError) as error:
        raise ValueError(f"missing {missing!r}; a number, or 'nan', is needed") from error


def _complete(name: str, part: Part, missing: float, which: str, notes: list[str]) -> Part:
    """The items without a missing cell or label."""
    kept = part.source.complete(missing)
    if part.labels is not None:
        kept &= ~missing_labels(part.labels, missing)
    count, left = len(kept), int(kept.sum())
    which = f"{which} " if which else ""
    if not left:
        raise ValueError(f"data {name!r}: every one of its {count:,} {which}items has a cell that is missing ({missing:g}); none is left")
    if left == count:
        notes.append(f"no {which}item has a missing cell ({missing:g})")
        return part
    notes.append(f"{count - left:,} of {count:,} {which}items are left out: they have missing cells ({missing:g})")
    return part.subset(np.flatnonzero(kept))


def _fitting(part: Part, in_memory: int) -> int:
    """How many items fit in memory."""
    return max(2, min(MOST_SAMPLED, in_memory // (part.nbytes // len(part.source))))


def _values(source: Source) -> Tensor:
    """All items in the smallest type that holds them well."""
    if not source.wide:
        return source.tensor()
    values = dataclasses.replace(source, dtype=torch.float64).tensor()
    return values if needs_float64(values) else values.float()


def _tensor(labels: np.ndarray | None) -> Tensor | None:
    return None if labels is None else torch.from_numpy(labels)
