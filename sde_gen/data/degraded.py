"""Files of degraded items, read with their gaps and written again restored, in the form that they came in."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sde_gen.data import arrays, folders, formats, tables
from sde_gen.data.archives import MOST_MEMBER
from sde_gen.data.cell_text import NOT_THERE, lines_of, number_of, separator_of, text_of
from sde_gen.data.decode import LEVELS, decode, describe, read_limited
from sde_gen.data.formats.degraded import read_items
from sde_gen.data.write import DataDescription

ALLOWED = f"a folder of images, an image, .npy, .npz, a table ({', '.join(tables.TEXT)}) or {', '.join(formats.ENDINGS)}"
Write = Callable[[Path, np.ndarray, bool], Path]


@dataclass(frozen=True, eq=False)
class Degraded:
    """What a file of degraded items holds.

    name: of the file.
    y: (N, *measured shape), in the data's units, float64; NaN is a gap, which nothing is known of.
    labels: the label of each item as the file says it, None for one without; or None where the file has no labels.
    cond: what else a file of arrays by name (NetCDF, HDF5, ...) says of the items, of what was asked for, (N, *) by name.
    """

    name: str
    y: Tensor
    labels: tuple[str | None, ...] | None
    _write: Write
    cond: Mapping[str, np.ndarray] = field(default_factory=dict)

    def write(self, place: Path, values: Tensor | np.ndarray, whole: bool = True) -> Path:
        """Write items (N, *data shape), in the data's units, beside one another in the file's own form: at `place` with the file's
        ending, or as a folder. whole: as numbers that the data can hold, rounded and clipped; without it (means, spreads) as they are,
        where the form has room for fractions. Gives the path."""
        x = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
        place.parent.mkdir(parents=True, exist_ok=True)
        return self._write(place, x, whole)


def read_degraded(path: Path, about: DataDescription, measured: Sequence[int], conditions: Sequence[str] = ()) -> Degraded:
    """Degraded items of the data that `about` describes, each a measurement of shape `measured`.

    conditions: "VARIABLE" or "NAME=VARIABLE" that are read beside the items where a file of arrays by name has them.

    A table has the training table's columns, by their names where it had a header, in any order and beside others; else in their order,
    with or without a header. Empty cells, NaN and NA are gaps. Arrays are (N, *measured), the channels last where they fit so alone,
    without a channel of one; NaN are gaps. Images have the mode that the training images had, so that their values are in the same levels.

    Raises:
        ValueError: no such file or kind of file, an item of another shape, a cell that is neither number nor gap; one line.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; {ALLOWED} is needed")
    ending = path.suffix.lower()
    if about.codec is not None and ending in tables.ENDINGS:
        raise ValueError(f"{path.name}: {about.name} is a table of kinds (words, counts, gaps), which gappy_rows.read_gappy reads")
    if ending in tables.TEXT and path.is_file():
        return _table(path, about, tuple(measured))
    if ending in (".npy", ".npz") and path.is_file():
        return _array(path, about, tuple(measured))
    form, names = _other_format(path)
    if form is not None:
        y, of_items, cond, write = read_items(path, form, names, about, tuple(measured), conditions)
        labels = None if of_items is None else tuple(map(str, of_items.tolist()))
        return Degraded(path.name, torch.from_numpy(y), labels, write, cond)
    if path.is_dir() or folders.is_image(path.name):
        return _images(path, about, tuple(measured))
    raise ValueError(f"{path.name}: not a known kind of file; {ALLOWED} is needed")


def _other_format(path: Path) -> tuple[str | None, list[str] | None]:
    """The format of a file, or of the files of a folder with their names, which is one of `formats.FORMATS`; an image is none."""
    if path.is_dir() and formats.format_of(path.name) is None:
        return folders.other_files(path) or (None, None)
    if path.is_file() and folders.is_image(path.name):
        with contextlib.suppress(ValueError):
            describe(path.read_bytes(), path.name)
            return None, None
    return formats.format_of(path.name), None


# ---------------------------------------------------------------- tables


def _table(path: Path, about: DataDescription, measured: tuple[int, ...]) -> Degraded:
    if len(about.shape) != 1 or measured != about.shape:
        shapes = f"{'x'.join(map(str, about.shape))}, measured as {'x'.join(map(str, measured))}"
        raise ValueError(f"{path.name}: a table holds rows of {shapes}? Tables are for vectors with a mask or gaps; save others as .npy")
    lines = lines_of(path)
    if not lines:
        raise ValueError(f"{path.name}: empty; a table of numbers is needed")
    first = lines[0][1]
    places, label = _places(path, about, first)
    header = lines.pop(0)[1] if about.columns is not None or all(_cell(first[place]) is None for place in places) else None
    width = len(first)
    values, labels = np.empty((len(lines), len(places))), []
    for row, (number, cells) in enumerate(lines):
        if len(cells) != width:
            raise ValueError(f"{path.name}: line {number} has {len(cells)} cells, the first has {width}; equal lengths are needed")
        for column, place in enumerate(places):
            value = _cell(cells[place])
            if value is None:
                name = str(place) if header is None else header[place]
                raise ValueError(
                    f"{path.name}: line {number}, column {name!r} holds {cells[place][:40]!r}; a finite number or a gap is needed"
                )
            values[row, column] = value
        labels.append(None if label is None or math.isnan(_cell(cells[label]) or 0.0) else cells[label])
    if not len(lines):
        raise ValueError(f"{path.name}: a header but no rows")

    def write(place: Path, x: np.ndarray, whole: bool) -> Path:
        finished = about.finish(x, "csv")[0] if whole else x
        columns = [text_of(finished[:, k], whole and about.whole[k]) for k in range(len(places))]
        file = place.with_name(place.name + path.suffix)
        with file.open("w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text, delimiter=separator_of(path), lineterminator="\n")
            if header is not None:
                writer.writerow(header)
            for row, (_, cells) in enumerate(lines):
                filled = list(cells)
                for column, at in enumerate(places):
                    # What was given and is left as it was keeps its own digits.
                    if values[row, column] != x[row, column]:
                        filled[at] = columns[column][row]
                writer.writerow(filled)
        return file

    return Degraded(path.name, torch.from_numpy(values), None if label is None else tuple(labels), write)


def _places(path: Path, about: DataDescription, first: list[str]) -> tuple[list[int], int | None]:
    """Where in a line the data's columns stand, and the label's."""
    name, number = about.label_column or (None, None)
    if about.columns is None:
        wide = len(about.whole)
        if len(first) not in (wide, wide + (number is not None)):
            raise ValueError(f"{path.name}: {len(first)} columns; the {wide} of {about.name} are needed, in their order")
        labelled = number is not None and len(first) == wide + 1
        return [k for k in range(len(first)) if not labelled or k != number], number if labelled else None
    missing = [column for column in about.columns if first.count(column) != 1]
    if missing:
        raise ValueError(f"{path.name}: its header lacks column {', '.join(missing[:8])} of {about.name}, or has it twice")
    return [first.index(column) for column in about.columns], first.index(name) if name in first else None


def _cell(cell: str) -> float | None:
    """The number of a cell, NaN for a gap, None for what is neither."""
    if cell.lower() in NOT_THERE:
        return math.nan
    value = number_of(cell)
    return value if value is not None and math.isfinite(value) else None


# ---------------------------------------------------------------- arrays


def _array(path: Path, about: DataDescription, measured: tuple[int, ...]) -> Degraded:
    key, array = arrays.open_items(path)
    if not array.ndim or not len(array):
        raise ValueError(f"{path.name}: holds no items; an array (N, *) is needed")
    found = array.shape[1:]
    ways = {
        "as it is": (measured, lambda x: x, lambda x: x),
        "without a channel": (
            measured[1:] if measured[0] == 1 else None,
            lambda x: x[:, None],
            lambda x: x[:, 0] if x.shape[1] == 1 else x,
        ),
        "channels last": ((*measured[1:], measured[0]), lambda x: np.moveaxis(x, -1, 1), lambda x: np.moveaxis(x, 1, -1)),
    }
    way = next((way for way in ways.values() if way[0] == found), None)
    if way is None:
        raise ValueError(
            f"{path.name}: items of shape {found}; {measured} is needed, as the operator measures {about.name} (channels may be last)"
        )
    y = way[1](np.array(array, dtype=np.float64))
    bad = int(np.isinf(y).sum())
    if bad:
        raise ValueError(f"{path.name}: holds {bad} infinite value(s); finite numbers, or NaN for gaps, are needed")

    def write(place: Path, x: np.ndarray, whole: bool) -> Path:
        if whole:
            finished = about.finish(x)[0]
            # What was given and is left as it was keeps its own digits.
            x = np.where(y == x, x, finished) if y.shape == x.shape else finished
        kind = array.dtype if array.dtype.kind == "f" or whole else np.dtype(np.float64)  # fractions of levels
        values = np.ascontiguousarray(way[2](x)).astype(kind)
        file = place.with_name(place.name + path.suffix)
        with file.open("wb") as out:
            if key is None:
                np.save(out, values)
            else:
                named: dict[str, Any] = {key: values}
                np.savez(out, **named)
        return file

    return Degraded(path.name, torch.from_numpy(np.ascontiguousarray(y)), None, write)


# ---------------------------------------------------------------- images


def _images(path: Path, about: DataDescription, measured: tuple[int, ...]) -> Degraded:
    about.check("png")
    folder = path if path.is_dir() else path.parent
    names = sorted(folders.image_names(path)) if path.is_dir() else [path.name]
    if not names:
        raise ValueError(f"{path.name}: no images; files such as .png are needed")
    images = []
    for name in names:
        with (folder / name).open("rb") as file:
            values, mode = decode(read_limited(file, name, MOST_MEMBER), name)
        if values.shape != measured:
            shown = "x".join(map(str, values.shape))
            raise ValueError(
                f"{name}: an image of shape {shown}; {'x'.join(map(str, measured))} is needed, as the operator measures {about.name}"
            )
        images.append(about.of_picture(values.astype(np.float64), LEVELS[mode]))
    labels = tuple(Path(name).parts[0] if len(Path(name).parts) > 1 else None for name in names)

    def write(place: Path, x: np.ndarray, whole: bool) -> Path:
        for name, picture in zip(names, about.finish(x, "png")[0], strict=True):
            file = (place / name).with_suffix(".png")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture[0] if len(picture) == 1 else np.moveaxis(picture, 0, -1)).save(file)
        return place

    return Degraded(path.name, torch.from_numpy(np.stack(images)), labels if any(labels) else None, write)
