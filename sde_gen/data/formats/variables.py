"""Arrays by name with named axes, attributes and coordinates, as NetCDF, HDF5 and zarr hold them: which are the data, in which units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sde_gen.data.arrays import KEYS
from sde_gen.data.axes import check_axes
from sde_gen.data.errors import first_and_count
from sde_gen.data.formats.base import (
    MOST_ITEMS,
    Asked,
    Contents,
    FormatError,
    Items,
    OnDisk,
    packed,
    packed_all,
    unpacked_all,
)

LETTERS = {
    "N": "n t time sample samples item items member number realization ensemble batch record case event",
    "C": "c channel channels band bands variable variables component components feature features",
    "D": "d depth lev level levels plev pressure altitude z zc",
    "H": "h height lat latitude y yc row rows south_north",
    "W": "w width lon longitude x xc column columns west_east",
    "L": "l length position frequency freq",
}
"""Names of axes that say what an axis is, capitals or not; CF's attribute `axis` of a coordinate says it too."""
OF_NAME = {name: letter for letter, names in LETTERS.items() for name in names.split()}
OF_CF = {"T": "N", "Z": "D", "Y": "H", "X": "W"}
MOST_COORDINATES = 1 << 22
"""Bytes of coordinates that a run keeps, to write them beside its samples."""
SAMPLE = "sample"
"""What the axis of samples is called in what is written."""
SPACES = {1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x")}


@dataclass(frozen=True)
class Variable:
    """One array of a file.

    name, dims (None where the file does not name axes), shape, dtype: as the file has them. attrs: its attributes.
    read: of an index, a slice for each axis, the values as they are stored.
    """

    name: str
    dims: tuple[str, ...] | None
    shape: tuple[int, ...]
    dtype: np.dtype
    attrs: Mapping[str, Any]
    read: Callable[[tuple[slice, ...]], np.ndarray]

    def whole(self) -> np.ndarray:
        """All values, in their units."""
        return decoded(np.asarray(self.read((slice(None),) * len(self.shape))), self.attrs)

    def rows(self, axis: int) -> OnDisk:
        """The array with this axis first, in its units."""
        order = [axis, *(k for k in range(len(self.shape)) if k != axis)]

        def read(first: int, last: int) -> np.ndarray:
            index = tuple(slice(first, last) if k == axis else slice(None) for k in range(len(self.shape)))
            return decoded(np.asarray(self.read(index)), self.attrs).transpose(order)

        dtype = decoded(np.zeros(0, self.dtype), self.attrs).dtype
        return OnDisk([self.shape[k] for k in order], dtype, read)

    def __str__(self) -> str:
        return f"{self.name} {self.shape}"


@dataclass(frozen=True)
class Group:
    """What a file holds: its variables, its own attributes, and which variables are coordinates of an axis of the same name."""

    variables: Mapping[str, Variable]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    coordinates: tuple[str, ...] = ()


def decoded(raw: np.ndarray, attrs: Mapping[str, Any]) -> np.ndarray:
    """Stored values in their units, by the CF conventions: raw scale_factor + add_offset, NaN where raw is _FillValue or missing_value."""
    fills = [np.asarray(attrs[key]).ravel() for key in ("_FillValue", "missing_value") if key in attrs]
    scaled = "scale_factor" in attrs or "add_offset" in attrs
    if raw.dtype.kind not in "iuf" or not (fills or scaled):
        return raw
    values = raw.astype(np.float64 if raw.dtype.kind != "f" or scaled else raw.dtype)
    if scaled:
        values = values * float(np.asarray(attrs.get("scale_factor", 1)).item()) + float(np.asarray(attrs.get("add_offset", 0)).item())
    for fill in (number for number in fills if number.dtype.kind in "iuf"):
        values[np.isin(raw, fill.astype(raw.dtype))] = np.nan
    return values


def encoded(values: np.ndarray, dtype: np.dtype, attrs: Mapping[str, Any]) -> np.ndarray:
    """The inverse of `decoded`: whole numbers are rounded to the nearest and clipped to their type, NaN becomes the fill value."""
    holes = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    if "scale_factor" in attrs or "add_offset" in attrs:
        offset, scale = (float(np.asarray(attrs.get(key, other)).item()) for key, other in (("add_offset", 0), ("scale_factor", 1)))
        values = (values.astype(np.float64) - offset) / scale
    if dtype.kind in "iu" and values.dtype.kind == "f":
        ends = np.iinfo(dtype)
        values = np.rint(np.where(holes, 0, values)).clip(float(ends.min), float(ends.max))
    raw = values.astype(dtype)
    fill = attrs.get("_FillValue", attrs.get("missing_value"))
    if fill is not None and holes.any():
        raw[holes] = np.asarray(fill).ravel()[0]
    return raw


def letters_of(dims: Sequence[str], of_coordinates: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A letter for each axis by its name and, in `of_coordinates`, the attributes of its coordinate; None where they do not say it."""
    found: list[str] = []
    for dim in dims:
        told = str(of_coordinates.get(dim, {}).get("axis", "")).upper()
        found.append(OF_CF.get(told) or OF_NAME.get(dim.rpartition("/")[2].lower(), "?"))
    if "N" not in found and found[:1] == ["?"]:
        found[0] = "N"
    if found.count("N") == 1 and found.count("?") == 1 and len(found) == 2:
        found = ["N" if letter == "N" else "C" for letter in found]  # of each item one row of numbers
    space = [letter for letter in found if letter in "DHWL"]
    if "?" in found or "N" not in found or len(set(found)) < len(found) or ("L" in space and len(space) > 1):
        return None
    flat = {1: "L", 2: "HW", 3: "DHW"}.get(len(space), "")
    renamed = dict(zip((letter for letter in "DHWL" if letter in space), flat, strict=False))
    return "".join(renamed.get(letter, letter) for letter in found)


def contents(name: str, group: Group, asked: Asked) -> Contents:
    """The data among a file's variables, their labels and conditions, and the header of what is written of them."""
    numbers = {key: v for key, v in group.variables.items() if v.dtype.kind in "buif"}
    of_conditions = dict(asked.conditions)
    if asked.if_there:
        of_conditions = {of: variable for of, variable in reversed(asked.conditions) if variable in group.variables}
    cond_names = list(of_conditions.values())
    for variable in (*asked.variables, *cond_names):
        if variable not in group.variables:
            raise FormatError(f"{name}: no variable {variable!r}; it holds {_listed(group.variables.values())}")
    roles = {part: _role(group, part, {*asked.variables, *cond_names}) for part in ("labels", "test", "test_labels")}
    taken = {*cond_names, *filter(None, roles.values()), *(f"{variable}_test" for variable in cond_names), *group.coordinates}
    left = {key: v for key, v in numbers.items() if key not in taken and len(v.shape) > (not asked.series)}
    chosen = asked.variables or _unmistakable(name, left)
    data = [group.variables[key] for key in chosen]
    strange = next((v for v in data if v.name not in numbers), None)
    if strange is not None:
        raise FormatError(f"{name}: variable {strange.name!r} holds {strange.dtype}; numbers (Boolean, integer or floating) are needed")
    first, several = data[0], len(data) > 1
    odd = next((v for v in data if (v.shape, v.dims) != (first.shape, first.dims)), None)
    if odd is not None:
        raise FormatError(f"{name}: variables {first} and {odd} are of other axes; channels of one item have the same")
    letters = check_axes(asked.axes) if asked.axes is not None else letters_of(first.dims or (), _attributes(group))
    if asked.series:
        letters = _letters_of_series(name, first, letters)
    if letters is not None and len(letters) != len(first.shape):
        raise FormatError(f"{name}: axes {letters} for variable {first}; one letter for each of its {len(first.shape)} axes is needed")
    if several and letters is not None and "C" in letters:
        raise FormatError(f"{name}: axes {letters}: several variables are the channels, and each of these has channels of its own")
    if several and letters is None:
        raise FormatError(f"{name}: variable {first} has axes {_named(first)}; say which is what with axes (--axes NHW)")
    axis = 0 if letters is None else letters.index("N")
    if first.shape[axis] > MOST_ITEMS:
        raise FormatError(f"{name}: claims {first.shape[axis]:,} items; at most {MOST_ITEMS:,} are allowed")
    rows = [v.rows(axis) for v in data]
    if letters == "N" and not several:
        rows, letters = [rows[0].as_columns()], "NC"
    axes = None if letters is None else "N" + letters.replace("N", "")
    arrays: dict[str, Any] = {"train": _stacked(rows) if several else rows[0]}
    if several:
        axes = f"NC{axes[1:]}" if axes is not None else None
    for part, key in roles.items():
        if key is not None:
            arrays[part] = group.variables[key].rows(axis) if part == "test" else _words(group.variables[key].whole())
    cond = {("train", of): _words(group.variables[variable].whole()) for of, variable in of_conditions.items()}
    cond |= {
        ("test", of): _words(group.variables[f"{variable}_test"].whole())
        for of, variable in of_conditions.items()
        if f"{variable}_test" in group.variables
    }
    used = {*chosen, *taken}
    unused = [str(v) for key, v in group.variables.items() if key not in used]
    notes = [f"variable{'s' * several} {', '.join(chosen)}" + (f" {_named(first)}" if first.dims else "")]
    notes += [f"variables not used: {first_and_count(unused)}"] if unused else []
    header, left_out = _header(group, data, letters)
    if asked.series:
        header |= _of_windows(first, several)
    notes += [f"coordinates too large to be written beside samples: {', '.join(left_out)}"] if left_out else []
    return Contents(arrays, cond, axes, header, tuple(notes))


def _letters_of_series(name: str, variable: Variable, letters: str | None) -> str:
    """The axes of a series: of time alone, or of time and what it is a series of."""
    if len(variable.shape) == 1:
        return "N"
    if len(variable.shape) == 2:
        return "CN" if letters is not None and letters[1] == "N" else "NC"
    raise FormatError(f"{name}: variable {variable}; a series (T,) or (T, C) is needed for windows")


def _of_windows(variable: Variable, several: bool) -> dict[str, Any]:
    """The axes of windows of a series: those of the samples that are written."""
    time, *others = variable.dims or ("time", "channel")[: len(variable.shape)]
    channels = bool(others)
    return {"letters": "NCL" if channels and not several else "NL", "dims": [SAMPLE, *others, time], "coordinates": {}}


def _role(group: Group, part: str, taken: set[str]) -> str | None:
    return next((key for key in KEYS[part] if key in group.variables and key not in taken), None)


def _attributes(group: Group) -> dict[str, Mapping[str, Any]]:
    return {key: group.variables[key].attrs for key in group.coordinates}


def _unmistakable(name: str, left: Mapping[str, Variable]) -> tuple[str, ...]:
    """The one variable that can be the data."""
    if len(left) == 1:
        return tuple(left)
    named = next((key for key in KEYS["train"] if key in left), None)
    if named is not None:
        return (named,)
    if not left:
        raise FormatError(f"{name}: holds no array of numbers with at least two axes, items and what each consists of")
    raise FormatError(
        f"{name}: holds {_listed(left.values())}; say which are the data with variable (--variable NAME; several of the same axes are "
        "channels)"
    )


def _listed(variables: Any) -> str:
    return first_and_count([str(variable) for variable in variables]) or "none"


def _named(variable: Variable) -> str:
    dims = variable.dims or ("?",) * len(variable.shape)
    return "(" + ", ".join(f"{dim} {size}" for dim, size in zip(dims, variable.shape, strict=True)) + ")"


def _stacked(rows: Sequence[OnDisk]) -> OnDisk:
    """Arrays of one shape as the channels of one."""
    dtype = np.result_type(*(array.dtype for array in rows))
    if any(array.dtype != rows[0].dtype for array in rows) and dtype.kind != "f":
        dtype = np.dtype(np.float64)
    shape = (rows[0].shape[0], len(rows), *rows[0].shape[1:])
    return OnDisk(shape, dtype, lambda first, last: np.stack([array[first:last] for array in rows], axis=1).astype(dtype))


def _words(values: np.ndarray) -> np.ndarray:
    """Text as numpy's own; other values as they are."""
    if values.dtype.kind == "S":
        return np.char.decode(values, "utf-8")
    if values.dtype.kind == "O":
        return np.array([text.decode("utf-8") if isinstance(text, bytes) else str(text) for text in values.ravel()]).reshape(values.shape)
    return values


def _header(group: Group, data: Sequence[Variable], letters: str | None) -> tuple[dict[str, Any], list[str]]:
    """What is kept to write samples as these variables are: names, axes, types, attributes, and the coordinates along the axes of an
    item; and the coordinates that are too large for that."""
    dims = data[0].dims
    along = set(dims or ()) - ({dims[0 if letters is None else letters.index("N")]} if dims else set())
    coordinates, left_out, room = {}, [], MOST_COORDINATES
    for key, variable in group.variables.items():
        if key not in group.coordinates or not set(variable.dims or ()) <= along or (variable.dims == () and not along):
            continue
        raw = np.asarray(variable.read((slice(None),) * len(variable.shape)))
        room -= raw.nbytes
        kept = packed(raw) if room >= 0 else None
        if kept is None:
            left_out.append(key)
        else:
            coordinates[key] = {"dims": list(variable.dims or ()), "values": kept, "attrs": packed_all(variable.attrs)}
    header = {
        "variables": [{"name": v.name, "dtype": v.dtype.str, "attrs": packed_all(v.attrs)} for v in data],
        "dims": None if dims is None else list(dims),
        "letters": letters,
        "coordinates": coordinates,
        "attrs": packed_all(group.attrs),
    }
    return header, left_out


# ---------------------------------------------------------------- writing


@dataclass(frozen=True)
class Target:
    """A variable to be written: where its axis of samples is, and the values of its samples.

    batch: of samples (B, C, *spatial) or (B, D), the values to store, with its own axes.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    attrs: Mapping[str, Any]
    axis: int
    batch: Callable[[np.ndarray], np.ndarray]

    def rows(self, first: int, last: int) -> tuple[slice, ...]:
        return tuple(slice(first, last) if k == self.axis else slice(None) for k in range(len(self.shape)))


@dataclass(frozen=True)
class Coordinate:
    """A coordinate to be written as it was read."""

    dims: tuple[str, ...]
    values: Any
    attrs: Mapping[str, Any]


def targets(items: Items) -> tuple[list[Target], dict[str, Coordinate], dict[str, Any]]:
    """What samples are written as: their variables, the coordinates beside them and the file's attributes."""
    header = items.header
    if "variables" not in header:
        letters = "NC" if len(items.shape) == 1 else "NC" + {1: "L", 2: "HW", 3: "DHW"}[len(items.shape) - 1]
        dims = (SAMPLE, "column") if len(items.shape) == 1 else (SAMPLE, "channel", *SPACES[len(items.shape) - 1])
        return [_target("data", items, dims, letters, items.dtype, {}, None)], {}, {}
    letters = header["letters"]
    space = "".join(letter for letter in "DHWL" if letter in letters)
    named = header["dims"] or [{"N": SAMPLE, "C": "channel"}.get(letter, letter.lower()) for letter in letters]
    dims = tuple(SAMPLE if letter == "N" else dim for letter, dim in zip(letters, named, strict=True))
    assert len(space) == len(items.shape) - 1
    several = len(header["variables"]) > 1
    found = [
        _target(each["name"], items, dims, letters, np.dtype(each["dtype"]), unpacked_all(each["attrs"]), k if several else None)
        for k, each in enumerate(header["variables"])
    ]
    coordinates = {
        key: Coordinate(tuple(each["dims"]), unpacked_all({"values": each["values"]})["values"], unpacked_all(each["attrs"]))
        for key, each in header["coordinates"].items()
    }
    return found, coordinates, unpacked_all(header["attrs"])


def _target(
    name: str, items: Items, dims: tuple[str, ...], letters: str, dtype: np.dtype, attrs: Mapping[str, Any], channel: int | None
) -> Target:
    sizes = dict(zip("C" + "".join(letter for letter in "DHWL" if letter in letters), items.shape, strict=True))
    sizes["N"] = items.count
    shape = tuple(sizes[letter] for letter in letters)

    def batch(values: np.ndarray) -> np.ndarray:
        if channel is not None:
            values = values[:, channel : channel + 1]
        return encoded(as_laid_out(values, letters), dtype, attrs)

    return Target(name, dims, shape, dtype, attrs, letters.index("N"), batch)


def as_laid_out(values: np.ndarray, letters: str) -> np.ndarray:
    """Samples (B, C, *spatial) or (B, D) with the axes that `letters` say: what `axes.Layout.apply` undoes."""
    own = "NC" + "".join(letter for letter in "DHWL" if letter in letters)
    if "C" not in letters:
        values, own = values[:, 0], own.replace("C", "")
    return values.transpose([own.index(letter) for letter in letters])
