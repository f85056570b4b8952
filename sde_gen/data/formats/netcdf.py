"""NetCDF files, by xarray and h5netcdf: fields with named axes, coordinates and attributes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sde_gen.data.formats.base import Asked, Contents, Format, Items, PerProcess, guarded, needs_file
from sde_gen.data.formats.variables import SAMPLE, Coordinate, Group, Variable, contents, targets

WHAT = "NetCDF file"
CLASSIC = b"CDF"
"""What files of version 3 begin with, which scipy reads; others are HDF5."""


def read(path: Path, asked: Asked) -> Contents:
    """The variables of a NetCDF file, of version 3 or 4, of its root group."""
    needs_file(path, f"a {WHAT}")
    with guarded(path, WHAT):
        return contents(path.name, group_of(lambda: _opened(path)), asked)


def _opened(path: Path) -> Any:
    import xarray

    with path.open("rb") as file:
        classic = file.read(3) == CLASSIC
    return xarray.open_dataset(path, engine="scipy" if classic else "h5netcdf", decode_cf=False, cache=False)


def group_of(opening: Any) -> Group:
    """The variables of what xarray opens."""
    handle = PerProcess(opening)
    dataset = handle()

    def variable(name: str) -> Variable:
        found = dataset.variables[name]

        def values(index: tuple[slice, ...]) -> np.ndarray:
            return np.asarray(handle().variables[name][index].values)

        return Variable(name, tuple(map(str, found.dims)), found.shape, found.dtype, dict(found.attrs), values)

    names = [str(name) for name in dataset.variables]
    told = " ".join(str(dataset.variables[name].attrs.get("coordinates", "")) for name in names).split()
    coordinates = tuple(name for name in names if name in dataset.coords or name in told)
    return Group({name: variable(name) for name in names}, dict(dataset.attrs), coordinates)


def as_dataset(found: dict[str, Coordinate], attrs: dict[str, Any]) -> Any:
    """Coordinates as an xarray data set, their values as they are stored."""
    import xarray

    variables = {name: xarray.Variable(each.dims, each.values, each.attrs) for name, each in found.items()}
    return xarray.Dataset(coords=variables, attrs=attrs)


def write(path: Path, items: Items) -> None:
    """Samples as a file of version 4, with the coordinates and attributes that the data came with."""
    import h5netcdf

    variables, coordinates, attrs = targets(items)
    if coordinates or attrs:
        as_dataset(coordinates, attrs).to_netcdf(path, engine="h5netcdf")
    with h5netcdf.File(path, "a" if path.exists() else "w") as file:
        made = []
        for target in variables:
            _dimensions(file, target.dims, target.shape)
            fill = target.attrs.get("_FillValue")
            fill = None if fill is None else np.asarray(fill)[()]
            variable = file.create_variable(target.name, target.dims, target.dtype, fillvalue=fill)
            for key, value in target.attrs.items():
                if key != "_FillValue":
                    variable.attrs[key] = value
            made.append(variable)
        for first, values, _ in items.numbered():
            for target, variable in zip(variables, made, strict=True):
                variable[target.rows(first, first + len(values))] = target.batch(values)
        for name, values in items.known().items():
            dims = (SAMPLE, *(f"{name}_{k}" for k in range(1, values.ndim)))
            _dimensions(file, dims, values.shape)
            text = values.dtype.kind == "U"
            file.create_variable(name, dims, _text() if text else values.dtype)[...] = values.astype(object) if text else values


def _dimensions(file: Any, dims: Sequence[str], sizes: Sequence[int]) -> None:
    for dim, size in zip(dims, sizes, strict=True):
        if dim not in file.dimensions:
            file.dimensions[dim] = size


def _text() -> Any:
    import h5py

    return h5py.string_dtype()


NETCDF = Format("NetCDF", (".nc", ".nc4", ".cdf"), ("xarray", "h5netcdf"), read, write)
