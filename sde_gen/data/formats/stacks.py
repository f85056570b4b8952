"""A folder of files of one item each, as one array that is read file by file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sde_gen.data.errors import first_and_count
from sde_gen.data.formats.base import Contents, FormatError, OnDisk
from sde_gen.data.source import IN_MEMORY

Seen = tuple[tuple[int, ...], np.dtype, dict[str, Any]]
"""Shape, type and header of one file."""


def stacked(
    path: Path,
    names: Sequence[str],
    describe: Callable[[Path], Seen],
    load: Callable[[Path], np.ndarray],
    same: Sequence[str],
    axes: Callable[[tuple[int, ...]], str],
    what: str,
) -> Contents:
    """The files `names` below a folder as items, whose splits and classes the folders say (`folders.split_and_labels`).

    describe: of a file, from its header alone; all must have the shape and type of the first and its `same` entries of the header.
    load: a file's values. axes: a letter for each axis of (N, *shape).
    """
    from sde_gen.data.folders import split_and_labels

    shape, dtype, header = describe(path / names[0])
    odd = []
    for name in names[1:]:
        other = describe(path / name)
        if other[:2] != (shape, dtype) or any(other[2].get(key) != header.get(key) for key in same):
            odd.append(f"{name} ({_words(other, same)})")
    if odd:
        raise FormatError(
            f"{path.name}: {len(odd):,} of {len(names):,} files are not like {names[0]} ({_words((shape, dtype, header), same)}): "
            f"{first_and_count(odd)}; one shape and type is needed"
        )

    def read(name: str) -> np.ndarray:
        values = load(path / name)
        if values.shape != shape:
            raise FormatError(f"{path.name}/{name}: holds {values.shape}, its header says {shape}")
        return values

    def rows_of(files: list[str]) -> OnDisk | np.ndarray:
        if len(names) * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize <= IN_MEMORY:
            return np.stack([read(name) for name in files])
        return OnDisk((len(files), *shape), dtype, lambda first, last: np.stack([read(name) for name in files[first:last]]))

    split = split_and_labels([tuple(Path(name).parts) for name in names])
    arrays: dict[str, Any] = {"train": rows_of([names[row] for row in split.train])}
    if split.labels is not None:
        arrays["labels"] = split.labels
    if split.test is not None:
        arrays["test"] = rows_of([names[row] for row in split.test])
        if split.test_labels is not None:
            arrays["test_labels"] = split.test_labels
    notes = (f"{len(names):,} {what}: {_words((shape, dtype, header), same)}", *split.notes)
    return Contents(arrays, {}, axes((len(names), *shape)), header, notes)


def _words(seen: Seen, same: Sequence[str]) -> str:
    shape, dtype, header = seen
    return ", ".join(["x".join(map(str, shape)), str(dtype), *(f"{key} {header[key]}" for key in same if key in header)])
