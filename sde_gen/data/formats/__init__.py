"""Formats of files of one science or another, each read and written by its own library, which is imported only where such a file is met.

A new format is one file with its reader and writer, and one line in `FORMATS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sde_gen.data import arrays
from sde_gen.data.conditions import asked as conditions_asked
from sde_gen.data.conditions import check_names
from sde_gen.data.dataset import Dataset
from sde_gen.data.formats.audio import AUDIO
from sde_gen.data.formats.base import Asked, Contents, Format, FormatError, Items, OnDisk
from sde_gen.data.formats.hdf5 import HDF5
from sde_gen.data.formats.netcdf import NETCDF
from sde_gen.data.formats.nifti import NIFTI, NIFTI_GZ
from sde_gen.data.formats.tensors import SAFETENSORS, TENSORS
from sde_gen.data.formats.tiff import TIFF
from sde_gen.data.formats.zarr_stores import ZARR

__all__ = ["ENDINGS", "FORMATS", "Format", "FormatError", "Items", "format_of", "item_shape", "load"]

FORMATS: dict[str, Format] = {
    "netcdf": NETCDF,
    "zarr": ZARR,
    "hdf5": HDF5,
    "nifti": NIFTI,
    "nifti_gz": NIFTI_GZ,
    "audio": AUDIO,
    "tiff": TIFF,
    "tensors": TENSORS,
    "safetensors": SAFETENSORS,
}
"""By the name that a run keeps."""
ENDINGS = tuple(ending for each in FORMATS.values() for ending in each.endings)
_OF_ENDING = {ending: name for name, each in FORMATS.items() for ending in each.endings}


def format_of(name: str) -> str | None:
    """The key of the format that a file's name says, by the longest ending."""
    lower = name.lower()
    return next((_OF_ENDING[ending] for ending in sorted(ENDINGS, key=len, reverse=True) if lower.endswith(ending)), None)


def load(
    path: Path,
    form: str,
    names: Sequence[str] | None = None,
    axes: str | None = None,
    variables: Sequence[str] = (),
    conditions: Sequence[str] = (),
    **options: Any,
) -> Dataset:
    """A data set from a file of a format, or from the files `names` below a folder, one item each; `options` go to `assemble`.

    axes: a letter for each axis of the array, as in `load_dataset`; variables: which arrays of the file are the data, several of the same
    axes as channels; conditions: "VARIABLE" or "NAME=VARIABLE" of those that are conditions.

    ValueError, one line, for a package that is not installed, a file that is broken or holds several things, and what `arrays.load_npz`
    raises.
    """
    contents, header = contents_of(path, form, names, axes, variables, conditions, options.get("window") is not None)
    dataset = arrays.dataset_of(path, contents.arrays, contents.notes, contents.axes, contents.cond, **options)
    return dataclasses.replace(dataset, header=header)


def item_shape(
    path: Path, form: str, names: Sequence[str] | None = None, axes: str | None = None, variables: Sequence[str] = (), series: bool = False
) -> tuple[int, ...]:
    """Shape of one item; `series`: of a row. ValueError as in `load`."""
    contents, _ = contents_of(path, form, names, axes, variables, (), series)
    return arrays.arrange(path.name, contents.arrays["train"], contents.axes)[1].item


def contents_of(
    path: Path,
    form: str,
    names: Sequence[str] | None,
    axes: str | None,
    variables: Sequence[str],
    conditions: Sequence[str],
    series: bool,
    if_there: bool = False,
) -> tuple[Contents, dict[str, Any]]:
    """What a file or folder holds, and the header of what is written of it.

    if_there: a condition that the file does not have is none, and of several of one name the first that it has is taken.
    """
    chosen = FORMATS[form]
    pairs = [(key if name is None else name, key) for name, key in conditions_asked(path.name, conditions)]
    if not if_there:
        check_names(path.name, [name for name, _ in pairs])
    if (variables or pairs) and form not in NAMED:
        raise FormatError(f"{path.name}: {chosen.name} files hold no arrays by name; variable and conditions are for {', '.join(NAMED)}")
    chosen.require(path.name)
    asked = Asked(tuple(variables), tuple(pairs), axes, series, if_there)
    if names is None:
        contents = chosen.read(path, asked)
    elif chosen.read_folder is None:
        raise FormatError(f"{path.name}: a folder of {chosen.name} files; one file is needed")
    else:
        contents = chosen.read_folder(path, names, asked)
    for array in contents.arrays.values():
        if isinstance(array, OnDisk):
            array.where = path, f"{chosen.name} file"
    train = contents.arrays["train"]
    layout = arrays.arrange(path.name, arrays.checked_array(path.name, train), contents.axes)[1]
    kept: dict[str, Any] = {"format": form, "dtype": train.dtype.newbyteorder("=").str, "folder": None}
    if names is not None:
        ending = next(ending for ending in sorted(ENDINGS, key=len, reverse=True) if names[0].lower().endswith(ending))
        kept["folder"] = ending
    return contents, kept | contents.header | {"letters": contents.header.get("letters") or layout.axes}


NAMED = ("netcdf", "zarr", "hdf5", "tensors", "safetensors")
"""Formats that hold arrays by name."""
