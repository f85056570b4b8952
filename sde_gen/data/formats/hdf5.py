"""HDF5 files, by h5py: data sets by name, in groups or not, with attributes and, where they have them, scales of their axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sde_gen.data.formats.base import Asked, Contents, Format, FormatError, Items, PerProcess, guarded, needs_file
from sde_gen.data.formats.variables import Group, Variable, contents, targets

WHAT = "HDF5 file"
OWN = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "DIMENSION_LABELS"}
"""Attributes by which HDF5 keeps the scales of axes."""
MOST_VARIABLES = 4096


def read(path: Path, asked: Asked) -> Contents:
    """The data sets of an HDF5 file; those of groups are called GROUP/NAME. Links to other files are not followed."""
    needs_file(path, f"an {WHAT}")
    with guarded(path, WHAT):
        return contents(path.name, _group(path), asked)


def _group(path: Path) -> Group:
    import h5py

    handle = PerProcess(lambda: h5py.File(path, "r"))
    found: dict[str, Any] = {}
    _walk(path, handle(), "", found)
    scales = {dataset.name.lstrip("/"): dataset for dataset in found.values() if dataset.is_scale}

    def variable(name: str) -> Variable:
        dataset = found[name]

        def values(index: tuple[slice, ...]) -> np.ndarray:
            return handle()[name][index] if dataset.shape else np.asarray(handle()[name][()])

        attrs = _attributes(dataset.attrs)
        dtype = np.dtype(object) if h5py.check_string_dtype(dataset.dtype) is not None else dataset.dtype
        return Variable(name, _dims(dataset, name in scales), dataset.shape, dtype, attrs, values)

    names = [name for name, dataset in found.items() if dataset.shape is not None]
    return Group({name: variable(name) for name in names}, _attributes(handle().attrs), tuple(name for name in names if name in scales))


def _walk(path: Path, group: Any, above: str, found: dict[str, Any]) -> None:
    import h5py

    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            continue
        item = group[name]
        if isinstance(item, h5py.Dataset):
            if item.external or item.is_virtual:
                continue
            found[above + name] = item
        elif isinstance(item, h5py.Group) and above.count("/") < 8:
            _walk(path, item, f"{above}{name}/", found)
        if len(found) > MOST_VARIABLES:
            raise FormatError(f"{path.name}: more than {MOST_VARIABLES:,} data sets; at most that many are looked at")


def _dims(dataset: Any, is_scale: bool) -> tuple[str, ...] | None:
    """The names of the axes: of the scales along them, or else their labels; None where any has neither."""
    if is_scale and dataset.ndim == 1:
        return (dataset.name.lstrip("/"),)
    names = [(dim[0].name.lstrip("/") if len(dim) else dim.label) for dim in dataset.dims]
    return tuple(names) if names and all(names) and len(set(names)) == len(names) else None


def _attributes(attrs: Any) -> dict[str, Any]:
    return {key: attrs[key] for key in attrs if key not in OWN and not key.startswith("_Netcdf") and key != "_NCProperties"}


def write(path: Path, items: Items) -> None:
    """Samples as data sets of the names, types, attributes and scales that the data had."""
    import h5py

    variables, coordinates, attrs = targets(items)
    with h5py.File(path, "w") as file:
        _set(file.attrs, attrs)
        for name, each in coordinates.items():
            text = np.asarray(each.values).dtype == object
            dataset = file.create_dataset(name, data=each.values, dtype=h5py.string_dtype() if text else None)
            _set(dataset.attrs, each.attrs)
            dataset.make_scale()
        made = []
        for target in variables:
            dataset = file.create_dataset(target.name, target.shape, target.dtype)
            _set(dataset.attrs, target.attrs)
            for axis, dim in enumerate(target.dims):
                if dim in coordinates:
                    dataset.dims[axis].attach_scale(file[dim])
                elif items.header.get("dims"):
                    dataset.dims[axis].label = dim
            made.append(dataset)
        for first, values, _ in items.numbered():
            for target, dataset in zip(variables, made, strict=True):
                dataset[target.rows(first, first + len(values))] = target.batch(values)
        for name, values in items.known().items():
            file.create_dataset(name, data=values.astype(object) if values.dtype.kind == "U" else values)


def _set(attrs: Any, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        attrs[key] = value


HDF5 = Format("HDF5", (".h5", ".hdf5", ".he5", ".hdf"), ("h5py",), read, write)
