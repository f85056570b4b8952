"""zarr stores, folders whose names end in .zarr: those of xarray, with named axes and coordinates, and plain arrays and groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sde_gen.data.formats.base import Asked, Contents, Format, Items, PerProcess, guarded, needs_file
from sde_gen.data.formats.netcdf import as_dataset, group_of
from sde_gen.data.formats.variables import SAMPLE, Group, Variable, contents, targets

WHAT = "zarr store"
ARRAY = "x"
"""What a store that is one array calls it."""


def read(path: Path, asked: Asked) -> Contents:
    """The arrays of a store; one that is a plain array holds that alone."""
    needs_file(path, f"a {WHAT}", folder=True)
    with guarded(path, WHAT):
        return contents(path.name, _group(path), asked)


def _group(path: Path) -> Group:
    import xarray
    import zarr

    store = zarr.open(path, mode="r")
    arrays = {ARRAY: store} if isinstance(store, zarr.Array) else dict(store.arrays())
    if not isinstance(store, zarr.Array) and arrays and all(_has_dims(array) for array in arrays.values()):
        return group_of(lambda: xarray.open_zarr(path, decode_cf=False, chunks=None, consolidated=False))

    def variable(name: str, array: Any) -> Variable:
        def values(index: tuple[slice, ...]) -> np.ndarray:
            return np.asarray(handle()[name][index])

        handle = PerProcess(lambda: {ARRAY: zarr.open(path, mode="r")} if isinstance(store, zarr.Array) else zarr.open(path, mode="r"))
        return Variable(name, None, array.shape, np.dtype(array.dtype), dict(array.attrs), values)

    attrs = {} if isinstance(store, zarr.Array) else dict(store.attrs)
    return Group({name: variable(name, array) for name, array in arrays.items()}, attrs)


def _has_dims(array: Any) -> bool:
    return array.shape == () or "_ARRAY_DIMENSIONS" in array.attrs or getattr(array.metadata, "dimension_names", None) is not None


def write(path: Path, items: Items) -> None:
    """Samples as a store that xarray reads, with the coordinates and attributes that the data came with; part by part."""
    import xarray
    import zarr

    variables, coordinates, attrs = targets(items)
    for first, values, labels in items.numbered():
        last = first + len(values)
        part: dict[str, Any] = {target.name: xarray.Variable(target.dims, target.batch(values), dict(target.attrs)) for target in variables}
        part |= {name: _beside(name, column(first, last)) for name, column in items.beside.items()}
        if items.labelled and labels is not None:
            part["label"] = _beside("label", labels)
        if first == 0:
            as_dataset(coordinates, attrs).assign(part).to_zarr(path, mode="w", consolidated=False)
            continue
        store = zarr.open_group(path, mode="r+")  # xarray would encode again what is stored already
        for name, variable in part.items():
            axis, array = variable.dims.index(SAMPLE), store[name]
            array.resize(tuple(last if k == axis else size for k, size in enumerate(array.shape)))
            array[tuple(slice(first, last) if k == axis else slice(None) for k in range(array.ndim))] = variable.values


def _beside(name: str, values: np.ndarray) -> Any:
    """What is known of each sample, as a variable of its own axes."""
    import xarray

    dims = (SAMPLE, *(f"{name}_{k}" for k in range(1, values.ndim)))
    return xarray.Variable(dims, values.astype(object) if values.dtype.kind == "U" else values)


ZARR = Format("zarr", (".zarr",), ("zarr", "xarray"), read, write, is_folder=True)
