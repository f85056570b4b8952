"""Degraded items in files of these formats, and restored ones written with the headers that those have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sde_gen.data import arrays, formats
from sde_gen.data.formats.base import FormatError, Items

Write = Callable[[Path, np.ndarray, bool], Path]


class Description(Protocol):
    """What has to be known of the data: `write.DataDescription`."""

    @property
    def name(self) -> str: ...

    @property
    def header(self) -> Mapping[str, Any] | None: ...

    def finish(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


def read_items(
    path: Path, form: str, names: Sequence[str] | None, about: Description, measured: tuple[int, ...], conditions: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray], Write]:
    """The items (N, *measured) of a file, or of the files `names` of a folder, in order, float64 with NaN for gaps, their labels, their
    conditions by name, and what writes restored ones beside one another as the file was. Variables and axes are those of the data's
    header, where it is of such a format.

    conditions: "VARIABLE" or "NAME=VARIABLE", of which those that the file has are read; of several of one name the first.

    Raises ValueError, one line, for items of another shape, and whatever `formats.load` raises.
    """
    header = about.header or {}
    own = [each["name"] for each in header.get("variables", ())]
    own = own or ([header["tensor"]["name"]] if header.get("tensor", {}).get("name") else [])
    axes = header.get("letters") if not header.get("folder") and names is None and header.get("format") == form else None
    named = form in formats.NAMED
    contents, kept = formats.contents_of(path, form, names, axes, own if named else (), conditions if named else (), False, if_there=True)
    if "test" in contents.arrays:
        raise FormatError(f"{path.name}: its folders are training and held-out items; a folder of items to be restored is needed")
    source, _ = arrays.arrange(path.name, contents.arrays["train"], contents.axes)
    y = np.array(source.read(source.rows), dtype=np.float64)
    if y.shape[1:] != measured:
        shown = "x".join(map(str, y.shape[1:]))
        raise FormatError(
            f"{path.name}: items of shape {shown}; {'x'.join(map(str, measured))} is needed, as the operator measures {about.name}"
        )
    if np.isinf(y).any():
        raise FormatError(f"{path.name}: holds {int(np.isinf(y).sum())} infinite value(s); finite numbers, or NaN for gaps, are needed")
    chosen = formats.FORMATS[form]

    def write(place: Path, x: np.ndarray, whole: bool) -> Path:
        values = np.where(y == x, x, about.finish(x)[0]) if whole and y.shape == x.shape else about.finish(x)[0] if whole else x
        told = kept if whole else _of_fractions(kept)
        values = _as(values, np.dtype(told["dtype"]))
        if names is not None and chosen.write_one is not None:
            for name, value in zip(names, values, strict=True):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                chosen.write_one(place / name, value, told)
            return place
        if chosen.write is None:
            raise FormatError(f"{path.name}: {chosen.name} holds one item a file")
        ending = next(ending for ending in sorted(chosen.endings, key=len, reverse=True) if path.name.lower().endswith(ending))
        file = place.with_name(place.name + ending)

        def parts() -> Iterator[tuple[np.ndarray, None]]:
            yield values, None

        chosen.write(file, Items(len(values), values.shape[1:], values.dtype, parts, told))
        return file

    return y, contents.arrays.get("labels"), {name: np.asarray(value) for (_, name), value in contents.cond.items()}, write


def _as(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Values in this type: rounded to whole numbers and clipped to those that there are."""
    if dtype.kind not in "iu" or values.dtype.kind != "f":
        return values.astype(dtype)
    ends = np.iinfo(dtype)
    return np.rint(np.nan_to_num(values)).clip(float(ends.min), float(ends.max)).astype(dtype)


def _of_fractions(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The header for values that the type of the file, whole numbers or packed ones, does not hold."""
    found = dict(kept) | {"dtype": "<f4", "stored": "float32"}
    packing = ("scale_factor", "add_offset", "_FillValue", "missing_value")
    if "variables" in kept:
        found["variables"] = [
            {"name": each["name"], "dtype": "<f4", "attrs": {key: value for key, value in each["attrs"].items() if key not in packing}}
            for each in kept["variables"]
        ]
    if "tensor" in kept:
        found["tensor"] = dict(kept["tensor"]) | {"dtype": "float32"}
    return found
