"""Samples as .npy and .npz files."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from sde_gen.data.formats import Items

_ROWS = 65_536  # of a condition at a time
_BYTES = 1 << 26


def write_array(path: Path, items: Items) -> None:
    """The values alone."""
    with path.open("wb") as file:
        _write(file, (items.count, *items.shape), items.dtype, (values for values, _ in items.parts()))


def write_arrays(path: Path, items: Items, facts: Mapping[str, float | str]) -> None:
    """An .npz file: x, label where there are such, the conditions beside the samples, and the single values `facts`; not compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, shape: tuple[int, ...], dtype: np.dtype, parts: Iterable[np.ndarray]) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write(cast(BinaryIO, member), shape, dtype, parts)

        dtypes: set[np.dtype] = set()

        def values_of_parts() -> Iterator[np.ndarray]:
            for values, labels in items.parts():
                dtypes.update(set() if labels is None else {labels.dtype})
                yield values

        write("x", (items.count, *items.shape), items.dtype, values_of_parts())
        if items.labelled:
            write("label", (items.count,), max(dtypes), (labels for _, labels in items.parts() if labels is not None))
        for name, column in items.beside.items():
            like = column(0, 1)
            step = max(1, min(_ROWS, _BYTES // max(1, like.nbytes)))
            rows = (column(first, min(first + step, items.count)) for first in range(0, items.count, step))
            write(name, (items.count, *like.shape[1:]), like.dtype, rows)
        for name, fact in facts.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.array(fact), allow_pickle=False)


def _write(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype, parts: Iterable[np.ndarray]) -> None:
    """The .npy format, of rows that come part by part."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for part in parts:
        file.write(np.ascontiguousarray(part, dtype=dtype).tobytes())
