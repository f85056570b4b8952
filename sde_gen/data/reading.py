"""How files of a user's own are asked to be read: one value with every option, and which kinds of files take which."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sde_gen.data.decode import MODES

IMAGES, TABLE, NPY, NPZ, NAMED, SINGLE, MEMORY = "images", "table", "npy", "npz", "named", "single", "memory"
"""Kinds of files: a folder or archive of images; a text table or parquet; an array; arrays by name in an .npz file, and with coordinates
(NetCDF and its like); files that are an array or an item themselves (TIFF, NIfTI, sound, tensors); a table in memory."""
_ARRAYS = (NPY, NPZ, NAMED, SINGLE)


@dataclass(frozen=True)
class Reading:
    """The options of `load_dataset` that say how files are read; None or () for what is not asked."""

    size: int | None = None
    label_column: str | None = None
    axes: str | None = None
    missing: float | str | None = None
    split: str | None = None
    conditions: tuple[str, ...] = ()
    condition_map: str | os.PathLike[str] | None = None
    captions: str | os.PathLike[str] | None = None
    group: str | int | None = None
    window: int | None = None
    stride: int | None = None
    variable: tuple[str, ...] = ()
    mode: str | None = None
    columns: str | os.PathLike[str] | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and (isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1):
            raise ValueError(f"size {self.size!r}; None or a positive integer is needed")
        if self.mode is not None and self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r}; {', '.join(MODES)} or None is allowed")

    @property
    def asked(self) -> dict[str, Any]:
        """The options that are given."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in given.items() if value is not None and value != ()}

    def check(self, name: str, kind: str) -> None:
        """ValueError for an option that files of this kind do not take; `name` is theirs, for the message."""
        for option, value in self.asked.items():
            kinds, words = TAKEN_BY[option]
            if kind not in kinds:
                shown = repr(str(value)) if isinstance(value, os.PathLike) else repr(value)
                raise ValueError(f"{name}: {option}={shown} is for {words}")


TAKEN_BY: dict[str, tuple[tuple[str, ...], str]] = {
    "size": ((IMAGES,), "images in a folder or archive"),
    "mode": ((IMAGES,), "images in a folder or archive"),
    "condition_map": ((IMAGES,), "images in a folder or archive"),
    "captions": ((IMAGES,), "images in a folder or archive"),
    "label_column": ((TABLE, MEMORY), "tables"),
    "columns": ((TABLE, MEMORY), "tables"),
    "axes": (_ARRAYS, "arrays (.npy, .npz and other files of arrays)"),
    "missing": ((TABLE, MEMORY, *_ARRAYS), "arrays and tables"),
    "variable": ((NAMED,), "files of arrays by name (NetCDF, zarr, HDF5)"),
    "conditions": (
        (TABLE, MEMORY, NPZ, NAMED),
        "columns of a table or arrays of an .npz file; condition_map is for images",
    ),
    "group": ((TABLE, NPZ, NAMED), "columns of a table file or arrays of an .npz file"),
    "window": ((TABLE, *_ARRAYS), "series: arrays (T,) or (T, C), and table files"),
    "stride": ((TABLE, *_ARRAYS), "series: arrays (T,) or (T, C), and table files"),
    "split": ((IMAGES, TABLE, MEMORY, *_ARRAYS), "the user's own files"),
}
"""Which kinds of files take each option of `Reading`, and the same in words."""
