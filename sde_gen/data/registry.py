"""The data sets by name, and the user's own by path. A new named one is a function (root, seed) -> Dataset and a line here."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sde_gen.data import archives, arrays, folders, formats, tables
from sde_gen.data.cifar import cifar10
from sde_gen.data.columns import frames
from sde_gen.data.dataset import Dataset, subset, validate
from sde_gen.data.decode import MODES
from sde_gen.data.images import digits, fashion_mnist, mnist
from sde_gen.data.labels import remarks_of_classes
from sde_gen.data.splits import GROUP
from sde_gen.data.toy_measurements import spectrograms, volumes
from sde_gen.data.toy_tables import adult, rain
from sde_gen.data.toys import blobs3d, checkerboard, downscale, gaussians8, moons, regression, sines, table
from sde_gen.data.weather import weather

DATASETS: dict[str, Callable[[Path | None, int], Dataset]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "gaussians8": gaussians8,
    "moons": moons,
    "checkerboard": checkerboard,
    "sines": sines,
    "table": table,
    "rain": rain,
    "adult": adult,
    "blobs3d": blobs3d,
    "regression": regression,
    "downscale": downscale,
    "weather": weather,
    "spectrograms": spectrograms,
    "volumes": volumes,
}
PATHS = f"a folder of images, {', '.join((*archives.ENDINGS, '.npy', '.npz', *tables.ENDINGS, *formats.ENDINGS))}"
"""What is read beside `DATASETS`, in words."""
_LIMIT_SEED = 0
_ENDINGS = (*archives.ENDINGS, ".npy", ".npz", *tables.ENDINGS, *formats.ENDINGS)


def is_path(name: str) -> bool:
    """Whether `name` means files of the user's own: no registered name, and something there, a known ending or a separator."""
    return name not in DATASETS and (os.path.exists(name) or name.lower().endswith(_ENDINGS) or "/" in name or os.sep in name)


def load_dataset(
    name: str | os.PathLike[str] | Mapping[str, Any] | Any,
    root: str | os.PathLike[str] | None = None,
    seed: int = 0,
    limit: int | None = None,
    size: int | None = None,
    label_column: str | None = None,
    axes: str | None = None,
    missing: float | str | None = None,
    split: str | None = None,
    conditions: Sequence[str] = (),
    condition_map: str | os.PathLike[str] | None = None,
    group: str | int | None = None,
    window: int | None = None,
    stride: int | None = None,
    variable: str | Sequence[str] | None = None,
    mode: str | None = None,
    columns: str | os.PathLike[str] | Mapping[str, Any] | None = None,
) -> Dataset:
    """Load and check a data set of the registry, one from files, or a table in memory.

    Args:
        name: a key of `DATASETS`, or the path of a folder or archive of images (`folders.load_images`), of an .npy or .npz file
            (`arrays.load_npy`, `arrays.load_npz`), of a .csv, .tsv or .txt table (`tables.load_table`), or of a file or folder in one of
            `formats.FORMATS`. A registered name comes first.
            A pandas frame, or a dict of columns (N,) by name, is a table whose columns' kinds are inferred (`columns.frames.load_frame`).
        root: the directory of the files; only named sets that come from files read it.
        seed: of the toys' points, >= 0; real data and its split do not depend on it.
        limit: keep this many training items (all, if there are fewer), drawn at random, the same ones in every run; the held-out part
            stays whole.
        size: images from files are resized to this edge, None: they must be of one size.
        label_column: of a table, the column that holds the class labels.
        axes: of an .npy or .npz array, a letter for each of its axes: N items, C channels, and L, H and W or D, H and W for space, such
            as "NCHW", "NHWC", "NCL" or "NDHW". None: what its shape leaves in no doubt (`axes.read_layout`).
        missing: of arrays and tables, what marks a missing cell: a number, "nan", or in a table a word. Items with such a cell are
            left out and counted in the notes. "mask", for NaN, or "mask=VALUE": such entries of fields (signals, images, volumes) are
            kept out of loss, statistics, likelihood and files instead, `Dataset.valid`. None: NaN and empty cells are errors.
        split: of files without a held-out part of their own, how a tenth is held out: "random"; "stratified", from each class in its
            share; or "tail", the last items of the file, which suits windows of a series. None: "random", or by `group`.
        conditions: what is known of each item and a network can be told, `Dataset.cond`: columns of a table (`tables.load_table`) or
            arrays of an .npz file (`arrays.load_npz`), each "COLUMN", or "NAME=COLUMN" for a condition of another name.
        condition_map: of images, a folder or archive with another image of the same name for each, on the same or a coarser grid, which
            is the condition "map" (`folders.load_images`).
        group: a column of a table or an array (N,) of an .npz file that says which items belong together, a patient's or a station's:
            whole groups are held out, and the column is no data.
        window: of a series, an array (T,) or (T, C) or a table whose rows are in the order of time: the items are windows of so many
            rows, (C, window), and no window lies on both sides of the split or of a group's border (`windows.windows_of_series`).
        stride: so many rows lie between the beginnings of windows; None: `window`.
        variable: of a NetCDF, zarr or HDF5 file, the array that is the data, or several of the same axes, which are its channels. None: the
            one that can be.
        mode: "grey", "rgb" or "rgba", to which images from files are converted; None: they must be of one mode.
        columns: of a table, what its columns are: "infer", a dict {COLUMN: KIND or {"kind": KIND, ...}}, or a YAML file of one
            (`tables.load_table`; docs/data.md lists the kinds). None: numbers as they are; kinds where it has words or gaps.

    Raises:
        ValueError: unknown name, a bad seed or limit, an option that this kind of data does not take, files missing or broken, or
            data that cannot be trained on (see `validate`). One line that names the file.
    """
    if not isinstance(name, str | os.PathLike):
        given_of_files = {"root": root, "size": size, "axes": axes, "condition_map": condition_map}
        odd = [key for key, value in given_of_files.items() if value is not None]
        if odd:
            raise ValueError(f"a table in memory takes no {', no '.join(odd)}; they are for files")
        return validate(frames.load_frame(name, label_column, missing, conditions, columns, limit=limit, split=split))
    name = os.fspath(name)
    if name not in DATASETS and not is_path(name):
        raise ValueError(f"data {name!r} is unknown; allowed: {', '.join(sorted(DATASETS))}, or a path: {PATHS}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed {seed!r}; an integer >= 0 is needed")
    for key, value in (("limit", limit), ("size", size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{key} {value!r}; None or a positive integer is needed")
    if mode is not None and mode not in MODES:
        raise ValueError(f"mode {mode!r}; {', '.join(MODES)} or None is allowed")
    if name in DATASETS:
        given: dict[str, Any] = {"size": size, "label_column": label_column, "axes": axes, "missing": missing, "split": split}
        given |= {"conditions": tuple(conditions) or None, "condition_map": condition_map}
        given |= {"group": group, "window": window, "stride": stride}
        given |= {"variable": variable or None, "mode": mode}
        given |= {"columns": columns}
        if any(value is not None for value in given.values()):
            raise ValueError(f"data {name!r} takes no {', no '.join(given)}; they are for the user's own files")
        dataset = DATASETS[name](None if root is None else Path(root), seed)
        if limit is not None and limit < len(dataset.train):
            chosen = subset(len(dataset.train), limit, _LIMIT_SEED)
            labels = None if dataset.train_labels is None else dataset.train_labels[chosen]
            notes = (*dataset.notes, *remarks_of_classes(None if labels is None else labels.numpy(), dataset.classes))
            cond = {of: value[chosen] for of, value in dataset.cond.items()}
            dataset = dataclasses.replace(dataset, train=dataset.train[chosen], train_labels=labels, cond=cond, notes=notes)
        return validate(dataset)
    told = (tuple(conditions), None if condition_map is None else Path(condition_map))
    series: dict[str, Any] = {"group": None if group is None else str(group), "window": window, "stride": stride}
    variables = (variable,) if isinstance(variable, str) else tuple(variable or ())
    told_of_files = (*told, variables, mode, columns)
    return validate(_load_path(Path(name), size, label_column, axes, missing, *told_of_files, limit=limit, split=split, **series))


def _load_path(
    path: Path,
    size: int | None,
    label_column: str | None,
    axes: str | None,
    missing: float | str | None,
    conditions: tuple[str, ...],
    condition_map: Path | None,
    variables: tuple[str, ...],
    mode: str | None,
    columns: str | os.PathLike[str] | Mapping[str, Any] | None,
    group: str | None = None,
    **options: Any,
) -> Dataset:
    ending = path.suffix.lower()
    form, names = _format(path)
    images, is_table = _holds_images(path) and form is None, ending in tables.ENDINGS
    is_array = ending in (".npy", ".npz") and not images
    for key, value in (("size", size), ("mode", mode)):
        if value is not None and not images:
            raise ValueError(f"{path.name}: {key}={value!r} is for images in a folder or archive")
    if label_column is not None and not is_table:
        raise ValueError(f"{path.name}: label_column={label_column!r} is for tables ({', '.join(tables.ENDINGS)})")
    if axes is not None and not is_array and form is None:
        raise ValueError(f"{path.name}: axes={axes!r} is for arrays (.npy, .npz, {', '.join(formats.ENDINGS)})")
    if columns is not None and not is_table:
        raise ValueError(f"{path.name}: columns={columns!r} is for tables ({', '.join(tables.ENDINGS)})")
    if missing is not None and images:
        raise ValueError(f"{path.name}: missing={missing!r} is for arrays and tables")
    if variables and form is None:
        raise ValueError(f"{path.name}: variable={variables!r} is for files of arrays by name ({', '.join(formats.NAMED)})")
    if conditions and (images or ending == ".npy"):
        raise ValueError(
            f"{path.name}: conditions={conditions!r} are columns of a table or arrays of an .npz file; condition_map is for images"
        )
    if condition_map is not None and not images:
        raise ValueError(f"{path.name}: condition_map={str(condition_map)!r} is for images in a folder or archive")
    if group is not None:
        if images or ending == ".npy":
            raise ValueError(f"{path.name}: group={group!r} is a column of a table or an array of an .npz file")
        conditions = (*conditions, f"{GROUP}={group}")
    if images and options.get("window") is not None:
        raise ValueError(f"{path.name}: window={options['window']!r} is for series: arrays (T,) or (T, C), and tables")
    if form is not None:
        return formats.load(path, form, names, axes, variables, conditions, missing=missing, **options)
    if images:
        return folders.load_images(path, size, condition_map=condition_map, mode=mode, **options)
    if is_table:
        load = frames.load_parquet if ending in frames.ENDINGS else tables.load_table
        return load(path, label_column, missing, conditions, columns, **options)
    if ending == ".npz":
        return arrays.load_npz(path, axes, conditions, missing=missing, **options)
    if is_array:
        return arrays.load_npy(path, axes, missing=missing, **options)
    raise ValueError(f"{path.name}: {'not a known kind of file' if path.exists() else 'no such file or folder'}; {PATHS} are read")


def _format(path: Path) -> tuple[str | None, list[str] | None]:
    """The format of a file, or that of the files of a folder with their names; None for images, arrays and tables."""
    form = formats.format_of(path.name)
    if form is not None or not path.is_dir() or not _holds_images(path):
        return form, None
    return folders.other_files(path) or (None, None)


def _holds_images(path: Path) -> bool:
    known = path.name.lower().endswith(_ENDINGS)
    return path.name.lower().endswith(archives.ENDINGS) or (path.is_dir() and not known)


def item_shape(
    name: str,
    size: int | None = None,
    axes: str | None = None,
    conditions: Sequence[str] = (),
    window: int | None = None,
    variables: Sequence[str] = (),
    mode: str | None = None,
) -> tuple[int, ...] | None:
    """Shape of one item of the user's own files, from as little of them as tells it; vectors as (0,), windows of a table's rows as
    (1, window). None where they are broken, or where `axes` are needed to tell."""
    path = Path(name)
    try:
        form, names = _format(path)
        if form is not None:
            item = formats.item_shape(path, form, names, axes, variables, window is not None)
            return item if window is None else (item[0], window)
        if window is not None:
            table = path.suffix.lower() in tables.ENDINGS
            return (1 if table else arrays.item_shape(path, axes, conditions, series=True)[0], window)
        if path.suffix.lower() in tables.ENDINGS:
            return (0,)
        if path.suffix.lower() in (".npy", ".npz"):
            return arrays.item_shape(path, axes, conditions)
        return folders.item_shape(path, size, mode) if _holds_images(path) else None
    except ValueError:
        return None  # loading it says what is wrong
