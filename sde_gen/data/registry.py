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
from sde_gen.data.emoji import emoji
from sde_gen.data.images import digits, fashion_mnist, mnist
from sde_gen.data.labels import remarks_of_classes
from sde_gen.data.reading import IMAGES, MEMORY, NAMED, NPY, NPZ, SINGLE, TABLE, Reading
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
    "emoji": emoji,
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
PATHS = (
    f"a folder or archive of images, arrays (.npy, .npz), a table ({', '.join(tables.ENDINGS)}), "
    f"or files of {', '.join(dict.fromkeys(each.name for each in formats.FORMATS.values()))}"
)
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
    captions: str | os.PathLike[str] | None = None,
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
            kept out of loss, statistics, likelihood and files instead, `Dataset.valid`. "condition" or "condition=VALUE": so are gaps of
            a table of kinds, and the network is told where they are. None: NaN and empty cells are errors, or values of such a table.
        split: of files without a held-out part of their own, how a tenth is held out: "random"; "stratified", from each class in its
            share; or "tail", the last items of the file, which suits windows of a series. None: "random", or by `group`.
        conditions: what is known of each item and a network can be told, `Dataset.cond`: columns of a table (`tables.load_table`) or
            arrays of an .npz file (`arrays.load_npz`), each "COLUMN", or "NAME=COLUMN" for a condition of another name.
        condition_map: of images, a folder or archive with another image of the same name for each, on the same or a coarser grid, which
            is the condition "map" (`folders.load_images`).
        captions: of images, a table of file and caption, or a folder of text files of the same names, which are the condition "caption"
            (`captions.read_captions`).
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
    variables = (variable,) if isinstance(variable, str) else tuple(variable or ())
    reading = Reading(
        size,
        label_column,
        axes,
        missing,
        split,
        tuple(conditions),
        condition_map,
        captions,
        group,
        window,
        stride,
        variables,
        mode,
        columns,
    )
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit {limit!r}; None or a positive integer is needed")
    if not isinstance(name, str | os.PathLike):
        if root is not None:
            raise ValueError(f"root={os.fspath(root)!r} is for named data sets whose files it holds, and this is a table in memory")
        reading.check("a table in memory", MEMORY)
        return validate(frames.load_frame(name, label_column, missing, conditions, columns, limit=limit, split=split))
    name = os.fspath(name)
    if name not in DATASETS:
        if not is_path(name):
            raise ValueError(f"data {name!r} is unknown; allowed: {', '.join(sorted(DATASETS))}, or a path: {PATHS}")
        return validate(_load_path(Path(name), reading, limit))
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed {seed!r}; an integer >= 0 is needed")
    if reading.asked:
        raise ValueError(f"data {name!r} takes no {', no '.join(reading.asked)}: for the user's own files")
    dataset = DATASETS[name](None if root is None else Path(root), seed)
    if limit is not None and limit < len(dataset.train):
        chosen = subset(len(dataset.train), limit, _LIMIT_SEED)
        labels = None if dataset.train_labels is None else dataset.train_labels[chosen]
        notes = (*dataset.notes, *remarks_of_classes(None if labels is None else labels.numpy(), dataset.classes))
        cond = {of: value[chosen] for of, value in dataset.cond.items()}
        dataset = dataclasses.replace(dataset, train=dataset.train[chosen], train_labels=labels, cond=cond, notes=notes)
    return validate(dataset)


def _load_path(path: Path, reading: Reading, limit: int | None) -> Dataset:
    form, names = _format(path)
    kind = _kind(path, form)
    if kind is None:
        raise ValueError(f"{path.name}: {'not a known kind of file' if path.exists() else 'no such file or folder'}; {PATHS} are read")
    reading.check(path.name, kind)
    options: dict[str, Any] = {"limit": limit, "split": reading.split}
    if kind == IMAGES:
        place, texts = (None if value is None else Path(value) for value in (reading.condition_map, reading.captions))
        return folders.load_images(path, reading.size, condition_map=place, captions=texts, mode=reading.mode, **options)
    options |= {"window": reading.window, "stride": reading.stride}
    conditions = reading.conditions if reading.group is None else (*reading.conditions, f"{GROUP}={reading.group}")
    if form is not None:
        return formats.load(path, form, names, reading.axes, reading.variable, conditions, missing=reading.missing, **options)
    if kind == TABLE:
        load = frames.load_parquet if path.suffix.lower() in frames.ENDINGS else tables.load_table
        return load(path, reading.label_column, reading.missing, conditions, reading.columns, **options)
    if kind == NPZ:
        return arrays.load_npz(path, reading.axes, conditions, missing=reading.missing, **options)
    return arrays.load_npy(path, reading.axes, missing=reading.missing, **options)


def _kind(path: Path, form: str | None) -> str | None:
    """Which kind of files this is, as `Reading.check` takes it; None for what is not read."""
    if form is not None:
        return NAMED if form in formats.NAMED else SINGLE
    if _holds_images(path):
        return IMAGES
    ending = path.suffix.lower()
    return TABLE if ending in tables.ENDINGS else {".npz": NPZ, ".npy": NPY}.get(ending)


def _format(path: Path) -> tuple[str | None, list[str] | None]:
    """The format of a file, or that of the files of a folder with their names; None for images, arrays and tables."""
    form = formats.format_of(path.name)
    if form is not None or not path.is_dir() or not _holds_images(path):
        return form, None
    return folders.other_files(path) or (None, None)


def _holds_images(path: Path) -> bool:
    known = path.name.lower().endswith(_ENDINGS)
    return path.name.lower().endswith(archives.ENDINGS) or (path.is_dir() and not known)


def item_shape(name: str, reading: Reading | None = None) -> tuple[int, ...] | None:
    """Shape of one item of the user's own files, from as little of them as tells it; vectors as (0,), windows of a table's rows as
    (1, window). None where they are broken, or where `axes` are needed to tell."""
    reading = Reading() if reading is None else reading
    path, window = Path(name), reading.window
    try:
        form, names = _format(path)
        kind = _kind(path, form)
        if form is not None:
            item = formats.item_shape(path, form, names, reading.axes, reading.variable, window is not None)
            return item if window is None else (item[0], window)
        if window is not None:
            return (1 if kind == TABLE else arrays.item_shape(path, reading.axes, reading.conditions, series=True)[0], window)
        if kind == TABLE:
            return (0,)
        if kind in (NPY, NPZ):
            return arrays.item_shape(path, reading.axes, reading.conditions)
        return folders.item_shape(path, reading.size, reading.mode) if kind == IMAGES else None
    except ValueError:
        return None  # loading it says what is wrong
